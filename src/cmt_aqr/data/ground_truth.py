"""The annotations that nuScenes' official evaluation compares detections with, as cached arrays."""

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
"""Increase it when the meaning of the arrays changes, so that old caches are rebuilt."""

_BIKE_RACK = "static_object.bicycle_rack"


@dataclass(frozen=True)
class GroundTruth:
    """Annotations of a split in the global frame, and what the filters of the evaluation need.

    Tokens are in the order of the devkit's sample table; frame numbers are positions in it. Rows have the columns
    of :mod:`cmt_aqr.data.rows` and are not filtered; the score is -1, the velocity NaN where nuScenes has none. A
    split without annotations has tokens, and no rows in any array.
    """

    version: str  # e.g. v1.0-trainval
    split: str  # e.g. val
    tokens: tuple[str, ...]
    frames: NDArray[np.int64]  # (box,) frame of each annotation of a detection class, ascending
    rows: NDArray[np.float64]  # (box, 15)
    points: NDArray[np.int64]  # (box,) annotated LiDAR and radar points
    ego: NDArray[np.float64]  # (frame, 3) position of the car in metres at the LiDAR's time, else at a camera's
    rack_frames: NDArray[np.int64]  # (rack,) frame of each annotated bicycle rack
    racks: NDArray[np.float64]  # (rack, 10) the columns of translation, size and rotation
    annotated: bool = True

    @classmethod
    def unknown(cls, version: str, split: str, tokens: tuple[str, ...]) -> Self:
        """A split without annotations."""
        none = np.zeros(0, dtype=np.int64)
        rows, racks = np.zeros((0, COLUMNS)), np.zeros((0, ROTATION.stop))
        return cls(version, split, tokens, none, rows, none, np.zeros((0, 3)), none, racks, annotated=False)

    def part(self, mask: NDArray[np.bool_]) -> Self:
        """A copy with some of the annotations (box,) and all frames."""
        return dataclasses.replace(self, frames=self.frames[mask], rows=self.rows[mask], points=self.points[mask])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that are cached, by the names in ``ARRAYS``."""
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
        DataError: the request is not valid, or the split has no annotations.
    """

    def build(tables: Tables) -> dict[str, NDArray[Any]]:
        return build_ground_truth(tables, split).arrays()

    arrays = cached("ground-truth", FORMAT, ARRAYS, build, root, version, split, cache_dir)
    return GroundTruth.of(version, split, arrays)


def build_ground_truth(tables: Tables, split: str) -> GroundTruth:
    """Build the ground truth of a split: the boxes of the devkit's ``load_gt``, in its order.

    Raises:
        DataError: the split has no frames, or no annotations, like the official test split.
    """
    samples = tables.samples_of(split)
    boxes, frames = boxes_of(tables, samples)
    version = tables.folder.name
    if not len(boxes):
        raise DataError(f"split {split} of {version} has no annotations: it cannot be evaluated here")
    annotations = tables.annotations
    categories = annotations.categories[boxes]
    labels = class_of(tables.categories)[categories]
    is_rack = np.array([name == _BIKE_RACK for name in tables.categories])[categories]
    detected, racks = boxes[labels >= 0], boxes[is_rack]
    attributes = np.array([ATTRIBUTES.index(name) for name in (*tables.attributes, "")])  # the last, row -1: none
    rows = np.zeros((len(detected), COLUMNS))
    rows[:, TRANSLATION] = annotations.translations[detected]
    rows[:, SIZE] = annotations.sizes[detected]
    rows[:, ROTATION] = annotations.rotations[detected]
    rows[:, VELOCITY] = annotations.velocities[detected]
    rows[:, LABEL] = labels[labels >= 0]
    rows[:, SCORE] = -1
    rows[:, ATTRIBUTE] = attributes[annotations.attributes[detected]]
    return GroundTruth(
        version,
        split,
        tuple(token.decode() for token in tables.tokens[samples].tolist()),
        frames=frames[labels >= 0],
        rows=rows,
        points=(annotations.lidar_points + annotations.radar_points)[detected],
        ego=tables.records.ego_translations[tables.reference_of(samples)],
        rack_frames=frames[is_rack],
        racks=np.concatenate(
            [annotations.translations[racks], annotations.sizes[racks], annotations.rotations[racks]], axis=1
        ),
    )
