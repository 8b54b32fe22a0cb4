"""VoVNet V2-99-eSE against a plain transcription of the published network, run on official weights."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cmt_aqr.model.image import ImageBranch
from cmt_aqr.weights import to_ours
from tests.helpers.shared_data import needs_reference, official_state_dict


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
            seen = [x]
            for layer in range(5):
                seen.append(conv_norm_relu(seen[-1], f"{name}.layers.{layer}.OSA{stage}_{block}_{layer}"))
            y = conv_norm_relu(torch.cat(seen, 1), f"{name}.concat.OSA{stage}_{block}_concat")
            squeezed = y.mean((2, 3), keepdim=True)
            fc = [weights[f"img_backbone.{name}.ese.fc.{part}"] for part in ("weight", "bias")]
            y = y * functional.relu6(functional.conv2d(squeezed, *fc) + 3) / 6
            x = y + x if block > 1 else y
        outputs.append(x)
    return outputs[-2:]


NORM = ("running_mean", "running_var", "weight", "bias")


@needs_reference
@pytest.mark.parametrize("size", [(64, 96), (56, 72)])
def test_equals_the_published_network(size: tuple[int, int]) -> None:
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


def test_checkpointing_runs_and_pretrained_is_refused() -> None:
    branch = ImageBranch("vovnet99_ese", checkpointing=True).train()
    branch(torch.randn(1, 1, 3, 32, 32)).sum().backward()
    assert branch.backbone.stem_0.conv.weight.grad is not None
    with pytest.raises(ValueError, match="no pretrained weights"):
        ImageBranch("vovnet99_ese", pretrained=True)
