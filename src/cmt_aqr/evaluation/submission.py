"""Detections in nuScenes' own terms: boxes in the global frame, with attributes, and the results file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nuscenes.eval.detection.data_classes import DetectionBox
from scipy.spatial.transform import Rotation
from torch import Tensor

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.errors import DataError
from cmt_aqr.files import written_at_once
from cmt_aqr.structures import Detections

MAX_BOXES = 500
"""nuScenes accepts at most this many boxes a sample."""

ATTRIBUTES: tuple[str, ...] = (
    "",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.standing",
)
"""The attributes that the rule of :func:`attributes_of` gives."""

MOVING_SPEED = 0.2
"""m/s above which an object moves."""

_MOVING_STILL = {
    "car": ("vehicle.moving", "vehicle.parked"),
    "truck": ("vehicle.moving", "vehicle.parked"),
    "construction_vehicle": ("vehicle.moving", "vehicle.parked"),
    "bus": ("vehicle.moving", "vehicle.stopped"),
    "trailer": ("vehicle.moving", "vehicle.parked"),
    "barrier": ("", ""),
    "motorcycle": ("cycle.with_rider", "cycle.without_rider"),
    "bicycle": ("cycle.with_rider", "cycle.without_rider"),
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
    "traffic_cone": ("", ""),
}
_ATTRIBUTE_OF = np.array([[ATTRIBUTES.index(name) for name in _MOVING_STILL[label]] for label in CLASSES])

TRANSLATION, SIZE, ROTATION, VELOCITY = slice(0, 3), slice(3, 6), slice(6, 10), slice(10, 12)
LABEL, SCORE, ATTRIBUTE = 12, 13, 14
COLUMNS = 15
"""Columns of the rows of :func:`to_global`."""


def attributes_of(labels: NDArray[np.int64], velocities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Attribute indices (box,) by class and speed: the rule of mmdetection3d, by which CMT was evaluated.

    Above 0.2 m/s vehicles are moving, cycles have a rider, pedestrians move; below, a bus is stopped, other
    vehicles are parked, cycles have no rider, pedestrians stand. Barriers and cones have none.

    Args:
        labels: (box,) indices into ``CLASSES``.
        velocities: (box, 2) in m/s; an unknown (NaN) velocity counts as standing still.
    """
    moving = np.hypot(velocities[:, 0], velocities[:, 1]) > MOVING_SPEED
    return _ATTRIBUTE_OF[labels, np.where(moving, 0, 1)]


def to_global(detections: Detections, lidar2global: Tensor) -> NDArray[np.float64]:
    """Move the detections of one frame into the global frame.

    A heading in the LiDAR frame becomes the rotation about the LiDAR's z axis, then into the global frame, so
    boxes lie as the LiDAR does. Where there are more than 500 boxes, the best 500 are kept.

    Args:
        detections: of one frame, LiDAR frame, any device.
        lidar2global: (4, 4), rigid.

    Returns:
        (box, 15) float64: x, y, z; w, l, h (nuScenes' order); w, x, y, z of the quaternion; vx, vy;
        label; score; index into ``ATTRIBUTES``.
    """
    boxes = detections.boxes.detach().double().cpu().numpy()
    scores = detections.scores.detach().double().cpu().numpy()
    labels = detections.labels.detach().cpu().numpy()
    if len(boxes) > MAX_BOXES:
        best = np.argsort(-scores, kind="stable")[:MAX_BOXES]
        boxes, scores, labels = boxes[best], scores[best], labels[best]
    pose = lidar2global.detach().double().cpu().numpy()
    rows = np.zeros((len(boxes), COLUMNS))
    if not len(boxes):
        return rows
    to_world = Rotation.from_matrix(pose[:3, :3])
    rows[:, TRANSLATION] = to_world.apply(boxes[:, :3]) + pose[:3, 3]
    rows[:, SIZE] = boxes[:, [4, 3, 5]]
    heading = Rotation.from_rotvec(boxes[:, 6:7] * (0.0, 0.0, 1.0))
    rows[:, ROTATION] = (to_world * heading).as_quat()[:, [3, 0, 1, 2]]
    flat = np.concatenate((boxes[:, 7:9], np.zeros((len(boxes), 1))), axis=1)
    rows[:, VELOCITY] = to_world.apply(flat)[:, :2]
    rows[:, LABEL] = labels
    rows[:, SCORE] = scores
    rows[:, ATTRIBUTE] = attributes_of(labels, rows[:, VELOCITY])
    return rows


def to_entries(token: str, rows: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Rows of :func:`to_global` as entries of a nuScenes results file, for the sample ``token``."""
    return [
        {
            "sample_token": token,
            "translation": row[TRANSLATION],
            "size": row[SIZE],
            "rotation": row[ROTATION],
            "velocity": row[VELOCITY],
            "detection_name": CLASSES[int(row[LABEL])],
            "detection_score": row[SCORE],
            "attribute_name": ATTRIBUTES[int(row[ATTRIBUTE])],
        }
        for row in rows.tolist()
    ]


def to_detection_boxes(token: str, rows: NDArray[np.float64]) -> list[DetectionBox]:
    """Rows of :func:`to_global` as the devkit's boxes, for the sample ``token``."""
    return [DetectionBox.deserialize(entry) for entry in to_entries(token, rows)]


def write_submission(
    path: Path, results: Mapping[str, Sequence[Mapping[str, Any]]], use_camera: bool, use_lidar: bool
) -> None:
    """Write a nuScenes detection results file, at once or not at all.

    Args:
        path: usually ``results_nusc.json``; its folder is made.
        results: entries of :func:`to_entries` for every sample token.
        use_camera: whether the model looks at images.
        use_lidar: whether the model looks at points.
    """
    meta = {
        "use_camera": use_camera,
        "use_lidar": use_lidar,
        "use_radar": False,
        "use_map": False,
        "use_external": False,
    }
    with written_at_once(path) as partial:
        partial.write_text(json.dumps({"meta": meta, "results": results}))


def read_submission(path: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Results by sample token, and the meta record, of a nuScenes results file.

    Raises:
        DataError: the file is missing, not JSON, or lacks ``results`` or ``meta``.
    """
    try:
        content = json.loads(path.read_text())
        return content["results"], content["meta"]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a nuScenes results file") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON ({error}): write it again") from error
    except KeyError as error:
        raise DataError(f"{path} lacks {error}: a nuScenes results file has `meta` and `results`") from error
