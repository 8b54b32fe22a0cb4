"""Requests for nuScenes tables: checked before anything is read, refused with one sentence."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from nuscenes.utils.splits import create_splits_scenes

from cmt_aqr.data.columns import column_of, read_column, shown
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.fields import FIELDS, MAY_LACK, TEXT
from cmt_aqr.data.saved_arrays import load_arrays, save_arrays
from cmt_aqr.data.table_arrays import Tables
from cmt_aqr.data.table_files import read_records, read_splits
from cmt_aqr.data.table_reading import read_tables
from cmt_aqr.files import check_folder, writing

log = logging.getLogger(__name__)


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
        DataError: the root, the version's folder or a table is missing, or the split is unknown or another
            version's.
    """
    if not root.is_dir():
        raise DataError(f"data.root={root} is not a folder: give the folder that holds {version}/ and samples/")
    folder = root / version
    if not folder.is_dir():
        found = sorted(path.parent.name for path in root.glob("*/sample.json"))
        there = f"there is {', '.join(found)}" if found else "no folder there holds nuScenes tables"
        raise DataError(f"data.version={version} has no folder {folder}: {there}")
    needed = [name for name in FIELDS if is_annotated(version) or name not in MAY_LACK]
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
            advice = " or ".join(fitting) or f"a version that ends in {ending}"
            raise DataError(
                f"split {split} belongs to a version that ends in '{ending}', not to {version}: use {advice}"
            )
        return
    custom = read_splits(folder)
    if split not in custom:
        raise DataError(f"split {split} is unknown: it must be one of {', '.join([*known, *sorted(custom)])}")
    names = column_of(read_records(folder / "scene.json"), "scene", "name")
    there = set(read_column("scene", "name", names, range(len(names)), TEXT))
    unknown = [scene for scene in custom[split] if scene not in there]
    if unknown:
        raise DataError(
            f'{folder / "splits.json"}: split "{split}" names {shown(unknown[0])}, which is no name in scene.json '
            f"({len(unknown)} of its {len(custom[split])} scenes are not); correct the name"
        )


def fingerprint(root: Path, version: str) -> str:
    """Changes when a table changes: a hash of name, size and modification time of the version's files.

    The devkit's version is part of it, because its splits and names are.
    """
    digest = hashlib.sha256(importlib.metadata.version("nuscenes-devkit").encode())
    for path in sorted((root / version).glob("*.json")):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def cached(
    kind: str,
    stamp: int,
    names: Iterable[str],
    make: Callable[[Tables], dict[str, NDArray[Any]]],
    root: Path,
    version: str,
    split: str,
    cache_dir: Path,
) -> dict[str, NDArray[Any]]:
    """Arrays derived from a split's tables: from the cache while those are what they were, else made and cached.

    Args:
        kind: what they are.
        stamp: number of their format.
        names: of the arrays.
        make: makes them.
        root: see :func:`check_request`, as the others.
        version: likewise.
        split: likewise.
        cache_dir: made where it is absent.

    Raises:
        DataError: see :func:`check_request` and :func:`open_tables`.
    """
    check_request(root, version, split)
    made_of = f"format {stamp} {fingerprint(root, version)}"
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
    path = cache_dir / f"{kind}-{version}-{split}-{key}.npz"
    arrays = load_arrays(path, made_of, names)
    if arrays is None:
        check_folder("data.cache_dir", cache_dir)
        arrays = make(open_tables(root, version))
        with writing("data.cache_dir", cache_dir):
            save_arrays(path, made_of, arrays)
    return arrays


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
