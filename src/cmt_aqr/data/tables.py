"""Requests for nuScenes tables: checked before anything is read, refused with one sentence."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import logging
import os
from pathlib import Path
from typing import Any

from nuscenes.utils.splits import create_splits_scenes

from cmt_aqr.data.checks import FIELDS, MAY_LACK
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.table_arrays import Tables
from cmt_aqr.data.table_files import check_scenes, read_records, read_splits
from cmt_aqr.data.table_reading import read_tables

log = logging.getLogger(__name__)

TABLES = tuple(FIELDS)
"""The thirteen tables of the nuScenes v1.0 format."""


def is_annotated(version: str) -> bool:
    """Whether a version's samples have annotations; those of nuScenes' benchmark, ``v1.0-test``, have none."""
    return not version.endswith("test")


_VERSION_ENDING = {
    "train": "trainval",
    "val": "trainval",
    "train_detect": "trainval",
    "train_track": "trainval",
    "mini_train": "mini",
    "mini_val": "mini",
    "test": "test",
}


def check_request(root: Path, version: str, split: str) -> None:
    """Refuse, before anything is read, what cannot be opened.

    Args:
        root: nuScenes data root: the folder that holds ``samples``, ``sweeps`` and the version's folder.
        version: name of the folder with the tables, e.g. ``v1.0-trainval``.
        split: a split of the devkit, or one of ``splits.json`` in the version's folder.

    Raises:
        DataError: the root, the version's folder or a table is missing, or the split is unknown or belongs
            to another version.
    """
    if not root.is_dir():
        raise DataError(f"data.root={root} is not a folder: give the folder that holds {version}/ and samples/")
    folder = root / version
    if not folder.is_dir():
        found = sorted(path.parent.name for path in root.glob("*/sample.json"))
        there = f"there is {', '.join(found)}" if found else "no folder there holds nuScenes tables"
        raise DataError(f"data.version={version} has no folder {folder}: {there}")
    needed = [name for name in TABLES if is_annotated(version) or name not in MAY_LACK]
    missing = [f"{name}.json" for name in needed if not (folder / f"{name}.json").is_file()]
    if missing:
        raise DataError(f"{folder} lacks the table {', '.join(missing)}: download the version's metadata again")
    _check_split(folder, version, split)


def _check_split(folder: Path, version: str, split: str) -> None:
    known = create_splits_scenes()
    if split in known:
        ending = _VERSION_ENDING[split]
        if not version.endswith(ending):
            fitting = [name for name, other in _VERSION_ENDING.items() if version.endswith(other)]
            advice = f"use {' or '.join(fitting)}" if fitting else f"use a version that ends in {ending}"
            raise DataError(
                f"split {split} belongs to a version that ends in '{ending}', not to {version}: {advice}"
            )
        return
    custom = read_splits(folder)
    if split not in custom:
        raise DataError(f"split {split} is unknown: it must be one of {', '.join([*known, *sorted(custom)])}")
    check_scenes(folder, split, custom[split])


def fingerprint(root: Path, version: str) -> str:
    """Changes when a table changes: a hash of name, size and modification time of the version's files.

    The devkit's version is part of it, because its splits and names are.
    """
    digest = hashlib.sha256(importlib.metadata.version("nuscenes-devkit").encode())
    for path in sorted((root / version).glob("*.json")):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def cache_path(cache_dir: Path, kind: str, root: Path, version: str, split: str, suffix: str) -> Path:
    """Where something derived from a split's tables is cached: keyed by data root, version and split."""
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
    return cache_dir / f"{kind}-{version}-{split}-{key}{suffix}"


@functools.lru_cache(maxsize=1)
def _open(root: Path, version: str, _fingerprint: str) -> Tables:
    log.info("Reading the nuScenes tables of %s in %s (half a minute for the full set)", version, root)
    return read_tables(root / version)


def open_tables(root: Path, version: str) -> Tables:
    """The tables of a data root; those opened last are kept until :func:`close_tables`.

    Raises:
        DataError: see :func:`cmt_aqr.data.table_reading.read_tables`.
    """
    return _open(root.resolve(), version, fingerprint(root, version))


def close_tables() -> None:
    """Let go of the tables, once everything derived is cached."""
    _open.cache_clear()


def read_table(root: Path, version: str, table: str) -> list[dict[str, Any]]:
    """The records of one small table."""
    return read_records(root / version / f"{table}.json")
