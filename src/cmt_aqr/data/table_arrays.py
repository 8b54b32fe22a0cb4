"""The needed part of the nuScenes tables, as arrays."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from nuscenes.utils.splits import create_splits_scenes

from cmt_aqr.constants import CAMERAS, LIDAR
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.fields import encoded, record_error
from cmt_aqr.data.poses import poses
from cmt_aqr.data.table_files import read_splits

CHANNELS = (LIDAR, *CAMERAS)
"""The sensors that are used."""


@dataclass(frozen=True)
class SensorRecords:
    """Sweeps of the LiDAR, and images of the keyframes."""

    channels: NDArray[np.int8]  # (record,) index into CHANNELS
    samples: NDArray[np.int32]  # (record,) rows of the samples they belong to
    keyframe: NDArray[np.bool_]  # (record,)
    times: NDArray[np.int64]  # (record,) microseconds
    files: NDArray[np.bytes_]  # (record,) paths below the data root
    tokens: NDArray[np.bytes_]  # (record,)
    previous: NDArray[np.int32]  # (record,) the sweep before; -1 at the start of a scene, and for images
    mounts: NDArray[np.int32]  # (record,) rows of the calibrated sensors
    ego_translations: NDArray[np.float64]  # (record, 3) metres, ego to global frame
    ego_rotations: NDArray[np.float64]  # (record, 4) w, x, y, z


@dataclass(frozen=True)
class Annotations:
    """Annotated boxes of all categories in the global frame, in the order of their table."""

    samples: NDArray[np.int32]  # (box,)
    categories: NDArray[np.int16]  # (box,) index into Tables.categories
    attributes: NDArray[np.int16]  # (box,) index into Tables.attributes, -1: none
    translations: NDArray[np.float64]  # (box, 3) metres
    sizes: NDArray[np.float64]  # (box, 3) width, length, height, metres
    rotations: NDArray[np.float64]  # (box, 4) w, x, y, z
    lidar_points: NDArray[np.int64]  # (box,)
    radar_points: NDArray[np.int64]  # (box,)
    velocities: NDArray[np.float64]  # (box, 2) m/s, NaN where the devkit's box_velocity is NaN


@dataclass(frozen=True)
class Tables:
    """The needed part of a version's tables."""

    folder: Path
    scenes: NDArray[np.bytes_]  # (scene,) names
    tokens: NDArray[np.bytes_]  # (sample,) in the order of the sample table
    sample_scenes: NDArray[np.int32]  # (sample,)
    keyframes: NDArray[np.int32]  # (sample, channel) rows of records in the order of CHANNELS; -1: none
    records: SensorRecords
    mount_to_ego: NDArray[np.float64]  # (mount, 4, 4) calibrated sensor to ego frame
    intrinsics: NDArray[np.float64]  # (mount, 3, 3) zero for other sensors than cameras
    categories: tuple[str, ...]  # names
    attributes: tuple[str, ...]  # names
    annotations: Annotations

    def samples_of(self, split: str) -> NDArray[np.int64]:
        """Rows of the samples of a split, in the order of the sample table.

        Raises:
            DataError: the split has no sample in these tables.
        """
        names = create_splits_scenes().get(split) or read_splits(self.folder)[split]
        rows = np.flatnonzero(np.isin(self.scenes, encoded(names))[self.sample_scenes])
        if not len(rows):
            raise DataError(f"split {split} has no frame in {self.folder}: it has none of the {len(names)} scenes")
        return rows

    def reference_of(self, samples: NDArray[np.int64]) -> NDArray[np.int32]:
        """Rows of the records that give the time and the car's pose of samples: of LIDAR_TOP, else of a camera.

        Raises:
            DataError: a sample has neither.
        """
        exists = self.keyframes[samples] >= 0
        if not exists.any(axis=1).all():
            token = self.tokens[samples[exists.any(axis=1).argmin()]]
            raise record_error("sample", token, f"no key frame in sample_data.json is of {LIDAR} or of a camera")
        return self.keyframes[samples, exists.argmax(axis=1)]

    def ego_to_global(self, rows: NDArray[np.integer]) -> NDArray[np.float64]:
        """The car's poses (record, 4, 4)."""
        return poses(self.records.ego_translations[rows], self.records.ego_rotations[rows])

    def sensor_to_global(self, rows: NDArray[np.integer]) -> NDArray[np.float64]:
        """Sensor to global frame (record, 4, 4), at the ego pose of each record."""
        return self.ego_to_global(rows) @ self.mount_to_ego[self.records.mounts[rows]]
