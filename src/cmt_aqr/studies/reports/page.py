"""The report as one HTML page that needs nothing beside it."""

from __future__ import annotations

import datetime
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from cmt_aqr.files import written_at_once
from cmt_aqr.studies.reports.figures import Picture
from cmt_aqr.studies.reports.runs import Run
from cmt_aqr.studies.reports.settings import (
    NOT_RECORDED,
    Axis,
    common_overrides,
    is_number,
    label,
    reproducing_command,
    seed_axis,
    status_text,
    value_text,
)
from cmt_aqr.studies.reports.table import (
    COLUMNS,
    SUMMARY,
    Column,
    Setting,
    Spread,
    Unit,
    best_first,
    better,
    over_seeds,
    same_settings,
    shown_columns,
)


@dataclass(frozen=True)
class Cell:
    """A cell of a table; ``sort`` is what it is sorted by, empty where nothing is recorded."""

    text: str
    sort: str
    classes: str = ""
    status: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Heading:
    """A column's heading."""

    title: str
    group: str
    classes: str = ""
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Neighbouring columns under one name."""

    name: str
    span: int


def groups(columns: Sequence[Heading]) -> list[Group]:
    """Neighbouring columns of the same group."""
    return [Group(name, len(list(members))) for name, members in itertools.groupby(columns, lambda c: c.group)]


def number_text(value: float, unit: Unit) -> str:
    """A number as a reader wants it."""
    if math.isnan(value):
        return "–"
    if unit == "metric":
        return f"{value:.4f}"
    if unit == "seconds":
        return str(datetime.timedelta(seconds=round(value))) if value >= 60 else f"{value:.1f} s"
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def write_page(
    runs: Sequence[Run],
    axes: Sequence[Axis],
    pictures: Sequence[Picture],
    metric: str,
    title: str,
    csv_name: str,
    path: Path,
) -> None:
    """Write the page, at once or not at all.

    Args:
        runs: of the report.
        axes: settings that differ.
        pictures: figures, in their order.
        metric: the best run is that with the best value of it.
        title: of the page.
        csv_name: of the CSV file beside it.
        path: of the page.
    """
    order = best_first(runs, metric)
    best = order[0] if runs[order[0]].number(metric) is not None else None
    environment = Environment(
        loader=PackageLoader("cmt_aqr.studies.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["groups"] = groups
    page = environment.get_template("page.html.jinja").render(
        title=title,
        subtitle=_subtitle(runs),
        notes=[f"{run.name}: {problem}." for run in runs for problem in run.problems],
        metric=metric,
        best=None if best is None else _best(runs, axes, best, metric),
        pictures=pictures,
        settings=_settings_table(runs, axes, metric),
        table=_table(runs, axes, order),
        common=common_overrides(runs),
        commands=[
            {
                "name": runs[i].name,
                "settings": label(_with_seed(runs, axes), i),
                "command": reproducing_command(runs[i]),
            }
            for i in order
        ],
        csv_name=csv_name,
        not_recorded=NOT_RECORDED,
    )
    with written_at_once(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _subtitle(runs: Sequence[Run]) -> str:
    """How many runs ended how, and on what code and machine they ran."""
    counts = Counter(status_text(run) for run in runs)
    parts = [f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}"]
    parts += [f"{count} {name}" for name, count in counts.items() if name != NOT_RECORDED]
    if counts[NOT_RECORDED]:
        parts.append(f"{counts[NOT_RECORDED]} without a recorded status")
    commits = {_commit(run) for run in runs} - {""}
    if len(commits) == 1:
        parts.append(f"code at {commits.pop()}")
    elif commits:
        parts.append(f"code at {len(commits)} different commits")
    machines = {machine_text(run) for run in runs} - {""}
    if len(machines) == 1:
        parts.append(machines.pop())
    elif machines:
        parts.append(f"{len(machines)} machines")
    return " · ".join(parts)


def _commit(run: Run) -> str:
    commit = run.record.get("git_commit")
    return f"{str(commit)[:10]}{' with changes' if run.record.get('git_dirty') else ''}" if commit else ""


def machine_text(run: Run) -> str:
    """The recorded machine in words, or nothing."""
    machine = run.record.get("machine")
    if not isinstance(machine, dict):
        return str(machine) if machine else ""
    parts = [*(machine.get("gpus") or []), machine.get("cpu")]
    if machine.get("cores"):
        parts.append(f"{machine['cores']} cores")
    if machine.get("memory_bytes"):
        parts.append(f"{number_text(machine['memory_bytes'], 'bytes')} of memory")
    return ", ".join(str(part) for part in parts if part)


def _with_seed(runs: Sequence[Run], axes: Sequence[Axis]) -> list[Axis]:
    """The axes, and the seed where it differs."""
    seeds = seed_axis(runs)
    return [*axes, seeds] if len(seeds.known) > 1 else list(axes)


def _best(runs: Sequence[Run], axes: Sequence[Axis], index: int, metric: str) -> dict[str, object]:
    run = runs[index]
    keys = dict.fromkeys([metric, "NDS", "mAP", *SUMMARY])
    columns = {column.key: column for column in COLUMNS}
    values = [(columns[key].title if key in columns else key, run.number(key)) for key in keys]
    commit = _commit(run)
    return {
        "name": run.name,
        "settings": " ".join(f"{axis.name}={value_text(axis.values[index])}" for axis in _with_seed(runs, axes)),
        "tiles": [
            {"title": title, "text": NOT_RECORDED if value is None else number_text(value, "metric")}
            for title, value in values
        ],
        "code": f", at commit {commit}" if commit else "",
        "command": reproducing_command(run),
        "equal": ", ".join(
            other.name for other in runs if other is not run and run.number(metric) == other.number(metric)
        ),
    }


def _table(runs: Sequence[Run], axes: Sequence[Axis], order: Sequence[int]) -> dict[str, object]:
    """All runs, the best first."""
    columns = shown_columns(runs)
    shown = _with_seed(runs, axes)
    headings = [
        Heading("run", "", "word"),
        Heading("status", "", "word"),
        *_axis_headings(shown),
        *_column_headings(columns),
    ]
    tops = {column.key: _top(runs, column) for column in columns}
    rows = []
    for index in order:
        run = runs[index]
        rows.append(
            [
                Cell(run.name, run.name, "word"),
                _status_cell(run),
                *_axis_cells(shown, [axis.values[index] for axis in shown]),
                *(_number_cell(run.number(c.key), c, tops[c.key], f) for c, f in _with_first(columns)),
            ]
        )
    return {"columns": headings, "rows": rows}


def _status_cell(run: Run) -> Cell:
    """How the run ended, with the reason of a failure."""
    if run.status is None:
        return Cell(NOT_RECORDED, "", "word absent")
    return Cell(status_text(run), run.status, "word", run.status, run.error or "")


def _axis_headings(axes: Sequence[Axis]) -> list[Heading]:
    return [
        Heading(
            axis.short, "varied", ("" if axis.numeric else "word") + (" first" if number == 0 else ""), axis.name
        )
        for number, axis in enumerate(axes)
    ]


def _axis_cells(axes: Sequence[Axis], values: Sequence[object]) -> list[Cell]:
    cells = []
    for number, (axis, value) in enumerate(zip(axes, values, strict=True)):
        classes = ("" if axis.numeric else "word") + (" first" if number == 0 else "")
        if value == NOT_RECORDED:
            cells.append(Cell(NOT_RECORDED, "", f"{classes} absent"))
        else:
            text = value_text(value)  # type: ignore[arg-type]
            cells.append(Cell(text, repr(value) if is_number(value) else text, classes))  # type: ignore[arg-type]
    return cells


def _with_first(columns: Sequence[Column]) -> Iterator[tuple[Column, bool]]:
    """Each column, and whether it begins a group."""
    group = None
    for column in columns:
        yield column, column.group != group
        group = column.group


def _column_headings(columns: Sequence[Column]) -> list[Heading]:
    return [Heading(c.title, c.group, "first" if first else "", c.note) for c, first in _with_first(columns)]


def _top(runs: Sequence[Run], column: Column) -> float | None:
    """The best value of a column, where more or less is better and there is a choice."""
    values = [value for run in runs if (value := run.number(column.key)) is not None and not math.isnan(value)]
    if not column.better or len(set(values)) < 2:
        return None
    return max(values) if column.better > 0 else min(values)


def _number_cell(value: float | None, column: Column, top: float | None, first: bool) -> Cell:
    classes = "first" if first else ""
    if value is None:
        return Cell(NOT_RECORDED, "", f"{classes} absent")
    text = number_text(value, column.unit)
    return Cell(text, "" if math.isnan(value) else repr(value), f"{classes} top" if value == top else classes)


def _count_text(setting: Setting, summary: Spread | None) -> str:
    """How many runs there are, and how many of them have the metric."""
    there, count = len(setting.members), 0 if summary is None else summary.count
    return str(there) if count == there else f"{count} of {there}"


def _settings_table(runs: Sequence[Run], axes: Sequence[Axis], metric: str) -> dict[str, object] | None:
    """Mean and spread over seeds, the best setting first; ``None`` where no two runs have the same settings."""
    settings = same_settings(runs, axes)
    if all(len(setting.members) < 2 for setting in settings):
        return None
    columns = [column for column in COLUMNS if column.key in SUMMARY]
    means = {setting: over_seeds(runs, setting, metric) for setting in settings}

    def worth(setting: Setting) -> float:
        summary = means[setting]
        return -math.inf if summary is None else better(metric) * summary.mean

    headings = [*_axis_headings(axes), Heading("runs", "", "first"), *_column_headings(columns)]
    rows = []
    for setting in sorted(settings, key=worth, reverse=True):
        row = [
            *_axis_cells(axes, setting.values),
            Cell(_count_text(setting, means[setting]), str(len(setting.members)), "first"),
        ]
        for column, first in _with_first(columns):
            summary = over_seeds(runs, setting, column.key)
            classes = "first" if first else ""
            if summary is None:
                row.append(Cell(NOT_RECORDED, "", f"{classes} absent"))
                continue
            text = number_text(summary.mean, column.unit)
            if summary.std is not None:
                text += f" ± {number_text(summary.std, column.unit)}"
            row.append(Cell(text, repr(summary.mean), classes))
        rows.append(row)
    return {"columns": headings, "rows": rows}
