"""Maps and boxes are rendered at the right metres and pixels, in the right colours."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from cmt_aqr.aqr import place_on_bev, place_on_images
from cmt_aqr.constants import CAMERAS
from cmt_aqr.geometry import BEVGrid
from cmt_aqr.studies.pictures import (
    MapPair,
    Scene,
    bev_edges,
    bev_picture,
    camera_picture,
    colour_scale,
    image_edges,
)
from cmt_aqr.studies.rendering import VIEWS, box_lines
from tests.helpers.aqr_scenes import GOLDEN_GRID, GRID, IMAGE_MAP, IMAGE_SIZE, rig
from tests.helpers.builders import box


def scene(bev: MapPair | None = None, camera: MapPair | None = None) -> Scene:
    """A scene without points, with grey images and a box in a corner."""
    height, width = IMAGE_SIZE
    return Scene(
        title="a frame",
        grid=GRID,
        points=torch.zeros(0, 5),
        images=np.full((6, height, width, 3), 128, dtype=np.uint8),
        image_extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        image_size=IMAGE_SIZE,
        lidar2img=rig()[0],
        truth=torch.tensor([box(x=-7.0, y=-7.0, size=0.5)]),
        detections=torch.zeros(0, 9),
        min_score=0.3,
        bev=bev,
        camera=camera,
    )


def pair(before: Tensor, clamp: float | None = 2.0) -> MapPair:
    return MapPair(before, before.clamp(max=clamp or np.inf), clamp)


def rendered(figure: Figure) -> NDArray[np.uint8]:
    """The picture (row, column, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def colours(picture: NDArray[np.uint8], axis: Axes, places: list[tuple[float, float]]) -> list[list[int]]:
    """Red, green, blue of a rendered picture at data coordinates of an axis."""
    pixels = axis.transData.transform(places)
    return [picture[len(picture) - 1 - round(y), round(x)].tolist() for x, y in pixels]


def is_red(colour: list[int]) -> bool:
    return colour[0] > colour[2] + 30


def is_blue(colour: list[int]) -> bool:
    return colour[2] > colour[0] + 30


def cells_of(edges: tuple[NDArray[np.float64], NDArray[np.float64]], points: Tensor) -> list[list[int]]:
    """Column and row of points (point, >= 2) between edges."""
    pairs = zip(edges, points.numpy().T, strict=False)
    return np.stack([np.searchsorted(edge, values, side="right") - 1 for edge, values in pairs], axis=-1).tolist()


@pytest.mark.parametrize("grid", [GRID, GOLDEN_GRID])
def test_bev_edges_enclose_the_points_of_each_cell(grid: BEVGrid) -> None:
    x, y = edges = bev_edges(grid)
    assert (len(y) - 1, len(x) - 1) == grid.bev_shape
    points = (torch.rand(1, 500, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1) * x[-1]
    placement = place_on_bev(points, grid)
    assert placement.inside.all()
    assert placement.cell[0].tolist() == cells_of(edges, points[0])


def test_image_edges_enclose_the_pixels_of_each_cell_and_cover_the_image() -> None:
    u, v = edges = image_edges(IMAGE_MAP, IMAGE_SIZE)
    assert (len(v) - 1, len(u) - 1) == IMAGE_MAP
    assert (u[0], u[-1], v[0], v[-1]) == (0, IMAGE_SIZE[1], 0, IMAGE_SIZE[0])
    pixels = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor((80.0, 48.0))
    # With the identity as calibration, (u, v, 1) metres are pixel (u, v).
    points = torch.cat((pixels, torch.ones(500, 1)), dim=-1)[None]
    placement = place_on_images(points, torch.eye(4)[None, None], IMAGE_SIZE, IMAGE_MAP)
    assert placement.cell[0, 0].tolist() == cells_of(edges, pixels)


def test_the_map_of_a_query_is_coloured_at_its_metres() -> None:
    """Cells of 2 m over [-8, 8]; x points right, y forward and up."""
    weights = torch.zeros(8, 8)
    placement = place_on_bev(torch.tensor([[[5.0, 3.0, 0.0]]]), GRID)
    column, row = placement.cell[0, 0].tolist()
    weights[row, column] = 3.0
    figure = bev_picture(scene(bev=pair(weights)))
    picture = rendered(figure)
    for axis in figure.axes[:2]:
        at_query, *elsewhere = colours(picture, axis, [(5.0, 3.0), (-5.0, 3.0), (5.0, -3.0), (3.0, 5.0)])
        assert is_red(at_query) and all(map(is_blue, elsewhere))
        assert (axis.transData.transform((8.0, 8.0)) > axis.transData.transform((-8.0, -8.0))).all()
    before, after = (colours(picture, axis, [(5.0, 3.0)])[0] for axis in figure.axes[:2])
    assert before[1] < after[1]  # 3 is redder than the clamp's 2


def test_the_map_of_a_query_is_coloured_at_its_pixel_in_its_own_view() -> None:
    weights = torch.zeros(6, *IMAGE_MAP)
    view = CAMERAS.index("CAM_BACK_LEFT")
    weights[view, 1, 7] = 3.0  # at pixel (56, 8)
    figure = camera_picture(scene(camera=pair(weights)))
    axes = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in axes] == 2 * [
        CAMERAS[view].removeprefix("CAM_").replace("_", " ").lower() for view in VIEWS
    ]
    picture = rendered(figure)
    for axis in axes:
        at_query, mirrored, below = colours(picture, axis, [(56.0, 8.0), (24.0, 8.0), (56.0, 40.0)])
        assert is_red(at_query) == (axis.get_title() == "back left")
        assert is_blue(mirrored) and is_blue(below)


def test_both_maps_share_colours_that_are_neutral_at_1_and_show_the_clamp() -> None:
    weights = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    weights[0, 0] = 70.0
    maps = pair(weights, clamp=1.5)
    scale = colour_scale(maps)
    assert (scale.vmin, scale.vcenter, scale.vmax) == (0.0, 1.0, 2.25)
    assert colour_scale(pair(weights, clamp=None)).vmax == 70.0
    assert colour_scale(pair(weights.clamp(max=1.0))).vmax == 2.0  # the clamp, although no value reaches it
    figure = bev_picture(scene(bev=maps))
    assert [axis.images[0].norm.vmax for axis in figure.axes[:2]] == [2.25, 2.25]
    titles = [axis.get_title() for axis in figure.axes[:2]]
    assert "max 70," in titles[0] and "clamp at 1.5: max 1.5," in titles[1] and "1.6% of cells" in titles[1]
    assert "1.5 clamp" in [label.get_text() for label in figure.axes[2].get_yticklabels()]


def test_edges_of_boxes_that_a_camera_sees() -> None:
    lidar2img = rig()[0]
    ahead, behind, beside = box(x=5.0), box(x=-5.0), box(x=0.5)
    boxes = torch.tensor([ahead, behind, beside])
    lines = box_lines(boxes, lidar2img[0], IMAGE_SIZE)
    assert lines.shape == (12, 2, 2)  # the second box is behind the camera, the third in part
    # The nearest face of a cube of 2 m is at 4 m, its corners 1 m beside the axis.
    focal = 40 / np.tan(np.radians(40))
    assert lines[..., 0].min() == pytest.approx(40 - focal / 4, abs=1e-3)
    assert lines[..., 1].max() == pytest.approx(24 + focal / 4, abs=1e-3)
    assert len(box_lines(boxes[:0], lidar2img[0], IMAGE_SIZE)) == 0


def test_without_maps_there_are_only_boxes() -> None:
    figure = bev_picture(scene())
    assert len(figure.axes) == 1 and not figure.axes[0].images
    assert len([axis for axis in camera_picture(scene()).axes if axis.get_title()]) == 6
