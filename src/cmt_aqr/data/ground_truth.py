"""What nuScenes' official evaluation compares detections with, in arrays, cached so that tables are read once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cmt_aqr.data.errors import DataError
from cmt_aqr.data.index import boxes_of, class_of
from cmt_aqr.data.rows import ATTRIBUTE, ATTRIBUTES, COLUMNS, LABEL, ROTATION, SCORE, SIZE, TRANSLATION, VELOCITY
from cmt_aqr.data.table_arrays import Tables
from cmt_aqr.data.tables import cached

FORMAT = 5
"""Raise it when the arrays change their meaning, so that old caches are made again."""

_BIKE_RACK = "static_object.bicycle_rack"


@dataclass(frozen=True)
class GroundTruth:
    """Annotations of a split, global frame, and what the evaluation's filters look up.

    Tokens are in the order of the devkit's sample table; a frame's number counts them. Rows have the columns of
    :mod:`cmt_aqr.data.rows` and are not filtered; the score is -1, the velocity NaN where nuScenes has none. Where
    nothing is annotated, all but the tokens is empty.
    """

    version: str  # e.g. v1.0-trainval
    split: str  # e.g. val
    tokens: tuple[str, ...]
    frames: NDArray[np.int64]  # (box,) the frame of each annotation of a detection class, rising
    rows: NDArray[np.float64]  # (box, 15)
    points: NDArray[np.int64]  # (box,) annotated LiDAR and radar points
    ego: NDArray[np.float64]  # (frame, 3) metres: where the car was at the LiDAR's time, without one at a camera's
    rack_frames: NDArray[np.int64]  # (rack,) the frame of each annotated bicycle rack
    racks: NDArray[np.float64]  # (rack, 10) the columns of translation, size and rotation
    annotated: bool = True

    @classmethod
    def unknown(cls, version: str, split: str, tokens: tuple[str, ...]) -> Self:
        """What is known of a split without annotations: the sample tokens of its frames."""
        none = np.zeros(0, dtype=np.int64)
        rows, racks = np.zeros((0, COLUMNS)), np.zeros((0, ROTATION.stop))
        return cls(version, split, tokens, none, rows, none, np.zeros((0, 3)), none, racks, annotated=False)

    def part(self, kept: NDArray[np.bool_]) -> Self:
        """The same with some of the annotations (box,) only; frames stay."""
        return dataclasses.replace(self, frames=self.frames[kept], rows=self.rows[kept], points=self.points[kept])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is cached."""
        return {"tokens": np.array(self.tokens)} | {name: getattr(self, name) for name in ARRAYS[1:]}

    @classmethod
    def of(cls, version: str, split: str, arrays: dict[str, NDArray[Any]]) -> Self:
        """The inverse of :meth:`arrays`."""
        fields: dict[str, Any] = arrays | {"tokens": tuple(arrays["tokens"].tolist())}
        return cls(version, split, **fields)


ARRAYS = ("tokens", "frames", "rows", "points", "ego", "rack_frames", "racks")


def load_ground_truth(root: Path, version: str, split: str, cache_dir: Path) -> GroundTruth:
    """The ground truth of a split, see :func:`cmt_aqr.data.tables.cached`.

    Raises:
        DataError: the request cannot be, or the split has no annotations at all.
    """

    def make(tables: Tables) -> dict[str, NDArray[Any]]:
        return build_ground_truth(tables, split).arrays()

    arrays = cached("ground-truth", FORMAT, ARRAYS, make, root, version, split, cache_dir)
    return GroundTruth.of(version, split, arrays)


def build_ground_truth(tables: Tables, split: str) -> GroundTruth:
    """Make the ground truth of a split: what the devkit's ``load_gt`` gives, in its order.

    Raises:
        DataError: the split has no frame, or no annotation, as the official test split.
    """
    samples = tables.samples_of(split)
    boxes, frames = boxes_of(tables, samples)
    version = tables.folder.name
    if not len(boxes):
        raise DataError(f"split {split} of {version} has no annotations: it cannot be evaluated here")
    annotations = tables.annotations
    labels = class_of(tables.categories)[annotations.categories[boxes]]
    rack = np.array([name == _BIKE_RACK for name in tables.categories])[annotations.categories[boxes]]
    detected, of_rack = boxes[labels >= 0], boxes[rack]
    rows = np.zeros((len(detected), COLUMNS))
    rows[:, TRANSLATION] = annotations.translations[detected]
    rows[:, SIZE] = annotations.sizes[detected]
    rows[:, ROTATION] = annotations.rotations[detected]
    rows[:, VELOCITY] = annotations.velocities[detected]
    rows[:, LABEL] = labels[labels >= 0]
    rows[:, SCORE] = -1
    rows[:, ATTRIBUTE] = _attribute_numbers(tables)[annotations.attributes[detected]]
    return GroundTruth(
        version,
        split,
        tuple(token.decode() for token in tables.tokens[samples].tolist()),
        frames=frames[labels >= 0],
        rows=rows,
        points=(annotations.lidar_points + annotations.radar_points)[detected],
        ego=tables.records.ego_translations[tables.reference_of(samples)],
        rack_frames=frames[rack],
        racks=np.concatenate(
            [annotations.translations[of_rack], annotations.sizes[of_rack], annotations.rotations[of_rack]], axis=1
        ),
    )


def _attribute_numbers(tables: Tables) -> NDArray[np.int64]:
    """Index into ``ATTRIBUTES`` of each attribute of the table, and last of none."""
    return np.array([ATTRIBUTES.index(name) for name in (*tables.attributes, "")], dtype=np.int64)
