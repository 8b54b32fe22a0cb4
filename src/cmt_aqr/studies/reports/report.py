"""From a folder of runs to the page, the CSV file and a short table on screen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cmt_aqr.files import check_folder, writing
from cmt_aqr.runs.console import console
from cmt_aqr.studies.reports.figures import learning_curves, overview
from cmt_aqr.studies.reports.page import number_text, write_page
from cmt_aqr.studies.reports.runs import Run, find_runs
from cmt_aqr.studies.reports.settings import Axis, find_axes, seed_axis, status_text, value_text
from cmt_aqr.studies.reports.table import COLUMNS, best_first, check_metric, write_csv

MOST_ROWS = 10
"""Runs in the table on screen."""


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
    runs = find_runs(sweep_dir)
    out = sweep_dir if out is None else out
    check_folder("out", out)
    check_metric(runs, metric)
    axes = find_axes(runs)
    order = best_first(runs, metric)
    pictures = overview(runs, axes, metric, x, y)
    curves = learning_curves(runs, axes, order)
    page, table = out / "report.html", out / "report.csv"
    with writing("out", out):
        write_csv(runs, axes, order, table)
        write_page(
            runs, axes, [*pictures, *([curves] if curves else [])], metric, _title(sweep_dir), table.name, page
        )
    console().print(_summary(runs, axes, order, metric))
    console().print(f"The page is {page}, the table {table}", soft_wrap=True, markup=False)
    return page, table


def _title(folder: Path) -> str:
    """The last two parts of a folder, as a sweep is called by day and time."""
    parts = folder.resolve().parts
    return "/".join(parts[-2:]) if len(parts) > 2 and re.match(r"\d{4}-\d\d-\d\d$", parts[-2]) else parts[-1]


def _summary(runs: Sequence[Run], axes: Sequence[Axis], order: Sequence[int], metric: str) -> Group:
    """The best runs, and a line for each that failed."""
    seeds = seed_axis(runs)
    shown = [*axes, seeds] if len(seeds.known) > 1 else list(axes)
    columns = [column for column in COLUMNS if column.key in ("mAP", "NDS", "wall_time_s")]
    extra = [] if metric in ("mAP", "NDS") else [metric]
    more = f", the best {MOST_ROWS} of {len(order)}" if len(order) > MOST_ROWS else ""
    table = Table(title=f"Runs by {metric}{more}", title_justify="left")
    for name in ("run", *(axis.short for axis in shown)):
        table.add_column(escape(name), overflow="fold")
    for name in (*extra, *(column.title for column in columns)):
        table.add_column(escape(name), justify="right")
    table.add_column("status")
    for index in order[:MOST_ROWS]:
        run = runs[index]
        numbers = [(run.number(key), "metric") for key in extra]
        numbers += [(run.number(column.key), column.unit) for column in columns]
        table.add_row(
            Text(run.name),
            *(Text(value_text(axis.values[index])) for axis in shown),
            *("not recorded" if value is None else number_text(value, unit) for value, unit in numbers),  # type: ignore[arg-type]
            status_text(run),
        )
    failed = [
        Text(f"{run.name} failed: {run.error or 'the reason is not recorded'}")
        for run in runs
        if run.status == "failed"
    ]
    broken = [Text(f"{run.name}: {problem}") for run in runs for problem in run.problems]
    return Group(table, *failed, *broken)
