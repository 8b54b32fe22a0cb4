"""Rays against cuboids: one caster for the LiDAR's rays and the cameras' pixels.

A sensor is a grid of rays from one point. Each object is tested only in the window of the grid in which it can be
seen: all its cuboids against all rays of the window, by the slab method (Kay and Kajiya, "Ray tracing complex
scenes", SIGGRAPH 1986). A depth buffer keeps the nearest hit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmt_aqr.scenes.shapes import Solids

Array = NDArray[np.float64]
Rays = NDArray[np.float32]

_CORNERS = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_EDGES = np.array([(i, j) for i in range(8) for j in range(i + 1, 8) if (i ^ j).bit_count() == 1])
_NEAR = 0.2  # depth in metres at which boxes are clipped


@dataclass(frozen=True)
class Hits:
    """The first hit of each ray of a grid."""

    distance: Rays  # (row, column) in lengths of the ray's direction; infinite where it hits nothing
    part: NDArray[np.int32]  # (row, column) index into the solids' parts, -1 for none
    face: NDArray[np.int8]  # (row, column) 0 and 1 back and front, 2 and 3 right and left, 4 and 5 bottom and top
    silhouette: NDArray[np.int64]  # (object,) rays that would hit the object if it were alone

    def owners(self, solids: Solids) -> NDArray[np.int32]:
        """Object that each ray hits (row, column), -1 for none."""
        return np.where(self.part >= 0, solids.owner[self.part], np.int32(-1))


def box_corners(centres: Array, headings: Array, sizes: Array) -> Array:
    """Corners (object, 8, 3) of boxes given by centres (object, 3), headings (object,), sizes (object, 3)."""
    local = _CORNERS * sizes[:, None]
    cosine, sine = np.cos(headings)[:, None], np.sin(headings)[:, None]
    x = cosine * local[..., 0] - sine * local[..., 1]
    y = sine * local[..., 0] + cosine * local[..., 1]
    return np.stack((x, y, local[..., 2]), axis=-1) + centres[:, None]


def camera_windows(corners: Array, intrinsic: Array, image_size: tuple[int, int]) -> NDArray[np.int64]:
    """Pixels in which boxes can be seen.

    Args:
        corners: (object, 8, 3) in the camera frame, z forward.
        intrinsic: (3, 3).
        image_size: height and width.

    Returns:
        (object, 4) first row, last row + 1, first column, last column + 1; empty if the box is not in view.
    """
    height, width = image_size
    begin, end = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
    depth0, depth1 = begin[..., 2], end[..., 2]
    crosses = (depth0 > _NEAR) != (depth1 > _NEAR)
    share = np.where(crosses, (_NEAR - depth0) / np.where(crosses, depth1 - depth0, 1), 0)
    clipped = begin + share[..., None] * (end - begin)
    points = np.concatenate((corners, clipped), axis=1)
    valid = np.concatenate((corners[..., 2] > _NEAR, crosses), axis=1)
    depth = np.where(valid, points[..., 2], 1)
    u = (intrinsic[0, 0] * points[..., 0] / depth) + intrinsic[0, 2]
    v = (intrinsic[1, 1] * points[..., 1] / depth) + intrinsic[1, 2]

    def span(value: Array, size: int) -> tuple[Array, Array]:
        low = np.where(valid, value, np.inf).min(axis=1)
        high = np.where(valid, value, -np.inf).max(axis=1)
        return np.clip(np.floor(low), 0, size), np.clip(np.ceil(high) + 1, 0, size)

    return np.stack((*span(v, height), *span(u, width)), axis=1).astype(np.int64)


def lidar_windows(corners: Array, elevations: Array, columns: int) -> NDArray[np.int64]:
    """Rays in which boxes can be seen: (object, 4) as in :func:`camera_windows`, but columns may be below 0.

    Args:
        corners: (object, 8, 3) in the LiDAR frame.
        elevations: (ring,) radians, increasing.
        columns: rays per ring; column j is at azimuth 2 pi j / columns from the x axis.
    """
    centre = corners.mean(axis=1)
    middle = np.arctan2(centre[:, 1], centre[:, 0])
    azimuth = np.arctan2(corners[..., 1], corners[..., 0]) - middle[:, None]
    azimuth = (azimuth + np.pi) % (2 * np.pi) - np.pi
    step = 2 * np.pi / columns
    first = np.floor((azimuth.min(axis=1) + middle) / step)
    last = np.ceil((azimuth.max(axis=1) + middle) / step) + 1
    spread = np.hypot(*(corners - centre[:, None])[..., :2].transpose(2, 0, 1)).max(axis=1)
    nearest = np.maximum(np.hypot(centre[:, 0], centre[:, 1]) - spread, 0.3)
    farthest = np.hypot(corners[..., 0], corners[..., 1]).max(axis=1)
    bottom, top = corners[..., 2].min(axis=1), corners[..., 2].max(axis=1)
    lowest = np.arctan2(bottom, np.where(bottom < 0, nearest, farthest))
    highest = np.arctan2(top, np.where(top > 0, nearest, farthest))
    rows = np.searchsorted(elevations, lowest), np.searchsorted(elevations, highest, side="right")
    return np.stack((*rows, first, np.minimum(last, first + columns)), axis=1).astype(np.int64)


def cast(
    rays: Rays,
    origin: Array,
    centres: Array,
    headings: Array,
    solids: Solids,
    windows: NDArray[np.int64],
    visible: NDArray[np.bool_],
) -> Hits:
    """The first hit of each ray, ignoring the ground. Rays, origin and boxes are in the global frame.

    Args:
        rays: (3, row, column) directions.
        origin: (3,) of all rays.
        centres: (object, 3) of the boxes.
        headings: (object,) radians.
        solids: the objects' cuboids.
        windows: (object, 4) rays to test, see :func:`camera_windows`.
        visible: (object,) False for objects to ignore.
    """
    shape = rays.shape[1:]
    hits = Hits(
        distance=np.full(shape, np.inf, np.float32),
        part=np.full(shape, -1, np.int32),
        face=np.zeros(shape, np.int8),
        silhouette=np.zeros(len(centres), np.int64),
    )
    cosine, sine = np.cos(headings), np.sin(headings)
    x, y, z = (origin - centres).T
    local = np.stack((cosine * x + sine * y, cosine * y - sine * x, z), axis=1)
    low = (solids.low - local[solids.owner]).astype(np.float32)
    high = (solids.high - local[solids.owner]).astype(np.float32)
    turn = np.stack((cosine, sine), axis=1).astype(np.float32)
    used = visible & (windows[:, 0] < windows[:, 1]) & (windows[:, 2] < windows[:, 3])
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        for index in np.flatnonzero(used):
            top, bottom, left, right = windows[index].tolist()
            parts = slice(solids.start[index], solids.start[index + 1])
            for begin, end in _wrapped(left, right, shape[1]):
                window = (slice(top, bottom), slice(begin, end))
                hits.silhouette[index] += _render(
                    rays, hits, window, turn[index], low[parts], high[parts], parts.start
                )
    return hits


def _wrapped(begin: int, end: int, width: int) -> list[tuple[int, int]]:
    """A range of columns that may begin below 0, as one or two ranges inside the grid."""
    if begin >= 0:
        return [(begin, end)]
    return [(begin + width, width), (0, end)] if end > 0 else [(begin + width, end + width)]


def _render(
    rays: Rays, hits: Hits, window: tuple[slice, slice], turn: Rays, low: Rays, high: Rays, first_part: int
) -> int:
    """Test a window of rays against the cuboids of one object and update the hits in place where it is nearer.

    ``turn`` is cosine and sine of the object's heading. ``low`` and ``high`` (part, 3) are its cuboids relative to
    the rays' origin, in the object frame. Returns the number of rays that hit it, ignoring nearer objects.
    """
    rays = rays[(slice(None), *window)]
    distance, part, face = hits.distance[window], hits.part[window], hits.face[window]
    direction = np.empty(rays.shape, np.float32)
    direction[0] = turn[0] * rays[0] + turn[1] * rays[1]
    direction[1] = turn[0] * rays[1] - turn[1] * rays[0]
    direction[2] = rays[2]
    inverse = 1 / direction
    # Entry and exit of each slab: (part, axis, row, column).
    at_low = low[:, :, None, None] * inverse
    at_high = high[:, :, None, None] * inverse
    entry = np.minimum(at_low, at_high)
    enters = entry.max(axis=1)
    leaves = np.maximum(at_low, at_high, out=at_high).min(axis=1)
    reached = np.where((enters <= leaves) & (enters > 0), enters, np.float32(np.inf))
    nearest = reached.min(axis=0)
    rows, columns = np.nonzero(nearest < distance)
    if len(rows):
        chosen = reached[:, rows, columns].argmin(axis=0)
        axis = entry[chosen, :, rows, columns].argmax(axis=1)
        distance[rows, columns] = nearest[rows, columns]
        part[rows, columns] = first_part + chosen
        face[rows, columns] = 2 * axis + (direction[axis, rows, columns] < 0)
    return int(np.count_nonzero(np.isfinite(nearest)))
