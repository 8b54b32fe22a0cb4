"""Matching against a loop over all detections and objects."""

import numpy as np
import pytest
from numpy.typing import NDArray
from nuscenes.eval.common.utils import center_distance
from nuscenes.eval.detection.data_classes import DetectionBox

from cmt_aqr.evaluation.matching import centre_distances, greedy_match, near_pairs


def test_distances_are_the_devkits_to_the_bit() -> None:
    """Otherwise ties, and distances at a threshold, could be decided differently."""
    first, second = np.random.default_rng(0).normal(0, 3, (2, 2000, 3))
    boxes = [
        (DetectionBox(translation=tuple(a)), DetectionBox(translation=tuple(b)))
        for a, b in zip(first, second, strict=True)
    ]
    expected = [center_distance(true, found) for found, true in boxes]
    np.testing.assert_array_equal(centre_distances(first[:, :2], second[:, :2]), expected)


def loop(
    groups: tuple[NDArray[np.int64], NDArray[np.int64]],
    centres: tuple[NDArray[np.float64], NDArray[np.float64]],
    reach: float,
) -> list[int]:
    """One detection after the other takes the nearest free object."""
    free, matches = set(range(len(groups[1]))), []
    for group, centre in zip(groups[0], centres[0], strict=True):
        near = [(np.hypot(*(centres[1][true] - centre)), true) for true in free if groups[1][true] == group]
        distance, true = min(near, default=(np.inf, -1))
        matches.append(true if distance < reach else -1)
        free -= {true} if distance < reach else set()
    return matches


@pytest.mark.parametrize("spread", [2.0, 1000.0])
def test_the_match_is_that_of_the_loop(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmt_aqr.evaluation.matching._CHUNK", 100)
    random = np.random.default_rng(1)
    groups = random.integers(0, 5, 350), random.integers(0, 6, 150)
    centres = random.integers(-4, 4, (350, 2)) * spread, random.integers(-4, 4, (150, 2)) * spread
    found, true = (of.astype(np.float64) + 500 for of in centres)
    pairs = near_pairs(groups[0], found, groups[1], true, reach=4.0)
    for reach in (1.0, 4.0):
        matches = greedy_match(pairs.within(reach), 350, 150).tolist()
        assert matches == loop(groups, (found, true), reach)
        assert max(matches) >= 0


def test_nothing_matches_nothing() -> None:
    for detections, objects in ((0, 3), (3, 0)):
        groups = [np.zeros(count, dtype=np.int64) for count in (detections, objects)]
        centres = [np.zeros((count, 2)) for count in (detections, objects)]
        pairs = near_pairs(groups[0], centres[0], groups[1], centres[1], reach=4.0)
        assert greedy_match(pairs, detections, objects).tolist() == [-1] * detections
