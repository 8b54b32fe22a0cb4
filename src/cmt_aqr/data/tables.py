"""Access to the nuScenes tables: requests are checked before anything is read, results are cached."""

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

from cmt_aqr.data.errors import DataError
from cmt_aqr.data.fields import FIELDS, OPTIONAL_TABLES, TEXT, as_json, read_column
from cmt_aqr.data.saved_arrays import load_arrays, save_arrays
from cmt_aqr.data.table_arrays import Tables
from cmt_aqr.data.table_files import read_records, read_splits
from cmt_aqr.data.table_reading import read_tables
from cmt_aqr.files import check_folder, writing

log = logging.getLogger(__name__)


def is_annotated(version: str) -> bool:
    """Whether a version has annotations; that of nuScenes' benchmark, ``v1.0-test``, has none."""
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
    """Check root, version and split without reading a table.

    Args:
        root: nuScenes data root: the folder that holds ``samples``, ``sweeps`` and the version's folder.
        version: name of the folder with the tables, e.g. ``v1.0-trainval``.
        split: a split of the devkit, or one of ``splits.json`` in the version's folder.

    Raises:
        DataError: the root, the version's folder or a table is missing, or the split is unknown or belongs to
            another version.
    """
    if not root.is_dir():
        raise DataError(f"data.root={root} is not a folder: give the folder that holds {version}/ and samples/")
    folder = root / version
    if not folder.is_dir():
        versions = sorted(path.parent.name for path in root.glob("*/sample.json"))
        available = f"there is {', '.join(versions)}" if versions else "no folder there holds nuScenes tables"
        raise DataError(f"data.version={version} has no folder {folder}: {available}")
    required = [name for name in FIELDS if is_annotated(version) or name not in OPTIONAL_TABLES]
    missing = [f"{name}.json" for name in required if not (folder / f"{name}.json").is_file()]
    if missing:
        raise DataError(f"{folder} has no {', '.join(missing)}: download the version's metadata again")
    _check_split(folder, version, split)


def _check_split(folder: Path, version: str, split: str) -> None:
    official = create_splits_scenes()
    if split in official:
        ending = _VERSION_ENDING[split]
        if not version.endswith(ending):
            matching = [name for name, other in _VERSION_ENDING.items() if version.endswith(other)]
            advice = " or ".join(matching) or f"a version that ends in {ending}"
            raise DataError(
                f"split {split} belongs to a version that ends in '{ending}', not to {version}: use {advice}"
            )
        return
    custom = read_splits(folder)
    if split not in custom:
        raise DataError(f"split {split} is unknown: it must be one of {', '.join([*official, *sorted(custom)])}")
    scenes = set(read_column(read_records(folder / "scene.json"), "scene", "name", TEXT))
    unknown = [scene for scene in custom[split] if scene not in scenes]
    if unknown:
        raise DataError(
            f'{folder / "splits.json"}: split "{split}" names {as_json(unknown[0])}, which is not in scene.json '
            f"({len(unknown)} of its {len(custom[split])} scenes are not); correct the name"
        )


def fingerprint(root: Path, version: str) -> str:
    """A hash of the devkit's version, which defines the splits, and of all tables' names, sizes and times."""
    digest = hashlib.sha256(importlib.metadata.version("nuscenes-devkit").encode())
    for path in sorted((root / version).glob("*.json")):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def cached(
    kind: str,
    format_version: int,
    names: Iterable[str],
    build: Callable[[Tables], dict[str, NDArray[Any]]],
    root: Path,
    version: str,
    split: str,
    cache_dir: Path,
) -> dict[str, NDArray[Any]]:
    """Arrays derived from the tables of a split: from the cache, or built and cached if the tables have changed.

    See :func:`check_request` for root, version and split.

    Args:
        kind: of the arrays, the first part of the file's name.
        format_version: of the arrays; a file of another one is stale.
        names: of the arrays.
        build: derives the arrays from the tables.
        cache_dir: created if it does not exist.

    Raises:
        DataError: see :func:`check_request` and :func:`open_tables`.
    """
    check_request(root, version, split)
    stamp = f"format {format_version} {fingerprint(root, version)}"
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
    path = cache_dir / f"{kind}-{version}-{split}-{key}.npy"
    arrays = load_arrays(path, stamp, names)
    if arrays is None:
        check_folder("data.cache_dir", cache_dir)
        arrays = build(open_tables(root, version))
        with writing("data.cache_dir", cache_dir):
            save_arrays(path, stamp, arrays)
    return arrays


@functools.lru_cache(maxsize=1)
def _open(root: Path, version: str, _fingerprint: str) -> Tables:
    log.info("Reading the nuScenes tables of %s in %s (half a minute for the full set)", version, root)
    return read_tables(root / version)


def open_tables(root: Path, version: str) -> Tables:
    """The tables of a version; the last ones opened stay in memory until :func:`close_tables`.

    Raises:
        DataError: see :func:`cmt_aqr.data.table_reading.read_tables`.
    """
    return _open(root.resolve(), version, fingerprint(root, version))


def close_tables() -> None:
    """Release the tables, once everything derived is cached."""
    _open.cache_clear()
