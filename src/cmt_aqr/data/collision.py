"""Collisions of boxes in bird's eye view, and the selection of boxes that collide with none."""

import numpy as np
from numpy.typing import NDArray

_CORNERS = np.array(((-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5)), dtype=np.float32)
"""In units of length and width; clockwise."""


def _outlines(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Corners (box, 4, 2) of boxes (box, >= 7) in x and y."""
    local = boxes[:, None, 3:5] * _CORNERS
    cosine, sine = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    along, across = local[..., 0], local[..., 1]
    turned = np.stack((cosine * along - sine * across, sine * along + cosine * across), axis=-1)
    return turned + boxes[:, None, :2]


def _turns_left(a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the path from a through b to c turns strictly left; points (..., 2)."""
    ab, ac = b - a, c - a
    return ac[..., 1] * ab[..., 0] > ab[..., 1] * ac[..., 0]


def _edges_cross(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether an edge of one outline (pair, 4, 2) crosses an edge of the other: (pair,)."""
    a, b = first[:, :, None], np.roll(first, -1, axis=1)[:, :, None]
    c, d = second[:, None], np.roll(second, -1, axis=1)[:, None]
    separated = _turns_left(a, c, d) != _turns_left(b, c, d)
    crossed = separated & (_turns_left(a, b, c) != _turns_left(a, b, d))
    return crossed.any(axis=(1, 2))


def _contains(outer: NDArray[np.float32], inner: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the inner outline (pair, 4, 2) lies strictly within the outer one; both clockwise: (pair,)."""
    a, b = outer[:, :, None], np.roll(outer, -1, axis=1)[:, :, None]
    return _turns_left(b, a, inner[:, None]).all(axis=(1, 2))


def collisions(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which boxes overlap in bird's eye view: (box of the first, box of the second).

    Height and z are ignored. Rectangles overlap if their axis-aligned hulls do, and edges cross or one contains
    the other; touching is no overlap. As in mmdet3d's ``data_augment_utils``, in float32, because that decides
    what touches.

    Args:
        first: (box, >= 7), metres and radians.
        second: (box, >= 7).
    """
    outlines = _outlines(first.astype(np.float32)), _outlines(second.astype(np.float32))
    (low, high), (other_low, other_high) = ((corners.min(axis=1), corners.max(axis=1)) for corners in outlines)
    overlap = np.minimum(high[:, None], other_high) - np.maximum(low[:, None], other_low)
    result = (overlap > 0).all(axis=-1)
    rows, columns = np.nonzero(result)
    one, other = outlines[0][rows], outlines[1][columns]
    result[rows, columns] = _edges_cross(one, other) | _contains(one, other) | _contains(other, one)
    return result


def find_room(
    occupied: NDArray[np.float32], candidates: NDArray[np.float32], groups: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which candidates (candidate, >= 7) collide neither with the occupied boxes nor with each other.

    As in CMT's release, in the order of groups (candidate,), ascending, then of candidates. A candidate is
    rejected if it collides with an occupied box, an accepted candidate of an earlier group, or one of its own
    group that has not been rejected yet; so of two that collide only with each other, the later is accepted.
    """
    blocked = collisions(candidates, occupied).any(axis=1)
    between = collisions(candidates, candidates)
    np.fill_diagonal(between, False)
    accepted = np.zeros(len(candidates), dtype=bool)
    # A loop, because each depends on those before; there are tens of candidates at most.
    for group in np.unique(groups):
        accepted |= groups == group
        for number in np.flatnonzero(groups == group):
            accepted[number] = not (blocked[number] or (between[number] & accepted).any())
    return accepted
