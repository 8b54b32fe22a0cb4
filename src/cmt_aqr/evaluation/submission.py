"""Detections in nuScenes' format: boxes in the global frame, with attributes, and the results file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.rows import ATTRIBUTE, ATTRIBUTES, COLUMNS, LABEL, ROTATION, SCORE, SIZE, TRANSLATION, VELOCITY
from cmt_aqr.files import atomic_write
from cmt_aqr.outputs import Detections

MAX_BOXES = 500
"""nuScenes accepts at most this many boxes per sample."""

MOVING_SPEED = 0.2
"""m/s above which an object counts as moving."""

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


@dataclass(frozen=True)
class GlobalDetections:
    """Detections in the global frame, of some frames of a split."""

    frames: NDArray[np.int64]  # (frame,) ascending numbers of the evaluated frames, even without detections
    counts: NDArray[np.int64]  # (frame,) detections per frame
    rows: NDArray[np.float64]  # (box, 15) rows of to_global, frame after frame


def attributes_of(labels: NDArray[np.int64], velocities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Attribute indices (box,) by class and speed: the rule of mmdetection3d, with which CMT was evaluated.

    Above 0.2 m/s vehicles are moving, cycles have a rider, pedestrians move; below, a bus is stopped, other
    vehicles are parked, cycles have no rider, pedestrians stand. Barriers and cones have no attribute.

    Args:
        labels: (box,) indices into ``CLASSES``.
        velocities: (box, 2) in m/s; NaN counts as standing still.
    """
    moving = np.hypot(velocities[:, 0], velocities[:, 1]) > MOVING_SPEED
    return _ATTRIBUTE_OF[labels, np.where(moving, 0, 1)]


def to_global(detections: Detections, lidar2global: Tensor) -> NDArray[np.float64]:
    """Move the detections of a frame into the global frame, at most the best 500.

    A heading becomes a rotation about the LiDAR's z axis, followed by the rotation into the global frame, so boxes
    are tilted as the LiDAR is.

    Args:
        detections: in the LiDAR frame, on any device.
        lidar2global: (4, 4), rigid.

    Returns:
        (box, 15) float64: x, y, z; w, l, h (nuScenes' order); w, x, y, z of the quaternion; vx, vy;
        label; score; index into ``ATTRIBUTES``.
    """
    boxes, scores, pose = (
        part.detach().double().cpu().numpy() for part in (detections.boxes, detections.scores, lidar2global)
    )
    labels = detections.labels.detach().cpu().numpy()
    if len(boxes) > MAX_BOXES:
        best = np.argsort(-scores, kind="stable")[:MAX_BOXES]
        boxes, scores, labels = boxes[best], scores[best], labels[best]
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


def write_submission(
    path: Path, tokens: Sequence[str], detections: GlobalDetections, use_camera: bool, use_lidar: bool
) -> None:
    """Write a nuScenes detection results file atomically; its folder is created if necessary.

    Args:
        path: usually ``results_nusc.json``.
        tokens: sample token of every frame of the split.
        detections: detections of the frames to write.
        use_camera: whether the model reads images.
        use_lidar: whether the model reads points.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent.
    """
    meta = {"use_camera": use_camera, "use_lidar": use_lidar}
    meta |= dict.fromkeys(("use_radar", "use_map", "use_external"), False)
    with atomic_write(path) as partial, partial.open("wb") as file:
        file.write(b'{"meta":' + orjson.dumps(meta) + b',"results":{')
        frames = zip(
            detections.frames.tolist(), np.split(detections.rows, np.cumsum(detections.counts)[:-1]), strict=True
        )
        for number, (frame, rows) in enumerate(frames):
            comma, token = b"," if number else b"", tokens[frame]
            file.write(comma + orjson.dumps(token) + b":" + orjson.dumps(_entries(token, rows)))
        file.write(b"}}")


def _entries(token: str, rows: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Entries of a results file for rows (box, 15) of :func:`to_global`."""
    if not np.isfinite(rows).all():
        raise ValueError(f"sample {token}: a detection is not finite")
    # Column by column, which is faster than row by row.
    numbers = [rows[:, part].tolist() for part in (TRANSLATION, SIZE, ROTATION, VELOCITY, SCORE)]
    indices = [rows[:, part].astype(np.int64).tolist() for part in (LABEL, ATTRIBUTE)]
    return [
        {
            "sample_token": token,
            "translation": translation,
            "size": size,
            "rotation": rotation,
            "velocity": velocity,
            "detection_name": CLASSES[label],
            "detection_score": score,
            "attribute_name": ATTRIBUTES[attribute],
        }
        for translation, size, rotation, velocity, score, label, attribute in zip(*numbers, *indices, strict=True)
    ]
