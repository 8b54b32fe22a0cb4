"""Pasting objects into a frame: points inside their boxes are removed, their patches are blended into the images.

Boxes are (x, y, z, l, w, h, yaw, ...) in the LiDAR frame, metres; x, y, z is the middle of the box.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cmt_aqr.data.views import paste_rectangles

_CELL = 0.5
"""Metres: size of the cells that preselect pairs of points and boxes."""


def points_inside(
    points: NDArray[np.float32], boxes: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs of points (point, >= 3) and boxes (box, >= 7) with the point strictly inside the box.

    Returns:
        Rows of the points (pair,), ascending, and rows of the boxes (pair,).
    """
    point, box = _near(points, boxes)
    boxes64 = boxes.astype(np.float64)
    cosine, sine, half = np.cos(boxes64[:, 6])[box], np.sin(boxes64[:, 6])[box], boxes64[box, 3:6] / 2
    x, y, z = (points[point, axis] - boxes64[box, axis] for axis in range(3))
    within = (np.abs(x * cosine + y * sine) < half[:, 0]) & (np.abs(y * cosine - x * sine) < half[:, 1])
    within &= np.abs(z) < half[:, 2]
    return point[within], box[within]


def _near(points: NDArray[np.float32], boxes: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of points, ascending, and boxes: in bird's eye view, the point's cell touches the box's hull."""
    if not len(boxes) or not len(points):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    cosine, sine = np.abs(np.cos(boxes[:, 6])), np.abs(np.sin(boxes[:, 6]))
    length, width = boxes[:, 3], boxes[:, 4]
    reach = np.stack((length * cosine + width * sine, length * sine + width * cosine), axis=1) / 2 + 1e-3
    low, high = (np.floor((boxes[:, :2] + side * reach) / _CELL).astype(np.int64) for side in (-1, 1))
    origin = low.min(axis=0) - 1
    columns, rows = (high - origin).max(axis=0) + 2  # with an empty border, for points elsewhere

    # The boxes of each cell, ordered by cell.
    box, number = _count_up((high - low + 1).prod(axis=1))
    height = high[box, 1] - low[box, 1] + 1
    cell = (low[box, 0] - origin[0] + number // height) * rows + low[box, 1] - origin[1] + number % height
    box = box[np.argsort(cell, kind="stable")]
    counts = np.bincount(cell, minlength=columns * rows)
    start = np.cumsum(counts) - counts

    x, y = (
        np.clip(np.floor(points[:, axis] * np.float32(1 / _CELL)) - origin[axis], 0, last).astype(np.int32)
        for axis, last in enumerate((columns - 1, rows - 1))
    )
    cell = x * rows + y
    near = np.flatnonzero(counts[cell])
    row, number = _count_up(counts[cell[near]])
    return near[row], box[start[cell[near[row]]] + number]


def _count_up(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers repeated by their counts, and a counter within each: (2, 1) gives (0, 0, 1), (0, 1, 0)."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)


def without_points_inside(points: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mask (point,) of the points that are not strictly inside a box."""
    mask = np.ones(len(points), dtype=bool)
    mask[points_inside(points, boxes)[0]] = False
    return mask


def paste_patches(
    images: NDArray[np.uint8],
    lidar2img: NDArray[np.float64],
    boxes: NDArray[np.float32],
    patches: Sequence[NDArray[np.uint8] | None],
    blend: float = 0.5,
) -> NDArray[np.uint8]:
    """Paste the patches of boxes (box, >= 7) into the images, far ones first, as CMT's release does.

    A patch goes into every image whose camera has the complete box in front of it. It is resized to the visible
    part of the box's rectangle, and blended: ``floor((1 - blend) image + blend patch)``. The frame's own objects
    are not drawn over it, so that a pasted object shines through a nearer real one.

    Args:
        images: (view, height, width, 3) as stored; copied before they are changed.
        lidar2img: (view, 4, 4) to their pixels.
        boxes: (box, >= 7).
        patches: (height, width, 3) per box, or ``None``.
        blend: weight of the patch.
    """
    _, height, width, _ = images.shape
    rectangles, depths = paste_rectangles(boxes, lidar2img, (height, width))
    has_patch = np.array([patch is not None for patch in patches], dtype=bool)
    views, numbers = np.nonzero((rectangles[..., 0] >= 0) & has_patch)
    order = np.argsort(-depths[views, numbers], kind="stable")
    if len(order):
        images = images.copy()
    # A loop, because each patch has its own size; there are about as many as pasted objects.
    for view, number in zip(views[order].tolist(), numbers[order].tolist(), strict=True):
        x0, y0, x1, y1 = rectangles[view, number].tolist()
        patch = cv2.resize(patches[number], (x1 - x0, y1 - y0))
        below = images[view, y0:y1, x0:x1]
        if blend == 0.5:
            # The mean in uint8, rounded down: common bits, plus half of the others.
            below[:] = (below & patch) + ((below ^ patch) >> 1)
        else:
            below[:] = below * (1 - blend) + patch * blend
    return images
