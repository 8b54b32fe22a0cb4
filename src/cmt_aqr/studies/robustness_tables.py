"""The tables of a robustness study: on screen, as CSV and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.table import Table

from cmt_aqr.files import written_at_once
from cmt_aqr.runs.console import console
from cmt_aqr.studies.page import write_page
from cmt_aqr.studies.robustness_scores import (
    CLEAN,
    LEAST_CLEAN,
    PUBLISHED,
    Published,
    clean_of,
    mean_of_all,
    relative_resistance,
    resistance,
)

PAGE = "robustness.html"
MARK = "▼"
"""Behind a result below that of a single sensor."""


class Row(NamedTuple):
    """A checkpoint's result under a condition."""

    model: str
    sensors: frozenset[str]
    """``lidar`` and ``camera``, those that the checkpoint reads."""
    suite: str
    """Of the condition; ``clean`` for clean frames."""
    condition: str
    severity: int
    """From 1; 0 where there are none."""
    metrics: dict[str, float]
    """The official ones."""
    spared: bool = False
    """Whether the condition strikes none of the sensors, so that this is the result on clean frames."""


class Cell(NamedTuple):
    """A number in a table, empty where it is not known; why it is marked, and as what: ``below`` or ``spared``."""

    text: str = ""
    note: str = ""
    mark: str = ""


class Column(NamedTuple):
    """A column: its model, its heading, and where published numbers stand; the first of each model is NDS."""

    model: str
    name: str
    source: str = ""

    @property
    def heading(self) -> str:
        """With the model's name over its first column."""
        return f"{self.model} {self.name}" if self.name == "NDS" else self.name


class SuiteTable(NamedTuple):
    """A suite's table: conditions down, models across."""

    suite: str
    columns: list[Column]
    rows: list[tuple[str, list[Cell]]]
    """Heading, and a cell for each column."""
    means: list[tuple[str, list[Cell]]]
    """The same for the mean over the suite."""
    also: list[str]
    """Published means of models without rows."""
    notes: list[str]
    """Sentences about models of which no RA is told."""


def frame_of(rows: Sequence[Row], suite: str, baseline: str | None = None) -> pd.DataFrame:
    """A suite's results: a row for each model and condition, clean first.

    NDS and mAP in points; RA, of NDS, by condition; RRA against the baseline, a model's name, likewise;
    ``floor_NDS`` is the best result of a model of one sensor under the same condition, for models of two, and
    ``below_floor`` whether the model is below it.
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
    values = {model: _nds(part) for model, part in table.groupby("model", sort=False)}

    def by_row(scores: dict[Any, pd.Series]) -> list[float]:
        places = zip(table.model, table.condition, strict=True)
        return [float(scores[model].get(condition, np.nan)) for model, condition in places]

    table["RA"] = by_row({model: resistance(value) for model, value in values.items()})
    table["RRA"] = np.nan
    if baseline is not None:
        base = values[baseline]
        table["RRA"] = by_row({model: relative_resistance(value, base) for model, value in values.items()})
    several = table.sensors.str.contains("+", regex=False)
    for name in ("NDS", "mAP"):
        alone = table[name].where(~several)
        best = alone.groupby([table.condition, table.severity]).transform("max")
        table[f"floor_{name}"] = best.where(several)
    table["below_floor"] = table.floor_NDS > table.NDS
    return table


def _nds(part: pd.DataFrame) -> pd.Series:
    """A model's NDS by (condition, severity)."""
    return part.set_index(["condition", "severity"])["NDS"]


