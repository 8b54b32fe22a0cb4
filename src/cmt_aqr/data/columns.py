"""Columns of the nuScenes tables: a field of many records is parsed, and tokens become rows.

Everything works on columns, because the full data set has 2.6 million records in one table.
"""

import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
