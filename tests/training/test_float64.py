"""A training step in float32 against one in float64."""

import pytest
import torch
from torch import Tensor, nn

from cmt_aqr.ops import batch_norm
from cmt_aqr.structures import Batch
from cmt_aqr.training.denoising import Denoising
from cmt_aqr.training.losses import Criterion
from tests.helpers.composed import network
from tests.model.test_composed import batch

OVERRIDES = (
    "model=cmt_r50",
    "model.grid.sparse_shape=[41,128,128]",
    "model.image_size=[64,160]",
    "model.network.image.backbone=resnet10t",
    "model.network.image.norm_eval=false",
    "model.layers=2",
    "model.queries=50",
    "model.attention_dropout=0",
    "model.dropout=0",
    "aqr=none",
)
BOXES = [[-50.0, -50, -1, 4, 2, 2, 0.3, 1, 0], [-46, -48, -1, 1, 1, 2, 0, 0, 0], [-35, -39, 0, 8, 3, 3, 1, 0, 0]]


def frames() -> Batch:
    """Two frames whose points fill the corner of the range that the small grid covers."""
    random = torch.Generator().manual_seed(1)
    points = torch.rand(8_000, 5, generator=random) * torch.tensor([11.8, 11.8, 6.0, 255.0, 0.5])
    points[:, :3] -= torch.tensor([53.5, 53.5, 4.0])
    return batch().replace(
        boxes=torch.tensor(BOXES),
        labels=torch.tensor([0, 8, 3]),
        box_counts=(2, 1),
        points=points,
        point_counts=(4_000, 4_000),
    )


def step(dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss terms, and gradients by parameter."""
    torch.manual_seed(0)
    model, batch = network(*OVERRIDES).train().to(dtype), frames()
    noise = torch.Generator().manual_seed(3)
    targets = Denoising()(batch, len(model.head.reference_points), tuple(model.head.point_range), generator=noise)
    assert targets is not None and batch.images is not None
    queries = targets.queries.replace(reference_points=targets.queries.reference_points.to(dtype))
    inputs = batch.replace(
        points=batch.points.to(dtype), images=batch.images.to(dtype), lidar2img=batch.lidar2img.to(dtype)
    )
    losses = torch.stack(list(Criterion()(model(inputs, queries), batch, targets).values()))
    losses.sum().backward()
    gradients = {name: value.grad.double() for name, value in model.named_parameters() if value.grad is not None}
    return losses.detach(), gradients


def test_losses_and_gradients() -> None:
    exact_losses, exact = step(torch.float64)
    losses, gradients = step(torch.float32)
    assert losses.tolist() == pytest.approx(exact_losses.tolist(), rel=1e-4)
    trained = [name for name in exact if exact[name].norm() > 1e-9]
    assert any(name.startswith("lidar.encoder.") for name in trained)
    errors = torch.stack([(gradients[name] - exact[name]).norm() / exact[name].norm() for name in trained])
    print(f"relative errors of gradients: median {errors.median():.1e}, maximum {errors.max():.1e}")
    assert errors.median() < 5e-4  # 1.5e-3 with PyTorch's batch norm


@pytest.mark.parametrize("norm_class", [nn.BatchNorm2d, batch_norm.BatchNorm2d], ids=["torch", "ours"])
def test_statistics_of_channels_last_maps(norm_class: type[nn.BatchNorm2d]) -> None:
    """Ours are accurate. Once PyTorch's are as well, this fails for ``torch`` and our class can go."""
    torch.manual_seed(0)
    x = (5 + 2 * torch.randn(2, 64, 180, 180)).to(memory_format=torch.channels_last).requires_grad_()
    norm, exact = norm_class(64, momentum=0.1), nn.BatchNorm2d(64, momentum=0.1).double()
    reference = x.detach().double().requires_grad_()
    y, expected = norm(x), exact(reference)
    weight = torch.randn_like(x)
    (y * weight).sum().backward()
    (expected * weight.double()).sum().backward()
    error = (y - expected).abs().max().item()
    if norm_class is nn.BatchNorm2d:
        assert error > 5e-6
        return
    assert error < 5e-6
    assert x.grad is not None
    assert torch.allclose(x.grad.double(), reference.grad, rtol=1e-5, atol=1e-6)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.allclose(getattr(norm, name).double(), getattr(exact, name).double(), rtol=1e-6), name
    assert norm.weight.grad is not None
    assert torch.allclose(norm.weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1e-3)
