"""Requests for nuScenes tables, and their values: checked first, refused with one sentence."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nuscenes.utils.splits import create_splits_scenes

from cmt_aqr.data.errors import DataError

TABLES = (
    "category",
    "attribute",
    "visibility",
    "instance",
    "sensor",
    "calibrated_sensor",
    "ego_pose",
    "log",
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "map",
)
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
    custom: list[str] = []
    if (folder / "splits.json").is_file():
        custom = sorted(json.loads((folder / "splits.json").read_text()))
    if split not in custom:
        raise DataError(f"split {split} is unknown: it must be one of {', '.join([*known, *custom])}")


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
    key = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    return cache_dir / f"{kind}-{version}-{split}-{key}{suffix}"


def numbers_of(
    records: Sequence[Mapping[str, Any]], table: str, field: str, shape: tuple[int, ...], kind: str
) -> NDArray[np.float64]:
    """A numeric field of records (record, *shape).

    Args:
        records: of one table.
        table: its name, for the message.
        field: of a record.
        shape: of a value.
        kind: a key of ``_KINDS``: what the values must be.

    Raises:
        DataError: naming table, token and field of the first record whose value is something else.
    """
    what, holds = _KINDS[kind]

    def good(some: Sequence[Mapping[str, Any]]) -> NDArray[np.float64] | None:
        try:
            values = np.array([record[field] for record in some], dtype=np.float64)
        except (KeyError, TypeError, ValueError):
            return None
        # Written so that NaN is no good.
        fits = values.shape == (len(some), *shape) and bool((np.abs(values) < _HUGE).all())
        return values if fits and bool(holds(values).all()) else None

    if not records:
        return np.zeros((0, *shape))
    values = good(records)
    if values is None:
        bad = next(record for record in records if good([record]) is None)
        raise DataError(
            f"{table}.json, token {bad.get('token')}: {field}={bad.get(field, 'absent')} must be {what}; mend the "
            "record, or download the version's metadata again"
        )
    return values


_HUGE = 1e9
"""More than any number in the tables: metres, pixels or points."""

_KINDS: dict[str, tuple[str, Callable[[NDArray[np.float64]], NDArray[np.bool_]]]] = {
    "position": ("three finite numbers in metres", lambda v: np.isfinite(v)),
    "rotation": (
        "a unit quaternion (w, x, y, z)",
        lambda v: np.abs(np.linalg.norm(v, axis=-1) - 1) < 0.01,
    ),
    "size": ("three sizes above 0 metres", lambda v: v > 0),
    "intrinsic": (
        "a 3 x 3 camera matrix with a focal length above 0 pixels",
        lambda v: np.stack((v[:, 0, 0], v[:, 1, 1]), axis=-1) > 0,
    ),
    "count": ("a number of points, 0 or more", lambda v: v >= 0),
}
"""What a field's values must be: for the message, and as a check."""


def read_table(root: Path, version: str, table: str) -> list[dict[str, Any]]:
    """The records of one small table, without the devkit."""
    records: list[dict[str, Any]] = json.loads((root / version / f"{table}.json").read_text(encoding="utf-8"))
    return records
