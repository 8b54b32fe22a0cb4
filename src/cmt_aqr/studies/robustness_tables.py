"""The tables of a robustness study: on screen, as CSV and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.table import Table

from cmt_aqr.files import written_at_once
from cmt_aqr.runs.console import console
from cmt_aqr.studies.page import render_page
from cmt_aqr.studies.published import CLEAN, PUBLISHED, Published
from cmt_aqr.studies.robustness_scores import mean_of_all, relative_resistance, resistance

PAGE = "robustness.html"
MARK = "▼"
"""Behind a result below that of a single sensor."""


@dataclass(frozen=True)
class Row:
    """A checkpoint's result under a condition.

    Attributes:
        model: the checkpoint's name.
        sensors: ``lidar`` and ``camera``, those that it reads.
        suite: of the condition; ``clean`` for clean frames.
        condition: its name.
        severity: from 1; 0 where there are none.
        metrics: the official ones.
    """

    model: str
    sensors: frozenset[str]
    suite: str
    condition: str
    severity: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Cell:
    """A number in a table.

    Attributes:
        text: as it is shown; empty where it is not known.
        note: why it is marked, or nothing.
    """

    text: str
    note: str = ""


class Column(NamedTuple):
    """A column: a cell for each condition, and those of its means."""

    heading: str
    about: str
    cells: list[Cell]
    ra: Cell = Cell("")
    rra: Cell = Cell("")


@dataclass(frozen=True)
class SuiteTable:
    """A suite's table: conditions down, models across.

    Attributes:
        suite: its name.
        columns: heading and explanation of each column.
        rows: heading, and a cell for each column.
        means: the same for the mean over the suite.
        also: published means of models without rows.
        sources: where the published numbers stand.
    """

    suite: str
    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[Cell]]]
    means: list[tuple[str, list[Cell]]]
    also: list[str]
    sources: list[str]


def frame_of(rows: Sequence[Row], suite: str, baseline: str | None = None) -> pd.DataFrame:
    """A suite's results: a row for each model and condition, clean first.

    NDS and mAP in points; RA, of NDS, by condition; RRA against the baseline likewise; ``floor_NDS`` is the best
    result of a model of one sensor under the same condition, for models of two, and ``below_floor`` whether the
    model is below it.

    Args:
        rows: of all suites.
        suite: which one.
        baseline: a model's name.
    """
    of_suite = [row for row in rows if row.suite in (suite, CLEAN)]
    records = [
        {
            "model": row.model,
            "sensors": "+".join(sorted(row.sensors, reverse=True)),
            "condition": row.condition,
            "severity": row.severity,
            **{name: 100 * row.metrics[name] for name in ("NDS", "mAP")},
        }
        for row in of_suite
    ]
    table = pd.DataFrame(records)

    def in_rows(found: pd.Series, *keys: str) -> Any:
        return found.reindex(pd.MultiIndex.from_frame(table[list(keys)])).to_numpy()

    values = {m: part.set_index(["condition", "severity"]).NDS for m, part in table.groupby("model", sort=False)}
    table["RA"] = in_rows(pd.concat({m: resistance(nds) for m, nds in values.items()}), "model", "condition")
    table["RRA"] = np.nan
    if baseline is not None:
        relative = {m: relative_resistance(nds, values[baseline]) for m, nds in values.items()}
        table["RRA"] = in_rows(pd.concat(relative), "model", "condition")
    of_two = table.sensors.str.contains("+", regex=False)
    for name in ("NDS", "mAP"):
        best = table[~of_two].groupby(["condition", "severity"])[name].max()
        table[f"floor_{name}"] = np.where(of_two, in_rows(best, "condition", "severity"), np.nan)
    table["below_floor"] = table.floor_NDS > table.NDS
    return table


def published_series(row: Published) -> pd.Series:
    """A published row by (condition, severity)."""
    return pd.Series(list(row.nds.values()), index=pd.MultiIndex.from_tuples(list(row.nds)), dtype=float)


def suite_table(rows: Sequence[Row], suite: str, baseline: str | None) -> SuiteTable:
    """What is printed of a suite; values in points, RA and RRA as they are."""
    results = frame_of(rows, suite, baseline)
    keys = list(dict.fromkeys(zip(results.condition, results.severity, strict=True)))
    published = PUBLISHED.get(suite, [])
    with_rows = [row for row in published if row.nds]
    columns = [
        column
        for model, part in results.groupby("model", sort=False)
        for column in _columns_of_model(str(model), part)
    ]
    columns += [_published_column(row, keys) for row in with_rows]
    names = [condition if not severity else f"{condition} {severity}" for condition, severity in keys]
    complete = all(set(row.nds) <= set(keys) for row in with_rows)
    others = [row for row in published if complete and not row.nds and row.mean_ra is not None]
    return SuiteTable(
        suite,
        columns=[(column.heading, column.about) for column in columns],
        rows=[(name, [column.cells[number] for column in columns]) for number, name in enumerate(names)],
        means=[("mRA", [column.ra for column in columns]), ("mRRA, %", [column.rra for column in columns])],
        also=[f"{row.model} {row.mean_ra:.3f}" for row in others],
        sources=[f"{row.model}: {row.source}" for row in with_rows],
    )


def _columns_of_model(model: str, part: pd.DataFrame) -> list[Column]:
    by_condition = part.groupby("condition", sort=False)[["RA", "RRA"]].first()[1:]  # without the clean one
    means = _ratio(mean_of_all(by_condition.RA)), _points(100 * mean_of_all(by_condition.RRA))
    return [
        Column(f"{model} NDS", "here", [_marked(found) for _, found in part.iterrows()]),
        Column("mAP", "here", [_points(value) for value in part.mAP]),
        Column("RA", "NDS / clean NDS", [_ratio(value) for value in part.RA], *means),
    ]


def _marked(found: Any) -> Cell:
    if not found.below_floor:
        return Cell(f"{found.NDS:.1f}")
    return Cell(f"{found.NDS:.1f} {MARK}", f"below a single sensor's {found.floor_NDS:.1f}")


def _published_column(row: Published, keys: Sequence[tuple[str, int]]) -> Column:
    """The means as published where all that they are the mean of is in the table, else mRA of what is."""
    whole = set(row.nds) <= set(keys)
    of_table = published_series(row).reindex(pd.MultiIndex.from_tuples(keys))
    mean_ra = row.mean_ra if whole and row.mean_ra is not None else mean_of_all(resistance(of_table))
    mean_rra = row.mean_rra if whole and row.mean_rra is not None else np.nan
    cells = [_points(row.nds.get(key, np.nan)) for key in keys]
    return Column(f"{row.model} NDS", f"published: {row.source}", cells, _ratio(mean_ra), _points(mean_rra))


def _points(value: float) -> Cell:
    return Cell("" if np.isnan(value) else f"{value:.1f}")


def _ratio(value: float) -> Cell:
    return Cell("" if np.isnan(value) else f"{value:.3f}")


def report(rows: Sequence[Row], baseline: str | None, out: Path) -> None:
    """Print the tables, and write ``SUITE.csv`` and the page.

    Args:
        rows: all results.
        baseline: the model that RRA is against.
        out: the folder.
    """
    suites = list(dict.fromkeys(row.suite for row in rows if row.suite != CLEAN))
    tables = [suite_table(rows, suite, baseline) for suite in suites]
    screen = console()
    for table in tables:
        screen.print(screen_table(table))
        if table.also:
            screen.print(f"Published mRA of others: {', '.join(table.also)}", soft_wrap=True)
        path = out / f"{table.suite}.csv"
        with written_at_once(path) as partial:
            frame_of(rows, table.suite, baseline).to_csv(partial, index=False)
    page = out / PAGE
    with written_at_once(page) as partial:
        partial.write_text(
            render_page("robustness.html.jinja", tables=tables, baseline=baseline, mark=MARK), encoding="utf-8"
        )
    if any(cell.note for table in tables for _, cells in table.rows for cell in cells):
        screen.print(f"{MARK}: below the best single-sensor checkpoint under the same condition")
    files = ", ".join(str(out / f"{table.suite}.csv") for table in tables)
    screen.print(f"Written to {files} and {page}", soft_wrap=True)


def screen_table(table: SuiteTable) -> Table:
    """For rich to print."""
    shown = Table(title=f"{table.suite}: NDS and mAP in points", title_justify="left")
    shown.add_column("condition")
    for heading, _ in table.columns:
        shown.add_column(heading, justify="right")
    for name, cells in table.rows:
        shown.add_row(name, *(cell.text for cell in cells), end_section=name == CLEAN or name == table.rows[-1][0])
    for name, cells in table.means:
        if any(cell.text for cell in cells):
            shown.add_row(name, *(cell.text for cell in cells))
    return shown
