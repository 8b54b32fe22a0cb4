"""The report of a folder of runs: a self-contained page, a CSV file and a short table on screen."""

from __future__ import annotations

import datetime
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
from plotly.offline import get_plotlyjs
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cmt_aqr.errors import UserError
from cmt_aqr.files import check_folder, write_table, writing
from cmt_aqr.runs.console import console
from cmt_aqr.runs.folder import FAILED, Run, Value, find_runs
from cmt_aqr.studies.figures import learning_curves, overview
from cmt_aqr.studies.page import write_page
from cmt_aqr.studies.records import (
    NOT_RECORDED,
    SUMMARY,
    Comparison,
    best_first,
    is_numeric,
    label,
    short,
    sign_of,
    spread,
    value_text,
)

MOST_ROWS = 10
"""Runs in the table on screen."""

Unit = Literal["metric", "plain", "seconds", "bytes"]


class Column(NamedTuple):
    """A column of the page's tables; ``None`` values are not recorded."""

    title: str
    group: str
    note: str
    key: str = ""
    unit: Unit = "plain"
    word: bool = False
    values: Sequence[Value | None] = ()
    texts: Sequence[str] = ()
    top: float = math.nan
    """The best value, shown in bold."""


_ERRORS = ("translation, m", "scale, 1 - IoU", "orientation, rad", "velocity, m/s", "attribute, 1 - accuracy")
NUMBERS = (
    Column("NDS", "accuracy", "nuScenes detection score, 0 to 1", "NDS", "metric"),
    Column("mAP", "accuracy", "mean average precision, 0 to 1", "mAP", "metric"),
    *(
        Column(key, "true-positive errors", f"mean error of {quantity}", key, "metric")
        for key, quantity in zip(SUMMARY[2:], _ERRORS, strict=True)
    ),
    Column("time", "cost", "wall time of the run", "wall_time_s", "seconds"),
    Column("frames/s", "cost", "frames per second in training", "frames_per_second"),
    Column("memory", "cost", "peak main memory of the process", "peak_memory_bytes", "bytes"),
    Column("GPU memory", "cost", "peak GPU memory", "peak_gpu_memory_bytes", "bytes"),
    *(
        Column(title, f"{name} map", note, f"{sensor}/{key}")
        for sensor, name in (("bev", "BEV"), ("camera", "camera"))
        for key, title, note in (
            ("mean", "mean", "mean over all cells of AQR's map"),
            ("max_over_mean", "max/mean", "largest cell over the mean: how sharp the map is"),
            ("clamped", "clamped", "share of cells at the clamp"),
        )
    ),
)
"""The numbers shown per run."""

RECORDED = ("steps", "epochs", *(number.key for number in NUMBERS if number.group == "cost"))
RECORDED += ("machine", "git_commit", "git_dirty")
"""Entries of ``record.json`` in the CSV file."""


