"""Columns of the nuScenes tables: what a field may hold, and the rows of the records that tokens name.

Everything works on whole columns, because the full set has 2.6 million records in one table.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt_aqr.data.errors import DataError

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Kind:
    """A kind of field."""

    what: str  # it must be, for the message
    read: Callable[[Sequence[Any]], Any]  # from many records' values to an array (record, ...) or list; None: bad
    target: str = ""  # table whose tokens it holds; "": none
    may_end: bool = False  # whether "" stands for no token


def refused(table: str, token: str | bytes | int, what: str) -> DataError:
    """The error about a record, by table and token; by its place, from 0, where it has no token."""
    named = token.decode() if isinstance(token, bytes) else token
    record = f"record {named}" if isinstance(named, int) else f"token {named}"
    return DataError(f"{table}.json, {record}: {what}; mend the record, or download the version's metadata again")


def shown(value: Any) -> str:
    """A value as it stands in the table, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


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


def read_column(
    table: str, name: str, column: Sequence[Any], tokens: Sequence[Any] | NDArray[np.bytes_], kind: Kind
) -> Any:
    """What ``kind.read`` makes of a field's values.

    Args:
        table: its name.
        name: of the field.
        column: the values.
        tokens: of the same records, as texts or bytes; or their places.
        kind: of the field.

    Raises:
        DataError: naming table, token and field of the first record whose value is something else.
    """
    values = kind.read(column)
    if values is None:
        place = next(place for place, value in enumerate(column) if kind.read([value]) is None)
        raise refused(table, tokens[place], f"{name}={shown(column[place])} must be {kind.what}")
    return values


def bytes_of(texts: Iterable[str]) -> NDArray[np.bytes_]:
    """Texts as an array in UTF-8."""
    return np.array([text.encode() for text in texts], dtype=np.bytes_)


class TokenRows:
    """Rows of records by token. Tokens are sorted: dictionaries of texts take most of their time in far memory.

    Args:
        tokens: (record,) bytes.
    """

    def __init__(self, tokens: NDArray[np.bytes_]) -> None:
        self._order = np.argsort(tokens, kind="stable")
        self.sorted = tokens[self._order]

    def twice(self) -> int | None:
        """The first row whose token an earlier row has; ``None`` where each is of one record."""
        again = np.flatnonzero(self.sorted[1:] == self.sorted[:-1]) + 1
        return int(self._order[again].min()) if len(again) else None

    def find(self, wanted: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Rows (wanted,) of the first record of each token, -1 where there is none."""
        rows = np.full(len(wanted), -1, dtype=np.int64)
        # In rising order, neighbours are looked for in the same memory: four times as fast.
        order = np.argsort(wanted)
        in_order = wanted[order]
        places = np.searchsorted(self.sorted, in_order)
        inside = np.flatnonzero(places < len(self.sorted))
        places = places[inside]
        found = self.sorted[places] == in_order[inside]
        rows[order[inside[found]]] = self._order[places[found]]
        return rows


def linked(
    rows: TokenRows, column: NDArray[np.bytes_], tokens: NDArray[np.bytes_], table: str, name: str, kind: Kind
) -> NDArray[np.int64]:
    """Rows (record,) of the records that a field refers to; -1 for "" where that may be.

    Args:
        rows: of ``kind.target``.
        column: (record,) the field's values.
        tokens: (record,) of the records that have the field.
        table: of these records.
        name: of the field.
        kind: of the field.

    Raises:
        DataError: naming the first record that refers to none.
    """
    found = rows.find(column)
    unknown = (found < 0) & (column != b"") if kind.may_end else found < 0
    if unknown.any():
        place = int(unknown.argmax())
        value = shown(column[place].decode())
        raise refused(table, tokens[place], f"{name}={value} is no token of {kind.target}.json")
    return found


def check_order(
    table: str, name: str, neighbours: NDArray[np.int64], times: NDArray[np.int64], tokens: NDArray[np.bytes_]
) -> None:
    """See that ``prev`` leads back in time and ``next`` forth, so that no chain runs in a circle.

    Neighbours are rows (record,), -1: none; times are in microseconds, and may be equal in ``sample_data``.

    Raises:
        DataError: naming the first record whose neighbour is on the wrong side of it.
    """
    lag = (1 if name == "prev" else -1) * (times - times[neighbours])
    still = neighbours == np.arange(len(neighbours)) if table == "sample_data" else lag == 0
    wrong = (neighbours >= 0) & ((lag < 0) | still)
    if wrong.any():
        place = int(wrong.argmax())
        side = "an earlier" if name == "prev" else "a later"
        other = shown(tokens[neighbours[place]].decode())
        raise refused(table, tokens[place], f"{name}={other} must be {side} record's token")
