"""Every step of the official metrics against the devkit's, on difficult made-up frames."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.algo import accumulate

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.ground_truth import GroundTruth
from cmt_aqr.data.rows import LABEL, SCORE, SIZE
from cmt_aqr.evaluation.official import CONFIGURATION, evaluate_boxes, make_all_curves
from cmt_aqr.evaluation.submission import GlobalDetections, write_submission
from tests.helpers.made_evaluation import Tables, devkit_evaluation, made_found, made_truth, named

TOLERANCE = 1e-9


def assert_equal_to(devkit: dict[str, Any], ours: dict[str, float]) -> None:
    """Compare all 67 numbers with the devkit's serialised metrics."""
    expected = named(devkit)
    assert len(expected) == 67
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=TOLERANCE, rel=0, nan_ok=True)


def check(truth: GroundTruth, found: GlobalDetections, folder: Path) -> dict[str, float]:
    """Compare every curve and metric with the devkit's; returns the metrics."""
    write_submission(folder / "results.json", truth.tokens, found, use_camera=True, use_lidar=True)
    devkit = devkit_evaluation(Tables(truth), folder / "results.json", folder)
    config = config_factory(CONFIGURATION)
    for distance, of_distance in make_all_curves(truth, found, config).items():
        for label, ours in zip(CLASSES, of_distance, strict=True):
            theirs = accumulate(devkit.gt_boxes, devkit.pred_boxes, label, config.dist_fcn_callable, distance)
            for name, values in theirs.serialize().items():
                np.testing.assert_allclose(getattr(ours, name), values, rtol=0, atol=TOLERANCE, err_msg=name)
    metrics = evaluate_boxes(truth, found)
    assert_equal_to(devkit.evaluate()[0].serialize(), metrics)
    return metrics


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("step", [0.0, 0.5], ids=["any", "ties"])
def test_random_frames(seed: int, step: float, tmp_path: Path) -> None:
    """On a grid, scores, distances and whole boxes are equal, and distances lie exactly at the thresholds."""
    random = np.random.default_rng(seed)
    truth = made_truth(random, frames=8, boxes=40, step=step, racks=6)
    ours = check(truth, made_found(random, truth, boxes=120, step=step), tmp_path)
    assert 0.05 < ours["mAP"] < 0.9


def test_a_crowd(tmp_path: Path) -> None:
    """nuScenes' maximum of boxes per frame, of three classes in one place, so that objects reject many."""
    random = np.random.default_rng(3)
    truth = made_truth(random, frames=2, boxes=60, step=0.5)
    truth.rows[:, LABEL] %= 3
    truth.rows[:, :2] = truth.ego[truth.frames, :2] + random.integers(0, 8, (len(truth.rows), 2)) / 2
    found = made_found(random, truth, boxes=500, step=0.5)
    found.rows[:, LABEL] %= 3
    found.rows[:, :2] = np.repeat(truth.ego[:, :2], 500, axis=0) + random.integers(0, 8, (1000, 2)) / 2
    check(truth, found, tmp_path)


def test_classes_without_objects_or_detections(tmp_path: Path) -> None:
    """Three classes have no object, three others no detection, two neither."""
    random = np.random.default_rng(4)
    truth = made_truth(random, frames=4, boxes=60)
    truth.rows[:, LABEL] = random.choice([3, 4, 5, 8, 9], len(truth.rows))
    found = made_found(random, truth, boxes=150)
    found.rows[:, LABEL] = np.where(found.rows[:, LABEL] > 7, found.rows[:, LABEL], random.choice([0, 1, 2]))
    ours = check(truth, found, tmp_path)
    assert ours["AP/car"] == ours["AP/bus"] == ours["AP/bicycle"] == 0
    assert ours["ATE/car"] == ours["ATE/bus"] == ours["ATE/bicycle"] == 1
    assert ours["AP/pedestrian"] > 0


def test_recall_below_the_minimum(tmp_path: Path) -> None:
    """If less than a tenth is found, errors are 1."""
    random = np.random.default_rng(5)
    truth = made_truth(random, frames=6, boxes=60)
    ours = check(truth, made_found(random, truth, boxes=2, found=0.5), tmp_path)
    assert ours["ATE/car"] == ours["mAOE"] == 1


def test_objects_without_velocity_and_attribute(tmp_path: Path) -> None:
    """Their velocity and attribute errors are 1; objects without points do not count."""
    random = np.random.default_rng(6)
    truth = made_truth(random, frames=4, boxes=60, unknown=1.0)
    truth.points[::2] = 3
    ours = check(truth, made_found(random, truth, boxes=120), tmp_path)
    assert ours["AVE/car"] == ours["AAE/car"] == 1
    assert ours["AP/car"] > 0


def test_frames_without_boxes_and_scores_of_zero(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    truth = made_truth(random, frames=5, boxes=40)
    found = made_found(random, truth, boxes=100)
    found = GlobalDetections(
        found.frames, np.array((100, 0, 100, 0, 100)), found.rows[[*range(100), *range(200, 400)]]
    )
    found.rows[200:, SCORE] = 0
    kept = truth.frames > 0
    truth = dataclasses.replace(truth, frames=truth.frames[kept], rows=truth.rows[kept], points=truth.points[kept])
    check(truth, found, tmp_path)


def test_racks_remove_cycles(tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    truth = made_truth(random, frames=4, boxes=50, racks=30)
    truth.rows[:, LABEL] = random.choice([6, 7, 8], len(truth.rows))
    found = made_found(random, truth, boxes=100)
    ours = check(truth, found, tmp_path)
    none = dataclasses.replace(truth, rack_frames=truth.rack_frames[:0], racks=truth.racks[:0])
    without = check(none, found, tmp_path)
    assert without["AP/bicycle"] != ours["AP/bicycle"]
    assert without["AP/pedestrian"] == ours["AP/pedestrian"]


def test_a_size_of_zero_is_refused() -> None:
    random = np.random.default_rng(9)
    truth = made_truth(random, frames=1, boxes=40)
    found = made_found(random, truth, boxes=40, found=1.0)
    found.rows[:, SIZE] = 0
    with pytest.raises(DataError, match="not above 0 metres"):
        evaluate_boxes(truth, found)
