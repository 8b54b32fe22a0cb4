"""From a folder of runs to a page that needs nothing beside it, a CSV file and a short table on screen."""

from __future__ import annotations

import datetime
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jinja2
import pandas as pd
from plotly.offline import get_plotlyjs
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cmt_aqr.errors import UserError
from cmt_aqr.files import check_folder, write_table, writing, written_at_once
from cmt_aqr.runs.console import console
from cmt_aqr.runs.folder import FAILED, Run, Value, find_runs
from cmt_aqr.studies.figures import learning_curves, overview
from cmt_aqr.studies.records import (
    NOT_RECORDED,
    SUMMARY,
    best_first,
    better,
    check_metric,
    find_axes,
    is_numeric,
    label,
    measured,
    short,
    spread,
    value_text,
    with_seed,
)

MOST_ROWS = 10
"""Runs in the table on screen."""

Unit = Literal["metric", "plain", "seconds", "bytes"]


class Number(NamedTuple):
    """A recorded number that the page shows of every run."""

    key: str
    title: str
    group: str
    unit: Unit
    note: str


_ERRORS = ("translation, m", "scale, 1 - IoU", "orientation, rad", "velocity, m/s", "attribute, 1 - accuracy")
NUMBERS = (
    Number("NDS", "NDS", "accuracy", "metric", "nuScenes detection score, 0 to 1"),
    Number("mAP", "mAP", "accuracy", "metric", "mean average precision, 0 to 1"),
    *(
        Number(key, key, "true-positive errors", "metric", f"mean error of {of}")
        for key, of in zip(SUMMARY[2:], _ERRORS, strict=True)
    ),
    Number("wall_time_s", "time", "cost", "seconds", "wall time of the run"),
    Number("frames_per_second", "frames/s", "cost", "plain", "frames per second in training"),
    Number("peak_memory_bytes", "memory", "cost", "bytes", "peak main memory of the process"),
    Number("peak_gpu_memory_bytes", "GPU memory", "cost", "bytes", "peak GPU memory"),
    *(
        Number(f"{sensor}/{key}", title, f"{name} map", "plain", note)
        for sensor, name in (("bev", "BEV"), ("camera", "camera"))
        for key, title, note in (
            ("mean", "mean", "mean over all cells of AQR's map"),
            ("max_over_mean", "max/mean", "largest cell over the mean: how sharp the map is"),
            ("clamped", "clamped", "share of cells at the clamp"),
        )
    ),
)
RECORDED = ("steps", "epochs", *(number.key for number in NUMBERS if number.group == "cost"))
RECORDED += ("machine", "git_commit", "git_dirty")
"""What ``record.json`` adds to a row of the CSV file."""


class Column(NamedTuple):
    """A column of the page's tables: texts, the values that it is sorted by, and the best of them.

    ``None`` is not recorded.
    """

    title: str
    group: str
    values: list[Value | None]
    texts: list[str]
    word: bool = False
    note: str = ""
    top: float = math.nan


