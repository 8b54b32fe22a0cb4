"""Random ground truth and detections, and the devkit's own evaluation of them."""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval

from cmt_aqr.constants import CLASSES, ERRORS, LIDAR
from cmt_aqr.data.ground_truth import GroundTruth
from cmt_aqr.data.rows import ATTRIBUTE, ATTRIBUTES, COLUMNS, LABEL, ROTATION, SCORE, SIZE, TRANSLATION, VELOCITY
from cmt_aqr.evaluation.official import CONFIGURATION
from cmt_aqr.evaluation.submission import GlobalDetections, attributes_of

CATEGORIES = (
    "vehicle.car",
    "vehicle.truck",
    "vehicle.construction",
    "vehicle.bus.rigid",
    "vehicle.trailer",
    "movable_object.barrier",
    "vehicle.motorcycle",
    "vehicle.bicycle",
    "human.pedestrian.adult",
    "movable_object.trafficcone",
)
"""A nuScenes category of each class."""

RACK = "static_object.bicycle_rack"


class Tables:
    """The part of ``NuScenes`` that the devkit's evaluation uses, with random ground truth as split ``val``."""

    version = "v1.0-trainval"

    def __init__(self, truth: GroundTruth) -> None:
        self.attribute = [{"token": name, "name": name} for name in ATTRIBUTES[1:]]
        self.sample: list[dict[str, Any]] = [
            {"token": token, "scene_token": "scene", "data": {LIDAR: token}, "anns": []} for token in truth.tokens
        ]
        self._records: dict[str, dict[str, Any]] = {
            "scene": {"scene": {"name": "scene-0003"}},
            "sample": {sample["token"]: sample for sample in self.sample},
            "sample_data": {token: {"ego_pose_token": token} for token in truth.tokens},
            "ego_pose": {
                token: {"translation": position}
                for token, position in zip(truth.tokens, truth.ego.tolist(), strict=True)
            },
            "sample_annotation": {},
        }
        for row, frame, points in zip(truth.rows.tolist(), truth.frames, truth.points.tolist(), strict=True):
            attribute = ATTRIBUTES[int(row[ATTRIBUTE])]
            self._add(frame, row, CATEGORIES[int(row[LABEL])], points, [attribute] if attribute else [])
        for row, frame in zip(truth.racks.tolist(), truth.rack_frames, strict=True):
            self._add(frame, [*row, 0.0, 0.0], RACK, 1, [])

    def _add(self, frame: int, row: list[float], category: str, points: int, attributes: list[str]) -> None:
        token = f"annotation{len(self._records['sample_annotation'])}"
        self.sample[frame]["anns"].append(token)
        self._records["sample_annotation"][token] = {
            "token": token,
            "translation": row[TRANSLATION],
            "size": row[SIZE],
            "rotation": row[ROTATION],
            "velocity": np.array([*row[VELOCITY], 0.0]),
            "category_name": category,
            "attribute_tokens": attributes,
            "num_lidar_pts": points,
            "num_radar_pts": 0,
        }

    def get(self, table: str, token: str) -> dict[str, Any]:
        return self._records[table][token]

    def box_velocity(self, token: str) -> NDArray[np.float64]:
        velocity: NDArray[np.float64] = self._records["sample_annotation"][token]["velocity"]
        return velocity


def devkit_evaluation(tables: Tables | NuScenes, results: Path, folder: Path, split: str = "val") -> DetectionEval:
    """The devkit's evaluation of a results file, with its boxes loaded and filtered."""
    config = config_factory(CONFIGURATION)
    with redirect_stderr(io.StringIO()):
        return DetectionEval(tables, config, str(results), split, str(folder), verbose=False)


def named(devkit: dict[str, Any]) -> dict[str, float]:
    """The 67 numbers of the devkit's serialised metrics, by our names."""
    values = {"mAP": devkit["mean_ap"], "NDS": devkit["nd_score"]}
    values |= {f"AP/{label}": devkit["mean_dist_aps"][label] for label in CLASSES}
    for key, name in ERRORS.items():
        values[f"m{name}"] = devkit["tp_errors"][key]
        values |= {f"{name}/{label}": devkit["label_tp_errors"][label][key] for label in CLASSES}
    return values


