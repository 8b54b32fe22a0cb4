"""Detections in the global frame, against hand-made cases and the devkit's own boxes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import load_prediction
from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.utils import detection_name_to_rel_attributes
from pyquaternion import Quaternion

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.rows import ATTRIBUTE, ATTRIBUTES, LABEL, ROTATION, SCORE, SIZE, TRANSLATION, VELOCITY
from cmt_aqr.evaluation.submission import GlobalDetections, attributes_of, to_global, write_submission
from cmt_aqr.outputs import Detections
from tests.helpers.ran import from_json


def one(box: list[float], label: int = 0, score: float = 0.5) -> Detections:
    return Detections(torch.tensor([box]), torch.tensor([score]), torch.tensor([label]))


def written(path: Path, rows: list[np.ndarray], tokens: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The results in a file that :func:`write_submission` made of rows per frame."""
    counts = np.array([len(of_frame) for of_frame in rows])
    found = GlobalDetections(np.arange(len(rows)), counts, np.concatenate(rows))
    write_submission(path, tokens, found, use_camera=True, use_lidar=False)
    return from_json(path)["results"]


def entry_of(token: str, row: np.ndarray) -> dict[str, Any]:
    """The entry of a row in nuScenes' format."""
    return {
        "sample_token": token,
        "translation": row[TRANSLATION].tolist(),
        "size": row[SIZE].tolist(),
        "rotation": row[ROTATION].tolist(),
        "velocity": row[VELOCITY].tolist(),
        "detection_name": CLASSES[int(row[LABEL])],
        "detection_score": row[SCORE],
        "attribute_name": ATTRIBUTES[int(row[ATTRIBUTE])],
    }


def test_turned_and_shifted_frame_by_hand(tmp_path: Path) -> None:
    pose = torch.eye(4, dtype=torch.float64)
    # The LiDAR's x axis points to global +y, its y axis to global -x.
    pose[:3, :3] = torch.tensor(((0.0, -1, 0), (1, 0, 0), (0, 0, 1)))
    pose[:3, 3] = torch.tensor((100.0, 200.0, 1.0))
    rows = to_global(one([10, 2, 0.5, 4, 2, 1.5, 0.3, 3, 0], label=3, score=0.25), pose)
    (entry,) = written(tmp_path / "results_nusc.json", [rows], ["t"])["t"]
    np.testing.assert_allclose(entry["translation"], (98, 210, 1.5), atol=1e-6)
    assert (entry["sample_token"], entry["size"], entry["detection_score"]) == ("t", [2, 4, 1.5], 0.25)
    assert Quaternion(entry["rotation"]).yaw_pitch_roll[0] == pytest.approx(math.pi / 2 + 0.3, abs=1e-6)
    np.testing.assert_allclose(entry["velocity"], (0, 3), atol=1e-6)
    assert (entry["detection_name"], entry["attribute_name"]) == ("bus", "vehicle.moving")


def test_tilted_frame_agrees_with_pyquaternion() -> None:
    random = np.random.default_rng(0)
    tilt = Quaternion(axis=(0.1, -0.2, 1.0), radians=2.5)
    pose = torch.from_numpy(tilt.transformation_matrix)
    pose[:3, 3] = torch.from_numpy(random.normal(size=3) * 1000)
    for yaw in random.uniform(-math.pi, math.pi, 10):
        box = [*random.normal(size=3) * 20, 4.0, 2.0, 1.5, yaw, 0.0, 0.0]
        row = to_global(one(box), pose)[0]
        np.testing.assert_allclose(row[:3], tilt.rotate(np.array(box[:3])) + pose[:3, 3].numpy(), atol=1e-4)
        expected = tilt * Quaternion(axis=(0, 0, 1), radians=yaw)
        assert Quaternion.absolute_distance(Quaternion(row[6:10]), expected) < 1e-6


def test_attributes_follow_class_and_speed() -> None:
    labels = np.arange(len(CLASSES))
    still = [ATTRIBUTES[index] for index in attributes_of(labels, np.full((10, 2), 0.1))]
    moving = [ATTRIBUTES[index] for index in attributes_of(labels, np.tile((0.0, -0.3), (10, 1)))]
    unknown = [ATTRIBUTES[index] for index in attributes_of(labels, np.full((10, 2), np.nan))]
    assert unknown == still
    for name, attribute_still, attribute_moving in zip(CLASSES, still, moving, strict=True):
        assert {attribute_still, attribute_moving} <= set(detection_name_to_rel_attributes(name) or [""])
    assert dict(zip(CLASSES, still, strict=True))["bus"] == "vehicle.stopped"
    assert dict(zip(CLASSES, still, strict=True))["truck"] == "vehicle.parked"
    assert dict(zip(CLASSES, moving, strict=True))["bicycle"] == "cycle.with_rider"
    assert set(ATTRIBUTES) <= {"", *ATTRIBUTE_NAMES}


def test_best_500_are_kept() -> None:
    scores = torch.rand(700, generator=torch.Generator().manual_seed(0))
    boxes = torch.ones(700, 9)
    rows = to_global(Detections(boxes, scores, torch.zeros(700, dtype=torch.int64)), torch.eye(4))
    assert len(rows) == 500
    np.testing.assert_allclose(rows[:, 13], scores.sort(descending=True).values[:500].numpy())
    nothing = Detections(boxes[:0], scores[:0], torch.zeros(0, dtype=torch.int64))
    assert to_global(nothing, torch.eye(4)).shape == (0, 15)


def test_the_devkit_reads_the_same_numbers_from_the_file(tmp_path: Path) -> None:
    """One frame is empty, one token contains quotes, numbers are of any magnitude."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(2000, 15)) * 10.0 ** random.integers(-30, 30, (2000, 15))
    rows[random.random(rows.shape) < 0.1] = 0
    rows[:5, 0] = (1e-300, -2.5e120, 5e-324, -0.0, 1 / 3)
    rows[:, LABEL] = random.integers(0, len(CLASSES), len(rows))
    rows[:, ATTRIBUTE] = random.integers(0, len(ATTRIBUTES), len(rows))
    frames = np.split(rows, np.sort(random.integers(0, len(rows), 38)))
    frames.append(rows[:0])
    tokens = [f"{number:x}" for number in range(39)] + ['a "quoted" token of another länge']
    expected = {
        token: [entry_of(token, row) for row in of_frame] for token, of_frame in zip(tokens, frames, strict=True)
    }
    path = tmp_path / "deep" / "results_nusc.json"
    assert written(path, frames, tokens) == expected
    unused = dict.fromkeys(("use_lidar", "use_radar", "use_map", "use_external"), False)
    assert from_json(path)["meta"] == {"use_camera": True, **unused}
    assert list(path.parent.iterdir()) == [path], "no temporary file stays"
    boxes, _ = load_prediction(str(path), 500, DetectionBox)
    assert boxes == EvalBoxes.deserialize(expected, DetectionBox)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_json_cannot_represent_is_refused_and_leaves_no_file(tmp_path: Path, value: float) -> None:
    row = to_global(one([1, 2, 3, 4, 5, 6, 0.7, 0.8, 0.9]), torch.eye(4))
    row[0, 11] = value
    with pytest.raises(ValueError, match="sample t"):
        written(tmp_path / "results.json", [row], ["t"])
    assert not list(tmp_path.iterdir())
