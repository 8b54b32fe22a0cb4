"""The nuScenes tables as arrays: each file is read once, a piece at a time, and only what is needed is kept.

The devkit keeps every record of every table as a dictionary, 9 GB for the full set. Here radar records, images
between keyframes and the poses of both go as soon as they are parsed.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from cmt_aqr.data.errors import DataError
from cmt_aqr.data.poses import poses
from cmt_aqr.data.table_arrays import ANNOTATIONS, CHANNELS, Annotations, Mounts, SensorRecords, Tables
from cmt_aqr.data.table_pieces import Records, bytes_of, column_of, linked, numbered, read_pieces, refused
from cmt_aqr.data.tables import fingerprint, numbers_of

_PROGRESS_FROM = 200e6
"""Bytes of a folder's tables from which on a bar is drawn."""

_LONGEST_GAP = 1.5
"""Seconds between annotations of an object beyond which ``NuScenes.box_velocity`` knows no velocity."""


def read_tables(folder: Path) -> Tables:
    """Read the tables of a version.

    Args:
        folder: with the ``*.json`` files; those of annotations may be absent, as for the official test split.

    Raises:
        DataError: a table is no list of records in JSON, a record refers to one that is not there, or a value
            is not what it must be; the sentence names table, token and field.
    """
    with _without_collector(), _Reader(folder) as reader:
        scenes = reader.whole("scene")
        sample_rows, samples = _read_samples(reader, numbered(column_of(scenes, "scene", "token")))
        mounts, mount_rows, channels = _read_mounts(reader)
        records = _read_records(reader, sample_rows, mount_rows, channels)
        categories, attributes, annotations = _read_annotations(reader, sample_rows, samples["sample_times"])
        for table in ("log", "map"):
            reader.whole(table)  # the devkit's evaluation opens them, too
    keyframes = np.full((len(sample_rows), len(CHANNELS)), -1, dtype=np.int32)
    rows = np.flatnonzero(records.keyframe)
    keyframes[records.samples[rows], records.channels[rows]] = rows
    return Tables(
        folder=folder,
        scenes=bytes_of(column_of(scenes, "scene", "name")),
        keyframes=keyframes,
        records=records,
        mounts=mounts,
        categories=categories,
        attributes=attributes,
        annotations=annotations,
        **samples,
    )


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """While millions of records come and go, none in a circle, Python's collector looks at them for nothing."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


class _Reader:
    """Reads tables of a folder, with a bar where that takes long."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        total = sum(path.stat().st_size for path in folder.glob("*.json"))
        self._progress = Progress(disable=total < _PROGRESS_FROM)
        self._task = self._progress.add_task(f"Reading the tables of {folder.name}", total=total)

    def __enter__(self) -> _Reader:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def pieces(self, table: str, may_lack: bool = False) -> Iterator[list[dict[str, Any]]]:
        """The records of a table, some at a time; at least one piece.

        Raises:
            DataError: it is no list of records in JSON, or absent and not one that ``may_lack``.
        """
        path = self.folder / f"{table}.json"
        if may_lack and not path.exists():
            yield []
            return
        for size, records in read_pieces(path):
            yield records
            self._progress.advance(self._task, size)

    def whole(self, table: str, may_lack: bool = False) -> list[dict[str, Any]]:
        """All records of a table.

        Raises:
            DataError: there is none, and it is not one that ``may_lack``.
        """
        records = [record for piece in self.pieces(table, may_lack) for record in piece]
        if not (records or may_lack):
            raise DataError(f"{self.folder / table}.json has no record; download the version's metadata again")
        return records


