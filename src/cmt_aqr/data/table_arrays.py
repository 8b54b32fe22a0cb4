"""What is needed of the nuScenes tables, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from nuscenes.utils.splits import create_splits_scenes

from cmt_aqr.constants import CAMERAS, LIDAR
from cmt_aqr.data.columns import bytes_of, refused
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.poses import poses
from cmt_aqr.data.table_files import read_splits

CHANNELS = (LIDAR, *CAMERAS)
"""The sensors that are read."""


@dataclass(frozen=True)
class SensorRecords:
    """Sweeps of the LiDAR, and images of keyframes.

    Attributes:
        channels: (record,) int8, index into ``CHANNELS``.
        samples: (record,) int32, the sample that a record belongs to.
        keyframe: (record,) bool.
        times: (record,) int64, microseconds.
        files: (record,) bytes, paths below the data root.
        tokens: (record,) bytes.
        previous: (record,) int32, what ``prev`` of a sweep names; -1 at the start of a scene, and for images.
        mounts: (record,) int32, rows of :class:`Mounts`.
        ego_translations: (record, 3) float64, metres, ego to global frame.
        ego_rotations: (record, 4) float64, w, x, y, z.
    """

    channels: NDArray[np.int8]
    samples: NDArray[np.int32]
    keyframe: NDArray[np.bool_]
    times: NDArray[np.int64]
    files: NDArray[np.bytes_]
    tokens: NDArray[np.bytes_]
    previous: NDArray[np.int32]
    mounts: NDArray[np.int32]
    ego_translations: NDArray[np.float64]
    ego_rotations: NDArray[np.float64]


@dataclass(frozen=True)
class Mounts:
    """Calibrated sensors.

    Attributes:
        to_ego: (mount, 4, 4) float64, sensor to ego frame.
        intrinsics: (mount, 3, 3) float64, zeros for sensors that are no cameras.
    """

    to_ego: NDArray[np.float64]
    intrinsics: NDArray[np.float64]


@dataclass(frozen=True)
class Annotations:
    """Annotated boxes of all categories in the global frame, in the order of their table.

    Attributes:
        samples: (box,) int32.
        categories: (box,) int16, index into ``Tables.categories``.
        attributes: (box,) int16, index into ``Tables.attributes``, -1: none.
        translations: (box, 3) float64, metres.
        sizes: (box, 3) float64, width, length, height.
        rotations: (box, 4) float64, w, x, y, z.
        lidar_points: (box,) int64.
        radar_points: (box,) int64.
        velocities: (box, 2) float64, m/s, NaN where the devkit's ``box_velocity`` is.
    """

    samples: NDArray[np.int32]
    categories: NDArray[np.int16]
    attributes: NDArray[np.int16]
    translations: NDArray[np.float64]
    sizes: NDArray[np.float64]
    rotations: NDArray[np.float64]
    lidar_points: NDArray[np.int64]
    radar_points: NDArray[np.int64]
    velocities: NDArray[np.float64]


@dataclass(frozen=True)
class Tables:
    """What is needed of a version's tables.

    Attributes:
        folder: where they are.
        scenes: (scene,) bytes, names.
        tokens: (sample,) bytes, in the order of the sample table.
        sample_scenes: (sample,) int32.
        sample_times: (sample,) int64, microseconds.
        keyframes: (sample, channel) int32, rows of ``records`` in the order of ``CHANNELS``; -1: none.
        records: of the sensors.
        mounts: of the sensors.
        categories: names.
        attributes: names.
        annotations: boxes.
    """

    folder: Path
    scenes: NDArray[np.bytes_]
    tokens: NDArray[np.bytes_]
    sample_scenes: NDArray[np.int32]
    sample_times: NDArray[np.int64]
    keyframes: NDArray[np.int32]
    records: SensorRecords
    mounts: Mounts
    categories: tuple[str, ...]
    attributes: tuple[str, ...]
    annotations: Annotations

    def samples_of(self, split: str) -> NDArray[np.int64]:
        """Rows of the samples of a split, in the order of the sample table.

        Raises:
            DataError: the split has no frame in these tables.
        """
        names = create_splits_scenes().get(split) or read_splits(self.folder)[split]
        rows = np.flatnonzero(np.isin(self.scenes, bytes_of(names))[self.sample_scenes])
        if not len(rows):
            raise DataError(
                f"split {split} has no frame in {self.folder}: none of its {len(names)} scenes is there"
            )
        return rows

    def reference_of(self, samples: NDArray[np.int64]) -> NDArray[np.int32]:
        """Rows of the records that say when and where samples were taken: of LIDAR_TOP, else of a camera.

        Raises:
            DataError: a sample has neither.
        """
        there = self.keyframes[samples] >= 0
        if not there.any(axis=1).all():
            token = self.tokens[samples[there.any(axis=1).argmin()]].decode()
            raise refused("sample", token, f"no key frame in sample_data.json is of {LIDAR} or of a camera")
        return self.keyframes[samples, there.argmax(axis=1)]

    def ego_to_global(self, rows: NDArray[np.integer]) -> NDArray[np.float64]:
        """(record, 4, 4): where the car was."""
        return poses(self.records.ego_translations[rows], self.records.ego_rotations[rows])

    def sensor_to_global(self, rows: NDArray[np.integer]) -> NDArray[np.float64]:
        """(record, 4, 4): the sensor's frame to the global frame, at the record's own ego pose."""
        return self.ego_to_global(rows) @ self.mounts.to_ego[self.records.mounts[rows]]
