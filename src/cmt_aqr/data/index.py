"""The index of a split: its frames as plain arrays, built once from the tables and cached on disk."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from nuscenes.eval.detection.utils import category_to_detection_name

from cmt_aqr.constants import BOX_SIZE, CAMERAS, CLASSES, LIDAR
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.fields import record_error
from cmt_aqr.data.poses import invert, poses, rotations
from cmt_aqr.data.table_arrays import CHANNELS, Annotations, Tables
from cmt_aqr.data.table_files import read_records
from cmt_aqr.data.tables import cached

FORMAT = 6
"""Increase it when the meaning of the arrays changes, so that old caches are rebuilt."""


@dataclass(frozen=True)
class FrameIndex:
    """Everything about the frames of a split but the sensor data.

    Arrays, not objects: processes share them as mapped from the cache, and loading them executes nothing. Tokens
    are in the order of the devkit's sample table.

    Boxes are in the LiDAR frame of their keyframe, with velocity NaN where nuScenes has none. Those of frame i are
    rows ``box_offsets[i]:box_offsets[i + 1]``; those of categories outside ``CLASSES``, which are obstacles, are
    rows ``other_offsets[i]:other_offsets[i + 1]``.

    A frame without LiDAR has a sweep without a file, at the usual mounting position. ``lidar2img`` maps to pixels
    of the image as stored, through the global frame, because each camera fires at another pose of the car; it is
    the identity for a missing camera.
    """

    tokens: NDArray[np.bytes_]  # (frame,) sample tokens
    scenes: NDArray[np.bytes_]  # (frame,) scene names
    lidar: NDArray[np.int32]  # (frame,) row of the keyframe's sweep in the sweep_* arrays
    sweep_files: NDArray[np.bytes_]  # (sweep,) paths below the data root, empty without LiDAR
    sweep_times: NDArray[np.int64]  # (sweep,) microseconds
    sweep_to_global: NDArray[np.float64]  # (sweep, 4, 4) LiDAR frame of the sweep to the global frame
    sweep_previous: NDArray[np.int32]  # (sweep,) row of the sweep before, -1 at the start of a scene
    image_files: NDArray[np.bytes_]  # (frame, view) in the order of CAMERAS; empty for a missing camera
    lidar2img: NDArray[np.float64]  # (frame, view, 4, 4)
    box_offsets: NDArray[np.int64]  # (frame + 1,)
    boxes: NDArray[np.float32]  # (box, 9)
    labels: NDArray[np.int64]  # (box,) indices into CLASSES
    box_points: NDArray[np.int64]  # (box,) annotated LiDAR points
    box_radar_points: NDArray[np.int64]  # (box,) annotated radar points
    other_offsets: NDArray[np.int64]  # (frame + 1,)
    others: NDArray[np.float32]  # (other, 9)
    other_points: NDArray[np.int64]  # (other,) annotated LiDAR points

    def __len__(self) -> int:
        return len(self.tokens)

    def token(self, frame: int) -> str:
        """The sample token of a frame."""
        return self.tokens[frame].decode()

    def sweeps_of(self, frame: int, count: int) -> list[int]:
        """Rows of a keyframe's sweep and of up to ``count`` sweeps before it, newest first."""
        rows = [int(self.lidar[frame])]
        while len(rows) <= count and self.sweep_previous[rows[-1]] >= 0:
            rows.append(int(self.sweep_previous[rows[-1]]))
        return rows

    def first(self, count: int | None) -> Self:
        """The first ``count`` frames, or all if ``count`` is ``None``."""
        if count is None or count >= len(self):
            return self
        ends = {
            ("tokens", "scenes", "lidar", "image_files", "lidar2img"): count,
            ("boxes", "labels", "box_points", "box_radar_points"): self.box_offsets[count],
            ("others", "other_points"): self.other_offsets[count],
            ("box_offsets", "other_offsets"): count + 1,
        }
        return dataclasses.replace(
            self, **{name: getattr(self, name)[:end] for names, end in ends.items() for name in names}
        )

    def check_sensors(self, cameras: bool, lidar: bool) -> None:
        """Raise a :class:`DataError` that names the first frame without a record of a requested sensor."""
        files = dict(zip(CAMERAS, self.image_files.T, strict=True)) if cameras else {}
        if lidar:
            files[LIDAR] = self.sweep_files[self.lidar]
        for channel, paths in files.items():
            missing = paths == b""
            if missing.any():
                what, model = ("LiDAR", "cmt_camera") if channel == LIDAR else ("cameras", "cmt_lidar")
                raise DataError(
                    f"sample {self.token(int(missing.argmax()))} has no key frame of {channel} in "
                    f"sample_data.json (missing in {missing.sum()} of {len(missing)} samples): complete the data, "
                    f"or choose a model without {what}, such as model={model}"
                )

    def check_learnable(
        self, source: str, categories: Path, min_points: int, point_range: Sequence[float]
    ) -> None:
        """Check that there is a box to train on.

        Args:
            source: of the frames, for the message.
            categories: path of the category table.
            min_points: LiDAR points that a box needs.
            point_range: x0, y0, z0, x1, y1, z1 in metres, LiDAR frame; a box must have its centre inside.

        Raises:
            DataError: all is background.
        """
        if not len(self.labels):
            names = ", ".join(sorted(category["name"] for category in read_records(categories)))
            raise DataError(
                f"{source}: no annotation is of one of nuScenes' ten detection classes, so there is nothing to "
                f"learn; the categories are {names or 'none'}"
            )
        usable = self.box_points >= min_points
        if not usable.any():
            raise DataError(
                f"{source}: none of {len(usable)} boxes has data.min_points={min_points} LiDAR points or more "
                f"(num_lidar_pts is at most {self.box_points.max()}); set data.min_points=0, or correct the tables"
            )
        centres, low, high = self.boxes[:, :2], point_range[:2], point_range[3:5]
        if not (usable & ((centres >= low) & (centres <= high)).all(axis=1)).any():
            raise DataError(f"{source}: no box lies within data.point_range={point_range} (x, y of its centre)")