def _joined(pieces: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Arrays of several pieces, end to end."""
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _times_of(records: Records, table: str) -> NDArray[np.int64]:
    return np.array(column_of(records, table, "timestamp", int), dtype=np.int64)


def _read_samples(reader: _Reader, scene_rows: Mapping[str, int]) -> tuple[dict[str, int], dict[str, Any]]:
    """Row by token, and the arrays of :class:`Tables` about samples."""
    records = reader.whole("sample")
    tokens = column_of(records, "sample", "token")
    scenes = column_of(records, "sample", "scene_token")
    arrays = {
        "tokens": bytes_of(tokens),
        "sample_scenes": linked(scene_rows, scenes, tokens, "sample", "scene_token", "scene").astype(np.int32),
        "sample_times": _times_of(records, "sample"),
    }
    return numbered(tokens), arrays


def _read_mounts(reader: _Reader) -> tuple[Mounts, dict[str, int], NDArray[np.int8]]:
    """The calibrated sensors, their rows by token, and the channel of each, -1 for sensors that are not read."""
    sensors, records = reader.whole("sensor"), reader.whole("calibrated_sensor")
    of_sensor = np.array(
        [CHANNELS.index(name) if name in CHANNELS else -1 for name in column_of(sensors, "sensor", "channel")],
        dtype=np.int8,
    )
    table = "calibrated_sensor"
    tokens, links = (column_of(records, table, name) for name in ("token", "sensor_token"))
    sensor_rows = numbered(column_of(sensors, "sensor", "token"))
    channels = of_sensor[linked(sensor_rows, links, tokens, table, "sensor_token", "sensor")]
    to_ego, intrinsics = np.tile(np.eye(4), (len(records), 1, 1)), np.zeros((len(records), 3, 3))
    read, cameras = np.flatnonzero(channels >= 0), np.flatnonzero(channels > 0)
    own = [records[row] for row in read]
    to_ego[read] = poses(
        numbers_of(own, table, "translation", (3,), "position"),
        numbers_of(own, table, "rotation", (4,), "rotation"),
    )
    own = [records[row] for row in cameras]
    intrinsics[cameras] = numbers_of(own, table, "camera_intrinsic", (3, 3), "intrinsic")
    return Mounts(to_ego, intrinsics), numbered(tokens), channels


def _read_records(
    reader: _Reader, sample_rows: Mapping[str, int], mount_rows: Mapping[str, int], channels: NDArray[np.int8]
) -> SensorRecords:
    table = "sample_data"
    pieces: list[dict[str, NDArray[Any]]] = []
    texts: dict[str, list[str]] = {"token": [], "prev": [], "ego_pose_token": []}
    for piece in reader.pieces(table):
        tokens, links = (column_of(piece, table, name) for name in ("token", "calibrated_sensor_token"))
        mounts = linked(mount_rows, links, tokens, table, "calibrated_sensor_token", "calibrated_sensor")
        keyframe = np.array(column_of(piece, table, "is_key_frame", bool), dtype=np.bool_)
        channel = channels[mounts]
        kept = np.flatnonzero((channel == 0) | ((channel > 0) & keyframe))
        own = [piece[row] for row in kept]
        columns = {name: column_of(own, table, name) for name in (*texts, "sample_token", "filename")}
        samples = linked(sample_rows, columns["sample_token"], columns["token"], table, "sample_token", "sample")
        pieces.append(
            {
                "mounts": mounts[kept].astype(np.int32),
                "channels": channel[kept],
                "samples": samples.astype(np.int32),
                "keyframe": keyframe[kept],
                "times": _times_of(own, table),
                "files": bytes_of(columns["filename"]),
            }
        )
        for name, column in texts.items():
            column += columns[name]
    arrays = _joined(pieces)
    sweeps = np.flatnonzero(arrays["channels"] == 0)
    tokens, links = ([texts[name][row] for row in sweeps] for name in ("token", "prev"))
    previous = np.full(len(arrays["channels"]), -1, dtype=np.int32)
    rows = dict(zip(tokens, sweeps.tolist(), strict=True))
    previous[sweeps] = linked(rows, links, tokens, table, "prev", table, may_end=True)
    del rows, tokens, links
    return SensorRecords(**arrays, previous=previous, **_read_ego(reader, texts["ego_pose_token"], texts["token"]))


def _read_ego(reader: _Reader, wanted: Sequence[str], tokens: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Poses of the car at each record.

    Args:
        reader: of the tables.
        wanted: tokens of the poses.
        tokens: of the records.
    """
    table = "ego_pose"
    needed = set(wanted)
    pieces: list[dict[str, NDArray[np.float64]]] = []
    found: list[str] = []
    for piece in reader.pieces(table):
        own = [record for record in piece if record.get("token") in needed]
        found += column_of(own, table, "token")
        pieces.append(
            {
                "ego_translations": numbers_of(own, table, "translation", (3,), "position"),
                "ego_rotations": numbers_of(own, table, "rotation", (4,), "rotation"),
            }
        )
    rows = linked(numbered(found), wanted, tokens, "sample_data", "ego_pose_token", table)
    return {name: values[rows] for name, values in _joined(pieces).items()}


def _read_annotations(
    reader: _Reader, sample_rows: Mapping[str, int], sample_times: NDArray[np.int64]
) -> tuple[tuple[str, ...], tuple[str, ...], Annotations]:
    """Names of categories and attributes, and the boxes."""
    kinds, attributes, instances = (
        reader.whole(table, may_lack=True) for table in ("category", "attribute", "instance")
    )
    category_rows = numbered(column_of(kinds, "category", "token"))
    attribute_rows = numbered(column_of(attributes, "attribute", "token"))
    tokens, links = (column_of(instances, "instance", name) for name in ("token", "category_token"))
    category_of = linked(category_rows, links, tokens, "instance", "category_token", "category").astype(np.int16)
    instance_rows = numbered(tokens)
    pieces: list[dict[str, NDArray[Any]]] = []
    texts: dict[str, list[str]] = {"token": [], "prev": [], "next": []}
    for piece in reader.pieces(ANNOTATIONS, may_lack=True):
        tokens = column_of(piece, ANNOTATIONS, "token")
        links = column_of(piece, ANNOTATIONS, "instance_token")
        of = linked(instance_rows, links, tokens, ANNOTATIONS, "instance_token", "instance")
        links = column_of(piece, ANNOTATIONS, "sample_token")
        samples = linked(sample_rows, links, tokens, ANNOTATIONS, "sample_token", "sample")
        pieces.append(
            {
                "samples": samples.astype(np.int32),
                "categories": category_of[of],
                "attributes": _attributes_of(piece, tokens, attribute_rows),
                "translations": numbers_of(piece, ANNOTATIONS, "translation", (3,), "position"),
                "sizes": numbers_of(piece, ANNOTATIONS, "size", (3,), "size"),
                "rotations": numbers_of(piece, ANNOTATIONS, "rotation", (4,), "rotation"),
                "lidar_points": numbers_of(piece, ANNOTATIONS, "num_lidar_pts", (), "count").astype(np.int64),
                "radar_points": numbers_of(piece, ANNOTATIONS, "num_radar_pts", (), "count").astype(np.int64),
            }
        )
        for name, column in texts.items():
            column += column_of(piece, ANNOTATIONS, name)
    arrays = _joined(pieces)
    rows = numbered(texts["token"])
    previous, following = (
        linked(rows, texts[name], texts["token"], ANNOTATIONS, name, ANNOTATIONS, may_end=True)
        for name in ("prev", "next")
    )
    times = 1e-6 * sample_times[arrays["samples"]]
    velocities = _velocities(arrays["translations"][:, :2], times, previous, following)
    categories = tuple(column_of(kinds, "category", "name"))
    names = tuple(column_of(attributes, "attribute", "name"))
    return categories, names, Annotations(**arrays, velocities=velocities)


def _attributes_of(records: Records, tokens: Sequence[str], rows: Mapping[str, int]) -> NDArray[np.int16]:
    """Row of each annotation's attribute, -1: none.

    Raises:
        DataError: an annotation has several, or one that is not there.
    """
    lists = column_of(records, ANNOTATIONS, "attribute_tokens", list)
    if max(map(len, lists), default=0) > 1:
        token, several = next(pair for pair in zip(tokens, lists, strict=True) if len(pair[1]) > 1)
        raise refused(ANNOTATIONS, token, f"attribute_tokens={several} must be one or none")
    links = [one[0] if one else "" for one in lists]
    return linked(rows, links, tokens, ANNOTATIONS, "attribute_tokens", "attribute", may_end=True).astype(np.int16)


def _velocities(
    places: NDArray[np.float64],
    times: NDArray[np.float64],
    previous: NDArray[np.int64],
    following: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Velocities (box, 2) in m/s between the annotations before and after: ``NuScenes.box_velocity``, bit for bit.

    Args:
        places: (box, 2) in metres, global frame.
        times: (box,) in seconds.
        previous: (box,) the object's annotation before, -1: none.
        following: (box,) the one after.
    """
    own = np.arange(len(places))
    first, last = np.where(previous < 0, own, previous), np.where(following < 0, own, following)
    both = (previous >= 0) & (following >= 0)
    lag = times[last] - times[first]
    known = (first != last) & (lag <= np.where(both, 2 * _LONGEST_GAP, _LONGEST_GAP))
    velocities = np.full(places.shape, np.nan)
    velocities[known] = (places[last] - places[first])[known] / lag[known, None]
    return velocities


@functools.lru_cache(maxsize=1)
def _open(root: Path, version: str, _fingerprint: str) -> Tables:
    return read_tables(root / version)


def open_tables(root: Path, version: str) -> Tables:
    """The tables of a data root; those opened last are kept until :func:`close_tables`.

    Raises:
        DataError: see :func:`read_tables`.
    """
    return _open(root.resolve(), version, fingerprint(root, version))


def close_tables() -> None:
    """Let go of the tables, once everything derived is cached."""
    _open.cache_clear()
