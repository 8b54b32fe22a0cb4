"""Reads the nuScenes tables into arrays: each file once, in chunks, keeping only what is needed.

The devkit keeps every record of every table as a dictionary, 9 GB for the full data set. Here every record is
checked, but those of radars, and of images between keyframes, are dropped immediately.
"""

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from cmt_aqr.data.errors import DataError
from cmt_aqr.data.fields import (
    FIELDS,
    INTRINSIC,
    OPTIONAL_TABLES,
    POSSIBLY_EMPTY_TABLES,
    TEXT,
    as_json,
    encoded,
    read_column,
    record_error,
)
from cmt_aqr.data.poses import poses
from cmt_aqr.data.table_arrays import CHANNELS, Annotations, SensorRecords, Tables
from cmt_aqr.data.table_files import read_chunks

_PROGRESS_BYTES = 200e6
"""Total size of the tables above which a progress bar is shown."""

_MAX_GAP = 1.5
"""Seconds between annotations of an object beyond which ``NuScenes.box_velocity`` returns NaN."""


def read_tables(folder: Path) -> Tables:
    """Read the tables of a version.

    Args:
        folder: with the ``*.json`` files; ``OPTIONAL_TABLES`` may be missing, as for the official test split.

    Raises:
        DataError: a table is not a JSON list of records, a token refers to no record, or a value is not valid;
            names table, token and field.
    """
    reader = _Reader(folder)
    with _garbage_collector_off(), reader.progress:
        for table in ("visibility", "log"):
            reader.read(table)
        categories, attributes = (tuple(reader.read(table)["name"]) for table in ("category", "attribute"))
        instances = reader.read("instance")
        mount_to_ego, intrinsics, channels = _read_mounts(reader)
        ego = reader.read("ego_pose", lambda chunk: {name: chunk[name] for name in ("translation", "rotation")})
        scenes = reader.read("scene")
        samples = reader.read("sample", time_of=lambda chunk: chunk["timestamp"])
        times = samples["timestamp"].astype(np.int64)
        records = _read_records(reader, channels, ego)
        annotations = _read_annotations(reader, instances["category_token"], times)
        logs = set(reader.rows["log"].sorted.tolist())
        without_map = logs.difference(*map(encoded, reader.read("map")["log_tokens"]))
        if without_map:  # the devkit needs it
            raise record_error("log", min(without_map), "no record of map.json has this token in its log_tokens")
    keyframes = np.full((len(times), len(CHANNELS)), -1, dtype=np.int32)
    rows = np.flatnonzero(records.keyframe)
    keyframes[records.samples[rows], records.channels[rows]] = rows
    return Tables(
        folder=folder,
        scenes=encoded(scenes["name"]),
        tokens=samples["token"],
        sample_scenes=samples["scene_token"].astype(np.int32),
        keyframes=keyframes,
        records=records,
        mount_to_ego=mount_to_ego,
        intrinsics=intrinsics,
        categories=categories,
        attributes=attributes,
        annotations=annotations,
    )


@contextlib.contextmanager
def _garbage_collector_off() -> Iterator[None]:
    """Millions of records come and go, none in a cycle: the collector would scan them in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class TokenRows:
    """Finds the rows of records by token (record,).

    A binary search: a dictionary of millions of strings spends its time on cache misses.
    """

    def __init__(self, tokens: NDArray[np.bytes_]) -> None:
        self._order = np.argsort(tokens, kind="stable")
        self.sorted = tokens[self._order]

    def duplicate(self) -> int | None:
        """The first row whose token an earlier row has, too; ``None`` if tokens are unique."""
        repeated = np.flatnonzero(self.sorted[1:] == self.sorted[:-1]) + 1
        return int(self._order[repeated].min()) if len(repeated) else None

    def find(self, tokens: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Rows (token,) of the first record with each token, -1 if there is none."""
        rows = np.full(len(tokens), -1, dtype=np.int64)
        # Sorted queries touch neighbouring memory: four times as fast.
        order = np.argsort(tokens)
        queries = tokens[order]
        positions = np.searchsorted(self.sorted, queries)
        inside = np.flatnonzero(positions < len(self.sorted))
        positions = positions[inside]
        matches = self.sorted[positions] == queries[inside]
        rows[order[inside[matches]]] = self._order[positions[matches]]
        return rows


Columns = dict[str, Any]
"""By field, arrays (record, ...) or lists."""


