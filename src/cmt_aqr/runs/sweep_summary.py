"""The table of a sweep's runs, on screen and on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from cmt_aqr.files import write_table
from cmt_aqr.runs.folder import COMPLETE, FAILED, Run
from cmt_aqr.runs.sweep_runs import key_values


def swept_keys(runs: Sequence[Run]) -> list[str]:
    """The keys whose values are not the same in all runs."""
    given = [key_values(run.claimed) for run in runs]
    keys = dict.fromkeys(key for values in given for key in values)
    return [key for key in keys if len({values.get(key) for values in given}) > 1]


def summary_table(runs: Sequence[Run], title: str) -> Table:
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
    best = max((results(run)["NDS"] for run in runs if results(run)), default=None)
    for run in runs:
        metrics, values, seconds = results(run), key_values(run.claimed), run.record.get("wall_time_s")
        table.add_row(
            run.name,
            *(escape(values.get(key, "")) for key in keys),
            *(f"{metrics[name]:.4f}" if metrics else "-" for name in ("mAP", "NDS")),
            "-" if seconds is None else f"{seconds:.0f}",
            run.outcome,
            escape(_error(run) or ""),
            style="bold" if metrics and metrics["NDS"] == best else None,
        )
    return table


def write_summary(runs: Sequence[Run], path: Path) -> Path:
    """Write the table as CSV: a line for each run, with a column for each swept key.

    Returns:
        ``path``.
    """
    keys = swept_keys(runs)
    rows = []
    for run in runs:
        metrics, values = results(run), key_values(run.claimed)
        rows.append(
            {
                "run": run.name,
                "status": run.outcome,
                "mAP": metrics.get("mAP"),
                "NDS": metrics.get("NDS"),
                "wall_time_s": run.record.get("wall_time_s"),
                "error": _error(run),
                **{key: values.get(key) for key in keys},
                "overrides": " ".join(run.claimed),
            }
        )
    write_table(path, rows)
    return path


def results(run: Run) -> dict[str, float]:
    """The metrics of a complete run; those that another one left behind do not count."""
    return run.metrics if run.outcome == COMPLETE else {}


def _error(run: Run) -> str | None:
    return run.error if run.outcome == FAILED else None
