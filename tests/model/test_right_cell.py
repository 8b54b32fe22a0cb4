"""The map of a query on an object peaks where the object's BEV features do, in every configuration with LiDAR.

The configuration's LiDAR branch, with its own grid, strides and paddings but few channels, encodes one object at a
time. Its features minus those of an empty scene show the object's position.
"""

from __future__ import annotations

import functools
from pathlib import Path

import hydra
import pytest
import torch
from torch import Tensor, nn

from cmt_aqr.aqr import Renderer, place_on_bev
from cmt_aqr.geometry import BEVGrid, to_metres, to_unit
from cmt_aqr.model.lidar import LidarBranch
from cmt_aqr.ops.sparse import StridedSparseConv3d, SubmanifoldConv3d
from tests.helpers.composed import CONF, composed

MODELS = sorted(
    path.stem
    for path in Path(CONF, "model").glob("*.yaml")
    if path.stem not in ("base", "lab") and "camera" not in path.stem  # the laboratory has no points
)
METHODS = ("gaussian", "bilinear", "direct", "distance_weighted")


def test_models_are_found() -> None:
    assert {"cmt_r50", "cmt_r50_aligned", "cmt_vov99", "cmt_lidar", "small", "tiny", "tiny_lidar"} <= set(MODELS)


@functools.cache
def narrow_branch(model: str) -> LidarBranch:
    """The configuration's LiDAR branch with two channels per layer, in eval mode."""
    lidar = composed(f"model={model}").model.network.lidar
    widths = ("encoder_channels", "backbone_channels", "neck_channels")
    narrow = {name: [2] * len(lidar.get(name) or (0, 0, 0, 0)) for name in widths}
    return hydra.utils.instantiate(lidar, encoder_output_channels=2, **narrow).eval()


@torch.no_grad()
def pool(branch: LidarBranch, taps: slice) -> None:
    """Set strided kernels to equal weights on ``taps`` of each horizontal axis, and others to their centre.

    A strided kernel's three taps lie at -1, 0 and +1 from twice the output's index. Taps 0 and +1 sum the two
    cells that form an output cell of the grid.
    """
    for module in branch.modules():
        if not isinstance(module, SubmanifoldConv3d | StridedSparseConv3d | nn.Conv2d | nn.ConvTranspose2d):
            continue
        weight = module.weight
        weight.zero_()
        if isinstance(module, StridedSparseConv3d):
            horizontal = taps if weight.shape[1] == 3 else slice(None)
            weight[:, horizontal, horizontal] = 0.5
        elif isinstance(module, SubmanifoldConv3d):
            weight[1, 1, 1] = 0.5
            if weight.shape[3] > 2:  # points: x, y, z, intensity, time; only the intensity
                weight[1, 1, 1, [0, 1, 2, 4]] = 0
        elif isinstance(module, nn.ConvTranspose2d) or module.kernel_size == (1, 1):
            weight.fill_(0.5)
        elif module.stride == (2, 2):
            weight[:, :, taps, taps] = 0.5
        else:
            weight[:, :, 1, 1] = 0.5


def places(grid: BEVGrid, count: int = 40) -> Tensor:
    """Positions (count + 8, 2) in metres: random, at the corners and along the borders of the map."""
    rows, columns = grid.bev_shape
    random = torch.Generator().manual_seed(0)
    # Not within 3 % of a cell's border, because of rounding.
    cells = torch.floor(torch.rand(count, 2, generator=random) * torch.tensor((columns, rows)))
    cells += 0.03 + 0.94 * torch.rand(count, 2, generator=random)
    last_x, last_y = columns - 0.03, rows - 0.03
    middle_x, middle_y = columns / 2 + 0.5, rows / 2 + 0.5
    edges = [(0.03, 0.03), (last_x, 0.03), (0.03, last_y), (last_x, last_y)]
    edges += [(middle_x, 0.5), (middle_x, last_y), (0.4, middle_y), (last_x, middle_y)]
    within = grid.metres_of(torch.cat((cells, torch.tensor(edges))))
    # Cells beyond the declared range hold no points.
    return within[(within < torch.tensor(grid.point_range[3:5])).all(dim=1)]