class _Reader:
    """Reads tables of a folder; each is checked on its own and against those before it.

    Attributes:
        rows: by table, for the tables that were read.
        progress: a bar for large tables, to be entered as a context.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, TokenRows] = {}
        total = sum(path.stat().st_size for path in folder.glob("*.json"))
        self.progress = Progress(disable=total < _PROGRESS_BYTES)
        self._task = self.progress.add_task(f"Reading the tables of {folder.name}", total=total)

    def read(
        self,
        table: str,
        keep: Callable[[Columns], Columns] = lambda chunk: chunk,
        time_of: Callable[[Columns], NDArray[Any]] | None = None,
    ) -> Columns:
        """Read a table, and reduce it to what is needed.

        Args:
            table: its name.
            keep: maps the columns of a chunk to those that are kept. ``token`` is in bytes, references are rows
                (record,) int64, -1 for none, all else is as :data:`~cmt_aqr.data.fields.FIELDS` parses it.
            time_of: maps the columns of a chunk to microseconds (record,), in a table with ``prev`` and ``next``.

        Returns:
            The kept columns, concatenated. In addition, for all records, the rows that they refer to in the table
            itself, and in ``ego_pose``, which is so large that all are resolved together.
        """
        deferred = {name: kind for name, kind in FIELDS[table].items() if kind.target in (table, "ego_pose")}
        kept: list[Columns] = []
        complete: list[Columns] = []
        first = 0
        for size, records in self._chunks(table):
            columns = self._columns(table, records, first)
            first += len(records)
            of_all = {name: columns.pop(name) for name in deferred} | {"token": columns["token"]}
            if time_of is not None:
                of_all["time"] = time_of(columns).astype(np.int64)
            kept.append(keep(columns))
            complete.append(of_all)
            self.progress.advance(self._task, size)
        references = _concatenated(complete)
        tokens = references["token"]
        rows = self.rows[table] = TokenRows(tokens)
        duplicate = rows.duplicate()
        if duplicate is not None:
            raise record_error(table, tokens[duplicate], "token is that of two records, and must be unique")
        links = {}
        for name, kind in deferred.items():
            links[name] = self._resolve(table, name, references[name], tokens)
            if kind.target == table:
                _check_order(table, name, links[name], references["time"], tokens)
        return _concatenated(kept) | links

    def _chunks(self, table: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Bytes and records of a table's chunks; an empty chunk for a missing optional table."""
        path = self.folder / f"{table}.json"
        if table in OPTIONAL_TABLES and not path.exists():
            yield 0, []
            return
        count = 0
        for size, records in read_chunks(path):
            count += len(records)
            yield size, records
        if not count and table not in POSSIBLY_EMPTY_TABLES:
            raise DataError(f"{path} has no record; download the version's metadata again")

    def _columns(self, table: str, records: Sequence[Mapping[str, Any]], first: int) -> Columns:
        """The fields of consecutive records, the first of which has the position ``first``."""
        tokens = encoded(read_column(records, table, "token", TEXT, first))
        columns: Columns = {"token": tokens}
        for name, kind in FIELDS[table].items():
            values = read_column(records, table, name, kind, first)
            if kind.target:
                values = encoded(values)
                if kind.target not in (table, "ego_pose"):
                    values = self._resolve(table, name, values, tokens)
            columns[name] = values
        return columns

    def _resolve(
        self, table: str, name: str, column: NDArray[np.bytes_], tokens: NDArray[np.bytes_]
    ) -> NDArray[np.int64]:
        """Rows (record,) of the records that a field (record,) refers to; -1 for "" in an optional field.

        Raises:
            DataError: a value is no token of the other table; names the first such record.
        """
        kind = FIELDS[table][name]
        rows = self.rows[kind.target].find(column)
        unknown = (rows < 0) & (column != b"") if kind.optional else rows < 0
        if unknown.any():
            row = int(unknown.argmax())
            value = as_json(column[row].decode())
            raise record_error(table, tokens[row], f"{name}={value} is no token of {kind.target}.json")
        return rows


def _check_order(
    table: str, name: str, neighbours: NDArray[np.int64], times: NDArray[np.int64], tokens: NDArray[np.bytes_]
) -> None:
    """Check that ``prev`` leads back in time and ``next`` forward, so that no chain is a cycle.

    Neighbours are rows (record,), -1 for none; times are in microseconds, and may be equal in ``sample_data``.

    Raises:
        DataError: naming the first record whose neighbour is on the wrong side of it.
    """
    lag = (1 if name == "prev" else -1) * (times - times[neighbours])
    standstill = neighbours == np.arange(len(neighbours)) if table == "sample_data" else lag == 0
    wrong = (neighbours >= 0) & ((lag < 0) | standstill)
    if wrong.any():
        row = int(wrong.argmax())
        side = "an earlier" if name == "prev" else "a later"
        neighbour = as_json(tokens[neighbours[row]].decode())
        raise record_error(table, tokens[row], f"{name}={neighbour} must be {side} record's token")


