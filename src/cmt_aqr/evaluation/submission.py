"""Detections in nuScenes' own terms: boxes in the global frame, with attributes, and the results file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.rows import (
    ATTRIBUTE,
    ATTRIBUTES,
    COLUMNS,
    LABEL,
    ROTATION,
    SCORE,
    SIZE,
    TRANSLATION,
    VELOCITY,
)
from cmt_aqr.evaluation.decimals import decimals
from cmt_aqr.files import written_at_once
from cmt_aqr.outputs import Detections

MAX_BOXES = 500
"""nuScenes accepts at most this many boxes per sample."""

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


@dataclass(frozen=True)
class FoundBoxes:
    """Detections of some frames of a split.

    Attributes:
        frames: (frame,) int64, rising numbers of the frames seen, those without a detection too.
        counts: (frame,) int64, detections of each.
        rows: (box, 15) float64, rows of :func:`to_global`, frame after frame.
    """

    frames: NDArray[np.int64]
    counts: NDArray[np.int64]
    rows: NDArray[np.float64]


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


def write_submission(
    path: Path, tokens: Sequence[str], found: FoundBoxes, use_camera: bool, use_lidar: bool
) -> None:
    """Write a nuScenes detection results file, at once or not at all.

    Args:
        path: usually ``results_nusc.json``; its folder is made.
        tokens: sample token of every frame of the split.
        found: detections of the frames that are to be written.
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
    with written_at_once(path) as partial, partial.open("wb") as file:
        file.write(b'{"meta": ' + json.dumps(meta).encode() + b', "results": {')
        for number, (token, text) in enumerate(_texts(tokens, found)):
            file.write((", " if number else "").encode() + json.dumps(token).encode() + b": [")
            file.write(text.reshape(-1)[1:].data)  # without the comma before the first
            file.write(b"]")
        file.write(b"}}")


_FRAMES_AT_ONCE = 16
"""Enough for arrays to pay off, few enough for them to stay in the processor's cache."""

_LISTS = {"translation": TRANSLATION, "size": SIZE, "rotation": ROTATION, "velocity": VELOCITY}


def _texts(tokens: Sequence[str], found: FoundBoxes) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Sample token and entries, in JSON, of each frame."""
    ends = np.cumsum(found.counts)
    for start in range(0, len(found.frames), _FRAMES_AT_ONCE):
        block = slice(start, start + _FRAMES_AT_ONCE)
        names, counts = [tokens[frame] for frame in found.frames[block]], found.counts[block]
        rows = found.rows[ends[start] - counts[0] : ends[block][-1]]
        text = _entries(_padded(names)[np.repeat(np.arange(len(names)), counts)], rows)
        yield from zip(names, np.split(text, np.cumsum(counts)[:-1]), strict=True)


def _entries(tokens: NDArray[np.uint8], rows: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A comma and an entry of a results file, in JSON, for each row (box, bytes): blanks make them equally long.

    Args:
        tokens: (box, bytes), in quotes, padded.
        rows: (box, 15) of :func:`to_global`.
    """
    numbers = np.ascontiguousarray(rows[:, [*range(VELOCITY.stop), SCORE]])
    text = decimals(numbers.reshape(-1)).reshape(*numbers.shape, -1)
    parts: list[bytes | NDArray[np.uint8]] = [b', {"sample_token": ', tokens]
    for name, columns in _LISTS.items():
        values = text[:, columns].reshape(len(rows), -1)
        parts += [f', "{name}": ['.encode(), values[:, 1:], b"]"]
    parts += [b', "detection_name": ', _CLASS_TEXTS[rows[:, LABEL].astype(np.int64)]]
    parts += [b', "detection_score":', text[:, -1, 1:]]
    parts += [b', "attribute_name": ', _ATTRIBUTE_TEXTS[rows[:, ATTRIBUTE].astype(np.int64)], b"}"]
    arrays = [np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part for part in parts]
    return np.concatenate([np.broadcast_to(part, (len(rows), part.shape[-1])) for part in arrays], axis=1)


def _padded(names: Sequence[str]) -> NDArray[np.uint8]:
    """Names (name, bytes) in JSON, blanks behind the shorter ones."""
    texts = [json.dumps(name).encode() for name in names]
    width = max(len(text) for text in texts)
    return np.frombuffer(b"".join(text.ljust(width) for text in texts), np.uint8).reshape(-1, width)


_CLASS_TEXTS, _ATTRIBUTE_TEXTS = _padded(CLASSES), _padded(ATTRIBUTES)


def read_submission(path: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Results by sample token, and the meta record, of a nuScenes results file.

    Raises:
        DataError: the file is missing, not JSON, or lacks ``results`` or ``meta``.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["results"], content["meta"]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a nuScenes results file") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON ({error}): write it again") from error
    except KeyError as error:
        raise DataError(f"{path} lacks {error}: a nuScenes results file has `meta` and `results`") from error
