"""Objects put into a frame: their points in place of what was there, their patches over the images.

Boxes are (x, y, z, l, w, h, yaw, ...) about their middle, in the LiDAR frame, metres.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cmt_aqr.data.views import paste_rectangles

_CELL = 0.5
"""Metres: cells in which boxes are looked for before points are compared with them one by one."""


def points_inside(
    points: NDArray[np.float32], boxes: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which points (point, >= 3) lie strictly inside which boxes (box, >= 7).

    Returns:
        A pair for each: rows of points, rising, and rows of boxes.
    """
    point, box = _near(points, boxes)
    wide = boxes.astype(np.float64)
    cosine, sine, half = np.cos(wide[:, 6])[box], np.sin(wide[:, 6])[box], wide[box, 3:6] / 2
    x, y, z = (points[point, axis] - wide[box, axis] for axis in range(3))
    within = (np.abs(x * cosine + y * sine) < half[:, 0]) & (np.abs(y * cosine - x * sine) < half[:, 1])
    within &= np.abs(z) < half[:, 2]
    return point[within], box[within]


def _near(points: NDArray[np.float32], boxes: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of points and boxes, seen from above: the point's cell touches the box's hull; points rising."""
    if not len(boxes) or not len(points):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    cosine, sine = np.abs(np.cos(boxes[:, 6])), np.abs(np.sin(boxes[:, 6]))
    length, width = boxes[:, 3], boxes[:, 4]
    reach = np.stack((length * cosine + width * sine, length * sine + width * cosine), axis=1) / 2 + 1e-3
    low, high = (np.floor((boxes[:, :2] + side * reach) / _CELL).astype(np.int64) for side in (-1, 1))
    origin = low.min(axis=0) - 1
    columns, rows = (high - origin).max(axis=0) + 2  # with a border that no box touches, for points elsewhere

    # The boxes of each cell, one cell after the other.
    box, number = _count_up((high - low + 1).prod(axis=1))
    tall = high[box, 1] - low[box, 1] + 1
    cell = (low[box, 0] - origin[0] + number // tall) * rows + low[box, 1] - origin[1] + number % tall
    box = box[np.argsort(cell, kind="stable")]
    there = np.bincount(cell, minlength=columns * rows)
    begin = np.cumsum(there) - there

    x, y = (
        np.clip(np.floor(points[:, axis] * np.float32(1 / _CELL)) - origin[axis], 0, last).astype(np.int32)
        for axis, last in enumerate((columns - 1, rows - 1))
    )
    cell = x * rows + y
    near = np.flatnonzero(there[cell])
    place, number = _count_up(there[cell[near]])
    return near[place], box[begin[cell[near[place]]] + number]


def _count_up(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows repeated by their counts, and a number from 0 within each: (2, 1) gives (0, 0, 1), (0, 1, 0)."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)


def without_points_inside(points: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(point,) whether a point stays: it is not strictly inside a box."""
    stays = np.ones(len(points), dtype=bool)
    stays[points_inside(points, boxes)[0]] = False
    return stays


def paste_patches(
    images: NDArray[np.uint8],
    lidar2img: NDArray[np.float64],
    boxes: NDArray[np.float32],
    patches: Sequence[NDArray[np.uint8] | None],
    blend: float = 0.5,
) -> NDArray[np.uint8]:
    """Paste the patches of boxes (box, >= 7) over the images, far ones first, as CMT's release does.

    A patch goes into every image before whose camera its box stands whole, squeezed into what is visible of the
    box's rectangle, and is mixed with what is there: ``floor((1 - blend) old + blend patch)``. What stands in
    the frame itself is not painted again, so that a pasted object shines through a nearer real one.

    Args:
        images: (view, height, width, 3) as stored; new ones are returned where something is painted.
        lidar2img: (view, 4, 4) to their pixels.
        boxes: (box, >= 7).
        patches: of each box (height, width, 3), or None: there is none, and nothing is painted.
        blend: share of the patch.
    """
    _, height, width, _ = images.shape
    rectangles, depths = paste_rectangles(boxes, lidar2img, (height, width))
    there = np.array([patch is not None for patch in patches], dtype=bool)
    views, numbers = np.nonzero((rectangles[..., 0] >= 0) & there)
    order = np.argsort(-depths[views, numbers], kind="stable")
    if len(order):
        images = images.copy()
    # Each needs its own resize: there are about as many as pasted objects.
    for view, number in zip(views[order].tolist(), numbers[order].tolist(), strict=True):
        x0, y0, x1, y1 = rectangles[view, number].tolist()
        patch = cv2.resize(patches[number], (x1 - x0, y1 - y0))
        below = images[view, y0:y1, x0:x1]
        if blend == 0.5:
            # The mean without carries, rounded down: what both have, and half of what one has.
            below[:] = (below & patch) + ((below ^ patch) >> 1)
        else:
            below[:] = below * (1 - blend) + patch * blend
    return images