_USUAL_MOUNT = poses([0.94, 0.0, 1.84], [0.5**0.5, 0.0, 0.0, -(0.5**0.5)])[0]
"""LIDAR_TOP of nuScenes' cars (4, 4), LiDAR (x right, y forward, z up) to ego, to the centimetre and degree."""


def load_index(root: Path, version: str, split: str, cache_dir: Path) -> FrameIndex:
    """The index of a split, see :func:`cmt_aqr.data.tables.cached`.

    Raises:
        DataError: the request is not valid, the split has no frames, or a frame has neither LiDAR nor camera.
    """
    names = [field.name for field in dataclasses.fields(FrameIndex)]
    arrays = cached(
        "index", FORMAT, names, lambda tables: vars(build_index(tables, split)), root, version, split, cache_dir
    )
    return FrameIndex(**arrays)


def build_index(tables: Tables, split: str) -> FrameIndex:
    """Build the index of a split.

    Raises:
        DataError: the split has no frames, or a frame has neither LiDAR nor camera.
    """
    samples = tables.samples_of(split)
    sweeps, lidar = _index_sweeps(tables, samples)
    lidar_to_global = sweeps["sweep_to_global"][lidar]
    images = tables.keyframes[samples, 1:]
    return FrameIndex(
        tokens=tables.tokens[samples],
        scenes=tables.scenes[tables.sample_scenes[samples]],
        lidar=lidar,
        image_files=np.where(images < 0, b"", tables.records.files[images]),
        lidar2img=_lidar_to_images(tables, images, lidar_to_global),
        **sweeps,
        **_index_boxes(tables, samples, lidar_to_global),
    )


def _index_sweeps(tables: Tables, samples: NDArray[np.int64]) -> tuple[dict[str, NDArray[Any]], NDArray[np.int32]]:
    """The ``sweep_*`` arrays, and the row (frame,) of each keyframe's sweep.

    A frame without LiDAR gets a sweep without a file, at the time of its first camera and the usual mount.
    """
    records, keyframes, reference = tables.records, tables.keyframes[samples, 0], tables.reference_of(samples)
    has_lidar = keyframes >= 0
    rows = _with_all_before(tables, keyframes[has_lidar])
    new_row = np.full(len(records.times) + 1, -1, dtype=np.int32)
    new_row[rows] = np.arange(len(rows))  # the last entry maps -1 to -1
    lidar = new_row[keyframes]
    substitutes = reference[~has_lidar]
    lidar[~has_lidar] = len(rows) + np.arange(len(substitutes))
    arrays = {
        "sweep_files": np.append(records.files[rows], np.zeros(len(substitutes), dtype="S1")),
        "sweep_times": records.times[np.append(rows, substitutes)],
        "sweep_to_global": np.append(
            tables.sensor_to_global(rows), tables.ego_to_global(substitutes) @ _USUAL_MOUNT, axis=0
        ),
        "sweep_previous": np.append(
            new_row[records.previous[rows]], np.full(len(substitutes), -1, dtype=np.int32)
        ),
    }
    return arrays, lidar


