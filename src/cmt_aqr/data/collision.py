"""Which boxes stand in each other's way, seen from above, and which of several candidates find room."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CORNERS = np.array(((-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5)), dtype=np.float32)
"""In shares of length and width; clockwise."""


def _outlines(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Corners (box, 4, 2) in x, y of boxes (box, >= 7)."""
    local = boxes[:, None, 3:5] * _CORNERS
    cosine, sine = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    along, across = local[..., 0], local[..., 1]
    turned = np.stack((cosine * along - sine * across, sine * along + cosine * across), axis=-1)
    return turned + boxes[:, None, :2]


def _turns_left(a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the way from a over b to c turns left; points (..., 2); straight on is no turn."""
    ab, ac = b - a, c - a
    return ac[..., 1] * ab[..., 0] > ab[..., 1] * ac[..., 0]


def _edges_cross(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(pair,): whether an edge of one outline (pair, 4, 2) crosses one of the other."""
    a, b = first[:, :, None], np.roll(first, -1, axis=1)[:, :, None]
    c, d = second[:, None], np.roll(second, -1, axis=1)[:, None]
    ends_apart = _turns_left(a, c, d) != _turns_left(b, c, d)
    crossed = ends_apart & (_turns_left(a, b, c) != _turns_left(a, b, d))
    return crossed.any(axis=(1, 2))


def _contains(outer: NDArray[np.float32], inner: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(pair,): whether all corners of one outline (pair, 4, 2) lie strictly within the other; both clockwise."""
    a, b = outer[:, :, None], np.roll(outer, -1, axis=1)[:, :, None]
    return _turns_left(b, a, inner[:, None]).all(axis=(1, 2))


def collisions(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which boxes overlap, seen from above: (box of the first, box of the second).

    Rectangles of length, width and heading, not enlarged; height and z do not count. They overlap where their
    axis-aligned hulls do, and edges cross or one contains the other. Touching is no overlap (mmdet3d,
    ``data_augment_utils``; float32 like there, because that decides what touches).

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
    standing: NDArray[np.float32], candidates: NDArray[np.float32], groups: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which candidates (candidate, >= 7) find room among boxes that stand there, and among each other.

    As in CMT's release: group after group (candidate,), rising, and in it one candidate after the other. A
    candidate is
    turned away if it collides with a box, with one accepted from an earlier group, or with one of its own group
    that is
    not turned away yet; so of two that collide with each other only, the later stays.
    """
    blocked = collisions(candidates, standing).any(axis=1)
    between = collisions(candidates, candidates)
    np.fill_diagonal(between, False)
    accepted = np.zeros(len(candidates), dtype=bool)
    # Tens of candidates at most, and each depends on those before.
    for group in np.unique(groups):
        own = groups == group
        accepted |= own
        for number in np.flatnonzero(own):
            accepted[number] = not (blocked[number] or (between[number] & accepted).any())
    return accepted
