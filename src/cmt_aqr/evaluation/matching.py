"""nuScenes' greedy matching of detections with objects, vectorised over all frames and classes."""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

_CHUNK = 100_000
"""Detections paired per step: bounds the memory, and keeps intermediate arrays in the processor's cache."""

_SLACK = 1e-3
"""Metres added to the search range along x, against rounding; the distances decide afterwards."""


class Pairs(NamedTuple):
    """Detections and objects of the same group (frame and class) that are near each other.

    Sorted by detection, then by distance, then by object: the order in which a detection prefers objects.
    """

    detections: NDArray[np.int64]  # (pair,)
    objects: NDArray[np.int64]  # (pair,)
    distances: NDArray[np.float64]  # (pair,) metres between the centres in x and y

    def within(self, distance: float) -> Self:
        """The pairs less than ``distance`` apart."""
        near = self.distances < distance
        return type(self)(self.detections[near], self.objects[near], self.distances[near])


def centre_distances(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances (pair,) between points (pair, 2): ``center_distance`` in nuscenes/eval/common/utils.py.

    A matrix product is rounded like the devkit's norm, so that ties, and distances at a threshold, are the same to
    the last bit.
    """
    offsets = first - second
    return np.sqrt(np.matmul(offsets[:, None, :], offsets[:, :, None])[:, 0, 0])


def near_pairs(
    groups: NDArray[np.int64],
    centres: NDArray[np.float64],
    object_groups: NDArray[np.int64],
    object_centres: NDArray[np.float64],
    reach: float,
) -> Pairs:
    """Pairs within a group whose centres are less than ``reach`` apart.

    The groups are laid side by side on one line by their x, so that a binary search finds the few objects in reach
    of each detection.

    Args:
        groups: (detection,) the group of each detection, from 0.
        centres: (detection, 2) x and y in metres.
        object_groups: (object,) the group of each object.
        object_centres: (object, 2) x and y in metres.
        reach: metres.
    """
    if not len(groups) or not len(object_groups):
        return Pairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    start = min(centres[:, 0].min(), object_centres[:, 0].min())
    width = max(centres[:, 0].max(), object_centres[:, 0].max()) - start + 2 * (reach + _SLACK)
    object_line = object_groups * width + (object_centres[:, 0] - start)
    along = np.argsort(object_line, kind="stable")
    object_line = object_line[along]
    chunks = []
    for begin in range(0, len(groups), _CHUNK):
        chunk = slice(begin, begin + _CHUNK)
        line = groups[chunk] * width + (centres[chunk, 0] - start)
        low = np.searchsorted(object_line, line - reach - _SLACK)
        high = np.searchsorted(object_line, line + reach + _SLACK)
        detections = begin + np.repeat(np.arange(len(line)), high - low)
        objects = along[ranges(low, high - low)]
        near = np.abs(centres[detections, 1] - object_centres[objects, 1]) < reach
        detections, objects = detections[near], objects[near]
        distances = centre_distances(centres[detections], object_centres[objects])
        order = np.lexsort((objects, distances, detections))
        chunks.append(Pairs(detections[order], objects[order], distances[order]).within(reach))
    return Pairs(*map(np.concatenate, zip(*chunks, strict=True)))


def ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenate ``arange(starts[i], starts[i] + counts[i])`` over i."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def greedy_match(pairs: Pairs, detections: int, objects: int) -> NDArray[np.int64]:
    """The object (detection,) that each detection gets, -1 for none.

    In ``accumulate`` of nuscenes/eval/detection/algo.py, one detection after the other takes the nearest free
    object. Deferred acceptance (Gale and Shapley, 1962) has the same result in a few rounds: each detection
    proposes to the nearest object that has not rejected it, and an object keeps the first in order of its
    proposers.

    Args:
        pairs: near enough to match; detections are numbered in the order in which they choose.
        detections: number of detections.
        objects: number of objects.
    """
    counts = np.bincount(pairs.detections, minlength=detections)
    ends = np.cumsum(counts)
    proposals = ends - counts  # (detection,) the pair that it proposes
    holders = np.full(objects, detections)
    active = np.flatnonzero(counts)
    while len(active):
        targets = pairs.objects[proposals[active]]
        previous = holders[targets]
        np.minimum.at(holders, targets, active)
        accepted = holders[targets] == active
        replaced = previous[accepted]
        rejected = np.concatenate((active[~accepted], replaced[replaced < detections]))
        proposals[rejected] += 1
        active = rejected[proposals[rejected] < ends[rejected]]
    matches = np.full(detections, -1)
    taken = np.flatnonzero(holders < detections)
    matches[holders[taken]] = taken
    return matches
