"""The JSON files of a version: tables and splits, refused by name where they are none."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from cmt_aqr.data.columns import shown
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.fields import TEXT

PIECE = 1 << 22
"""Bytes of a table parsed at a time."""

_AGAIN = "download the version's metadata again"


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {_AGAIN}") from error


def _parsed(text: bytes, path: Path) -> Any:
    """What JSON says; takes NaN and Infinity, too: what is wrong with them is said by field."""
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also for a number of thousands of digits
        raise DataError(f"{path} is not valid JSON in UTF-8 ({error}); {_AGAIN}") from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a small table.

    Raises:
        DataError: the file is no list of records.
    """
    return [record for _, piece in read_pieces(path) for record in piece]


def read_pieces(path: Path, size: int = PIECE) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Parse a JSON list of records, about ``size`` bytes at a time: (bytes read, records), at least once.

    The text is cut before a record, as far as ``}, {`` tells; where that was inside a text or a list, the piece
    is no JSON, and what is left is parsed as a whole.

    Raises:
        DataError: the file cannot be read, is not JSON in UTF-8, or is no list of records.
    """
    with _reading(path), path.open("rb") as file:
        for read, records in _pieces(file, path, size):
            if not (isinstance(records, list) and set(map(type, records)) <= {dict}):
                raise DataError(f"{path} is no list of records; {_AGAIN}")
            yield read, records


def _pieces(file: BinaryIO, path: Path, size: int) -> Iterator[tuple[int, Any]]:
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
        yield len(head), records
        text = b"[" + text[cut:]
    try:
        records = orjson.loads(text)
    except orjson.JSONDecodeError:
        records = _parsed(text, path)
    yield len(text), records


def read_splits(folder: Path) -> dict[str, list[str]]:
    """The splits of one's own in ``splits.json``: scene names by split; none where the file is absent.

    Args:
        folder: of the tables.

    Raises:
        DataError: the file holds something else.
    """
    path = folder / "splits.json"
    if not path.exists():
        return {}
    with _reading(path):
        splits = _parsed(path.read_bytes(), path)
    if not isinstance(splits, dict):
        raise DataError(f'{path} must be lists of scene names by split, as in {{"mine": ["scene-0061"]}}')
    for name, scenes in splits.items():
        if not (isinstance(scenes, list) and scenes and TEXT.read(scenes)):
            raise DataError(f'{path}: split "{name}" is {shown(scenes)}, and must be a list of scene names')
    return splits
