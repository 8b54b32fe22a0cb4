import math

import pytest
import torch

from cmt_aqr.geometry import (
    BEVGrid,
    box_corners,
    cell_of_pixel,
    decode_boxes,
    encode_boxes,
    inverse_sigmoid,
    pixel_of_cell,
    points_in_boxes,
    project_to_images,
    to_metres,
    to_unit,
    wrap_angle,
)
from tests.helpers.builders import RANGE

PUBLISHED = BEVGrid(RANGE, (0.1, 0.1, 0.2), (41, 1024, 1024), 8)


def test_encoding_and_decoding() -> None:
    boxes = torch.tensor([[1.0, -2.0, 0.5, 4.5, 1.9, 1.6, 2.5, 3.0, -1.0]])
    codes = encode_boxes(boxes)
    assert codes[0, 4] == 0.5 and codes[0, 2] == pytest.approx(math.log(4.5))  # cz in column 4, log l in column 2
    torch.testing.assert_close(decode_boxes(codes), boxes)


def test_corners_of_a_turned_box() -> None:
    corners = box_corners(torch.tensor([[10.0, 0.0, 1.0, 4.0, 2.0, 2.0, math.pi / 2, 0.0, 0.0]]))[0]
    # Heading along +y: the front left bottom corner lies at x = 10 - 1, y = 2.
    torch.testing.assert_close(corners[0], torch.tensor([9.0, 2.0, 0.0]), atol=1e-5, rtol=0)
    assert corners[:, 2].tolist() == [0.0] * 4 + [2.0] * 4


def test_points_in_turned_boxes() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 1.0, 2.0, math.pi / 4, 0.0, 0.0]])
    points = torch.tensor([[1.3, 1.3, 0.0], [1.3, -1.3, 0.0], [0.0, 0.0, 1.1]])
    assert points_in_boxes(points, boxes)[:, 0].tolist() == [True, False, False]


def test_angles_wrap() -> None:
    torch.testing.assert_close(
        wrap_angle(torch.tensor([3 * math.pi / 2, -7.0])), torch.tensor([-math.pi / 2, -7 + 2 * math.pi])
    )


def test_unit_cube_and_back() -> None:
    points = torch.tensor([[-54.0, 54.0, -1.0]])
    torch.testing.assert_close(to_unit(points, RANGE), torch.tensor([[0.0, 1.0, 0.5]]))
    torch.testing.assert_close(to_metres(to_unit(points, RANGE), RANGE), points)


def test_inverse_sigmoid_stays_finite() -> None:
    value = torch.tensor([0.0, 0.25, 1.0])
    assert inverse_sigmoid(value).isfinite().all()
    assert inverse_sigmoid(value).sigmoid()[1] == pytest.approx(0.25)


def test_cells_are_counted_from_the_corner() -> None:
    # In the published 0.1 m grid 48 m is in cell 127.5 of 128, although it is at 94.4 % of the range.
    cell = PUBLISHED.cell_of(torch.tensor([48.0, 0.0]))
    torch.testing.assert_close(cell, torch.tensor([127.5, 67.5]), atol=1e-4, rtol=0)
    torch.testing.assert_close(PUBLISHED.metres_of(cell), torch.tensor([48.0, 0.0]), atol=1e-4, rtol=0)
    assert PUBLISHED.bev_shape == (128, 128)


def test_cell_centres_are_row_major() -> None:
    centres = BEVGrid(RANGE, (1, 1, 1), (9, 16, 32), 8).unit_cell_centres()
    assert centres.shape == (8, 2)
    torch.testing.assert_close(centres[1], torch.tensor([0.375, 0.25]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 0, 0, -1, 1, 1), (0.1, 0.1, 0.1), (41, 64, 64), 8), "point_range"),
        ((RANGE, (0.1, 0.0, 0.2), (41, 64, 64), 8), "voxel_size"),
        ((RANGE, (0.1, 0.1, 0.2), (41, 60, 64), 8), "multiples"),
    ],
)
def test_impossible_grids_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BEVGrid(*arguments)


def test_projection_and_visibility() -> None:
    # A pinhole looking along +y of the LiDAR frame: u from x, v from -z.
    matrix = torch.tensor([[100.0, 50, 0, 0], [0, 20, -100, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    points = torch.tensor([[[1.0, 10, 0], [0, -10, 0], [8, 10, 0], [0, 0, 0]]])
    pixels, depth, seen = project_to_images(points, matrix[None, None], (40, 100))
    torch.testing.assert_close(pixels[0, 0, 0], torch.tensor([60.0, 20.0]), atol=1e-4, rtol=0)
    assert depth[0, 0].tolist() == [10.0, -10.0, 10.0, 0.0]
    assert seen[0, 0].tolist() == [True, False, False, False]
    assert pixels.isfinite().all()


def test_pixels_and_cells() -> None:
    cells = cell_of_pixel(torch.tensor([32.0, 16.0]), (64, 160), (4, 10))
    torch.testing.assert_close(cells, torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(pixel_of_cell(cells, (64, 160), (4, 10)), torch.tensor([32.0, 16.0]))