def activation(branch: LidarBranch, xy: Tensor, size: float) -> Tensor:
    """Change of the features (object, row, column) from an empty scene to one with an object.

    Args:
        branch: in eval mode.
        xy: (object, 2) in metres, LiDAR frame.
        size: side in metres of the square column of 60 points that forms the object.
    """
    random = torch.Generator().manual_seed(1)
    points = torch.rand(len(xy), 60, 5, generator=random)
    points[..., :2] = xy[:, None] + (points[..., :2] - 0.5) * size
    points[..., 2] = points[..., 2] * 2 - 1
    points[..., 3:] = torch.tensor([100.0, 0.0])
    changes = []
    with torch.no_grad():
        empty = branch(points[0, :0], (0,))
        for objects in points.split(8):  # (object, point, feature), one object per frame
            with_object = branch(objects.flatten(0, 1), (60,) * len(objects))
            changes.append((with_object - empty).norm(dim=1))
    return torch.cat(changes)


def peaks(maps: Tensor) -> Tensor:
    """(map, 2) column and row of the highest cell of maps (map, row, column)."""
    highest, columns = maps.flatten(1).argmax(dim=1), maps.shape[-1]
    return torch.stack((highest % columns, highest // columns), dim=-1)


def rendered(grid: BEVGrid, xy: Tensor, method: str) -> Tensor:
    """Maps (object, row, column), each of one query on an object, whose reference point went through [0, 1]."""
    unit = to_unit(torch.cat((xy, torch.zeros(len(xy), 1)), dim=-1), grid.point_range)
    placement = place_on_bev(to_metres(unit, grid.point_range)[:, None], grid)
    return Renderer(method)(torch.full((len(xy), 1), 0.82), placement)[0]


@pytest.mark.parametrize("model", MODELS)
def test_features_and_map_peak_in_the_same_cell(model: str) -> None:
    """Exactly, with kernels that sum the voxels of a cell."""
    branch = narrow_branch(model)
    pool(branch, slice(1, 3))
    grid = branch.grid
    xy = places(grid)
    assert len(xy) >= 30
    features = activation(branch, xy, size=grid.voxel_size[0] * 0.02)
    # The coarser level of SECOND covers two cells per side, the finer one distinguishes them.
    assert (features > 0).flatten(1).sum(1).max() <= 4
    expected = grid.cell_of(xy).floor().long()
    assert torch.equal(peaks(features), expected)
    for method in METHODS:
        assert torch.equal(peaks(rendered(grid, xy, method)), expected), method


@pytest.mark.parametrize("model", MODELS)
def test_symmetric_kernels_shift_features_by_half_a_cell(model: str) -> None:
    """Three equal taps centre a cell on its first voxel, everywhere on the map."""
    branch = narrow_branch(model)
    pool(branch, slice(0, 3))
    grid = branch.grid
    rows, columns = grid.bev_shape
    xy = places(grid)
    cells = grid.cell_of(xy)
    inner = ((cells > 3) & (cells < torch.tensor((columns, rows)) - 3)).all(dim=1)
    with torch.no_grad():  # SECOND's coarser level moves in steps of two cells
        branch.neck.blocks[1][0].weight.zero_()  # type: ignore[index,operator,union-attr]
    features = activation(branch, xy[inner], size=2 * grid.cell_size[0])
    share = features / features.sum(dim=(1, 2), keepdim=True)
    x = (share.sum(dim=1) * (torch.arange(columns) + 0.5)).sum(dim=1)
    y = (share.sum(dim=2) * (torch.arange(rows) + 0.5)).sum(dim=1)
    shift = torch.stack((x, y), dim=-1) - cells[inner]
    assert 0.3 < shift.mean() < 0.5
    assert (shift - shift.mean()).abs().max() < 0.5  # an object has few random points
    assert (peaks(rendered(grid, xy[inner], "gaussian")) - peaks(features)).abs().max() <= 1


def test_cmt_r50_has_no_cells_beyond_48_metres() -> None:
    """1024 cells of 0.1 m in a declared range of 108 m end at 48.4 m."""
    branch = narrow_branch("cmt_r50")
    pool(branch, slice(1, 3))
    beyond = torch.tensor([[48.6, 0.0], [0.0, 50.0], [53.9, 53.9]])
    assert not activation(branch, beyond, size=0.1).any()
    assert not rendered(branch.grid, beyond, "gaussian").any()
    within = torch.tensor([[48.3, 0.04], [0.04, 48.3]])
    assert torch.equal(
        peaks(activation(branch, within, size=0.01)), peaks(rendered(branch.grid, within, "gaussian"))
    )
    # Scaled from the declared range, as in the old AQR, the map would peak 6 cells off.
    scaled = to_unit(torch.tensor([[48.3, 0.04, 0.0]]), branch.grid.point_range)[0, 0] * 128
    assert peaks(activation(branch, within, size=0.01))[0, 0] - scaled.floor() == 6
