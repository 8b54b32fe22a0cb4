"""The table of a sweep's runs, on screen and on disk."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from cmt_aqr.files import written_at_once
from cmt_aqr.sweeps.runs import SweepRun, key_values


def swept_keys(runs: Sequence[SweepRun]) -> list[str]:
    """The keys whose values are not the same in all runs."""
    given = [key_values(run.overrides) for run in runs]
    keys = dict.fromkeys(key for values in given for key in values)
    return [key for key in keys if len({values.get(key) for values in given}) > 1]


def summary_table(runs: Sequence[SweepRun], title: str) -> Table:
    """A table of the runs for rich to print; the best NDS is bold."""
    keys = swept_keys(runs)
    table = Table(title=escape(title), title_justify="left")
    table.add_column("run", justify="right")
    for key in keys:
        table.add_column(escape(key), overflow="fold")
    for name in ("mAP", "NDS", "seconds"):
        table.add_column(name, justify="right")
    for name in ("status", "reason"):
        table.add_column(name, overflow="fold")
    best = max((run.metrics["NDS"] for run in runs if run.metrics), default=None)
    for run in runs:
        values = key_values(run.overrides)
        numbers = [f"{run.metrics[name]:.4f}" if run.metrics else "-" for name in ("mAP", "NDS")]
        seconds = f"{run.seconds:.0f}" if run.seconds is not None else "-"
        table.add_row(
            run.name,
            *(escape(values.get(key, "")) for key in keys),
            *numbers,
            seconds,
            run.status,
            escape(run.error or ""),
            style="bold" if run.metrics and run.metrics["NDS"] == best else None,
        )
    return table


def write_summary(runs: Sequence[SweepRun], path: Path) -> Path:
    """Write the table as CSV: a line for each run, with a column for each swept key.

    Returns:
        ``path``.
    """
    keys = swept_keys(runs)
    with written_at_once(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "status", "mAP", "NDS", "wall_time_s", "error", *keys, "overrides"])
        for run in runs:
            values = key_values(run.overrides)
            numbers = [run.metrics.get("mAP"), run.metrics.get("NDS"), run.seconds]
            cells = [values.get(key) for key in keys]
            writer.writerow([run.name, run.status, *numbers, run.error, *cells, " ".join(run.overrides)])
    return path
