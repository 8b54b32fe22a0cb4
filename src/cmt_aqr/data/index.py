"""The index of frames: what a split holds, in plain arrays, made once from the tables and cached on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from pytorch_lightning.utilities import rank_zero_only
from rich.progress import track

from cmt_aqr.constants import BOX_SIZE, CAMERAS, CLASSES, LIDAR
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.poses import invert, poses, rotations
from cmt_aqr.data.saved_arrays import load_arrays, save_arrays
from cmt_aqr.data.tables import (
    cache_path,
    check_request,
    consistent_tables,
    fingerprint,
    numbers_of,
    open_tables,
    samples_of_split,
)
from cmt_aqr.files import check_folder, writing

FORMAT = 4
"""Raise it when the arrays change their meaning, so that old caches are made again."""

_PROGRESS_FROM = 1000


@dataclass(frozen=True)
class FrameIndex:
    """Everything about a split's frames but the sensor data itself.

    Arrays, not objects: worker processes share them, and they load without executing anything.

    Attributes:
        tokens: (frame,) bytes, sample tokens, in the order of the devkit's sample table.
        scenes: (frame,) bytes, scene names.
        timestamps: (frame,) int64, microseconds.
        lidar: (frame,) int32, row of the keyframe's sweep in the ``sweep_*`` arrays.
        sweep_files: (sweep,) bytes, paths below the data root.
        sweep_times: (sweep,) int64, microseconds.
        sweep_to_global: (sweep, 4, 4) float64, LiDAR frame of the sweep to the global frame.
        sweep_previous: (sweep,) int32, row of the sweep before, -1 at the start of a scene.
        image_files: (frame, view) bytes, views in the order of ``CAMERAS``.
        lidar2img: (frame, view, 4, 4) float64 in pixels of the image as stored; by way of the global frame,
            so each camera is where the car was when that camera fired.
        box_offsets: (frame + 1,) int64; boxes of frame i are rows ``box_offsets[i]:box_offsets[i + 1]``.
        boxes: (box, 9) float32 in the keyframe's LiDAR frame; velocity NaN where nuScenes has none.
        labels: (box,) int64, indices into ``CLASSES``.
        box_points: (box,) int64, annotated LiDAR points.
        box_radar_points: (box,) int64, annotated radar points.
        other_offsets: (frame + 1,) int64, as ``box_offsets``, for the boxes of other categories.
        others: (box, 9) float32, boxes as above of categories outside ``CLASSES``: they take up room.
        other_points: (box,) int64, annotated LiDAR points of those.
    """

    tokens: NDArray[np.bytes_]
    scenes: NDArray[np.bytes_]
    timestamps: NDArray[np.int64]
    lidar: NDArray[np.int32]
    sweep_files: NDArray[np.bytes_]
    sweep_times: NDArray[np.int64]
    sweep_to_global: NDArray[np.float64]
    sweep_previous: NDArray[np.int32]
    image_files: NDArray[np.bytes_]
    lidar2img: NDArray[np.float64]
    box_offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    box_points: NDArray[np.int64]
    box_radar_points: NDArray[np.int64]
    other_offsets: NDArray[np.int64]
    others: NDArray[np.float32]
    other_points: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tokens)

    def token(self, frame: int) -> str:
        """Sample token of a frame."""
        return self.tokens[frame].decode()

    def sweeps_of(self, frame: int, count: int) -> list[int]:
        """Rows of the keyframe's sweep and of up to ``count`` sweeps before it, newest first."""
        rows = [int(self.lidar[frame])]
        while len(rows) <= count and self.sweep_previous[rows[-1]] >= 0:
            rows.append(int(self.sweep_previous[rows[-1]]))
        return rows

    def first(self, count: int | None) -> Self:
        """The first ``count`` frames only, or all where ``count`` is None."""
        if count is None or count >= len(self):
            return self
        end, end_of_others = int(self.box_offsets[count]), int(self.other_offsets[count])
        per_frame = ("tokens", "scenes", "timestamps", "lidar", "image_files", "lidar2img")
        per_box = ("boxes", "labels", "box_points", "box_radar_points")
        changes = {name: getattr(self, name)[:count] for name in per_frame}
        changes |= {name: getattr(self, name)[:end] for name in per_box}
        changes |= {name: getattr(self, name)[:end_of_others] for name in ("others", "other_points")}
        changes |= {name: getattr(self, name)[: count + 1] for name in ("box_offsets", "other_offsets")}
        return dataclasses.replace(self, **changes)

    def check_files(self, root: Path, frames: Iterable[int], images: bool) -> None:
        """Raise a :class:`DataError` that names the first file of these frames that is missing."""
        for frame in frames:
            names = [self.sweep_files[self.lidar[frame]], *(self.image_files[frame] if images else ())]
            for name in names:
                if not (root / name.decode()).is_file():
                    raise DataError(f"{root / name.decode()} is missing: the tables name it, data.root lacks it")

    def save(self, path: Path, stamp: str) -> None:
        """Write to ``path`` at once or not at all, stamped with what it was made from."""
        save_arrays(path, stamp, _arrays(self))

    @classmethod
    def load(cls, path: Path, stamp: str) -> Self | None:
        """Read what :meth:`save` wrote; None where it is absent, of another stamp, or damaged (logged)."""
        arrays = load_arrays(path, stamp, (field.name for field in dataclasses.fields(cls)))
        return None if arrays is None else cls(**arrays)


