"""Atomic writing of files, and the record in a run's folder, without PyTorch."""

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
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which replaces ``path`` afterwards, or is deleted after an error.

    A missing folder is created. Several processes may write the same file: the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_folder(key: str, folder: Path) -> None:
    """Refuse a key's folder that cannot be created or written to; leaves nothing behind."""
    with writing(key, folder):
        existing = folder.absolute()
        while True:
            with contextlib.suppress(FileNotFoundError):
                existing.lstat()  # unlike exists(), finds a broken link, and fails if the name is too long
                break
            existing = existing.parent
        tempfile.TemporaryDirectory(dir=existing, prefix=".cmt_aqr_").cleanup()


@contextlib.contextmanager
def writing(key: str, path: Path) -> Iterator[None]:
    """Turn an error of the file system, such as a full disk, into a :class:`UserError` about the path's key."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{key}={path}: cannot be written to ({reason}); choose another place") from error


def remove_partial(folder: Path) -> None:
    """Remove the partial files of killed processes in a folder and below."""
    for path in folder.rglob("*.part"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write a table as CSV, atomically.

    Args:
        path: of the file.
        rows: values by column; ``None`` and missing values become empty cells.
        columns: names and order; by default as they first appear in the rows.
    """
    names = list(dict.fromkeys(name for row in rows for name in row) if columns is None else columns)
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def folder_size(folder: Path) -> int:
    """Total bytes of the files in a folder and its subfolders."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def nan_to_null(values: Mapping[str, float]) -> dict[str, float | None]:
    """Replace NaN, which JSON does not have, by ``None``."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def null_to_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    """The inverse of :func:`nan_to_null`."""
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if it is missing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_record(folder: Path) -> dict[str, Any]:
    """The record in a run's folder; empty if it is missing."""
    return read_json(folder / RECORD)


def record_failure(folder: Path, error: BaseException) -> None:
    """Add the reason of a failure to a run's record, which may be missing."""
    write_json(folder / RECORD, read_record(folder) | {"status": "failed", "error": sentence(error)})
