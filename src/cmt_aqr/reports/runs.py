"""What a run left in its folder, read without training code and without failing over a missing file."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cmt_aqr.errors import UserError
from cmt_aqr.evaluation.table import read_metrics

CURVES = ("train/loss", "val/NDS", "val/mAP")
"""Columns of ``csv/metrics.csv`` that are drawn as learning curves."""

Curve = tuple[list[int], list[float]]
"""Steps, ascending, and the values there."""


@dataclass(frozen=True)
class Run:
    """What is known of one run; whatever its folder lacks is ``None`` or empty."""

    folder: Path
    name: str
    """The folder, from the report's folder on."""
    script: str
    """The script that ran, ``train.py`` or ``evaluate.py``."""
    overrides: tuple[str, ...]
    """As Hydra took them from the command line or the sweep."""
    choices: Mapping[str, Any]
    """The option chosen of each configuration group."""
    config: Mapping[str, Any]
    """The composed configuration."""
    record: Mapping[str, Any]
    """``record.json``."""
    metrics: Mapping[str, float]
    """``metrics.json``; NaN where nuScenes defines no value."""
    maps: Mapping[str, float]
    """Statistics of AQR's maps, such as ``bev/mean``."""
    curves: Mapping[str, Curve]
    """Learning curves, by the names in :data:`CURVES`."""
    problems: tuple[str, ...]
    """Files that are there and cannot be read, one sentence each."""

    @property
    def status(self) -> str | None:
        """Recorded status: running, complete, failed or stopped."""
        return self.record.get("status")

    @property
    def error(self) -> str | None:
        """The recorded reason of a failure."""
        return self.record.get("error")

    @property
    def seed(self) -> int | None:
        """The recorded seed, or that of the composed configuration."""
        return self.record.get("seed", self.config.get("seed"))

    def number(self, key: str) -> float | None:
        """A recorded number: an official metric, a map statistic, or one of ``record.json``."""
        for source in (self.metrics, self.maps, self.record):
            value = source.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        return None


def find_runs(folder: Path) -> list[Run]:
    """All runs in or below a folder, in natural order of their names (2 before 10).

    Raises:
        UserError: no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError(f"sweep_dir={folder}: there is no such folder; name that of a sweep or of several runs")
    found = sorted(_run_folders(folder), key=lambda path: natural(path.relative_to(folder).as_posix()))
    if not found:
        raise UserError(
            f"sweep_dir={folder}: no run is in or below it; the folder of a run holds record.json or "
            ".hydra/overrides.yaml"
        )
    return [read_run(path, folder) for path in found]


def natural(text: str) -> list[tuple[bool, int, str]]:
    """Sorting key under which numbers within a text count as numbers."""
    parts = re.split(r"(\d+)", text)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _run_folders(folder: Path) -> Iterator[Path]:
    """Folders of runs; nothing is looked for inside a run or in hidden folders."""
    for path, folders, files in os.walk(folder):
        if "record.json" in files or (Path(path) / ".hydra" / "overrides.yaml").is_file():
            folders.clear()
            yield Path(path)
        folders[:] = [name for name in folders if not name.startswith(".")]


def read_run(folder: Path, root: Path) -> Run:
    """Read what a run's folder holds.

    Args:
        folder: of the run.
        root: of the report; the run is named by its path from there.
    """
    problems: list[str] = []

    def read(name: str, reader: Callable[[Path], Any]) -> Any:
        path = folder / name
        if not path.is_file():
            return {}
        try:
            return reader(path)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError, csv.Error) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            problems.append(f"{name} cannot be read: {reason}")
            return {}

    record = read("record.json", _mapping)
    hydra = read(".hydra/hydra.yaml", _yaml).get("hydra", {})
    overrides = record.get("overrides")
    if overrides is None:
        overrides = read(".hydra/overrides.yaml", _yaml_list)
    command = record.get("command") or [f"{hydra.get('job', {}).get('name', 'train')}.py"]
    return Run(
        folder=folder,
        name=folder.relative_to(root).as_posix() if folder != root else folder.resolve().name,
        script=Path(command[0]).name,
        overrides=tuple(map(str, overrides)),
        choices=hydra.get("runtime", {}).get("choices", {}),
        config=read("config.yaml", _yaml) or read(".hydra/config.yaml", _yaml),
        record=record,
        metrics=read("metrics.json", read_metrics),
        maps=read("map_statistics.json", _map_statistics),
        curves=read("csv/metrics.csv", read_curves),
        problems=tuple(problems),
    )


def _mapping(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("it holds no mapping of names to values")
    return values


def _yaml(path: Path) -> dict[str, Any]:
    values = yaml.load(path.read_text(encoding="utf-8"), _LOADER) or {}
    if not isinstance(values, dict):
        raise ValueError("it holds no mapping of names to values")
    return values


def _yaml_list(path: Path) -> list[str]:
    values = yaml.load(path.read_text(encoding="utf-8"), _LOADER) or []
    if not isinstance(values, list):
        raise ValueError("it holds no list of overrides")
    return values


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml where it is there: reading a hundred configurations takes a second, not ten."""


def _map_statistics(path: Path) -> dict[str, float]:
    """``{"bev": {"mean": 0.1}}`` as ``{"bev/mean": 0.1}``."""
    return {
        f"{sensor}/{name}": math.nan if value is None else float(value)
        for sensor, statistics in _mapping(path).items()
        for name, value in statistics.items()
    }


def read_curves(path: Path) -> dict[str, Curve]:
    """Learning curves of Lightning's CSV log; of a step logged twice, as after a resume, the last value counts."""
    values: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, points in values.items():
                if row.get(name):
                    points[int(row["step"])] = float(row[name])
    return {name: (sorted(points), [points[step] for step in sorted(points)]) for name, points in values.items()}
