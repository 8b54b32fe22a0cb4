"""The fields of the nuScenes tables: what each may hold, and how a field of many records is parsed.

Everything works on columns, because the full data set has 2.6 million records in one table.
"""

import functools
import itertools
import json
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES
from nuscenes.utils.color_map import get_colormap

from cmt_aqr.data.errors import DataError


@dataclass(frozen=True)
class FieldType:
    """What a field of a table may hold."""

    expected: str  # in words, for error messages
    parse: Callable[[Sequence[Any]], Any]  # values of records to an array (record, ...) or list; None: invalid
    target: str = ""  # the table whose tokens the field holds, if it holds tokens
    optional: bool = False  # whether "" stands for no token


def record_error(table: str, token: str | bytes | int, problem: str) -> DataError:
    """The error about a record, named by its token, or by its position from 0 if it has no token."""
    name = token.decode() if isinstance(token, bytes) else token
    record = f"record {name}" if isinstance(name, int) else f"token {name}"
    return DataError(
        f"{table}.json, {record}: {problem}; correct the record, or download the version's metadata again"
    )


def as_json(value: Any) -> str:
    """A value as JSON, truncated to 80 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_column(
    records: Sequence[Mapping[str, Any]], table: str, name: str, kind: FieldType, first: int = 0
) -> Any:
    """Parse a field of consecutive records of a table, the first of which has the position ``first``.

    Raises:
        DataError: a record has no such field, or a value of another type; names table, token and field.
    """

    def error(position: int, problem: str) -> DataError:
        token = None if name == "token" else records[position].get("token")
        return record_error(table, first + position if token is None else token, problem)

    try:
        values = list(map(operator.itemgetter(name), records))
    except KeyError as missing:
        position = next(position for position, record in enumerate(records) if name not in record)
        raise error(position, f"{name} is missing") from missing
    parsed = kind.parse(values)
    if parsed is None:
        position = next(position for position, value in enumerate(values) if kind.parse([value]) is None)
        raise error(position, f"{name}={as_json(values[position])} must be {kind.expected}")
    return parsed


def encoded(texts: Iterable[str]) -> NDArray[np.bytes_]:
    """Texts as an array of UTF-8 bytes."""
    return np.array([text.encode() for text in texts], dtype=np.bytes_)


def _numbers(
    expected: str,
    shape: tuple[int, ...],
    below: float,
    valid: Callable[[NDArray[np.float64]], NDArray[np.bool_]] = np.isfinite,
) -> FieldType:
    """Numbers, parsed as (record, *shape) float64.

    Args:
        expected: see :class:`FieldType`.
        shape: of a value; () for a single number.
        below: upper bound of all magnitudes, exclusive.
        valid: maps values (record, *shape) to conditions that must all hold; false for NaN.
    """

    def parse(column: Sequence[Any]) -> NDArray[np.float64] | None:
        flat = column
        for size in shape:
            if not (_all_are(list, flat) and set(map(len, flat)) <= {size}):
                return None
            flat = list(itertools.chain.from_iterable(flat))
        if not set(map(type, flat)) <= {int, float}:  # neither strings nor booleans
            return None
        try:
            values = np.array(flat, dtype=np.float64).reshape(len(column), *shape)
        except OverflowError:
            return None
        return values if (np.abs(values) < below).all() and valid(values).all() else None

    return FieldType(expected, parse)


def _plain(
    expected: str, valid: Callable[[Sequence[Any]], bool], target: str = "", optional: bool = False
) -> FieldType:
    """Values that are kept as they are, if they are valid."""
    return FieldType(expected, lambda column: column if valid(column) else None, target, optional)


def _all_are(kind: type, column: Sequence[Any]) -> bool:
    return set(map(type, column)) <= {kind}


_are_strings = functools.partial(_all_are, str)


def _are_paths(column: Sequence[Any]) -> bool:
    """Checks all paths as one string, which is far faster than one by one."""
    if not _are_strings(column):
        return False
    lines = "\n".join(["", *column, ""])
    forbidden = ("\n\n", "\n/", "\\", "\0", "\n../", "/../", "/..\n", "\n..\n")
    return lines.count("\n") == len(column) + 1 and not any(part in lines for part in forbidden)


def _are_lists_of_strings(column: Sequence[Any]) -> bool:
    return _all_are(list, column) and _are_strings(list(itertools.chain.from_iterable(column)))


def _only_items(column: Sequence[Any]) -> list[str] | None:
    """The string of each list of at most one, "" for an empty list."""
    if not _are_lists_of_strings(column) or max(map(len, column), default=0) > 1:
        return None
    return [items[0] if items else "" for items in column]


def _natural(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (values >= 0) & (values == np.floor(values))


def _is_camera_matrix(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    focal = (values[:, 0, 0] > 0) & (values[:, 1, 1] > 0)
    return focal & np.isclose(values[:, 2], (0, 0, 1)).all(axis=1)


def _one_of(what: str, names: Collection[str]) -> FieldType:
    return _plain(
        f"one of nuScenes' {what} ({', '.join(names)})",
        lambda column: _are_strings(column) and set(column) <= set(names),
    )


def _token_of(table: str) -> FieldType:
    return FieldType(TEXT.expected, TEXT.parse, table)


def _neighbour_in(table: str) -> FieldType:
    """The type of ``prev`` and ``next``."""
    return _plain('the token of a record, or ""', _are_strings, table, optional=True)


TEXT = _plain("a text that is not empty", lambda column: _are_strings(column) and "" not in column)
PATH = _plain("a path below data.root, without .. and backslash", _are_paths)
POSITION = _numbers("three numbers in metres, each below 1e7", (3,), 1e7)
MOUNT = _numbers("three numbers in metres, each below 100: the position of the sensor on the car", (3,), 100)
SIZE = _numbers("width, length and height in metres, each above 0 and below 1000", (3,), 1e3, lambda v: v > 0)
ROTATION = _numbers(
    "a unit quaternion (w, x, y, z)", (4,), 2, lambda v: np.abs(np.linalg.norm(v, axis=-1) - 1) < 0.01
)
COUNT = _numbers("a whole number of points, 0 or more", (), 1e9, _natural)
TIME = _numbers("a whole number of microseconds, from 0 to 9e15", (), 2.0**53, _natural)
INTRINSIC = _numbers(
    "a 3 x 3 camera matrix with focal lengths above 0 pixels and the last row 0 0 1",
    (3, 3),
    1e6,
    _is_camera_matrix,
)
INTRINSICS = _plain(
    f"{INTRINSIC.expected}, or [] for a sensor that is no camera",
    lambda column: INTRINSIC.parse([value for value in column if value != []]) is not None,
)

FIELDS: dict[str, dict[str, FieldType]] = {
    "category": {"name": _one_of("categories", get_colormap())},
    "attribute": {"name": _one_of("attributes", ATTRIBUTE_NAMES)},
    "visibility": {},
    "instance": {"category_token": _token_of("category")},
    "sensor": {"channel": TEXT, "modality": TEXT},
    "calibrated_sensor": {
        "sensor_token": _token_of("sensor"),
        "translation": MOUNT,
        "rotation": ROTATION,
        "camera_intrinsic": INTRINSICS,
    },
    "ego_pose": {"translation": POSITION, "rotation": ROTATION},
    "log": {},
    "scene": {"name": TEXT},
    "sample": {
        "timestamp": TIME,
        "scene_token": _token_of("scene"),
        "prev": _neighbour_in("sample"),
        "next": _neighbour_in("sample"),
    },
    "sample_data": {
        "sample_token": _token_of("sample"),
        "ego_pose_token": _token_of("ego_pose"),
        "calibrated_sensor_token": _token_of("calibrated_sensor"),
        "timestamp": TIME,
        "is_key_frame": _plain("true or false", functools.partial(_all_are, bool)),
        "filename": PATH,
        "prev": _neighbour_in("sample_data"),
        "next": _neighbour_in("sample_data"),
    },
    "sample_annotation": {
        "sample_token": _token_of("sample"),
        "instance_token": _token_of("instance"),
        "attribute_tokens": FieldType(
            "a list of one token of attribute.json, or none", _only_items, "attribute", optional=True
        ),
        "translation": POSITION,
        "size": SIZE,
        "rotation": ROTATION,
        "num_lidar_pts": COUNT,
        "num_radar_pts": COUNT,
        "prev": _neighbour_in("sample_annotation"),
        "next": _neighbour_in("sample_annotation"),
    },
    "map": {
        "log_tokens": _plain("a list of tokens", _are_lists_of_strings),
        "filename": PATH,
    },
}
"""By table and field, tables in nuScenes' order."""

OPTIONAL_TABLES = ("category", "attribute", "visibility", "instance", "sample_annotation")
"""Tables that a version without annotations need not have."""

POSSIBLY_EMPTY_TABLES = ("sample_annotation", "instance", "attribute", "visibility")
