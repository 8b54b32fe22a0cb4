"""Columns of the nuScenes tables: kinds of fields, and checks that name the first bad record.

Everything works on whole columns, because the full set has 2.6 million records in one table.
"""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES
from nuscenes.utils.color_map import get_colormap

from cmt_aqr.data.errors import DataError
from cmt_aqr.data.tokens import TokenRows

Records = Sequence[Mapping[str, Any]]

MEND = "mend the record, or download the version's metadata again"


@dataclass(frozen=True)
class Numbers:
    """A kind of numeric field.

    Attributes:
        what: it must be, for the message.
        shape: of a value; () for a single number.
        below: no value's magnitude may reach this.
        holds: from values (record, *shape) to what must be true of all; false for NaN.
    """

    what: str
    shape: tuple[int, ...]
    below: float
    holds: Callable[[NDArray[np.float64]], NDArray[np.bool_]]

    def read(self, column: Sequence[Any]) -> NDArray[np.float64] | None:
        """The values (record, *shape), or ``None`` where one of them is not of this kind."""
        flat: Sequence[Any] = column
        for size in self.shape:
            if not (set(map(type, flat)) <= {list} and set(map(len, flat)) <= {size}):
                return None
            flat = list(itertools.chain.from_iterable(flat))
        if not set(map(type, flat)) <= {int, float}:  # neither texts nor true and false
            return None
        try:
            values = np.array(flat, dtype=np.float64).reshape(len(column), *self.shape)
        except OverflowError:
            return None
        good = (np.abs(values) < self.below).all() and self.holds(values).all()
        return values if good else None

    def fits(self, column: Sequence[Any]) -> bool:
        """Whether all values are of this kind."""
        return self.read(column) is not None


@dataclass(frozen=True)
class Words:
    """A kind of field that holds text, or a truth value, or a list of tokens.

    Attributes:
        what: it must be, for the message.
        fits: whether all values of a column are of this kind.
    """

    what: str
    fits: Callable[[Sequence[Any]], bool]


