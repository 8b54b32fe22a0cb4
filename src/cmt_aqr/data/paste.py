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
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Points strictly inside boxes.

    Args:
        points: (point, >= 3).
        boxes: (box, >= 7).

    Returns:
        rows (near,) of the points that may be inside one, rising; (near, box) whether each is.
    """
    near = _near(points, boxes)
    wide = boxes.astype(np.float64)
    offset = points[near, None, :3].astype(np.float64) - wide[None, :, :3]
    cosine, sine = np.cos(wide[:, 6]), np.sin(wide[:, 6])
    along = offset[..., 0] * cosine + offset[..., 1] * sine
    across = offset[..., 1] * cosine - offset[..., 0] * sine
    half = wide[:, 3:6] / 2
    within = (np.abs(along) < half[:, 0]) & (np.abs(across) < half[:, 1]) & (np.abs(offset[..., 2]) < half[:, 2])
    return near, within


def _near(points: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rows of points (point, >= 3) in a cell that the hull of a box touches, seen from above."""
    if not len(boxes) or not len(points):
        return np.zeros(0, dtype=np.int64)
    # Half the diagonal reaches every corner, whatever the heading.
    reach = np.hypot(boxes[:, 3], boxes[:, 4])[:, None] / 2
    low = np.floor((boxes[:, :2] - reach) / _CELL).astype(np.int64)
    high = np.floor((boxes[:, :2] + reach) / _CELL).astype(np.int64) + 1
    origin = low.min(axis=0)
    low, high = low - origin, high - origin
    # +1 where a hull begins, -1 where it ends: their running sums count the hulls over a cell.
    cells = np.zeros(high.max(axis=0) + 1, dtype=np.int32)
    for x, y, sign in (
        (low[:, 0], low[:, 1], 1),
        (high[:, 0], high[:, 1], 1),
        (low[:, 0], high[:, 1], -1),
        (high[:, 0], low[:, 1], -1),
    ):
        np.add.at(cells, (x, y), sign)
    covered = cells.cumsum(axis=0).cumsum(axis=1) > 0
    place = np.floor(points[:, :2] * np.float32(1 / _CELL)) - origin.astype(np.float32)
    on_map = (place >= 0).all(axis=1) & (place < covered.shape).all(axis=1)
    rows = np.flatnonzero(on_map)
    x, y = place[rows].astype(np.int64).T
    return rows[covered[x, y]]


def without_points_inside(points: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(point,) whether a point stays: it is not strictly inside a box."""
    stays = np.ones(len(points), dtype=bool)
    near, within = points_inside(points, boxes)
    stays[near[within.any(axis=1)]] = False
    return stays


def paste_patches(
    images: NDArray[np.uint8],
    lidar2img: NDArray[np.float64],
    boxes: NDArray[np.float32],
    patches: Sequence[NDArray[np.uint8] | None],
    blend: float = 0.5,
) -> NDArray[np.uint8]:
    """Paste the patches of boxes over the images, far ones first, as CMT's release does.

    A patch goes into every image before whose camera its box stands whole, squeezed into what is visible of the
    box's rectangle, and is mixed with what is there: ``floor((1 - blend) old + blend patch)``. What stands in
    the frame itself is not painted again, so that a pasted object shines through a nearer real one.

    Args:
        images: (view, height, width, 3) as stored.
        lidar2img: (view, 4, 4) to their pixels.
        boxes: (box, >= 7).
        patches: of each box (height, width, 3), or None: there is none, and nothing is painted.
        blend: share of the patch.

    Returns:
        New images; the given ones where nothing is painted.
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
