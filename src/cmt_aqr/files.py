"""Files that are there whole or not at all, and the record in a run's folder, without PyTorch."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmt_aqr.errors import UserError, sentence

RECORD = "record.json"


@contextlib.contextmanager
def written_at_once(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; afterwards it replaces ``path``, or vanishes after an error.

    The folder is made where it is absent. Several processes may write the same file: the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_folder(key: str, folder: Path) -> None:
    """See, leaving nothing behind, that a key's folder can be made, or written to where it is there."""
    with writing(key, folder):
        place = folder.absolute()
        while not _is_there(place):
            place = place.parent
        tempfile.TemporaryDirectory(dir=place, prefix=".cmt_aqr_").cleanup()


def _is_there(path: Path) -> bool:
    try:
        path.lstat()  # a link to nowhere is in the way, too
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def writing(key: str, path: Path) -> Iterator[None]:
    """Turn a failure of the file system, as a full disk, into a sentence about the key that names the place."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{key}={path}: cannot be written to ({reason}); choose another place") from error


def remove_partial(folder: Path) -> None:
    """Remove what processes that were killed left of files, in a folder and below, for want of a moment to."""
    for path in folder.rglob("*.part"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value for people and programs to read, at once or not at all."""
    with written_at_once(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write a table as CSV, at once or not at all.

    Args:
        path: of the file.
        rows: by column; what is ``None`` or absent is left empty.
        columns: names and order; by default as they first appear in the rows.
    """
    names = list(dict.fromkeys(name for row in rows for name in row) if columns is None else columns)
    with written_at_once(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def nan_to_null(values: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as JSON can hold them."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def null_to_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    """The inverse of :func:`nan_to_null`."""
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is absent."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run's folder; empty where there is none."""
    return read_json(folder / RECORD)


def record_failure(folder: Path, error: BaseException) -> None:
    """Write why a run failed into its record, whatever of one is there."""
    write_json(folder / RECORD, read_record(folder) | {"status": "failed", "error": sentence(error)})
