"""The tables of a robustness study: on screen, as CSV and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.table import Table

from cmt_aqr.files import atomic_write
from cmt_aqr.runs.console import console
from cmt_aqr.studies.page import write_page
from cmt_aqr.studies.robustness_scores import (
    CLEAN,
    LEAST_CLEAN,
    PUBLISHED,
    Published,
    clean_of,
    relative_resistance,
    resistance,
)

PAGE = "robustness.html"
MARK = "▼"
"""Marks a result below that of a single sensor."""


class Row(NamedTuple):
    """A checkpoint's result under a condition."""

    model: str
    sensors: frozenset[str]  # "lidar" and "camera", those that the checkpoint reads
    suite: str  # of the condition; "clean" for clean frames
    condition: str
    severity: int  # from 1; 0 for a condition without severities
    metrics: dict[str, float]  # the official ones
    spared: bool = False  # the condition affects none of the sensors, so this is the result on clean frames


class Cell(NamedTuple):
    """A number in a table, empty if unknown, with a tooltip and a CSS class, ``below`` or ``spared``."""

    text: str = ""
    note: str = ""
    mark: str = ""


class Column(NamedTuple):
    """A column of a suite's table; the first of each model is NDS."""

    model: str
    name: str
    cells: Sequence[Cell]  # by condition and severity
    mean_ra: Cell = Cell()
    mean_rra: Cell = Cell()
    source: str = ""  # of published results


class SuiteTable(NamedTuple):
    """A suite's table."""

    suite: str
    headings: list[str]  # of the rows: conditions, with their severities
    columns: list[Column]
    also: list[str]  # published mRA of models without further results
    notes: list[str]  # sentences about models without RA

    @property
    def rows(self) -> list[tuple[str, tuple[Cell, ...]]]:
        """Headings and cells."""
        cells = zip(*(column.cells for column in self.columns), strict=True)
        return list(zip(self.headings, cells, strict=True))

    @property
    def means(self) -> list[tuple[str, tuple[Cell, ...]]]:
        """Headings and cells of the means over the suite, except those that are empty."""
        ra, rra = zip(*((column.mean_ra, column.mean_rra) for column in self.columns), strict=True)
        means = (("mRA", ra), ("mRRA, %", rra))
        return [(name, cells) for name, cells in means if any(cell.text for cell in cells)]


def frame_of(rows: Sequence[Row], suite: str, baseline: str | None = None) -> pd.DataFrame:
    """A suite's results: a row per model and condition, clean first.

    NDS and mAP in points; RA by condition; RRA by condition against the baseline, a model's name. For models of
    two sensors, ``floor_NDS`` and ``floor_mAP`` are the best results of a model of one sensor under the same
    condition, and ``below_floor`` is whether NDS is lower.
    """
    table = pd.DataFrame(
        {
            "model": row.model,
            "sensors": "+".join(sorted(row.sensors, reverse=True)),
            "condition": row.condition,
            "severity": row.severity,
            "spared": row.spared,
            **{name: 100 * row.metrics[name] for name in ("NDS", "mAP")},
        }
        for row in rows
        if row.suite in (suite, CLEAN)
    )
    table[["RA", "RRA"]] = np.nan
    for _, part in table.groupby("model", sort=False):
        table.loc[part.index, "RA"] = part.condition.map(resistance(_nds(part)))
        if baseline is not None:
            scores = relative_resistance(_nds(part), _nds(table[table.model == baseline]))
            table.loc[part.index, "RRA"] = part.condition.map(scores)
    fused = table.sensors.str.contains("+", regex=False)
    for name in ("NDS", "mAP"):
        single = table[name].where(~fused)
        best = single.groupby([table.condition, table.severity]).transform("max")
        table[f"floor_{name}"] = best.where(fused)
    table["below_floor"] = table.floor_NDS > table.NDS
    return table


def _nds(part: pd.DataFrame) -> pd.Series:
    """A model's NDS by (condition, severity)."""
    return part.set_index(["condition", "severity"])["NDS"]


