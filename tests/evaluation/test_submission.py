"""Detections in the global frame, against hand-made cases and the devkit's own boxes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES
from nuscenes.eval.detection.utils import detection_name_to_rel_attributes
from pyquaternion import Quaternion

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.errors import DataError
from cmt_aqr.evaluation.submission import (
    ATTRIBUTES,
    attributes_of,
    read_submission,
    to_detection_boxes,
    to_entries,
    to_global,
    write_submission,
)
from cmt_aqr.structures import Detections


def one(box: list[float], label: int = 0, score: float = 0.5) -> Detections:
    return Detections(torch.tensor([box]), torch.tensor([score]), torch.tensor([label]))


def test_turned_and_shifted_frame_by_hand() -> None:
    pose = torch.eye(4, dtype=torch.float64)
    # The LiDAR's x axis points to global +y, its y axis to global -x.
    pose[:3, :3] = torch.tensor(((0.0, -1, 0), (1, 0, 0), (0, 0, 1)))
    pose[:3, 3] = torch.tensor((100.0, 200.0, 1.0))
    (entry,) = to_entries("t", to_global(one([10, 2, 0.5, 4, 2, 1.5, 0.3, 3, 0], label=3, score=0.25), pose))
    assert entry["sample_token"] == "t"
    np.testing.assert_allclose(entry["translation"], (98, 210, 1.5), atol=1e-6)
    assert entry["size"] == [2, 4, 1.5]
    assert Quaternion(entry["rotation"]).yaw_pitch_roll[0] == pytest.approx(math.pi / 2 + 0.3, abs=1e-6)
    np.testing.assert_allclose(entry["velocity"], (0, 3), atol=1e-6)
    assert entry["detection_name"] == "bus"
    assert entry["detection_score"] == 0.25
    assert entry["attribute_name"] == "vehicle.moving"


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
        allowed = detection_name_to_rel_attributes(name) or [""]
        assert attribute_still in allowed
        assert attribute_moving in allowed
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
    assert to_detection_boxes("t", to_global(nothing, torch.eye(4))) == []


def test_file_is_written_whole_and_read_again(tmp_path: Path) -> None:
    entries = to_entries("t", to_global(one([1, 2, 3, 4, 5, 6, 0.7, 0.8, 0.9]), torch.eye(4)))
    path = tmp_path / "deep" / "results_nusc.json"
    write_submission(path, {"t": entries, "u": []}, use_camera=True, use_lidar=False)
    results, meta = read_submission(path)
    assert results == {"t": entries, "u": []}
    assert meta == {
        "use_camera": True,
        "use_lidar": False,
        "use_radar": False,
        "use_map": False,
        "use_external": False,
    }
    assert [file.name for file in path.parent.iterdir()] == ["results_nusc.json"]


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results_nusc.json"
    with pytest.raises(DataError, match="cannot be read"):
        read_submission(path)
    path.write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        read_submission(path)
    path.write_text(json.dumps({"results": {}}))
    with pytest.raises(DataError, match="lacks 'meta'"):
        read_submission(path)
