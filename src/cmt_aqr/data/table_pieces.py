"""Tables of nuScenes as they lie on disk: parsed a piece at a time, and refused by table, token and field."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from cmt_aqr.data.errors import DataError

Records = Sequence[Mapping[str, Any]]

PIECE = 1 << 22
"""Bytes parsed at a time."""

_KINDS = {str: "a text", bool: "true or false", list: "a list", int: "a whole number"}


def read_pieces(path: Path, size: int = PIECE) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Parse a JSON list of records, about ``size`` bytes at a time: (bytes read, records), at least once.

    The text is cut before a record, as far as ``}, {`` tells; where that was inside a text or a list, the piece
    is no JSON, and what is left is parsed as a whole.

    Raises:
        DataError: the file cannot be read, is not JSON in UTF-8, or is no list of records.
    """
    try:
        with path.open("rb") as file:
            yield from _pieces(file, path, size)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): download the version's metadata again"
        ) from error


def _pieces(file: BinaryIO, path: Path, size: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    text = b""
    while block := file.read(size):
        text += block
        cut = text.rfind(b"{")
        head = text[:cut].rstrip() if cut > 0 else b""
        if not head.endswith(b",") or not head[:-1].rstrip().endswith(b"}"):
            continue
        try:
            records = orjson.loads(head[:-1] + b"]")
        except orjson.JSONDecodeError:
            text += file.read()
            break
        yield len(head), _checked(records, path)
        text = b"[" + text[cut:]
    try:
        records = orjson.loads(text)
    except orjson.JSONDecodeError:
        records = _parse_slowly(text, path)
    yield len(text), _checked(records, path)


def _parse_slowly(text: bytes, path: Path) -> Any:
    """As the devkit parses, which takes NaN and Infinity, too: what is wrong with them is said by field."""
    try:
        return json.loads(text.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"{path} is not valid JSON in UTF-8 ({error}); download the version's metadata again"
        ) from error


def _checked(records: Any, path: Path) -> list[dict[str, Any]]:
    if not (isinstance(records, list) and set(map(type, records)) <= {dict}):
        raise DataError(f"{path} is no list of records; download the version's metadata again")
    return records


def column_of(records: Records, table: str, field: str, kind: type = str) -> list[Any]:
    """A field of records whose values are of one type.

    Raises:
        DataError: a record lacks it, or it is something else; named by token and field.
    """
    try:
        column = list(map(operator.itemgetter(field), records))
    except KeyError:
        column = [None]
    if not set(map(type, column)) <= {kind}:
        bad = next(record for record in records if type(record.get(field)) is not kind)
        shown = bad.get(field, "absent")
        raise refused(table, bad.get("token"), f"{field}={shown} must be {_KINDS[kind]}")
    return column


def refused(table: str, token: Any, what: str) -> DataError:
    """The error about a record, by table and token."""
    return DataError(
        f"{table}.json, token {token}: {what}; mend the record, or download the version's metadata again"
    )


def linked(
    rows: Mapping[str, int],
    values: Sequence[str],
    tokens: Sequence[str],
    table: str,
    field: str,
    target: str,
    may_end: bool = False,
) -> NDArray[np.int64]:
    """Rows (record,) of the records that a field refers to.

    Args:
        rows: by token of the records of ``target``.
        values: tokens in the field.
        tokens: of the records that have the field.
        table: of these records.
        field: its name.
        target: table that it refers to.
        may_end: whether "" stands for none, which becomes -1.

    Raises:
        DataError: one is not there.
    """
    if may_end:
        rows = {**rows, "": -1}
    try:
        return np.fromiter(map(rows.__getitem__, values), dtype=np.int64, count=len(values))
    except KeyError:
        token, value = next(pair for pair in zip(tokens, values, strict=True) if pair[1] not in rows)
        raise refused(
            table, token, f"{field}={value} is no token of {target}.json, the tables contradict each other"
        ) from None


def bytes_of(texts: Iterable[str]) -> NDArray[np.bytes_]:
    """Texts as an array in UTF-8."""
    return np.array([text.encode() for text in texts], dtype=np.bytes_)


def numbered(tokens: Sequence[str]) -> dict[str, int]:
    """Row by token."""
    return dict(zip(tokens, range(len(tokens)), strict=True))
