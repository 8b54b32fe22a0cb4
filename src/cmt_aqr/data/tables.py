"""nuScenes tables through the devkit: opened once, checked first, refused with one sentence."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nuscenes import NuScenes
from nuscenes.utils.splits import create_splits_scenes

from cmt_aqr.constants import CAMERAS, LIDAR
from cmt_aqr.data.checks import FIELDS, TableChecks
from cmt_aqr.data.columns import refused
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.table_files import check_scenes, read_records, read_splits

log = logging.getLogger(__name__)

TABLES = tuple(FIELDS)
"""The thirteen tables of the nuScenes v1.0 format."""

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
    missing = [f"{name}.json" for name in TABLES if not (folder / f"{name}.json").is_file()]
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

    The devkit's version is part of it, because what is cached comes out of the devkit's code.
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


class _Tables(NuScenes):
    """The devkit's, reading tables in UTF-8 whatever the locale, each checked before the devkit looks at it."""

    def __init__(self, root: Path, version: str) -> None:
        self._checks = TableChecks(root / version)
        super().__init__(version=version, dataroot=str(root), verbose=False)
        del self._checks

    def __load_table__(self, table_name: str) -> list[dict[str, Any]]:
        return self._checks.read(table_name)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """While millions of records are made, the collector looks at all of them again and again, for nothing."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@functools.lru_cache(maxsize=1)
def _open(root: Path, version: str, _fingerprint: str) -> NuScenes:
    log.info("Reading the nuScenes tables of %s in %s (a minute for the full set)", version, root)
    try:
        with _without_collector():
            return _Tables(root, version)
    except DataError:
        raise
    except Exception as error:  # whatever else the devkit meets, as a map's picture that is not there
        raise DataError(
            f"the devkit cannot open the tables in {root / version}: {type(error).__name__}: {error}; download "
            "the version's metadata again"
        ) from error


def read_table(root: Path, version: str, table: str) -> list[dict[str, Any]]:
    """The records of one small table, without the devkit."""
    return read_records(root / version / f"{table}.json")


def open_tables(root: Path, version: str) -> NuScenes:
    """The devkit's ``NuScenes`` of a data root; the last one opened is kept until :func:`close_tables`.

    Raises:
        DataError: naming the table, and where there is one, the record's token and field.
    """
    return _open(root.resolve(), version, fingerprint(root, version))


def close_tables() -> None:
    """Let go of the tables, which take gigabytes for the full set, once everything derived is cached."""
    _open.cache_clear()
    gc.collect()  # the devkit's objects hold each other


def samples_of_split(tables: NuScenes, split: str) -> list[dict]:
    """Sample records of a split, in the order of the devkit's ``sample`` table.

    Raises:
        DataError: the split has no frame in these tables.
    """
    scenes = set(create_splits_scenes().get(split) or read_splits(Path(tables.table_root))[split])
    samples = [sample for sample in tables.sample if tables.get("scene", sample["scene_token"])["name"] in scenes]
    if not samples:
        raise DataError(
            f"split {split} has no frame in {tables.table_root}: none of its {len(scenes)} scenes is there"
        )
    return samples


def reference_record(tables: NuScenes, sample: Mapping[str, Any]) -> dict[str, Any]:
    """The ``sample_data`` record that says when and where a sample was taken: of LIDAR_TOP, else of a camera.

    Raises:
        DataError: the sample has neither.
    """
    for channel in (LIDAR, *CAMERAS):
        if channel in sample["data"]:
            return tables.get("sample_data", sample["data"][channel])
    raise refused("sample", sample["token"], f"no key frame in sample_data.json is of {LIDAR} or of a camera")
