"""The nuScenes tables as arrays: each file is read once, a piece at a time, and only what is needed is kept.

The devkit keeps every record of every table as a dictionary, 9 GB for the full set. Here every record is checked,
but those of radars, and of images between keyframes, go as soon as they are.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from cmt_aqr.data.columns import (
    Records,
    TokenRows,
    bytes_of,
    check_order,
    column_of,
    linked,
    read_column,
    refused,
)
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.fields import FIELDS, INTRINSIC, MAY_BE_EMPTY, MAY_LACK, TEXT
from cmt_aqr.data.poses import poses
from cmt_aqr.data.table_arrays import CHANNELS, Annotations, Mounts, SensorRecords, Tables
from cmt_aqr.data.table_files import read_pieces

_PROGRESS_FROM = 200e6
"""Bytes of a folder's tables from which on a bar is drawn."""

_LONGEST_GAP = 1.5
"""Seconds between annotations of an object beyond which ``NuScenes.box_velocity`` knows no velocity."""


def read_tables(folder: Path) -> Tables:
    """Read the tables of a version.

    Args:
        folder: with the ``*.json`` files; those of ``MAY_LACK`` may be absent, as for the official test split.

    Raises:
        DataError: a table is no list of records in JSON, a record refers to one that is not there, or a value
            is not what it must be; the sentence names table, token and field.
    """
    reader = _Reader(folder)
    with _without_collector(), reader.progress:
        for table in ("visibility", "log"):
            reader.read(table)
        categories, attributes = (tuple(reader.read(table)["name"]) for table in ("category", "attribute"))
        instances = reader.read("instance")
        mounts, channels = _read_mounts(reader)
        ego = reader.read("ego_pose", lambda piece: {name: piece[name] for name in ("translation", "rotation")})
        scenes = reader.read("scene")
        samples = reader.read("sample", time_of=lambda piece: piece["timestamp"])
        times = samples["timestamp"].astype(np.int64)
        records = _read_records(reader, channels, ego)
        annotations = _read_annotations(reader, instances["category_token"], times)
        logs = set(reader.rows["log"].sorted.tolist())
        without = logs.difference(*map(bytes_of, reader.read("map")["log_tokens"]))
        if without:  # the devkit looks for it
            raise refused("log", min(without), "no record of map.json has this token in its log_tokens")
    keyframes = np.full((len(times), len(CHANNELS)), -1, dtype=np.int32)
    rows = np.flatnonzero(records.keyframe)
    keyframes[records.samples[rows], records.channels[rows]] = rows
    return Tables(
        folder=folder,
        scenes=bytes_of(scenes["name"]),
        tokens=samples["token"],
        sample_scenes=samples["scene_token"].astype(np.int32),
        sample_times=times,
        keyframes=keyframes,
        records=records,
        mounts=mounts,
        categories=categories,
        attributes=attributes,
        annotations=annotations,
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


Columns = dict[str, Any]
"""By field, arrays (record, ...) or lists."""


class _Reader:
    """Reads tables of a folder, each checked by itself and against those before it; shows a bar for large ones.

    Attributes:
        rows: of each table that was read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, TokenRows] = {}
        total = sum(path.stat().st_size for path in folder.glob("*.json"))
        self.progress = Progress(disable=total < _PROGRESS_FROM)
        self._task = self.progress.add_task(f"Reading the tables of {folder.name}", total=total)

    def read(
        self,
        table: str,
        keep: Callable[[Columns], Columns] = lambda piece: piece,
        time_of: Callable[[Columns], NDArray[Any]] | None = None,
    ) -> Columns:
        """What is kept of a table.

        Args:
            table: its name.
            keep: of the columns of some records: ``token`` in bytes, references as rows (record,) of int64, -1 for
                none, all else as :data:`~cmt_aqr.data.fields.FIELDS` reads it.
            time_of: microseconds (record,), of a table with ``prev`` and ``next``: from the columns.

        Returns:
            What ``keep`` gives, end to end; and, of all records, the rows that they refer to of the table itself,
            and of
            ``ego_pose``, which is so large that all are looked up at once.
        """
        late = {name: kind for name, kind in FIELDS[table].items() if kind.target in (table, "ego_pose")}
        kept: list[Columns] = []
        of_all: list[Columns] = []
        first = 0
        for size, records in self._pieces(table):
            columns = self._columns(table, records, first)
            first += len(records)
            whole = {name: columns.pop(name) for name in late} | {"token": columns["token"]}
            if time_of is not None:
                whole["time"] = time_of(columns).astype(np.int64)
            kept.append(keep(columns))
            of_all.append(whole)
            self.progress.advance(self._task, size)
        found = _joined(of_all)
        tokens = found["token"]
        rows = self.rows[table] = TokenRows(tokens)
        twice = rows.twice()
        if twice is not None:
            raise refused(table, tokens[twice], "token is that of two records, and must be of one")
        links = {}
        for name, kind in late.items():
            links[name] = linked(self.rows[kind.target], found[name], tokens, table, name, kind)
            if kind.target == table:
                check_order(table, name, links[name], found["time"], tokens)
        return _joined(kept) | links

    def _pieces(self, table: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Bytes and records of a table's pieces; of one that may be empty or lacking, an empty piece."""
        path = self.folder / f"{table}.json"
        if table in MAY_LACK and not path.exists():
            yield 0, []
            return
        count = 0
        for size, records in read_pieces(path):
            count += len(records)
            yield size, records
        if not count and table not in MAY_BE_EMPTY:
            raise DataError(f"{path} has no record; download the version's metadata again")

    def _columns(self, table: str, records: Records, first: int) -> Columns:
        """The fields of some records, of which the first is number ``first``."""
        places = range(first, first + len(records))
        tokens = bytes_of(read_column(table, "token", column_of(records, table, "token", first), places, TEXT))
        columns: Columns = {"token": tokens}
        for name, kind in FIELDS[table].items():
            values = read_column(table, name, column_of(records, table, name), tokens, kind)
            if kind.target:
                values = bytes_of(values)
                if kind.target not in (table, "ego_pose"):
                    values = linked(self.rows[kind.target], values, tokens, table, name, kind)
            columns[name] = values
        return columns


def _joined(pieces: list[Columns]) -> Columns:
    """Arrays or lists of pieces, end to end."""

    def whole(parts: list[Any]) -> Any:
        return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else list(itertools.chain(*parts))

    return {name: whole([piece[name] for piece in pieces]) for name in pieces[0]}


def _read_mounts(reader: _Reader) -> tuple[Mounts, NDArray[np.int8]]:
    """The calibrated sensors, and the channel of each, -1 for sensors that are not read."""
    names = reader.read("sensor")["channel"]
    of_sensor = np.array([CHANNELS.index(name) if name in CHANNELS else -1 for name in names], dtype=np.int8)
    records = reader.read("calibrated_sensor")
    channels = of_sensor[records["sensor_token"]]
    intrinsics = np.zeros((len(channels), 3, 3))
    cameras = np.flatnonzero(channels > 0)
    tokens, matrices = ([records[name][row] for row in cameras] for name in ("token", "camera_intrinsic"))
    intrinsics[cameras] = read_column("calibrated_sensor", "camera_intrinsic", matrices, tokens, INTRINSIC)
    return Mounts(poses(records["translation"], records["rotation"]), intrinsics), channels


def _read_records(reader: _Reader, channels: NDArray[np.int8], ego: Columns) -> SensorRecords:
    """The needed records of ``CHANNELS``, given each calibrated sensor's channel, and the car's poses."""

    def keep(piece: Columns) -> Columns:
        channel = channels[piece["calibrated_sensor_token"]]
        keyframe = np.array(piece["is_key_frame"], dtype=np.bool_)
        needed = (channel == 0) | ((channel > 0) & keyframe)
        own = np.flatnonzero(needed)
        return {
            "needed": needed,
            "mounts": piece["calibrated_sensor_token"][own].astype(np.int32),
            "samples": piece["sample_token"][own].astype(np.int32),
            "keyframe": keyframe[own],
            "times": piece["timestamp"][own].astype(np.int64),
            "files": bytes_of([piece["filename"][row] for row in own]),
            "tokens": piece["token"][own],
        }

    kept = reader.read("sample_data", keep, time_of=lambda piece: piece["timestamp"])
    del reader.rows["ego_pose"], reader.rows["sample_data"]  # to which no other table refers
    needed = kept.pop("needed")
    rows, place = np.flatnonzero(needed), np.full(len(needed) + 1, -1, dtype=np.int32)
    place[rows] = np.arange(len(rows))  # one entry more, so that -1 stays -1
    previous, at = kept.pop("prev")[rows], kept.pop("ego_pose_token")[rows]
    channel = channels[kept["mounts"]]
    del kept["next"]
    return SensorRecords(
        **kept,
        channels=channel,
        previous=np.where(channel == 0, place[previous], -1).astype(np.int32),
        ego_translations=ego["translation"][at],
        ego_rotations=ego["rotation"][at],
    )


def _read_annotations(
    reader: _Reader, category_of: NDArray[np.int64], sample_times: NDArray[np.int64]
) -> Annotations:
    """The annotated boxes, given each instance's category, and the times (sample,) in microseconds."""

    def keep(piece: Columns) -> Columns:
        return {
            "samples": piece["sample_token"].astype(np.int32),
            "categories": category_of[piece["instance_token"]].astype(np.int16),
            "attributes": piece["attribute_tokens"].astype(np.int16),
            "translations": piece["translation"],
            "sizes": piece["size"],
            "rotations": piece["rotation"],
            "lidar_points": piece["num_lidar_pts"].astype(np.int64),
            "radar_points": piece["num_radar_pts"].astype(np.int64),
        }

    kept = reader.read("sample_annotation", keep, time_of=lambda piece: sample_times[piece["sample_token"]])
    previous, following = kept.pop("prev"), kept.pop("next")
    velocities = _velocities(kept["translations"][:, :2], sample_times[kept["samples"]], previous, following)
    return Annotations(**kept, velocities=velocities)


def _velocities(
    places: NDArray[np.float64],
    times: NDArray[np.int64],
    previous: NDArray[np.int64],
    following: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Velocities (box, 2) in m/s between the annotations before and after: ``NuScenes.box_velocity``, bit for bit.

    Places (box, 2) are in metres, times (box,) in microseconds; the rows before and after are -1 where there is
    none.
    """
    own, seconds = np.arange(len(places)), 1e-6 * times
    first, last = np.where(previous < 0, own, previous), np.where(following < 0, own, following)
    both = (previous >= 0) & (following >= 0)
    lag = seconds[last] - seconds[first]
    known = (first != last) & (lag <= np.where(both, 2 * _LONGEST_GAP, _LONGEST_GAP))
    velocities = np.full(places.shape, np.nan)
    velocities[known] = (places[last] - places[first])[known] / lag[known, None]
    return velocities
