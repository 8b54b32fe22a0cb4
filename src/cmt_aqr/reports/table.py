"""Runs as rows: which columns, in which order, the mean over seeds, and the same as CSV."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cmt_aqr.errors import UserError
from cmt_aqr.evaluation.curves import ERRORS
from cmt_aqr.files import written_at_once
from cmt_aqr.reports.runs import Run
from cmt_aqr.reports.settings import NOT_RECORDED, Axis, Value, reproducing_command, setting

MEAN_ERRORS = tuple(f"m{name}" for name in ERRORS.values())
SUMMARY = ("mAP", "NDS", *MEAN_ERRORS)
"""The official summary metrics."""

MAP_SENSORS = ("bev", "camera")

Unit = Literal["metric", "plain", "seconds", "bytes"]


@dataclass(frozen=True)
class Column:
    """A column of numbers."""

    key: str
    title: str
    group: str
    unit: Unit
    better: int = 0
    """1 if more is better, -1 if less is, 0 if neither."""
    note: str = ""


def _error_notes() -> tuple[str, ...]:
    return (
        "translation error, m",
        "scale error, 1 - IoU",
        "orientation error, rad",
        "velocity error, m/s",
        "attribute error, 1 - accuracy",
    )


COLUMNS = (
    Column("NDS", "NDS", "accuracy", "metric", 1, "nuScenes detection score, 0 to 1"),
    Column("mAP", "mAP", "accuracy", "metric", 1, "mean average precision, 0 to 1"),
    *(
        Column(key, key, "true-positive errors", "metric", -1, f"mean {note}")
        for key, note in zip(MEAN_ERRORS, _error_notes(), strict=True)
    ),
    Column("wall_time_s", "time", "cost", "seconds", 0, "wall time of the run"),
    Column("frames_per_second", "frames/s", "cost", "plain", 0, "frames per second in training"),
    Column("peak_memory_bytes", "memory", "cost", "bytes", 0, "peak main memory of the process"),
    Column("peak_gpu_memory_bytes", "GPU memory", "cost", "bytes", 0, "peak GPU memory"),
    *(
        Column(f"{sensor}/{key}", title, f"{'BEV' if sensor == 'bev' else sensor} map", "plain", 0, note)
        for sensor in MAP_SENSORS
        for key, title, note in (
            ("mean", "mean", "mean over all cells of AQR's map"),
            ("max_over_mean", "max/mean", "largest cell over the mean: how sharp the map is"),
            ("clamped", "clamped", "share of cells at the clamp"),
        )
    ),
)
"""The numbers that the page shows of every run, besides its settings and status."""


def shown_columns(runs: Sequence[Run]) -> list[Column]:
    """The columns of a table of runs; that of GPU memory only where a GPU was used."""
    gpu = any(run.number("peak_gpu_memory_bytes") is not None for run in runs)
    return [column for column in COLUMNS if gpu or column.key != "peak_gpu_memory_bytes"]


def better(metric: str) -> int:
    """1 if more of a metric is better, -1 for the errors."""
    errors = {*ERRORS.values(), *MEAN_ERRORS}
    return -1 if metric.partition("/")[0] in errors else 1


def check_metric(runs: Sequence[Run], metric: str) -> None:
    """Refuse a metric that no run has.

    Raises:
        UserError: runs have metrics, but not this one.
    """
    known = dict.fromkeys(name for run in runs for name in run.metrics)
    if known and metric not in known:
        names = ", ".join(name for name in known if "/" not in name)
        raise UserError(f"metric={metric}: no run has it; runs have {names}, and AP/car and the like by class")


def measured(run: Run, metric: str) -> float | None:
    """A metric that is recorded and defined."""
    value = run.number(metric)
    return None if value is None or math.isnan(value) else value


def best_first(runs: Sequence[Run], metric: str) -> list[int]:
    """Indices of runs, the best first; those without the metric last, in their order."""

    def key(index: int) -> tuple[bool, float]:
        value = measured(runs[index], metric)
        return value is None, 0.0 if value is None else -better(metric) * value

    return sorted(range(len(runs)), key=key)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of some runs; ``std`` is ``None`` of a single one."""

    mean: float
    std: float | None
    count: int


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and spread of values; ``None`` of none."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but the seed."""

    values: tuple[Value, ...]
    """Of the axes."""
    members: tuple[int, ...]
    """Indices of the runs."""


def same_settings(runs: Sequence[Run], axes: Sequence[Axis]) -> list[Setting]:
    """Runs grouped by all settings but the seed, in the order of the runs."""
    groups: dict[tuple[Value, ...], list[int]] = {}
    for index in range(len(runs)):
        groups.setdefault(tuple(axis.values[index] for axis in axes), []).append(index)
    return [Setting(values, tuple(members)) for values, members in groups.items()]


def over_seeds(runs: Sequence[Run], setting: Setting, metric: str) -> Spread | None:
    """A metric's mean and spread over the runs of a setting that have it."""
    return spread([value for i in setting.members if (value := measured(runs[i], metric)) is not None])


def write_csv(runs: Sequence[Run], axes: Sequence[Axis], order: Sequence[int], path: Path) -> None:
    """All that is recorded of every run, one row each, unrounded; what is not recorded stays empty.

    Args:
        runs: of the report.
        axes: settings that differ; each has a column.
        order: of the rows, as indices of ``runs``.
        path: of the file.
    """
    metrics = list(dict.fromkeys([*SUMMARY, *(name for run in runs for name in run.metrics)]))
    maps = list(dict.fromkeys(name for run in runs for name in run.maps))
    keys = list(dict.fromkeys(key for axis in axes for key in axis.keys))
    rows = []
    for index in order:
        run = runs[index]
        rows.append(
            {
                "run": run.name,
                "status": run.status,
                "error": run.error,
                "seed": run.seed,
                **{key: _csv_cell(setting(run, key)) for key in keys},
                **{name: run.metrics.get(name) for name in metrics},
                **{f"aqr/{name}": run.maps.get(name) for name in maps},
                **{name: run.record.get(name) for name in RECORDED},
                "overrides": " ".join(run.overrides),
                "command": reproducing_command(run),
            }
        )
    with written_at_once(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


RECORDED = (
    "steps",
    "epochs",
    "wall_time_s",
    "frames_per_second",
    "peak_memory_bytes",
    "peak_gpu_memory_bytes",
    "machine",
    "git_commit",
    "git_dirty",
)
"""What ``record.json`` adds to a row of the CSV file."""


def _csv_cell(value: Value) -> Value:
    """A setting in CSV: null by its name, an unknown one empty."""
    if value is None:
        return "null"
    return None if value == NOT_RECORDED else value