def _arrays(index: FrameIndex) -> dict[str, NDArray[Any]]:
    return {field.name: getattr(index, field.name) for field in dataclasses.fields(index)}


ANNOTATIONS = "sample_annotation"


def load_index(root: Path, version: str, split: str, cache_dir: Path) -> FrameIndex:
    """The index of a split: from the cache while the tables are what they were, else made and cached.

    Args:
        root: nuScenes data root.
        version: e.g. ``v1.0-trainval``.
        split: a split of the devkit, e.g. ``train``, or of the version's ``splits.json``.
        cache_dir: made where it is absent.

    Raises:
        DataError: see :func:`cmt_aqr.data.tables.check_request`, and where the split has no frame or a
            frame lacks one of its sensors.
    """
    check_request(root, version, split)
    stamp = f"format {FORMAT} {fingerprint(root, version)}"
    path = cache_path(cache_dir, "index", root, version, split, ".npz")
    index = FrameIndex.load(path, stamp)
    if index is None:
        check_folder("data.cache_dir", cache_dir)
        with consistent_tables(root / version):
            index = build_index(open_tables(root, version), split)
        with writing("data.cache_dir", cache_dir):
            index.save(path, stamp)
    return index


def build_index(tables: NuScenes, split: str) -> FrameIndex:
    """Make the index of a split from the devkit's tables.

    Raises:
        DataError: the split has no frame, or a frame lacks a sensor's record.
    """
    samples = samples_of_split(tables, split)
    for sample in samples:
        for channel in (LIDAR, *CAMERAS):
            if channel not in sample["data"]:
                raise DataError(
                    f"sample {sample['token']} in {tables.table_root} has no record of {channel}: "
                    "CMT needs LIDAR_TOP and all six cameras of every keyframe"
                )
    sweeps, lidar = _index_sweeps(tables, samples)
    lidar_to_global = sweeps["sweep_to_global"][lidar]
    image_files, lidar2img = _index_cameras(tables, samples, lidar_to_global)
    return FrameIndex(
        tokens=_bytes([sample["token"] for sample in samples]),
        scenes=_bytes([tables.get("scene", sample["scene_token"])["name"] for sample in samples]),
        timestamps=np.array([sample["timestamp"] for sample in samples], dtype=np.int64),
        lidar=lidar,
        image_files=image_files,
        lidar2img=lidar2img,
        **sweeps,
        **_index_boxes(tables, samples, lidar_to_global),
    )


def _bytes(texts: list[str]) -> NDArray[np.bytes_]:
    return np.array([text.encode() for text in texts], dtype=np.bytes_)


def _progress(samples: list[dict], what: str) -> Iterable[dict]:
    quiet = len(samples) < _PROGRESS_FROM or getattr(rank_zero_only, "rank", 0) != 0
    return track(samples, description=f"Indexing {what} of {len(samples)} frames", disable=quiet)


def _sensor_to_global(tables: NuScenes, records: list[dict]) -> NDArray[np.float64]:
    """(record, 4, 4): the sensor's frame to the global frame, at the record's own ego pose."""
    ego = [tables.get("ego_pose", record["ego_pose_token"]) for record in records]
    mount = [tables.get("calibrated_sensor", record["calibrated_sensor_token"]) for record in records]
    return _poses_of(ego, "ego_pose") @ _poses_of(mount, "calibrated_sensor")


def _poses_of(records: list[dict], table: str) -> NDArray[np.float64]:
    return poses(
        numbers_of(records, table, "translation", (3,), "position"),
        numbers_of(records, table, "rotation", (4,), "rotation"),
    )


