"""What nuScenes' official evaluation compares detections with, in arrays, cached so that tables are read once."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from nuscenes import NuScenes
from nuscenes.eval.common.loaders import load_gt_of_sample_tokens
from nuscenes.eval.detection.data_classes import DetectionBox

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.rows import ATTRIBUTE, ATTRIBUTES, COLUMNS, LABEL, ROTATION, SCORE, SIZE, TRANSLATION, VELOCITY
from cmt_aqr.data.saved_arrays import Layout, load_arrays, report_damage, save_arrays
from cmt_aqr.data.tables import (
    cache_path,
    check_request,
    fingerprint,
    open_tables,
    reference_record,
    samples_of_split,
)
from cmt_aqr.files import check_folder, writing

FORMAT = 4
"""Raise it when the arrays change their meaning, so that old caches are made again."""

_BIKE_RACK = "static_object.bicycle_rack"


@dataclass(frozen=True)
class GroundTruth:
    """Annotations of a split, global frame, and what the evaluation's filters look up.

    Attributes:
        version: e.g. ``v1.0-trainval``.
        split: e.g. ``val``.
        tokens: sample tokens in the order of the devkit's sample table; a frame's number counts them.
        frames: (box,) int64, the frame of each annotation of a detection class, rising.
        rows: (box, 15) float64, columns as of :mod:`cmt_aqr.data.rows`; not filtered.
            The score is -1, the velocity NaN where nuScenes has none.
        points: (box,) int64, annotated LiDAR and radar points.
        ego: (frame, 3) float64, where the car was at the LiDAR's time, or a camera's without LiDAR, metres.
        rack_frames: (rack,) int64, the frame of each annotated bicycle rack.
        racks: (rack, 10) float64: the columns of translation, size and rotation.
    """

    version: str
    split: str
    tokens: tuple[str, ...]
    frames: NDArray[np.int64]
    rows: NDArray[np.float64]
    points: NDArray[np.int64]
    ego: NDArray[np.float64]
    rack_frames: NDArray[np.int64]
    racks: NDArray[np.float64]

    def save(self, path: Path, stamp: str) -> None:
        """Write to ``path`` at once or not at all, stamped with what it was made from."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        save_arrays(path, stamp, {"tokens": np.array(self.tokens), **arrays})


_ARRAYS: Layout = {
    "frames": ("i", ("box",)),
    "rows": ("f", ("box", COLUMNS)),
    "points": ("i", ("box",)),
    "ego": ("f", ("frame", 3)),
    "rack_frames": ("i", ("rack",)),
    "racks": ("f", ("rack", ROTATION.stop)),
}


def load_ground_truth(root: Path, version: str, split: str, cache_dir: Path) -> GroundTruth:
    """The ground truth of a split: from the cache while the tables are what they were, else made and cached.

    Raises:
        DataError: see :func:`cmt_aqr.data.tables.check_request`, or the split has no annotations at all.
    """
    check_request(root, version, split)
    stamp = f"format {FORMAT} {fingerprint(root, version)}"
    path = cache_path(cache_dir, "ground-truth", root, version, split, ".npz")
    truth = load_saved(path, version, split, stamp)
    if truth is None:
        check_folder("data.cache_dir", cache_dir)
        truth = build_ground_truth(open_tables(root, version), split)
        with writing("data.cache_dir", cache_dir):
            truth.save(path, stamp)
    return truth


def load_saved(path: Path, version: str, split: str, stamp: str) -> GroundTruth | None:
    """Read what ``GroundTruth.save`` wrote; None where it is absent, of another stamp, or damaged (logged)."""
    arrays = load_arrays(path, stamp, {"tokens": ("U", ("frame",)), **_ARRAYS})
    if arrays is None:
        return None
    for frames in (arrays["frames"], arrays["rack_frames"]):
        if ((frames < 0) | (frames >= len(arrays["tokens"]))).any() or (np.diff(frames) < 0).any():
            report_damage(path, "it has boxes of frames that are not there, or not in order")
            return None
    return GroundTruth(version, split, tuple(arrays.pop("tokens").tolist()), **arrays)


def build_ground_truth(tables: NuScenes, split: str) -> GroundTruth:
    """Make the ground truth of a split by the devkit's own loader.

    Raises:
        DataError: the split has no frame, or no annotation, as the official test split.
    """
    samples = samples_of_split(tables, split)
    if not any(sample["anns"] for sample in samples):
        raise DataError(f"split {split} of {tables.version} has no annotations: it cannot be evaluated here")
    tokens = tuple(sample["token"] for sample in samples)
    # The devkit's loader draws a bar even when it is told to be quiet; its errors still come through.
    with contextlib.redirect_stderr(io.StringIO()):
        boxes = load_gt_of_sample_tokens(tables, list(tokens), DetectionBox, verbose=False)
    number = {token: frame for frame, token in enumerate(tokens)}
    every = boxes.all
    ego, racks, rack_frames = [], [], []
    for frame, sample in enumerate(samples):
        taken = reference_record(tables, sample)
        ego.append(tables.get("ego_pose", taken["ego_pose_token"])["translation"])
        for record in (tables.get("sample_annotation", token) for token in sample["anns"]):
            if record["category_name"] == _BIKE_RACK:
                racks.append([*record["translation"], *record["size"], *record["rotation"]])
                rack_frames.append(frame)
    return GroundTruth(
        tables.version,
        split,
        tokens,
        frames=np.array([number[box.sample_token] for box in every], dtype=np.int64),
        rows=to_rows(every),
        points=np.array([box.num_pts for box in every], dtype=np.int64),
        ego=np.array(ego, dtype=np.float64),
        rack_frames=np.array(rack_frames, dtype=np.int64),
        racks=np.array(racks, dtype=np.float64).reshape(-1, ROTATION.stop),
    )


def to_rows(boxes: Sequence[DetectionBox]) -> NDArray[np.float64]:
    """The devkit's boxes as rows (box, 15), see :mod:`cmt_aqr.data.rows`."""
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
