"""The LiDAR branch: sizes, precision and invalid settings."""

import copy

import pytest
import torch
from torch import nn

from cmt_aqr.geometry.grid import BEVGrid
from cmt_aqr.model.lidar import LidarBranch
from cmt_aqr.ops.folding import speed_up

GRID = BEVGrid((-6.4, -6.4, -5.0, 6.4, 6.4, 3.0), (0.2, 0.2, 0.2), (41, 64, 64), 8)
TINY = {
    "encoder_channels": (8, 16, 16, 32),
    "encoder_blocks": (1, 1, 1, 1),
    "encoder_output_channels": 16,
    "backbone_channels": (16, 24),
    "backbone_layers": (1, 1),
    "neck_channels": (16, 16),
}


def random_points(counts: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(sum(counts), 5, generator=generator) * torch.tensor([12.8, 12.8, 4, 1, 1]) - 6.4


def test_samples_do_not_mix_in_eval_mode() -> None:
    branch = LidarBranch(GRID, **TINY).eval()
    points = random_points((400, 0, 300))
    with torch.no_grad():
        together = branch(points, (400, 0, 300))
        for sample, own in enumerate(points.split((400, 0, 300))):
            torch.testing.assert_close(together[sample], branch(own, (len(own),))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sparse_encoder_stays_in_float32_under_autocast(dtype: torch.dtype) -> None:
    branch = LidarBranch(GRID, **TINY).eval()
    points = random_points((400,))
    encoded = []
    branch.encoder.register_forward_hook(lambda module, inputs, output: encoded.append(output))
    with torch.no_grad():
        expected = branch(points, (400,))
        with torch.autocast("cpu", dtype=dtype):
            result = branch(points, (400,))
    assert encoded[1].dtype == torch.float32 and torch.equal(*encoded)
    torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("counts", [(50,), (0, 0)])
def test_training_on_one_voxel_or_none(counts: tuple[int, ...]) -> None:
    """The blanked LiDAR's one voxel has no variance."""
    branch = LidarBranch(GRID, **TINY).train()
    result = branch(torch.zeros(sum(counts), 5), counts)
    result.sum().backward()
    assert result.isfinite().all()
    assert all(p.grad.isfinite().all() for p in branch.parameters() if p.grad is not None)


def test_norm_settings_reach_every_batch_norm() -> None:
    branch = LidarBranch(GRID, **TINY, norm_eps=1e-4, norm_momentum=0.2)
    norms = [m for m in branch.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 15
    assert {(m.eps, m.momentum) for m in norms} == {(1e-4, 0.2)}


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.ConvTranspose2d(4, 6, 2, 2, bias=False)]
)
def test_batch_norm_in_eval_mode_is_folded(conv: nn.Module) -> None:
    norm = nn.BatchNorm2d(6, eps=1e-3)
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            value.uniform_(0.5, 2)
    layers = nn.Sequential(conv, norm, nn.ReLU()).eval()
    x = torch.randn(2, 4, 8, 8)
    expected, in_training = layers(x), copy.deepcopy(layers).train()(x)
    speed_up(layers)
    assert torch.equal(layers[1](x), x)
    torch.testing.assert_close(layers(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layers.train()(x), in_training, rtol=1e-4, atol=1e-5)


def test_max_voxels_follow_the_mode() -> None:
    branch = LidarBranch(GRID, **TINY, max_voxels=(7, 9))
    points = random_points((400,))
    assert len(branch.train().voxelize(points, (400,)).coords) == 7
    assert len(branch.eval().voxelize(points, (400,)).coords) == 9


def test_three_stages_have_a_stride_of_4() -> None:
    grid = BEVGrid(GRID.point_range, (0.2, 0.2, 0.4), (21, 64, 64), 4)
    branch = LidarBranch(
        grid,
        **(TINY | {"encoder_channels": (8, 8, 16), "encoder_blocks": (1, 1, 1)}),
        encoder_paddings=((1, 1, 1), (0, 1, 1)),
    )
    assert branch.encoder.output_shape[0] == 2
    assert branch(random_points((300,)), (300,)).shape == (1, 32, 16, 16)


@pytest.mark.parametrize(
    ("grid", "changes", "message"),
    [
        ({"sparse_shape": (11, 64, 64)}, {}, "too small for a convolution"),
        ({"stride": 4}, {}, "grid.stride=4"),
        ({}, {"encoder_blocks": (1, 1)}, "encoder_blocks"),
        ({}, {"backbone_layers": (1,)}, "backbone_layers"),
        ({}, {"max_voxels": (5,)}, "max_voxels"),
        ({"sparse_shape": (41, 72, 72)}, {}, "cannot be divided"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(grid: dict, changes: dict, message: str) -> None:
    settings = {name: getattr(GRID, name) for name in ("point_range", "voxel_size", "sparse_shape", "stride")}
    with pytest.raises(ValueError, match=message):
        LidarBranch(BEVGrid(**(settings | grid)), **(TINY | changes))
