"""Queries stand in the cell where the features of the same place are."""

import math

import numpy as np
import pytest
import torch

from cmt_aqr.aqr import Renderer, place_on_bev, place_on_images
from cmt_aqr.geometry import BEVGrid
from cmt_aqr.ops.windows import window_cells
from tests.helpers.aqr_scenes import GOLDEN_GRID, GRID, IMAGE_MAP, IMAGE_SIZE, points, rig
from tests.helpers.shared_data import REFERENCE, needs_reference


@pytest.mark.parametrize("grid", [GOLDEN_GRID, GRID])
def test_bev_cell_is_that_of_the_voxels_and_not_of_the_declared_range(grid: BEVGrid) -> None:
    x0, y0, _, x1, y1, _ = grid.point_range
    unit = torch.rand(1, 500, 3, generator=torch.Generator().manual_seed(0))
    xy = unit[0, :, :2] * torch.tensor((x1 - x0, y1 - y0)) + torch.tensor((x0, y0))
    placement = place_on_bev(torch.cat((xy, torch.zeros(500, 1)), -1)[None], grid)
    rows, columns = grid.bev_shape
    for (x, y), cell, inside in zip(xy.tolist(), placement.cell[0].tolist(), placement.inside[0], strict=True):
        column = math.floor((x - x0) / (grid.voxel_size[0] * grid.stride))
        row = math.floor((y - y0) / (grid.voxel_size[1] * grid.stride))
        assert bool(inside) == (column < columns and row < rows)
        if inside:
            assert cell == [column, row]


@pytest.mark.parametrize("method", ["gaussian", "bilinear", "direct", "distance_weighted"])
def test_map_of_one_query_peaks_in_its_own_cell_over_the_whole_map(method: str) -> None:
    """An object's features and the map of a query on it peak in the same cell."""
    rows, columns = GOLDEN_GRID.bev_shape
    random = torch.Generator().manual_seed(1)
    cells = torch.rand(60, 2, generator=random) * torch.tensor((columns, rows))
    cells = torch.cat((cells, torch.tensor([[0.0, 0.0], [127.99, 127.99], [0.01, 127.3], [64.5, 64.5]])))
    placement = place_on_bev(
        torch.cat((GOLDEN_GRID.metres_of(cells), torch.zeros(64, 1)), -1)[:, None], GOLDEN_GRID
    )
    rendered, _ = Renderer(method)(torch.ones(64, 1), placement)
    peak = rendered.flatten(1).argmax(1)
    expected = GOLDEN_GRID.cell_of(GOLDEN_GRID.metres_of(cells)).floor().long()
    assert peak.tolist() == (expected[:, 1] * columns + expected[:, 0]).tolist()


def test_image_cell_is_the_nearest_of_a_view_that_sees_the_point() -> None:
    lidar2img = rig()
    placed = points(1, 200)
    placement = place_on_images(placed, lidar2img, IMAGE_SIZE, IMAGE_MAP)
    seen_by = []
    for query, point in enumerate(placed[0].tolist()):
        for view in range(6):
            u, v, depth, _ = (lidar2img[0, view].double() @ torch.tensor((*point, 1.0)).double()).tolist()
            u, v = u / depth, v / depth
            seen = depth > 0 and 0 <= u < IMAGE_SIZE[1] and 0 <= v < IMAGE_SIZE[0]
            assert bool(placement.inside[0, view, query]) == seen
            if seen:
                nearest = [min(math.floor(u / 8 + 0.5), 9), min(math.floor(v / 8 + 0.5), 5)]
                assert placement.cell[0, view, query].tolist() == nearest
        seen_by.append(int(placement.inside[0, :, query].sum()))
    assert {0, 1, 2} <= set(seen_by)


def test_a_pixel_beyond_the_last_cells_centre_belongs_to_the_last_cell() -> None:
    lidar2img = torch.eye(4)[None, None]
    # (u, v, 1) metres at depth 1 are pixel (u, v), less the millionth by which the division moves the depth:
    # at the border, 80 / (1 + 1e-6) would still be inside, and 80.001 / (1 + 1e-6) is not.
    pixel = torch.tensor([[[79.9, 47.9, 1.0], [80.001, 10.0, 1.0], [-0.1, 10.0, 1.0]]])
    placement = place_on_images(pixel, lidar2img, IMAGE_SIZE, IMAGE_MAP)
    assert placement.inside[0, 0].tolist() == [True, False, False]
    assert placement.cell[0, 0, 0].tolist() == [9, 5]


def test_reference_points_at_infinity_or_behind_have_no_cell_and_break_nothing() -> None:
    far = torch.tensor([[[math.inf, 0.0, 0.0], [math.nan, 0.0, 0.0], [0.0, 0.0, 1e30]]])
    on_bev = place_on_bev(far, GRID)
    on_images = place_on_images(far, rig(), IMAGE_SIZE, IMAGE_MAP)
    assert on_bev.inside.tolist() == [[False, False, True]]
    assert not on_images.inside.any()
    for placement in (on_bev, on_images):
        rows, columns = placement.map_size
        assert (placement.cell >= 0).all()
        assert (placement.cell[..., 0] < columns).all() and (placement.cell[..., 1] < rows).all()


@needs_reference
def test_no_point_around_the_real_rig_is_seen_by_more_views_than_the_generator_reads() -> None:
    """``max_views`` is 2: in nuScenes' arrangement (70 degrees, 110 at the back) no three views overlap."""
    lidar2img = torch.from_numpy(np.load(REFERENCE / "golden_frame.npz")["lidar2img"]).float()[None]
    unit = torch.rand(1, 100_000, 3, generator=torch.Generator().manual_seed(0))
    low, high = torch.tensor((-54.0, -54.0, -5.0)), torch.tensor((54.0, 54.0, 3.0))
    seen = place_on_images(unit * (high - low) + low, lidar2img, (320, 800), (20, 50)).inside.sum(1)
    assert seen.max() == 2


@pytest.mark.parametrize("window", [1, 3, 5, 9])
def test_window_cells_are_cut_at_every_border(window: int) -> None:
    rows, columns, reach = 4, 6, window // 2
    column, row = torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy")
    cell = torch.stack((column, row), -1)
    index, exists = window_cells(cell, (rows, columns), window)
    assert index.min() >= 0 and index.max() < rows * columns
    assert index.shape[-1] == min(window, rows) * min(window, columns)  # nothing that no query can see
    for y in range(rows):
        for x in range(columns):
            expected = {
                r * columns + c
                for r in range(y - reach, y + reach + 1)
                for c in range(x - reach, x + reach + 1)
                if 0 <= r < rows and 0 <= c < columns
            }
            kept = index[y, x][exists[y, x]].tolist()
            assert len(kept) == len(expected) and set(kept) == expected
