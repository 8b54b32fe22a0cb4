"""Rendering shared by all pictures of a frame: points and boxes from above, boxes in the camera images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from torch import Tensor

from cmt_aqr.constants import CAMERAS
from cmt_aqr.files import writing
from cmt_aqr.geometry import box_corners, project_to_images
from cmt_aqr.runs.console import console
from cmt_aqr.structures import Frame

_ARRANGEMENT = ("FRONT_LEFT", "FRONT", "FRONT_RIGHT", "BACK_LEFT", "BACK", "BACK_RIGHT")
VIEWS = tuple(CAMERAS.index(f"CAM_{name}") for name in _ARRANGEMENT)
"""Camera indices in nuScenes' arrangement, two rows of three."""

SOLID_STYLE: dict[str, Any] = {"colors": "#12d46a", "linestyles": "solid", "linewidths": 1.8}
DASHED_STYLE: dict[str, Any] = {"colors": "#ffc400", "linestyles": (0, (3.5, 1.2)), "linewidths": 1.2}

StyledBoxes = Sequence[tuple[Tensor, dict[str, Any]]]
"""Boxes (box, 9), LiDAR frame, with the style of their lines."""

_EDGES = np.array(((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)))
"""Edges of a box, as pairs of :func:`~cmt_aqr.geometry.box_corners`."""

_NEAREST = 0.1
"""Metres; boxes are shown if all their corners are at least that far in front of the camera, as in the devkit."""


def render_from_above(
    axis: Axes, points: Tensor, styled_boxes: StyledBoxes, point_range: Sequence[float], dot: float = 0.7
) -> None:
    """Render points (point, >= 2), boxes with headings, and the car, within x0, y0, z0, x1, y1, z1 in metres."""
    x0, y0, _, x1, y1, _ = point_range
    axis.scatter(points[:, 0], points[:, 1], s=dot, c="#3a3a3a", linewidths=0, alpha=0.7, zorder=2)
    for boxes, style in styled_boxes:
        corners = box_corners(boxes)[:, :4, :2]
        front = corners[:, :2].mean(dim=1)
        heading = torch.stack((boxes[:, :2], front), dim=1).numpy()
        closed = corners[:, [0, 1, 2, 3, 0]].numpy()
        axis.add_collection(LineCollection(list(closed), zorder=4, path_effects=_halo(style), **style))
        axis.add_collection(LineCollection(list(heading), colors=style["colors"], linewidths=1.2, zorder=4))
    size = (x1 - x0) / 45
    ego = Polygon(
        ((0, 1.2 * size), (-0.7 * size, -0.8 * size), (0, -0.4 * size), (0.7 * size, -0.8 * size)),
        facecolor="black",
        edgecolor="white",
        zorder=5,
    )
    axis.add_patch(ego)
    axis.set(xlim=(x0, x1), ylim=(y0, y1), aspect="equal", xlabel="x, to the right (m)")
    axis.tick_params(labelsize=9)


def rgb(images: Tensor) -> NDArray[np.uint8]:
    """Convert images (view, 3, row, column), BGR, to (view, row, column, 3), RGB."""
    return images.permute(0, 2, 3, 1).flip(-1).numpy()


def render_cameras(
    axes: Iterable[Axes],
    images: NDArray[np.uint8],
    styled_boxes: StyledBoxes,
    lidar2img: Tensor,
    size: tuple[int, int],
    extent: tuple[float, float, float, float] | None = None,
) -> None:
    """Render images (view, row, column, 3), RGB, with boxes on six axes, titled with the cameras' names.

    lidar2img (view, 4, 4) and ``size``, height and width, refer to pixels of the axes; ``extent`` is the left,
    right, bottom and top edge of the images in these.
    """
    for axis, view in zip(axes, VIEWS, strict=True):
        axis.imshow(images[view], extent=extent, interpolation="antialiased")
        for boxes, style in styled_boxes:
            lines = box_lines(boxes, lidar2img[view], size)
            axis.add_collection(LineCollection(list(lines), zorder=4, path_effects=_halo(style), **style))
        axis.set(xlim=(0, size[1]), ylim=(size[0], 0), xticks=[], yticks=[], aspect="equal")
        axis.set_title(CAMERAS[view].removeprefix("CAM_").replace("_", " ").lower(), fontsize=9, pad=2)


def box_lines(boxes: Tensor, lidar2img: Tensor, image_size: tuple[int, int]) -> NDArray[np.float32]:
    """Edges (line, 2, 2) in pixels of the boxes (box, 9) with at least one corner in a camera's image.

    As in the devkit, boxes with a corner behind the camera are left out.
    """
    corners = box_corners(boxes).reshape(1, -1, 3)
    pixels, depth, seen = project_to_images(corners, lidar2img[None, None], image_size)
    kept = (depth.view(-1, 8) > _NEAREST).all(dim=1) & seen.view(-1, 8).any(dim=1)
    return pixels.view(-1, 8, 2)[kept][:, _EDGES].reshape(-1, 2, 2).numpy()


def _halo(style: dict[str, Any]) -> list[withStroke]:
    """A dark outline, so that a line is visible on every background."""
    return [withStroke(linewidth=style["linewidths"] + 1.1, foreground="#202020", alpha=0.6)]


def render_frame(
    above: Axes,
    cameras: Sequence[Axes],
    frame: Frame,
    styled_boxes: StyledBoxes,
    point_range: Sequence[float],
    dot: float = 0.7,
    boxes_in_cameras: bool = True,
) -> None:
    """Render a frame from above and, if it has images, in its six cameras; points that are not finite are skipped.

    Args:
        above: axes of the view from above.
        cameras: axes of the six images, in nuScenes' arrangement; switched off without images.
        frame: with images as they are to be shown.
        styled_boxes: boxes in the LiDAR frame, and the look of their lines.
        point_range: x0, y0, z0, x1, y1, z1 in metres, the part that is shown from above.
        dot: size of a point.
        boxes_in_cameras: whether the boxes are shown in the images, too.
    """
    points = frame.points[torch.isfinite(frame.points).all(dim=1)]
    render_from_above(above, points, styled_boxes, point_range, dot)
    if frame.images is None:
        for axis in cameras:
            axis.set_axis_off()
    else:
        height, width = frame.images.shape[-2:]
        projected = styled_boxes if boxes_in_cameras else ()
        render_cameras(cameras, rgb(frame.images), projected, frame.lidar2img.float(), (height, width))


def box_handles(solid: str, dashed: str) -> list[Line2D]:
    """Legend entries of boxes in both styles, with these labels."""
    return [
        Line2D([], [], color=style["colors"], linewidth=2.5, linestyle=style["linestyles"], label=label)
        for style, label in ((SOLID_STYLE, solid), (DASHED_STYLE, dashed))
    ]


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a picture into the folder ``out=`` of a command, which is created if necessary."""
    with writing("out", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=dpi)


def print_written(paths: Sequence[Path]) -> None:
    """Print the paths of pictures."""
    console().print("\n".join(["Wrote", *(f"  {path}" for path in paths)]), soft_wrap=True, highlight=False)
