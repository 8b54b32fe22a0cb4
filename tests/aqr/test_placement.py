"""Queries are placed in the cells of the features at the same position."""

import math

import pytest
import torch

from cmt_aqr.aqr import place_on_bev, place_on_images
from cmt_aqr.ops.windows import window_cells
from tests.helpers.aqr_scenes import GRID, IMAGE_MAP, IMAGE_SIZE, rig


def test_a_pixel_beyond_the_last_cells_centre_belongs_to_the_last_cell() -> None:
    lidar2img = torch.eye(4)[None, None]
    # (u, v, 1) metres are pixel (u, v) but for the 1e-6 that is added to the depth: 80 would still be inside.
    pixel = torch.tensor([[[79.9, 47.9, 1.0], [80.001, 10.0, 1.0], [-0.1, 10.0, 1.0]]])
    placement = place_on_images(pixel, lidar2img, IMAGE_SIZE, IMAGE_MAP)
    assert placement.inside[0, 0].tolist() == [True, False, False]
    assert placement.cell[0, 0, 0].tolist() == [9, 5]


def test_points_at_infinity_or_behind_are_on_no_map() -> None:
    far = torch.tensor([[[math.inf, 0.0, 0.0], [math.nan, 0.0, 0.0], [0.0, 0.0, 1e30]]])
    on_bev = place_on_bev(far, GRID)
    on_images = place_on_images(far, rig(), IMAGE_SIZE, IMAGE_MAP)
    assert on_bev.inside.tolist() == [[False, False, True]]
    assert not on_images.inside.any()
    for placement in (on_bev, on_images):
        rows, columns = placement.map_size
        assert (placement.cell >= 0).all()
        assert (placement.cell[..., 0] < columns).all() and (placement.cell[..., 1] < rows).all()


@pytest.mark.parametrize("window", [1, 3, 5, 9])
def test_windows_are_truncated_at_borders(window: int) -> None:
    rows, columns, reach = 4, 6, window // 2
    column, row = torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy")
    cell = torch.stack((column, row), -1)
    index, exists = window_cells(cell, (rows, columns), window)
    assert index.min() >= 0 and index.max() < rows * columns
    assert index.shape[-1] == min(window, rows) * min(window, columns)
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
