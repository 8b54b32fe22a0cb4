"""The image branch: sizes, batch norm, checkpointing."""

import pytest
import torch
from torch.nn import functional

from cmt_aqr.model.image import ImageBranch, ImageNeck


def running_means(branch: ImageBranch) -> torch.Tensor:
    return torch.cat([b for n, b in branch.backbone.named_buffers() if n.endswith("running_mean")])


@pytest.mark.parametrize(("height", "width"), [(64, 96), (48, 80), (56, 104)])
def test_shapes_also_of_sizes_that_32_does_not_divide(height: int, width: int) -> None:
    branch = ImageBranch("resnet18", out_channels=32).eval()
    with torch.no_grad():
        features = branch(torch.randn(2, 3, 3, height, width))
    assert branch.stride == 16
    assert features.shape == (2, 3, 32, -(-height // 16), -(-width // 16))


def test_views_and_samples_do_not_mix() -> None:
    branch = ImageBranch("resnet18", out_channels=16).eval()
    images = torch.randn(2, 3, 3, 64, 64)
    with torch.no_grad():
        together = branch(images)
        alone = branch(images[1:, 2:])
    torch.testing.assert_close(together[1, 2], alone[0, 0], rtol=1e-4, atol=1e-5)


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
def test_batch_norms_learn_statistics_only_when_asked(norm_eval: bool) -> None:
    branch = ImageBranch("resnet18", out_channels=16, norm_eval=norm_eval).train()
    before = running_means(branch).clone()
    branch(torch.randn(1, 2, 3, 64, 64) + 3).sum().backward()
    assert torch.equal(running_means(branch), before) == norm_eval
    assert branch.backbone.bn1.weight.grad is not None, "scale and shift are trained either way"
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


def test_checkpointing_with_training_batch_norms_is_refused() -> None:
    with pytest.raises(ValueError, match="norm_eval=false"):
        ImageBranch("resnet18", norm_eval=False, checkpointing=True)


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="resnet50000"):
        ImageBranch("resnet50000")


def test_bf16_autocast_is_near_float32() -> None:
    torch.manual_seed(0)
    branch = ImageBranch("resnet18", out_channels=16).eval()
    images = torch.randn(1, 2, 3, 64, 64)
    with torch.no_grad():
        expected = branch(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = branch(images)
    assert result.dtype == torch.bfloat16
    assert (result.float() - expected).abs().max() < 0.05 * expected.abs().max()
