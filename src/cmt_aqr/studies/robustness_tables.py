"""The tables of a robustness study: on screen, as CSV and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from cmt_aqr.files import written_at_once
from cmt_aqr.runs.console import console
from cmt_aqr.studies.page import render_page
from cmt_aqr.studies.published import CLEAN, PUBLISHED, Published
from cmt_aqr.studies.robustness_scores import (
    LEAST_CLEAN,
    clean_of,
    mean_of_all,
    relative_resistance,
    resistance,
)

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
        spared: whether the condition strikes none of the sensors, so that this is the result on clean frames.
    """

    model: str
    sensors: frozenset[str]
    suite: str
    condition: str
    severity: int
    metrics: dict[str, float]
    spared: bool = False


@dataclass(frozen=True)
class Cell:
    """A number in a table.

    Attributes:
        text: as it is shown; empty where it is not known.
        note: why it is marked, or nothing.
        mark: how the page shows it: ``below`` a single sensor, ``spared`` by the condition.
    """

    text: str
    note: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Group:
    """The columns of a model.

    Attributes:
        model: its name.
        names: of the columns.
        source: where published numbers stand; nothing for those of this study.
    """

    model: str
    names: tuple[str, ...]
    source: str = ""


@dataclass(frozen=True)
class SuiteTable:
    """A suite's table: conditions down, models across.

    Attributes:
        suite: its name.
        groups: the columns, by model.
        rows: heading, and a cell for each column.
        means: the same for the mean over the suite.
        also: published means of models without rows.
        notes: sentences about models of which no RA is told.
    """

    suite: str
    groups: list[Group]
    rows: list[tuple[str, list[Cell]]]
    means: list[tuple[str, list[Cell]]]
    also: list[str]
    notes: list[str]

    @property
    def headings(self) -> list[str]:
        """Of all columns; the first of each model has its name."""
        return [
            f"{group.model} {name}" if name == group.names[0] else name
            for group in self.groups
            for name in group.names
        ]

    @property
    def marks(self) -> list[str]:
        """What the page knows of each column: ``first`` of its model, ``published``."""
        return [
            " ".join(mark for mark, holds in (("first", not place), ("published", group.source)) if holds)
            for group in self.groups
            for place in range(len(group.names))
        ]


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
            "spared": row.spared,
            **{name: 100 * row.metrics[name] for name in ("NDS", "mAP")},
        }
        for row in of_suite
    ]
    table = pd.DataFrame(records)
    values = {model: _series(part) for model, part in table.groupby("model", sort=False)}
    table["RA"] = [_of(resistance(values[m]), c) for m, c in zip(table.model, table.condition, strict=True)]
    table["RRA"] = np.nan
    if baseline is not None:
        rra = {model: relative_resistance(value, values[baseline]) for model, value in values.items()}
        table["RRA"] = [_of(rra[m], c) for m, c in zip(table.model, table.condition, strict=True)]
    for name in ("NDS", "mAP"):
        single = table[~table.sensors.str.contains("+", regex=False)]
        best = single.groupby(["condition", "severity"])[name].max()
        floors = [best.get(key, np.nan) for key in zip(table.condition, table.severity, strict=True)]
        table[f"floor_{name}"] = np.where(table.sensors.str.contains("+", regex=False), floors, np.nan)
    table["below_floor"] = table.floor_NDS > table.NDS
    return table


def _series(part: pd.DataFrame, metric: str = "NDS") -> pd.Series:
    """A metric by (condition, severity)."""
    return part.set_index(["condition", "severity"])[metric]


def _of(values: pd.Series, condition: str) -> float:
    return float(values.get(condition, np.nan))


def published_series(row: Published) -> pd.Series:
    """A published row by (condition, severity)."""
    return pd.Series(list(row.nds.values()), index=pd.MultiIndex.from_tuples(list(row.nds)), dtype=float)