def make_report(
    sweep_dir: Path, out: Path | None = None, metric: str = "NDS", x: str | None = None, y: str | None = None
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.csv`` of all runs in or below a folder, and print the best.

    Args:
        sweep_dir: folder of a sweep, of several runs, or of one.
        out: folder of the two files; by default ``sweep_dir``.
        metric: of ``metrics.json``; ranks the runs and is shown in the figures.
        x: setting along x in the figures; by default one with the most values.
        y: setting along y, by default the one with the next most values; alone, it is along x.

    Returns:
        The page and the CSV file.

    Raises:
        UserError: there is no run, or the runs do not have the metric or a setting.
    """
    if not sweep_dir.is_dir():
        raise UserError(
            f"sweep_dir={sweep_dir}: there is no such folder; name the folder of a sweep or of several runs"
        )
    runs = find_runs(sweep_dir)
    if not runs:
        raise UserError(
            f"sweep_dir={sweep_dir}: no run is in or below it; the folder of a run contains record.json or "
            ".hydra/overrides.yaml"
        )
    out = sweep_dir if out is None else out
    check_folder("out", out)
    metrics = dict.fromkeys(name for run in runs for name in run.metrics)
    if metrics and metric not in metrics:
        names = ", ".join(name for name in metrics if "/" not in name)
        raise UserError(f"metric={metric}: no run has it; runs have {names}, and by class AP/car and so on")
    comparison = Comparison(runs, metric)
    page, table = out / "report.html", out / "report.csv"
    columns = run_columns(comparison)
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    with writing("out", out):
        write_table(table, csv_rows(comparison))
        write_page(
            page,
            "page.html.jinja",
            plotly=get_plotlyjs(),
            groups=_groups,
            not_recorded=NOT_RECORDED,
            title=_title(sweep_dir),
            subtitle=_subtitle(runs),
            metric=metric,
            problems=problems,
            best=_best(comparison),
            pictures=[*overview(comparison, x, y), *learning_curves(comparison)],
            seeds=seed_columns(comparison),
            columns=columns,
            common=[text for text in runs[0].overrides if all(text in run.overrides for run in runs)],
            commands=[(runs[i], label(comparison.axes_and_seed, i)) for i in comparison.order],
            csv_name=table.name,
        )
    console().print(_summary(comparison, columns), *map(Text, problems))
    console().print(f"The page is {page}, the table {table}", soft_wrap=True, markup=False)
    return page, table


def _title(folder: Path) -> str:
    """The folder's name, for a sweep with the date before the time."""
    parts = folder.resolve().parts
    return "/".join(parts[-2:]) if len(parts) > 2 and re.match(r"\d{4}-\d\d-\d\d$", parts[-2]) else parts[-1]


def _groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Names of the groups of adjacent columns, and their numbers of columns."""
    return [(name, len(list(members))) for name, members in itertools.groupby(columns, lambda c: c.group)]


def _subtitle(runs: Sequence[Run]) -> str:
    """How the runs ended, and their code and machine."""
    endings = pd.Series([run.ending for run in runs]).value_counts(sort=False)
    parts = [f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}"]
    parts += [
        f"{n} {'without a recorded status' if name == NOT_RECORDED else name}" for name, n in endings.items()
    ]
    commits, machines = {run.commit for run in runs} - {""}, {run.machine for run in runs} - {""}
    if commits:
        parts.append(f"code at {commits.pop() if len(commits) == 1 else f'{len(commits)} different commits'}")
    if machines:
        parts.append(machines.pop() if len(machines) == 1 else f"{len(machines)} machines")
    return " · ".join(parts)


def number_text(value: float | None, unit: Unit) -> str:
    """Format a number with its unit."""
    if value is None:
        return NOT_RECORDED
    if math.isnan(value):
        return "–"
    if unit == "metric":
        return f"{value:.4f}"
    if unit == "seconds":
        return str(datetime.timedelta(seconds=round(value))) if value >= 60 else f"{value:.1f} s"
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _best(comparison: Comparison) -> dict[str, object] | None:
    """The best run as the page shows it; ``None`` if no run has the metric."""
    metric, index = comparison.metric, comparison.order[0]
    run = comparison.runs[index]
    value = run.numbers.get(metric)
    if value is None:
        return None
    numbers = {key: run.numbers.get(key) for key in dict.fromkeys([metric, "NDS", *SUMMARY])}
    equal = [one.name for one in comparison.runs if one is not run and one.numbers.get(metric) == value]
    return {
        "run": run,
        "settings": " ".join(f"{axis.name}={value_text(axis[index])}" for axis in comparison.axes_and_seed),
        "numbers": {key: number_text(number, "metric") for key, number in numbers.items()},
        "equal": ", ".join(equal),
    }


def run_columns(comparison: Comparison) -> list[Column]:
    """The table of all runs, best first; with GPU memory if a GPU was used."""
    runs = comparison.ranked
    names, statuses = [run.name for run in runs], [run.status for run in runs]
    columns = [
        Column("run", "", "", word=True, values=names, texts=names),
        Column("status", "", "", word=True, values=statuses, texts=[run.ending for run in runs]),
        *(_axis_column(axis, axis[comparison.order]) for axis in comparison.axes_and_seed),
    ]
    for number in NUMBERS:
        values = comparison.numbers(number.key)
        if number.unit == "metric" and values.nunique() > 1:
            number = number._replace(top=values.max() if sign_of(number.key) > 0 else values.min())
        if values.any() or number.title != "GPU memory":
            columns.append(_filled(number, runs))
    return columns


def _filled(number: Column, runs: Sequence[Run]) -> Column:
    """Fill a column with the numbers of runs."""
    values = [run.numbers.get(number.key) for run in runs]
    return number._replace(values=values, texts=[number_text(value, number.unit) for value in values])


def _axis_column(axis: pd.Series, values: Iterable[Value]) -> Column:
    recorded = [None if value != value else value for value in values]
    texts, name = [value_text(value) for value in recorded], str(axis.name)
    return Column(short(axis), "varied", name, word=not is_numeric(axis), values=recorded, texts=texts)


def seed_columns(comparison: Comparison) -> list[Column]:
    """Mean and deviation over seeds, best settings first; empty if no two runs have the same settings."""
    axes = comparison.axes
    by = axes or [pd.Series(0, range(len(comparison.runs)))]
    stats = spread(comparison.values, by)
    if stats["size"].max() < 2:
        return []
    order = best_first(stats["mean"].reset_index(drop=True).rename(comparison.metric))
    stats = stats.iloc[order]
    columns = [_axis_column(axis, stats.index.get_level_values(level)) for level, axis in enumerate(axes)]
    counts = [
        f"{n}" if n == size else f"{n} of {size}" for n, size in zip(stats["count"], stats["size"], strict=True)
    ]
    columns.append(Column("runs", " ", "", values=stats["size"].tolist(), texts=counts))
    for number in (number for number in NUMBERS if number.key in SUMMARY):
        means, stds = spread(comparison.numbers(number.key), by).iloc[order][["mean", "std"]].T.to_numpy()
        values = [None if mean != mean else mean for mean in means]
        deviations = ["" if std != std else f" ± {std:.4f}" for std in stds]
        texts = [number_text(mean, "metric") + text for mean, text in zip(values, deviations, strict=True)]
        columns.append(number._replace(values=values, texts=texts))
    return columns


def csv_rows(comparison: Comparison) -> list[dict[str, object]]:
    """A row per run with all recorded values, unrounded; values that are not recorded are ``None`` or absent."""
    keys = [key for axis in comparison.axes for key in str(axis.name).split(" + ")]
    metrics = dict.fromkeys([*SUMMARY, *(name for run in comparison.runs for name in run.metrics)])
    maps = dict.fromkeys(name for run in comparison.runs for name in run.maps)
    return [
        {
            **{"run": run.name, "status": run.status, "error": run.error, "seed": run.seed},
            **{key: run.setting(key) for key in keys},
            **{name: run.metrics.get(name) for name in metrics},
            **{f"aqr/{name}": run.maps.get(name) for name in maps},
            **{name: run.record.get(name) for name in RECORDED},
            **{"overrides": " ".join(run.overrides), "command": run.command},
        }
        for run in comparison.ranked
    ]


def _summary(comparison: Comparison, columns: Sequence[Column]) -> Group:
    """A table of the best runs, and a line per failed run."""
    runs, metric = comparison.runs, comparison.metric
    scope = f", the best {MOST_ROWS} of {len(runs)}" if len(runs) > MOST_ROWS else ""
    table = Table(title=f"Runs by {metric}{scope}", title_justify="left")
    fixed = {column.title: column for column in columns if column.group != "varied"}
    selected = [fixed["run"], *(column for column in columns if column.group == "varied")]
    if metric not in ("mAP", "NDS"):
        selected.append(_filled(Column(metric, "", "", metric, "metric"), comparison.ranked))
    selected += [fixed[title] for title in ("NDS", "mAP", "time", "status")]
    for column in selected:
        table.add_column(escape(column.title), overflow="fold", justify="left" if column.word else "right")
    for row in range(min(MOST_ROWS, len(runs))):
        table.add_row(*(Text(column.texts[row]) for column in selected))
    failed = [
        f"{run.name} failed: {run.error or 'the reason is not recorded'}" for run in runs if run.status == FAILED
    ]
    return Group(table, *map(Text, failed))