def _concatenated(chunks: list[Columns]) -> Columns:
    def join(parts: list[Any]) -> Any:
        return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else list(itertools.chain(*parts))

    return {name: join([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _read_mounts(reader: _Reader) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int8]]:
    """Poses, intrinsics and channels (mount,) of the calibrated sensors; channel -1: not used."""
    names = reader.read("sensor")["channel"]
    channel_of = np.array([CHANNELS.index(name) if name in CHANNELS else -1 for name in names], dtype=np.int8)
    columns = reader.read("calibrated_sensor")
    channels = channel_of[columns["sensor_token"]]
    intrinsics = np.zeros((len(channels), 3, 3))
    cameras = np.flatnonzero(channels > 0)
    records = [{name: columns[name][row] for name in ("token", "camera_intrinsic")} for row in cameras]
    intrinsics[cameras] = read_column(records, "calibrated_sensor", "camera_intrinsic", INTRINSIC)
    return poses(columns["translation"], columns["rotation"]), intrinsics, channels


def _read_records(reader: _Reader, channels: NDArray[np.int8], ego: Columns) -> SensorRecords:
    """The sensor records that are needed, given the channel of each mount, and the car's poses."""

    def keep(chunk: Columns) -> Columns:
        channel = channels[chunk["calibrated_sensor_token"]]
        keyframe = np.array(chunk["is_key_frame"], dtype=np.bool_)
        needed = (channel == 0) | ((channel > 0) & keyframe)
        rows = np.flatnonzero(needed)
        return {
            "needed": needed,
            "mounts": chunk["calibrated_sensor_token"][rows].astype(np.int32),
            "samples": chunk["sample_token"][rows].astype(np.int32),
            "keyframe": keyframe[rows],
            "times": chunk["timestamp"][rows].astype(np.int64),
            "files": encoded([chunk["filename"][row] for row in rows]),
            "tokens": chunk["token"][rows],
        }

    columns = reader.read("sample_data", keep, time_of=lambda chunk: chunk["timestamp"])
    del reader.rows["ego_pose"], reader.rows["sample_data"]  # no other table refers to them
    needed = columns.pop("needed")
    rows, new_row = np.flatnonzero(needed), np.full(len(needed) + 1, -1, dtype=np.int32)
    new_row[rows] = np.arange(len(rows))  # the last entry maps -1 to -1
    previous, pose = columns.pop("prev")[rows], columns.pop("ego_pose_token")[rows]
    channel = channels[columns["mounts"]]
    del columns["next"]
    return SensorRecords(
        **columns,
        channels=channel,
        previous=np.where(channel == 0, new_row[previous], -1).astype(np.int32),
        ego_translations=ego["translation"][pose],
        ego_rotations=ego["rotation"][pose],
    )


def _read_annotations(
    reader: _Reader, category_of: NDArray[np.int64], sample_times: NDArray[np.int64]
) -> Annotations:
    """The annotated boxes, given the category of each instance and the time of each sample in microseconds."""

    def keep(chunk: Columns) -> Columns:
        return {
            "samples": chunk["sample_token"].astype(np.int32),
            "categories": category_of[chunk["instance_token"]].astype(np.int16),
            "attributes": chunk["attribute_tokens"].astype(np.int16),
            "translations": chunk["translation"],
            "sizes": chunk["size"],
            "rotations": chunk["rotation"],
            "lidar_points": chunk["num_lidar_pts"].astype(np.int64),
            "radar_points": chunk["num_radar_pts"].astype(np.int64),
        }

    columns = reader.read("sample_annotation", keep, time_of=lambda chunk: sample_times[chunk["sample_token"]])
    previous, following = columns.pop("prev"), columns.pop("next")
    times = sample_times[columns["samples"]]
    return Annotations(**columns, velocities=_velocities(columns["translations"], times, previous, following))


def _velocities(
    centres: NDArray[np.float64],
    times: NDArray[np.int64],
    previous: NDArray[np.int64],
    following: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Velocities (box, 2) in m/s from the neighbouring annotations: ``NuScenes.box_velocity``, bit for bit.

    Args:
        centres: (box, 3), metres.
        times: (box,), microseconds.
        previous: (box,), rows of the annotations before; -1: none.
        following: (box,), rows of the annotations after; -1: none.
    """
    rows, seconds = np.arange(len(centres)), 1e-6 * times
    first, last = np.where(previous < 0, rows, previous), np.where(following < 0, rows, following)
    both = (previous >= 0) & (following >= 0)
    lag = seconds[last] - seconds[first]
    defined = (first != last) & (lag <= np.where(both, 2 * _MAX_GAP, _MAX_GAP))
    velocities = np.full((len(centres), 2), np.nan)
    velocities[defined] = (centres[last] - centres[first])[defined, :2] / lag[defined, None]
    return velocities