def _with_all_before(tables: Tables, sweeps: NDArray[np.int32]) -> NDArray[np.int64]:
    """Rows of sweeps and of all earlier sweeps of their scenes.

    Raises:
        DataError: a record of another sensor is among them.
    """
    records = tables.records
    needed = np.zeros(len(records.times), dtype=np.bool_)
    front = sweeps
    while len(front):  # back in time in all scenes in parallel, as far as rows are new
        needed[front] = True
        front = records.previous[front]
        front = front[front >= 0]
        front = front[~needed[front]]
    rows = np.flatnonzero(needed)
    others = rows[records.channels[rows] != 0]
    if len(others):
        channel, token = CHANNELS[records.channels[others[0]]], records.tokens[others[0]]
        raise record_error("sample_data", token, f"is of {channel}, but prev of a sweep of {LIDAR}")
    return rows


def _lidar_to_images(
    tables: Tables, images: NDArray[np.int32], lidar_to_global: NDArray[np.float64]
) -> NDArray[np.float64]:
    """lidar2img (frame, view, 4, 4), given the record (frame, view) of each image, -1: none."""
    result = np.tile(np.eye(4), (*images.shape, 1, 1))
    for view, records in enumerate(images.T):
        frames = np.flatnonzero(records >= 0)
        rows = records[frames]
        intrinsics = np.tile(np.eye(4), (len(rows), 1, 1))
        intrinsics[:, :3, :3] = tables.intrinsics[tables.records.mounts[rows]]
        result[frames, view] = intrinsics @ invert(tables.sensor_to_global(rows)) @ lidar_to_global[frames]
    return result


def _index_boxes(
    tables: Tables, samples: NDArray[np.int64], lidar_to_global: NDArray[np.float64]
) -> dict[str, NDArray[Any]]:
    """The arrays of boxes, those of the detection classes apart from the others."""
    annotations = tables.annotations
    rows, frames = boxes_of(tables, samples)
    labels = class_of(tables.categories)[annotations.categories[rows]]
    boxes = _boxes_in_lidar(annotations, rows, lidar_to_global[frames])
    lidar_points, radar_points = annotations.lidar_points[rows], annotations.radar_points[rows]
    detected = labels >= 0

    def offsets(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        counts = np.bincount(frames[mask], minlength=len(samples))
        return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)

    return {
        "box_offsets": offsets(detected),
        "boxes": boxes[detected],
        "labels": labels[detected],
        "box_points": lidar_points[detected],
        "box_radar_points": radar_points[detected],
        "other_offsets": offsets(~detected),
        "others": boxes[~detected],
        "other_points": lidar_points[~detected],
    }


def boxes_of(tables: Tables, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows (box,) and frames (box,) of the annotations of samples, by frame, then in the order of their table."""
    frame_of = np.full(len(tables.tokens), -1, dtype=np.int64)
    frame_of[samples] = np.arange(len(samples))
    frames = frame_of[tables.annotations.samples]
    order = np.argsort(frames, kind="stable")
    order = order[np.searchsorted(frames[order], 0) :]
    return order, frames[order]


def class_of(categories: Sequence[str]) -> NDArray[np.int64]:
    """Index into ``CLASSES`` of each nuScenes category, -1 for those that are not a detection class."""
    names = [category_to_detection_name(name) for name in categories]
    return np.array([-1 if name is None else CLASSES.index(name) for name in names], dtype=np.int64)


def _boxes_in_lidar(
    annotations: Annotations, rows: NDArray[np.int64], lidar_to_global: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Annotations as boxes (box, 9): size from (w, l, h) to (l, w, h), heading from the box's x axis."""
    to_lidar = invert(lidar_to_global)
    rotation = to_lidar[:, :3, :3]
    x_axis = rotations(annotations.rotations[rows])[:, :, 0]
    heading = np.einsum("bij,bj->bi", rotation, x_axis)
    # nuScenes' velocity is horizontal in the global frame: z is 0 before the rotation, and dropped after it.
    velocity = np.zeros((len(rows), 3))
    velocity[:, :2] = annotations.velocities[rows]
    boxes = np.empty((len(rows), BOX_SIZE), dtype=np.float32)
    boxes[:, :3] = np.einsum("bij,bj->bi", rotation, annotations.translations[rows]) + to_lidar[:, :3, 3]
    boxes[:, 3:6] = annotations.sizes[rows][:, [1, 0, 2]]
    boxes[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    boxes[:, 7:] = np.einsum("bij,bj->bi", rotation, velocity)[:, :2]
    return boxes