def made_truth(
    random: np.random.Generator, frames: int, boxes: int, step: float = 0, racks: int = 0, unknown: float = 0.1
) -> GroundTruth:
    """Random objects around a car that stands still.

    Args:
        random: random generator.
        frames: number of frames.
        boxes: objects per frame.
        step: round positions and sizes to multiples of it, so that distances tie; 0: do not.
        racks: bicycle racks per frame, each over an object.
        unknown: share of objects without a velocity, without an attribute, and without points.
    """
    ego = np.column_stack((random.uniform(300, 2000, (frames, 2)), np.zeros(frames)))
    ego = _stepped(ego, step)
    of_box = np.repeat(np.arange(frames), boxes)
    count = len(of_box)
    rows = np.zeros((count, COLUMNS))
    rows[:, LABEL] = random.choice(len(CLASSES), count, p=_FREQUENCIES)
    rows[:, TRANSLATION] = ego[of_box] + random.normal(0, (25, 25, 1), (count, 3))
    rows[:, SIZE] = random.uniform(0.5, 3, (count, 3))
    rows[:, TRANSLATION] = _stepped(rows[:, TRANSLATION], step)
    rows[:, SIZE] = np.maximum(_stepped(rows[:, SIZE], step), step)
    rows[:, ROTATION] = _headings(random.uniform(-np.pi, np.pi, count))
    rows[:, VELOCITY] = random.normal(0, 3, (count, 2)) * random.integers(0, 2, (count, 1))
    rows[:, ATTRIBUTE] = attributes_of(rows[:, LABEL].astype(int), rows[:, VELOCITY])
    rows[random.random(count) < unknown, VELOCITY] = np.nan
    rows[random.random(count) < unknown, ATTRIBUTE] = 0
    rows[:, SCORE] = -1
    points = np.where(random.random(count) < unknown, 0, random.integers(1, 50, count))
    in_rack = random.integers(0, max(boxes, 1), (frames, racks)) + boxes * np.arange(frames)[:, None]
    rack_rows = rows[in_rack.ravel(), : ROTATION.stop].copy()
    rack_rows[:, SIZE] *= (2.0, 3.0, 1.0)
    tokens = tuple(f"{number:032x}" for number in range(frames))
    rack_frames = np.repeat(np.arange(frames), racks)
    return GroundTruth("v1.0-trainval", "val", tokens, of_box, rows, points, ego, rack_frames, rack_rows)


_FREQUENCIES = np.array((0.42, 0.08, 0.02, 0.02, 0.03, 0.13, 0.02, 0.02, 0.18, 0.08))


def _stepped(values: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    return np.round(values / step) * step if step else values


def _headings(yaws: NDArray[np.float64]) -> NDArray[np.float64]:
    zero = np.zeros(len(yaws))
    return np.column_stack((np.cos(yaws / 2), zero, zero, np.sin(yaws / 2)))


def made_found(
    random: np.random.Generator, truth: GroundTruth, boxes: int, step: float = 0, found: float = 0.9
) -> GlobalDetections:
    """Random detections: objects moved a little, some twice or of another class, and false positives.

    Args:
        random: random generator.
        truth: ground truth.
        boxes: detections per frame.
        step: round positions and sizes to multiples of it, and scores to 0.1; 0: do not.
        found: share of the objects that are detected.
    """
    frames = len(truth.tokens)
    of_row = np.repeat(np.arange(frames), boxes)
    rows = np.zeros((len(of_row), COLUMNS))
    starts, ends = (np.searchsorted(truth.frames, np.arange(frames), side=side) for side in ("left", "right"))
    place = np.tile(np.arange(boxes), frames)
    source = starts[of_row] + place % np.maximum(ends - starts, 1)[of_row]
    near = (place < 2 * found * (ends - starts)[of_row]) & (random.random(len(rows)) < found)
    rows[near] = truth.rows[source[near]]
    noise = random.uniform(0, 1, (len(rows), 1)) ** 2
    rows[:, TRANSLATION] += noise * random.normal(0, 2, (len(rows), 3))
    rows[:, SIZE] *= np.exp(noise * random.normal(0, 0.3, (len(rows), 3)))
    far = np.flatnonzero(~near)
    rows[far, TRANSLATION] = truth.ego[of_row[far]] + random.normal(0, (25, 25, 1), (len(far), 3))
    rows[far, SIZE] = random.uniform(0.5, 3, (len(far), 3))
    rows[:, TRANSLATION] = _stepped(rows[:, TRANSLATION], step)
    rows[:, SIZE] = np.maximum(_stepped(rows[:, SIZE], step), step)
    other = ~near | (random.random(len(rows)) < 0.1)
    rows[other, LABEL] = random.choice(len(CLASSES), other.sum(), p=_FREQUENCIES)
    rows[:, ROTATION] = _headings(random.uniform(-np.pi, np.pi, len(rows)))
    rows[:, VELOCITY] = np.nan_to_num(rows[:, VELOCITY]) + random.normal(0, 0.5, (len(rows), 2))
    rows[:, ATTRIBUTE] = attributes_of(rows[:, LABEL].astype(int), rows[:, VELOCITY])
    score = (near * (0.6 - 0.4 * noise[:, 0]) + random.uniform(0.01, 0.4, len(rows))).astype(np.float32)
    rows[:, SCORE] = np.round(score, 1) if step else score
    return GlobalDetections(np.arange(frames), np.full(frames, boxes), rows)


def to_rows(boxes: Sequence[DetectionBox]) -> NDArray[np.float64]:
    """The devkit's boxes as rows (box, 15) of :func:`cmt_aqr.evaluation.submission.to_global`."""
    rows = np.zeros((len(boxes), COLUMNS))
    if boxes:
        rows[:, TRANSLATION] = [box.translation for box in boxes]
        rows[:, SIZE] = [box.size for box in boxes]
        rows[:, ROTATION] = [box.rotation for box in boxes]
        rows[:, VELOCITY] = [box.velocity for box in boxes]
        rows[:, LABEL] = [CLASSES.index(box.detection_name) for box in boxes]
        rows[:, SCORE] = [box.detection_score for box in boxes]
        rows[:, ATTRIBUTE] = [ATTRIBUTES.index(box.attribute_name) for box in boxes]
    return rows