def _whole(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (values >= 0) & (values == np.floor(values))


def _anything(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.isfinite(values)


def _is_camera_matrix(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    focal = (values[:, 0, 0] > 0) & (values[:, 1, 1] > 0)
    return focal & np.isclose(values[:, 2], (0, 0, 1)).all(axis=1)


POSITION = Numbers("three numbers in metres, each below 1e7", (3,), 1e7, _anything)
MOUNT = Numbers("three numbers in metres, each below 100: where the sensor sits on the car", (3,), 100, _anything)
ROTATION = Numbers(
    "a unit quaternion (w, x, y, z)", (4,), 2, lambda v: np.abs(np.linalg.norm(v, axis=-1) - 1) < 0.01
)
SIZE = Numbers("width, length and height in metres, each above 0 and below 1000", (3,), 1e3, lambda v: v > 0)
INTRINSIC = Numbers(
    "a 3 x 3 camera matrix with focal lengths above 0 pixels and the last row 0 0 1",
    (3, 3),
    1e6,
    _is_camera_matrix,
)
COUNT = Numbers("a whole number of points, 0 or more", (), 1e9, _whole)
TIME = Numbers("a whole number of microseconds, from 0 to 9e15", (), 2.0**53, _whole)


def _are_texts(column: Sequence[Any]) -> bool:
    return set(map(type, column)) <= {str} and "" not in column


def _are_names(names: Sequence[str]) -> Callable[[Sequence[Any]], bool]:
    def fits(column: Sequence[Any]) -> bool:
        return set(map(type, column)) <= {str} and set(column) <= set(names)

    return fits


def _are_paths(column: Sequence[Any]) -> bool:
    """Seen in one text, which finds what must not be far faster than a look at each."""
    if not set(map(type, column)) <= {str}:
        return False
    lines = "\n".join(["", *column, ""])
    forbidden = ("\n\n", "\n/", "\\", "\0", "\n../", "/../", "/..\n", "\n..\n")
    return lines.count("\n") == len(column) + 1 and not any(part in lines for part in forbidden)


def _are_lists(most: int | None) -> Callable[[Sequence[Any]], bool]:
    def fits(column: Sequence[Any]) -> bool:
        if not set(map(type, column)) <= {list}:
            return False
        short = most is None or max(map(len, column), default=0) <= most
        return short and set(map(type, itertools.chain.from_iterable(column))) <= {str}

    return fits


def _are_intrinsics(column: Sequence[Any]) -> bool:
    """Empty ones are of the sensors that are no cameras."""
    return INTRINSIC.fits([value for value in column if value != []])


CATEGORIES = tuple(get_colormap())
"""All that nuScenes and its lidarseg name."""

TEXT = Words("a text that is not empty", _are_texts)
LINK = Words('the token of a record, or ""', lambda column: set(map(type, column)) <= {str})
FLAG = Words("true or false", lambda column: set(map(type, column)) <= {bool})
PATH = Words("a path below data.root, without .. and backslash", _are_paths)
TOKENS = Words("a list of tokens", _are_lists(None))
AT_MOST_ONE = Words("a list of one token of attribute.json, or none", _are_lists(1))
CATEGORY = Words(f"one of nuScenes' categories ({', '.join(CATEGORIES)})", _are_names(CATEGORIES))
ATTRIBUTE = Words(f"one of nuScenes' attributes ({', '.join(ATTRIBUTE_NAMES)})", _are_names(ATTRIBUTE_NAMES))
INTRINSICS = Words(f"{INTRINSIC.what}, or [] for a sensor that is no camera", _are_intrinsics)


def refused(table: str, token: str | int, what: str) -> DataError:
    """The error about a record, by table and token; by its place, from 0, where it has no token."""
    record = f"record {token}" if isinstance(token, int) else f"token {token}"
    return DataError(f"{table}.json, {record}: {what}; {MEND}")


def column_of(records: Records, table: str, name: str, first: int = 0) -> list[Any]:
    """A field of all records, of which the first is number ``first`` of its table.

    Raises:
        DataError: a record lacks it.
    """
    try:
        return list(map(operator.itemgetter(name), records))
    except KeyError as error:
        place, bad = next((place, record) for place, record in enumerate(records) if name not in record)
        raise refused(table, bad.get("token", first + place), f"{name} is absent") from error


def check_column(
    table: str, name: str, column: Sequence[Any], tokens: Sequence[str] | Sequence[int], kind: Numbers | Words
) -> None:
    """See that a column holds what it must.

    Args:
        table: its name.
        name: of the field.
        column: the field's values.
        tokens: of the same records; or their places.
        kind: of the field.

    Raises:
        DataError: naming table, token and field of the first record whose value is something else.
    """
    if kind.fits(column):
        return
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if kind.fits(column[low:middle]) else (low, middle)
    raise refused(table, tokens[low], f"{name}={shown(column[low])} must be {kind.what}")


def read_column(
    table: str, name: str, column: Sequence[Any], tokens: Sequence[str], kind: Numbers
) -> NDArray[np.float64]:
    """The values (record, *shape) of a numeric column, after :func:`check_column`."""
    values = kind.read(column)
    if values is None:
        check_column(table, name, column, tokens, kind)
        raise AssertionError(f"{table}.{name}: refused, but no record of it")
    return values


def shown(value: Any) -> str:
    """A value as it stands in the table, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def linked(
    rows: TokenRows,
    column: NDArray[np.bytes_],
    tokens: Sequence[str] | NDArray[np.bytes_],
    table: str,
    name: str,
    target: str,
    may_end: bool = False,
) -> NDArray[np.int64]:
    """Rows (record,) of the records that a field refers to.

    Args:
        rows: of ``target``.
        column: (record,) the field's values.
        tokens: (record,) of the records that have the field.
        table: of these records.
        name: of the field.
        target: table that it refers to.
        may_end: whether "" stands for none, which becomes -1.

    Raises:
        DataError: naming the first record that refers to none.
    """
    found = rows.find(column)
    unknown = (found < 0) & (column != b"") if may_end else found < 0
    if unknown.any():
        place = int(unknown.argmax())
        what = f"{name}={shown(_text(column[place]))} is no token of {target}.json"
        raise refused(table, _text(tokens[place]), what)
    return found


def _text(token: str | bytes) -> str:
    return token.decode() if isinstance(token, bytes) else token


def check_order(
    table: str,
    name: str,
    neighbours: NDArray[np.int64],
    times: NDArray[np.int64],
    tokens: NDArray[np.bytes_],
    equal: bool = False,
) -> None:
    """See that ``prev`` leads back in time and ``next`` forth, so that no chain runs in a circle.

    Args:
        table: its name.
        name: ``prev`` or ``next``.
        neighbours: (record,) rows that the field refers to, -1: none.
        times: (record,) in microseconds.
        tokens: (record,) of the records.
        equal: whether neighbours may be of the same time.

    Raises:
        DataError: naming the first record whose neighbour is on the wrong side of it.
    """
    lag = (1 if name == "prev" else -1) * (times - times[neighbours])
    itself = neighbours == np.arange(len(neighbours))
    wrong = (neighbours >= 0) & ((lag < 0) | (itself if equal else (lag == 0)))
    if wrong.any():
        place = int(wrong.argmax())
        side = "an earlier" if name == "prev" else "a later"
        other = shown(_text(tokens[neighbours[place]]))
        raise refused(table, _text(tokens[place]), f"{name}={other} must be {side} record's token")
