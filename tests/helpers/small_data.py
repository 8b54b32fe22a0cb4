"""A small synthetic data set for tests that need frames on disk: two scenes of three frames."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.scenes import make_dataset

VERSION = "v1.0-mini"
RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
SMALL_SCENES: dict[str, Any] = {
    "scenes": 2,
    "azimuth_resolution": 2.0,
    "image_width": 160,
    "workers": 1,
    "progress": False,
}
"""Settings of ``make_dataset`` for scenes that are rendered in a second."""


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data root of version v1.0-mini with splits mini_train and mini_val; tests must not change it."""
    root = tmp_path_factory.mktemp("small") / "data"
    make_dataset(root, samples_per_scene=3, **SMALL_SCENES)
    return root


def datamodule(root: Path, cache_dir: Path, **changes: Any) -> NuScenesDataModule:
    """A data module of the small data set, not set up."""
    settings: dict[str, Any] = {
        "root": root,
        "version": VERSION,
        "point_range": RANGE,
        "image_size": (64, 160),
        "train_split": "mini_train",
        "val_split": "mini_val",
        "num_workers": 0,
        "cache_dir": cache_dir,
    }
    return NuScenesDataModule(**{**settings, **changes})


def ready(stage: str, root: Path, cache_dir: Path, **changes: Any) -> NuScenesDataModule:
    """A data module of the small data set, set up for ``fit`` or ``validate``."""
    data = datamodule(root, cache_dir, **changes)
    data.prepare_data()
    data.setup(stage)
    return data


def linked_copy(root: Path, copy: Path) -> Path:
    """Copy the tables of a data root, so that a test may change them, and link its other files."""
    copy.mkdir()
    shutil.copytree(root / VERSION, copy / VERSION)
    for path in root.iterdir():
        if path.name != VERSION:
            (copy / path.name).symlink_to(path)
    return copy


@contextlib.contextmanager
def edited(root: Path, table: str) -> Iterator[list[dict[str, Any]]]:
    """The records of a table, which are written back at the end of the block."""
    path = root / VERSION / f"{table}.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    yield records
    path.write_text(json.dumps(records), encoding="utf-8")