def suite_table(rows: Sequence[Row], suite: str, baseline: str | None) -> SuiteTable:
    """What is printed of a suite; values in points, RA and RRA as they are."""
    results = frame_of(rows, suite, baseline)
    keys = list(dict.fromkeys(zip(results.condition, results.severity, strict=True)))
    columns: list[Column] = []
    notes: list[str] = []
    cells: list[list[Cell]] = [[] for _ in keys]
    mean_ra: list[Cell] = []
    mean_rra: list[Cell] = []
    for model, part in results.groupby("model", sort=False):
        columns += [Column(str(model), name) for name in ("NDS", "mAP", "RA")]
        clean = clean_of(_nds(part))
        if clean < LEAST_CLEAN:
            notes.append(
                f"{model}: clean NDS is {clean:.1f}, below {LEAST_CLEAN:g}; RA would be noise, and is left empty"
            )
        shown = part.assign(RA=part.RA.where(~part.condition.duplicated()))  # one for all severities
        for target, (_, found) in zip(cells, shown.iterrows(), strict=True):
            target += _cells_of(found)
        scores = part.groupby("condition", sort=False)[["RA", "RRA"]].first()[1:]
        mean_ra += [Cell(), Cell(), _ratio(mean_of_all(scores.RA))]
        mean_rra += [Cell(), Cell(), _points(100 * mean_of_all(scores.RRA))]
    published = PUBLISHED.get(suite, [])
    whole = True
    for row in published:
        if row.nds.empty:
            continue
        whole &= set(row.nds.index) <= set(keys)
        columns.append(Column(row.model, "NDS", row.source))
        for target, key in zip(cells, keys, strict=True):
            target.append(_points(row.nds.get(key, np.nan)))
        ratio, relative = _published_means(row, keys)
        mean_ra.append(_ratio(ratio))
        mean_rra.append(_points(relative))
    names = [condition if not severity else f"{condition} {severity}" for condition, severity in keys]
    others = [row for row in published if whole and row.nds.empty and row.mean_ra is not None]
    also = [f"{row.model} {row.mean_ra:.3f}" for row in others]
    means = [("mRA", mean_ra), ("mRRA, %", mean_rra)]
    return SuiteTable(suite, columns, list(zip(names, cells, strict=True)), means, also, notes)


def _published_means(row: Published, keys: Sequence[tuple[str, int]]) -> tuple[float, float]:
    """mRA and mRRA as published where all that they are the mean of is in the table, else mRA of what is."""
    whole = set(row.nds.index) <= set(keys)
    of_table = row.nds.reindex(pd.MultiIndex.from_tuples(keys))
    mean_ra = row.mean_ra if whole and row.mean_ra is not None else mean_of_all(resistance(of_table))
    return mean_ra, row.mean_rra if whole and row.mean_rra is not None else np.nan


def _cells_of(found: Any) -> list[Cell]:
    """NDS, mAP and RA."""
    note = ("strikes none of its sensors: as clean", "spared") if found.spared else ()
    nds = _points(found.NDS, *note)
    if found.below_floor and not found.spared:
        nds = Cell(f"{nds.text} {MARK}", f"below a single sensor's {found.floor_NDS:.1f}", "below")
    return [nds, _points(found.mAP, *note), _ratio(found.RA, *note)]


def _points(value: float, *note: str) -> Cell:
    return Cell("" if np.isnan(value) else f"{round(value, 1) + 0.0:.1f}", *note)  # no -0.0


def _ratio(value: float, *note: str) -> Cell:
    return Cell("" if np.isnan(value) else f"{value:.3f}", *note)


def report(rows: Sequence[Row], baseline: str | None, out: Path) -> None:
    """Print the tables of all results, RRA against a model, and write ``SUITE.csv`` and the page into ``out``."""
    suites = dict.fromkeys(row.suite for row in rows if row.suite != CLEAN)
    tables = [suite_table(rows, suite, baseline) for suite in suites]
    screen = console()
    for table in tables:
        screen.print(screen_table(table))
        if table.also:
            screen.print(f"Published mRA of others: {', '.join(table.also)}", soft_wrap=True)
        for note in table.notes:
            screen.print(note, soft_wrap=True)
        with written_at_once(out / f"{table.suite}.csv") as partial:
            frame_of(rows, table.suite, baseline).to_csv(partial, index=False)
    write_page(out / PAGE, "robustness.html.jinja", tables=tables, baseline=baseline, mark=MARK)
    if any(cell.mark == "below" for table in tables for _, cells in table.rows for cell in cells):
        screen.print(f"{MARK}: below the best single-sensor checkpoint under the same condition")
    files = ", ".join(str(out / f"{table.suite}.csv") for table in tables)
    screen.print(f"Written to {files} and {out / PAGE}", soft_wrap=True)


def screen_table(table: SuiteTable) -> Table:
    """For rich to print."""
    shown = Table(title=f"{table.suite}: NDS and mAP in points", title_justify="left")
    shown.add_column("condition")
    for column in table.columns:
        shown.add_column(column.heading, justify="right")
    for name, cells in table.rows:
        shown.add_row(name, *(cell.text for cell in cells), end_section=name in (CLEAN, table.rows[-1][0]))
    for name, cells in table.means:
        if any(cell.text for cell in cells):
            shown.add_row(name, *(cell.text for cell in cells))
    return shown