def suite_table(rows: Sequence[Row], suite: str, baseline: str | None) -> SuiteTable:
    """What is printed of a suite; values in points, RA and RRA as they are."""
    results = frame_of(rows, suite, baseline)
    keys = list(dict.fromkeys(zip(results.condition, results.severity, strict=True)))
    by_model = {str(model): part for model, part in results.groupby("model", sort=False)}
    published = PUBLISHED.get(suite, [])
    with_rows = [row for row in published if row.nds]
    groups: list[Group] = []
    notes: list[str] = []
    cells: list[list[Cell]] = [[] for _ in keys]
    means: dict[str, list[Cell]] = {"mRA": [], "mRRA, %": []}
    for model, part in by_model.items():
        groups.append(Group(model, ("NDS", "mAP", "RA")))
        clean = clean_of(_series(part))
        if clean < LEAST_CLEAN:
            notes.append(
                f"{model}: clean NDS is {clean:.1f}, below {LEAST_CLEAN:g}; RA would be noise, and is left empty"
            )
        again = part.condition.duplicated()
        for target, (_, found), seen in zip(cells, part.iterrows(), again, strict=True):
            target += _cells_of(found, with_mean=not seen)
        means["mRA"] += [
            Cell(""),
            Cell(""),
            _ratio(mean_of_all(part.groupby("condition", sort=False).RA.first()[1:])),
        ]
        relative = mean_of_all(part.groupby("condition", sort=False).RRA.first()[1:])
        means["mRRA, %"] += [Cell(""), Cell(""), _points(100 * relative)]
    for row in with_rows:
        groups.append(Group(row.model, ("NDS",), row.source))
        for target, key in zip(cells, keys, strict=True):
            target.append(_points(row.nds.get(key, np.nan)))
        mean_ra, mean_rra = _published_means(row, keys)
        means["mRA"].append(_ratio(mean_ra))
        means["mRRA, %"].append(_points(mean_rra))
    names = [condition if not severity else f"{condition} {severity}" for condition, severity in keys]
    complete = all(set(row.nds) <= set(keys) for row in with_rows)
    others = [row for row in published if complete and not row.nds and row.mean_ra is not None]
    also = [f"{row.model} {row.mean_ra:.3f}" for row in others]
    return SuiteTable(suite, groups, list(zip(names, cells, strict=True)), list(means.items()), also, notes)


def _published_means(row: Published, keys: Sequence[tuple[str, int]]) -> tuple[float, float]:
    """mRA and mRRA as published where all that they are the mean of is in the table, else mRA of what is."""
    whole = set(row.nds) <= set(keys)
    of_table = published_series(row).reindex(pd.MultiIndex.from_tuples(keys))
    mean_ra = row.mean_ra if whole and row.mean_ra is not None else mean_of_all(resistance(of_table))
    return mean_ra, row.mean_rra if whole and row.mean_rra is not None else np.nan


def _cells_of(found: Any, with_mean: bool) -> list[Cell]:
    """NDS, mAP, and RA where ``with_mean`` says so: it is one for all severities."""
    mean = found.RA if with_mean else np.nan
    if found.spared:
        note = ("strikes none of its sensors: as clean", "spared")
        return [_points(found.NDS, *note), _points(found.mAP, *note), _ratio(mean, *note)]
    if found.below_floor:
        below = Cell(f"{found.NDS:.1f} {MARK}", f"below a single sensor's {found.floor_NDS:.1f}", "below")
        return [below, _points(found.mAP), _ratio(mean)]
    return [_points(found.NDS), _points(found.mAP), _ratio(mean)]


def _points(value: float, note: str = "", mark: str = "") -> Cell:
    return Cell("" if np.isnan(value) else f"{round(value, 1) + 0.0:.1f}", note, mark)  # no -0.0


def _ratio(value: float, note: str = "", mark: str = "") -> Cell:
    return Cell("" if np.isnan(value) else f"{value:.3f}", note, mark)


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
        for note in table.notes:
            screen.print(note, soft_wrap=True)
        path = out / f"{table.suite}.csv"
        with written_at_once(path) as partial:
            frame_of(rows, table.suite, baseline).to_csv(partial, index=False)
    page = out / PAGE
    with written_at_once(page) as partial:
        text = render_page("robustness.html.jinja", tables=tables, baseline=baseline, mark=MARK)
        partial.write_text(text, encoding="utf-8")
    if any(cell.mark == "below" for table in tables for _, cells in table.rows for cell in cells):
        screen.print(f"{MARK}: below the best single-sensor checkpoint under the same condition")
    files = ", ".join(str(out / f"{table.suite}.csv") for table in tables)
    screen.print(f"Written to {files} and {page}", soft_wrap=True)


def screen_table(table: SuiteTable) -> Table:
    """For rich to print."""
    shown = Table(title=f"{table.suite}: NDS and mAP in points", title_justify="left")
    shown.add_column("condition")
    for heading in table.headings:
        shown.add_column(heading, justify="right")
    for name, cells in table.rows:
        shown.add_row(name, *(cell.text for cell in cells), end_section=name == CLEAN or name == table.rows[-1][0])
    for name, cells in table.means:
        if any(cell.text for cell in cells):
            shown.add_row(name, *(cell.text for cell in cells))
    return shown
