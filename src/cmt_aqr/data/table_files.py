"""The JSON files of a version: tables and user-defined splits."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from cmt_aqr.data.errors import DataError
from cmt_aqr.data.fields import TEXT, as_json

CHUNK_BYTES = 1 << 22

_ADVICE = "download the version's metadata again"


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {_ADVICE}") from error


def _parse(text: bytes, path: Path) -> Any:
    """Parse JSON; NaN and Infinity pass here, so that the error about them can name the field."""
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also for a number with thousands of digits
        raise DataError(f"{path} is not valid JSON in UTF-8 ({error}); {_ADVICE}") from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a small table.

    Raises:
        DataError: see :func:`read_chunks`.
    """
    return [record for _, records in read_chunks(path) for record in records]


def read_chunks(path: Path, size: int = CHUNK_BYTES) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Parse a JSON list of records in chunks of about ``size`` bytes: (bytes read, records), at least one chunk.

    The text is split before a record, at ``}, {``. If that was part of a string or a nested list, the chunk is not
    valid JSON, and the rest of the file is parsed in one go.

    Raises:
        DataError: the file cannot be read, is not JSON in UTF-8, or is no list of records.
    """
    with _reading(path), path.open("rb") as file:
        for read, records in _split(file, path, size):
            if not (isinstance(records, list) and set(map(type, records)) <= {dict}):
                raise DataError(f"{path} is no list of records; {_ADVICE}")
            yield read, records


def _split(file: BinaryIO, path: Path, size: int) -> Iterator[tuple[int, Any]]:
    text = b""
    while block := file.read(size):
        text += block
        start = text.rfind(b"{")
        head = text[:start].rstrip() if start > 0 else b""
        if not head.endswith(b",") or not head[:-1].rstrip().endswith(b"}"):
            continue
        try:
            records = orjson.loads(head[:-1] + b"]")
        except orjson.JSONDecodeError:
            text += file.read()
            break
        yield len(head), records
        text = b"[" + text[start:]
    try:
        records = orjson.loads(text)
    except orjson.JSONDecodeError:
        records = _parse(text, path)
    yield len(text), records


def read_splits(folder: Path) -> dict[str, list[str]]:
    """Scene names by split, from ``splits.json`` in a folder of tables; empty if there is no such file.

    Raises:
        DataError: the file holds something else.
    """
    path = folder / "splits.json"
    if not path.exists():
        return {}
    with _reading(path):
        splits = _parse(path.read_bytes(), path)
    if not isinstance(splits, dict):
        raise DataError(f'{path} must be lists of scene names by split, as in {{"mine": ["scene-0061"]}}')
    for name, scenes in splits.items():
        if not (isinstance(scenes, list) and scenes and TEXT.parse(scenes)):
            raise DataError(f'{path}: split "{name}" is {as_json(scenes)}, and must be a list of scene names')
    return splits