def make_report(
    sweep_dir: Path, out: Path | None = None, metric: str = "NDS", x: str | None = None, y: str | None = None
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.csv`` of all runs in or below a folder, and print the best.

    Args:
        sweep_dir: of a sweep, of several runs, or of one.
        out: where the two files go; the folder itself if not given.
        metric: of ``metrics.json``: the best run is best in it, and the figures show it.
        x: setting along x in the figures; by default the settings that take the most values.
        y: setting along y.

    Returns:
        The page and the CSV file.

    Raises:
        UserError: no run there, or a metric or setting that the runs do not have.
    """
    if not sweep_dir.is_dir():
        raise UserError(f"sweep_dir={sweep_dir}: there is no such folder; name that of a sweep or of several runs")
    runs = find_runs(sweep_dir)
    if not runs:
        raise UserError(
            f"sweep_dir={sweep_dir}: no run is in or below it; the folder of a run holds record.json or "
            ".hydra/overrides.yaml"
        )
    out = sweep_dir if out is None else out
    check_folder("out", out)
    check_metric(runs, metric)
    axes, order = find_axes(runs), best_first(measured(runs, metric))
    page, table = out / "report.html", out / "report.csv"
    columns = run_columns(runs, axes, order)
    text = _page(
        title=_title(sweep_dir),
        subtitle=_subtitle(runs),
        metric=metric,
        problems=_problems(runs),
        best=_best(runs, axes, order[0], metric),
        pictures=[*overview(runs, axes, metric, x, y), *learning_curves(runs, axes, order)],
        seeds=seed_columns(runs, axes, metric),
        columns=columns,
        common=[text for text in runs[0].overrides if all(text in run.overrides for run in runs)],
        commands=[(runs[i], label(with_seed(axes, runs), i)) for i in order],
        csv_name=table.name,
    )
    with writing("out", out):
        write_table(table, csv_rows(runs, axes, order))
        with written_at_once(page) as partial:
            partial.write_text(text, encoding="utf-8")
    console().print(_summary(runs, columns, order, metric))
    console().print(f"The page is {page}, the table {table}", soft_wrap=True, markup=False)
    return page, table


def _title(folder: Path) -> str:
    """The last two parts of a folder, as a sweep is called by day and time."""
    parts = folder.resolve().parts
    return "/".join(parts[-2:]) if len(parts) > 2 and re.match(r"\d{4}-\d\d-\d\d$", parts[-2]) else parts[-1]


def _problems(runs: Sequence[Run]) -> list[str]:
    return [f"{run.name}: {problem}" for run in runs for problem in run.problems]


def _page(**parts: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.jinja")
    return template.render(plotly=get_plotlyjs(), groups=_groups, not_recorded=NOT_RECORDED, **parts)


def _groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Names of neighbouring columns' groups, and how many columns each has."""
    return [(name, len(list(members))) for name, members in itertools.groupby(columns, lambda c: c.group)]


def _subtitle(runs: Sequence[Run]) -> str:
    """How many runs ended how, and on what code and machine they ran."""
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
    """A number as a reader wants it."""
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


def _best(runs: Sequence[Run], axes: Sequence[pd.Series], index: int, metric: str) -> dict[str, object] | None:
    """What the page says of the best run; ``None`` where none has the metric."""
    run, value = runs[index], runs[index].numbers.get(metric)
    if value is None:
        return None
    numbers = {key: run.numbers.get(key) for key in dict.fromkeys([metric, "NDS", *SUMMARY])}
    return {
        "run": run,
        "settings": " ".join(f"{axis.name}={value_text(axis[index])}" for axis in with_seed(axes, runs)),
        "numbers": {key: number_text(number, "metric") for key, number in numbers.items()},
        "equal": ", ".join(one.name for one in runs if one is not run and one.numbers.get(metric) == value),
    }


def run_columns(runs: Sequence[Run], axes: Sequence[pd.Series], order: Sequence[int]) -> list[Column]:
    """The table of all runs, in an order; GPU memory only where a GPU was used."""
    ordered = [runs[i] for i in order]
    names = [run.name for run in ordered]
    columns = [
        Column("run", "", list(names), names, word=True),
        Column("status", "", [run.status for run in ordered], [run.ending for run in ordered], word=True),
        *(_axis_column(axis, axis[list(order)]) for axis in with_seed(axes, runs)),
    ]
    for number in NUMBERS:
        values = [run.numbers.get(number.key) for run in ordered]
        defined = {value for value in values if value is not None and value == value}
        if number.key == "peak_gpu_memory_bytes" and not defined:
            continue
        choose = max if better(number.key) > 0 else min
        top = choose(defined) if number.unit == "metric" and len(defined) > 1 else math.nan
        texts = [number_text(value, number.unit) for value in values]
        columns.append(Column(number.title, number.group, list(values), texts, note=number.note, top=top))
    return columns


def _axis_column(axis: pd.Series, values: Iterable[Value]) -> Column:
    known = [None if value != value else value for value in values]
    return Column(short(axis), "varied", known, list(map(value_text, known)), not is_numeric(axis), str(axis.name))


def seed_columns(runs: Sequence[Run], axes: Sequence[pd.Series], metric: str) -> list[Column]:
    """Mean and spread over seeds, the best setting first; nothing where no two runs have the same settings."""
    by = list(axes) or [pd.Series(0, range(len(runs)))]
    stats = spread(measured(runs, metric), by)
    if stats["size"].max() < 2:
        return []
    order = best_first(stats["mean"].reset_index(drop=True).rename(metric))
    stats = stats.iloc[order]
    counts = [f"{n}" if n == of else f"{n} of {of}" for n, of in zip(stats["count"], stats["size"], strict=True)]
    columns = [_axis_column(axis, stats.index.get_level_values(place)) for place, axis in enumerate(axes)]
    columns.append(Column("runs", " ", stats["size"].tolist(), counts))
    for number in (number for number in NUMBERS if number.key in SUMMARY):
        means, stds = spread(measured(runs, number.key), by).iloc[order][["mean", "std"]].T.to_numpy()
        known = [None if mean != mean else mean for mean in means]
        spreads = ["" if std != std else f" ± {std:.4f}" for std in stds]
        texts = [number_text(mean, "metric") + of for mean, of in zip(known, spreads, strict=True)]
        columns.append(Column(number.title, number.group, known, texts, note=number.note))
    return columns


def csv_rows(runs: Sequence[Run], axes: Sequence[pd.Series], order: Sequence[int]) -> list[dict[str, object]]:
    """All that is recorded of every run, one row each, unrounded; what is not recorded is ``None`` or absent."""
    keys = [key for axis in axes for key in str(axis.name).split(" + ")]
    metrics = dict.fromkeys([*SUMMARY, *(name for run in runs for name in run.metrics)])
    maps = dict.fromkeys(name for run in runs for name in run.maps)
    return [
        {
            **{"run": run.name, "status": run.status, "error": run.error, "seed": run.seed},
            **{key: run.setting(key) for key in keys},
            **{name: run.metrics.get(name) for name in metrics},
            **{f"aqr/{name}": run.maps.get(name) for name in maps},
            **{name: run.record.get(name) for name in RECORDED},
            **{"overrides": " ".join(run.overrides), "command": run.command},
        }
        for run in (runs[i] for i in order)
    ]


def _summary(runs: Sequence[Run], columns: Sequence[Column], order: Sequence[int], metric: str) -> Group:
    """The best runs, and a line for each that failed."""
    more = f", the best {MOST_ROWS} of {len(order)}" if len(order) > MOST_ROWS else ""
    table = Table(title=f"Runs by {metric}{more}", title_justify="left")
    others = {column.title: column for column in columns if column.group != "varied"}
    values = [runs[i].numbers.get(metric) for i in order]
    others[metric] = Column(metric, "", list(values), [number_text(value, "metric") for value in values])
    extra = [] if metric in ("mAP", "NDS") else [metric]
    shown = [others["run"], *(column for column in columns if column.group == "varied")]
    shown += [others[title] for title in (*extra, "mAP", "NDS", "time", "status")]
    for column in shown:
        table.add_column(escape(column.title), overflow="fold", justify="left" if column.word else "right")
    for row in range(min(MOST_ROWS, len(order))):
        table.add_row(*(Text(column.texts[row]) for column in shown))
    failed = [
        f"{run.name} failed: {run.error or 'the reason is not recorded'}" for run in runs if run.status == FAILED
    ]
    return Group(table, *map(Text, failed + _problems(runs)))