def suite_table(rows: Sequence[Row], suite: str, baseline: str | None) -> SuiteTable:
    """A suite's results beside published ones: NDS, mAP and mRRA in points, RA and mRA as ratios."""
    results = frame_of(rows, suite, baseline)
    keys = list(dict.fromkeys(zip(results.condition, results.severity, strict=True)))
    columns: list[Column] = []
    notes: list[str] = []
    for model, part in results.groupby("model", sort=False):
        clean = clean_of(_nds(part))
        if clean < LEAST_CLEAN:
            notes.append(
                f"{model}: clean NDS is {clean:.1f}, below {LEAST_CLEAN:g}; RA would be noise and is omitted"
            )
        scores = part.groupby("condition", sort=False)[["RA", "RRA"]].first()[1:].mean(skipna=False)
        part = part.assign(RA=part.RA.where(~part.condition.duplicated()))  # one for all severities
        nds, precision, ra = zip(*(_cells_of(result) for result in part.itertuples()), strict=True)
        columns += [
            Column(str(model), "NDS", nds),
            Column(str(model), "mAP", precision),
            Column(str(model), "RA", ra, _ratio(scores.RA), _points(100 * scores.RRA)),
        ]
    published = PUBLISHED.get(suite, [])
    for other in published:
        if not other.nds.empty:
            cells = [_points(other.nds.get(key, np.nan)) for key in keys]
            columns.append(Column(other.model, "NDS", cells, *_published_means(other, keys), other.source))
    complete = all(set(other.nds.index) <= set(keys) for other in published)
    headings = [f"{condition} {severity}" if severity else condition for condition, severity in keys]
    also = [f"{other.model} {other.mean_ra:.3f}" for other in published if other.nds.empty and complete]
    return SuiteTable(suite, headings, columns, also, notes)


def _published_means(model: Published, keys: Sequence[tuple[str, int]]) -> tuple[Cell, Cell]:
    """mRA and mRRA as published if the table has all their conditions, else the mRA of those that it has."""
    complete = set(model.nds.index) <= set(keys)
    ra = model.mean_ra if complete else None
    if ra is None:
        ra = resistance(model.nds.reindex(pd.MultiIndex.from_tuples(keys))).mean(skipna=False)
    rra = model.mean_rra if complete else None
    return _ratio(ra), _points(np.nan if rra is None else rra)


def _cells_of(result: Any) -> tuple[Cell, Cell, Cell]:
    """NDS, mAP and RA."""
    note = ("affects none of this model's sensors: the clean result", "spared") if result.spared else ()
    nds = _points(result.NDS, *note)
    if result.below_floor and not result.spared:
        nds = Cell(f"{nds.text} {MARK}", f"below a single sensor's {result.floor_NDS:.1f}", "below")
    return nds, _points(result.mAP, *note), _ratio(result.RA, *note)


def _points(value: float, *note: str) -> Cell:
    return Cell("" if np.isnan(value) else f"{round(value, 1) + 0.0:.1f}", *note)  # no -0.0


def _ratio(value: float, *note: str) -> Cell:
    return Cell("" if np.isnan(value) else f"{value:.3f}", *note)


def report(rows: Sequence[Row], baseline: str | None, out: Path) -> None:
    """Print the tables, with RRA against a model, and write ``SUITE.csv`` and the page to ``out``."""
    suites = dict.fromkeys(row.suite for row in rows if row.suite != CLEAN)
    tables = [suite_table(rows, suite, baseline) for suite in suites]
    screen = console()
    for table in tables:
        screen.print(screen_table(table))
        if table.also:
            screen.print(f"Published mRA of others: {', '.join(table.also)}", soft_wrap=True)
        for note in table.notes:
            screen.print(note, soft_wrap=True)
        with atomic_write(out / f"{table.suite}.csv") as partial:
            frame_of(rows, table.suite, baseline).to_csv(partial, index=False)
    variables = {"title": "Robustness", "tables": tables, "baseline": baseline, "mark": MARK}
    write_page(out / PAGE, "robustness.html.jinja", **variables)
    if any(cell.mark == "below" for table in tables for column in table.columns for cell in column.cells):
        screen.print(f"{MARK}: below the best single-sensor checkpoint under the same condition")
    files = ", ".join(str(out / f"{table.suite}.csv") for table in tables)
    screen.print(f"Written to {files} and {out / PAGE}", soft_wrap=True)


def screen_table(table: SuiteTable) -> Table:
    """The table for a terminal."""
    screen = Table("condition", title=f"{table.suite}: NDS and mAP in points", title_justify="left")
    for column in table.columns:
        heading = f"{column.model} NDS" if column.name == "NDS" else column.name
        screen.add_column(heading, justify="right")
    for name, cells in table.rows:
        last = name in (CLEAN, table.headings[-1])
        screen.add_row(name, *(cell.text for cell in cells), end_section=last)
    for name, cells in table.means:
        screen.add_row(name, *(cell.text for cell in cells))
    return screen
