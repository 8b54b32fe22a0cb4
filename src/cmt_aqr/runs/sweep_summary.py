"""The table of a sweep's runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

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
    rows = summary_rows(runs)
    best = max((row["NDS"] for row in rows if row["NDS"] is not None), default=None)
    for row in rows:
        table.add_row(
            row["run"],
            *(escape(row[key] or "") for key in keys),
            *("-" if row[name] is None else f"{row[name]:.4f}" for name in ("mAP", "NDS")),
            "-" if row["wall_time_s"] is None else f"{row['wall_time_s']:.0f}",
            row["status"],
            escape(row["error"] or ""),
            style="bold" if row["NDS"] is not None and row["NDS"] == best else None,
        )
    return table


def summary_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each run, with what it reached if it is complete: results that another run left do not count."""
    keys, rows = swept_keys(runs), []
    for run in runs:
        metrics, values = run.metrics if run.outcome == COMPLETE else {}, key_values(run.claimed)
        rows.append(
            {
                "run": run.name,
                "status": run.outcome,
                "mAP": metrics.get("mAP"),
                "NDS": metrics.get("NDS"),
                "wall_time_s": run.record.get("wall_time_s"),
                "error": run.error if run.outcome == FAILED else None,
                **{key: values.get(key) for key in keys},
                "overrides": " ".join(run.claimed),
            }
        )
    return rows
