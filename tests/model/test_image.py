"""The image branch; its VoVNet against a reference implementation with official weights."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cmt_aqr.errors import SettingError
from cmt_aqr.model.image import ImageBranch, ImageNeck
from cmt_aqr.weights import to_ours
from tests.helpers.shared_data import needs_reference, official_state_dict


def running_means(branch: ImageBranch) -> torch.Tensor:
    return torch.cat([b for n, b in branch.backbone.named_buffers() if n.endswith("running_mean")])


@pytest.mark.parametrize(("height", "width"), [(64, 96), (48, 80), (56, 104)])
def test_shapes_also_of_sizes_that_32_does_not_divide(height: int, width: int) -> None:
    branch, images = ImageBranch("resnet18", out_channels=32).eval(), torch.randn(2, 3, 3, height, width)
    with torch.no_grad():
        features = branch(images)
        one_image = branch(images[1:, 2:])
    assert branch.stride == 16
    assert features.shape == (2, 3, 32, -(-height // 16), -(-width // 16))
    torch.testing.assert_close(features[1, 2], one_image[0, 0], rtol=1e-4, atol=1e-5)


def test_neck_against_its_definition() -> None:
    neck = ImageNeck((8, 12), 4)
    fine, coarse = torch.randn(2, 8, 5, 7), torch.randn(2, 12, 3, 4)
    lateral = neck.lateral[1](coarse)
    rows = torch.div(torch.arange(5) * 3, 5, rounding_mode="floor")  # nearest: floor(i * in / out)
    columns = torch.div(torch.arange(7) * 4, 7, rounding_mode="floor")
    merged = neck.lateral[0](fine) + lateral[:, :, rows][:, :, :, columns]
    expected = functional.conv2d(merged, neck.output.weight, neck.output.bias, padding=1)
    torch.testing.assert_close(neck((fine, coarse)), expected)


@pytest.mark.parametrize("norm_eval", [True, False])
def test_norm_eval_freezes_statistics_only(norm_eval: bool) -> None:
    branch = ImageBranch("resnet18", out_channels=16, norm_eval=norm_eval).train()
    before = running_means(branch).clone()
    branch(torch.randn(1, 2, 3, 64, 64) + 3).sum().backward()
    assert torch.equal(running_means(branch), before) == norm_eval
    assert branch.backbone.bn1.weight.grad is not None
    branch.eval().train()
    assert branch.backbone.bn1.training != norm_eval


def test_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    plain = ImageBranch("resnet18", out_channels=16).train()
    saving = ImageBranch("resnet18", out_channels=16, checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(1, 2, 3, 64, 64)
    for branch in (plain, saving):
        branch(images).square().mean().backward()
    for (name, expected), parameter in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=name, rtol=1e-4, atol=1e-6)
    assert saving.backbone.grad_checkpointing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpointing": True, "norm_eval": False}, "checkpointing=true"),
        ({"backbone": "resnet51"}, "backbone=resnet51"),
        ({"backbone": "vovnet99_ese", "pretrained": True}, "backbone=vovnet99_ese"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ImageBranch(**settings)


def reference(images: Tensor, weights: dict[str, Tensor]) -> list[Tensor]:
    """Stages 4 and 5 by the official parameter names (CenterMask, figure 3)."""

    def conv_norm_relu(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = weights[f"img_backbone.{name}/conv.weight"]
        x = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        norm = [weights[f"img_backbone.{name}/norm.{part}"] for part in NORM]
        return torch.relu(functional.batch_norm(x, *norm))

    x = images
    for number, stride in ((1, 2), (2, 1), (3, 2)):
        x = conv_norm_relu(x, f"stem.stem_{number}", stride)
    outputs = []
    for stage, blocks in ((2, 1), (3, 3), (4, 9), (5, 3)):
        if stage > 2:
            x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        for block in range(1, blocks + 1):
            name = f"stage{stage}.OSA{stage}_{block}"
            maps = [x]
            for layer in range(5):
                maps.append(conv_norm_relu(maps[-1], f"{name}.layers.{layer}.OSA{stage}_{block}_{layer}"))
            y = conv_norm_relu(torch.cat(maps, 1), f"{name}.concat.OSA{stage}_{block}_concat")
            squeezed = y.mean((2, 3), keepdim=True)
            fc = [weights[f"img_backbone.{name}.ese.fc.{part}"] for part in ("weight", "bias")]
            y = y * functional.relu6(functional.conv2d(squeezed, *fc) + 3) / 6
            x = y + x if block > 1 else y
        outputs.append(x)
    return outputs[-2:]


NORM = ("running_mean", "running_var", "weight", "bias")


@needs_reference
@pytest.mark.parametrize("size", [(64, 96), (56, 72)])
def test_vovnet_equals_the_published_network(size: tuple[int, int]) -> None:
    weights = official_state_dict("cmt_camera_vov_1600x640")
    branch = ImageBranch("vovnet99_ese").eval()
    own = {name.removeprefix("image."): value for name, value in to_ours(weights).items()}
    branch.load_state_dict({n: own[n] for n in branch.state_dict()})
    assert branch.stride == 16
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        results = branch.backbone(images)
        for result, expected in zip(results, reference(images, weights), strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)
