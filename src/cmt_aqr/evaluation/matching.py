"""nuScenes' greedy match of detections with objects, in arrays: all frames and classes at once."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

_CHUNK = 100_000
"""Detections that are paired at once: bounds the memory, and what is computed stays in the processor's cache."""

_SLACK = 1e-3
"""Metres by which the search along x goes too far, against rounding; distances decide afterwards."""


@dataclass(frozen=True)
class Pairs:
    """Detections and objects of one group (frame and class) that lie near each other.

    Sorted by detection, then by distance, then by object: the order in which a detection prefers objects.

    Attributes:
        found: (pair,) int64, numbers of detections.
        true: (pair,) int64, numbers of objects.
        distances: (pair,) float64, metres between the centres in x and y.
    """

    found: NDArray[np.int64]
    true: NDArray[np.int64]
    distances: NDArray[np.float64]

    def within(self, distance: float) -> Self:
        """The pairs that lie less than ``distance`` apart."""
        near = self.distances < distance
        return type(self)(self.found[near], self.true[near], self.distances[near])


def centre_distances(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances (pair,) between points (pair, 2): ``center_distance`` in nuscenes/eval/common/utils.py.

    A product of matrices, as it is rounded as the devkit's norm: a tie or a distance at a threshold then is the
    same to the last bit.
    """
    offsets = first - second
    return np.sqrt(np.matmul(offsets[:, None, :], offsets[:, :, None])[:, 0, 0])


def near_pairs(
    found_groups: NDArray[np.int64],
    found_centres: NDArray[np.float64],
    true_groups: NDArray[np.int64],
    true_centres: NDArray[np.float64],
    reach: float,
) -> Pairs:
    """Pairs of one group whose centres are less than ``reach`` apart.

    The groups are laid side by side along one line by their x, so a binary search finds the few objects that
    each detection can reach.

    Args:
        found_groups: (found,) the group of each detection, from 0.
        found_centres: (found, 2) x and y in metres.
        true_groups: (true,) the group of each object.
        true_centres: (true, 2) x and y in metres.
        reach: metres.
    """
    if not len(found_groups) or not len(true_groups):
        return Pairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    start = min(found_centres[:, 0].min(), true_centres[:, 0].min())
    width = max(found_centres[:, 0].max(), true_centres[:, 0].max()) - start + 2 * (reach + _SLACK)
    true_line = true_groups * width + (true_centres[:, 0] - start)
    along = np.argsort(true_line, kind="stable")
    true_line = true_line[along]
    parts = []
    for begin in range(0, len(found_groups), _CHUNK):
        chunk = slice(begin, begin + _CHUNK)
        line = found_groups[chunk] * width + (found_centres[chunk, 0] - start)
        low = np.searchsorted(true_line, line - reach - _SLACK)
        high = np.searchsorted(true_line, line + reach + _SLACK)
        found = begin + np.repeat(np.arange(len(line)), high - low)
        true = along[ranges(low, high - low)]
        near = np.abs(found_centres[found, 1] - true_centres[true, 1]) < reach
        found, true = found[near], true[near]
        distances = centre_distances(found_centres[found], true_centres[true])
        order = np.lexsort((true, distances, found))
        parts.append(Pairs(found[order], true[order], distances[order]).within(reach))
    return Pairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in Pairs.__annotations__))


def ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``starts[i], starts[i] + 1, ...``, ``counts[i]`` numbers for every i, in one array."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def greedy_match(pairs: Pairs, found: int, true: int) -> NDArray[np.int64]:
    """The object (found,) that each detection gets, -1 for none.

    As ``accumulate`` in nuscenes/eval/detection/algo.py: one detection after the other takes the nearest object
    that is left. The same comes out when all ask at once for the nearest that has not refused them, and an
    object keeps the first in line of those that ask: a few rounds instead of a loop over all.

    Args:
        pairs: near enough to match; detections are numbered in the order in which they choose.
        found: number of detections.
        true: number of objects.
    """
    counts = np.bincount(pairs.found, minlength=found)
    ends = np.cumsum(counts)
    asks_for = ends - counts
    keeps = np.full(true, found)
    asking = np.flatnonzero(counts)
    while len(asking):
        wanted = pairs.true[asks_for[asking]]
        before = keeps[wanted]
        np.minimum.at(keeps, wanted, asking)
        kept = keeps[wanted] == asking
        pushed_out = before[kept]
        refused = np.concatenate((asking[~kept], pushed_out[pushed_out < found]))
        asks_for[refused] += 1
        asking = refused[asks_for[refused] < ends[refused]]
    matches = np.full(found, -1)
    objects = np.flatnonzero(keeps < found)
    matches[keeps[objects]] = objects
    return matches