def _index_sweeps(tables: NuScenes, samples: list[dict]) -> tuple[dict[str, Any], NDArray[np.int32]]:
    """The ``sweep_*`` arrays, and the row of each keyframe's own sweep."""
    rows: dict[str, int] = {}
    records: list[dict] = []
    for sample in _progress(samples, "the sweeps"):
        token = sample["data"][LIDAR]
        while token and token not in rows:
            rows[token] = len(records)
            records.append(tables.get("sample_data", token))
            token = records[-1]["prev"]
    arrays = {
        "sweep_files": _bytes([record["filename"] for record in records]),
        "sweep_times": np.array([record["timestamp"] for record in records], dtype=np.int64),
        "sweep_to_global": _sensor_to_global(tables, records),
        "sweep_previous": np.array([rows.get(record["prev"], -1) for record in records], dtype=np.int32),
    }
    return arrays, np.array([rows[sample["data"][LIDAR]] for sample in samples], dtype=np.int32)


def _index_cameras(
    tables: NuScenes, samples: list[dict], lidar_to_global: NDArray[np.float64]
) -> tuple[NDArray[np.bytes_], NDArray[np.float64]]:
    """Image files (frame, view) and lidar2img (frame, view, 4, 4)."""
    files: list[str] = []
    lidar2img = np.empty((len(samples), len(CAMERAS), 4, 4))
    for view, camera in enumerate(CAMERAS):
        records = [tables.get("sample_data", sample["data"][camera]) for sample in samples]
        files.extend(record["filename"] for record in records)
        mount = [tables.get("calibrated_sensor", record["calibrated_sensor_token"]) for record in records]
        intrinsics = np.tile(np.eye(4), (len(samples), 1, 1))
        intrinsics[:, :3, :3] = numbers_of(mount, "calibrated_sensor", "camera_intrinsic", (3, 3), "intrinsic")
        lidar2img[:, view] = intrinsics @ invert(_sensor_to_global(tables, records)) @ lidar_to_global
    return _bytes(files).reshape(len(CAMERAS), len(samples)).T.copy(), lidar2img


def _index_boxes(
    tables: NuScenes, samples: list[dict], lidar_to_global: NDArray[np.float64]
) -> dict[str, NDArray[Any]]:
    """Boxes in the LiDAR frame of their keyframe; those of the ten detection classes apart from others."""
    records: list[dict] = []
    labels: list[int] = []
    velocities: list[ArrayLike] = []
    for sample in _progress(samples, "the boxes"):
        for token in sample["anns"]:
            record = tables.get("sample_annotation", token)
            name = category_to_detection_name(record["category_name"])
            records.append(record)
            labels.append(-1 if name is None else CLASSES.index(name))
            velocities.append(tables.box_velocity(token)[:2])
    frame = np.repeat(np.arange(len(samples)), [len(sample["anns"]) for sample in samples])
    label = np.array(labels, dtype=np.int64)
    boxes = _boxes_in_lidar(records, velocities, lidar_to_global[frame])
    lidar_points, radar_points = (
        numbers_of(records, ANNOTATIONS, field, (), "count").astype(np.int64)
        for field in ("num_lidar_pts", "num_radar_pts")
    )
    wanted = label >= 0

    def offsets(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.concatenate(([0], np.cumsum(np.bincount(frame[chosen], minlength=len(samples))))).astype(
            np.int64
        )

    return {
        "box_offsets": offsets(wanted),
        "boxes": boxes[wanted],
        "labels": label[wanted],
        "box_points": lidar_points[wanted],
        "box_radar_points": radar_points[wanted],
        "other_offsets": offsets(~wanted),
        "others": boxes[~wanted],
        "other_points": lidar_points[~wanted],
    }


def _boxes_in_lidar(
    records: list[dict], velocities: list[ArrayLike], lidar_to_global: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Annotations to boxes (box, 9): size from (w, l, h) to (l, w, h), heading from the box's x axis."""
    to_lidar = invert(lidar_to_global)
    rotation = to_lidar[:, :3, :3]
    centre = numbers_of(records, ANNOTATIONS, "translation", (3,), "position")
    size = numbers_of(records, ANNOTATIONS, "size", (3,), "size")
    turned = rotations(numbers_of(records, ANNOTATIONS, "rotation", (4,), "rotation"))
    heading = np.einsum("bij,bj->bi", rotation, turned[:, :, 0])
    # nuScenes' velocity is horizontal in the global frame: z is taken as 0, and not looked at afterwards.
    velocity = np.zeros((len(records), 3))
    velocity[:, :2] = np.array(velocities, dtype=np.float64).reshape(-1, 2)
    boxes = np.empty((len(records), BOX_SIZE), dtype=np.float32)
    boxes[:, :3] = np.einsum("bij,bj->bi", rotation, centre) + to_lidar[:, :3, 3]
    boxes[:, 3:6] = size[:, [1, 0, 2]]
    boxes[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    boxes[:, 7:] = np.einsum("bij,bj->bi", rotation, velocity)[:, :2]
    return boxes
