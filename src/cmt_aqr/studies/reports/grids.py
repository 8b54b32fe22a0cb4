"""The numbers behind the figures: a metric's mean, spread and count at every place of one or two settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cmt_aqr.studies.reports.runs import Run
from cmt_aqr.studies.reports.settings import NOT_RECORDED, Axis, Value
from cmt_aqr.studies.reports.table import better, measured, spread

MANY = 8
"""More distinct numbers than this, nearly all of them different, were drawn and not chosen."""


@dataclass(frozen=True)
class Grid:
    """A metric over the values of two settings; arrays are (values of y, values of x)."""

    x: Axis
    y: Axis | None
    """``None``: one row."""
    xs: tuple[Value, ...]
    ys: tuple[Value, ...]
    mean: np.ndarray
    """NaN where no run has the metric."""
    std: np.ndarray
    """Sample standard deviation; NaN where fewer than two runs have the metric."""
    count: np.ndarray
    """Runs with the metric."""
    without: np.ndarray
    """Runs that are there and have no metric: failed or unfinished."""


def make_grid(runs: Sequence[Run], members: Sequence[int], x: Axis, y: Axis | None, metric: str) -> Grid:
    """Average a metric at every pair of values.

    Args:
        runs: of the report.
        members: indices of the runs that take part; one whose setting is unknown does not.
        x: setting along the columns.
        y: setting along the rows.
        metric: of ``metrics.json``.
    """
    xs = tuple(x.known)
    ys = tuple(y.known) if y is not None else (None,)
    shape = (len(ys), len(xs))
    values: dict[tuple[int, int], list[float]] = {}
    without = np.zeros(shape, dtype=int)
    for index in members:
        at_x, at_y = x.values[index], y.values[index] if y is not None else None
        if NOT_RECORDED in (at_x, at_y):
            continue
        place = (ys.index(at_y), xs.index(at_x))
        value = measured(runs[index], metric)
        if value is None:
            without[place] += 1
        else:
            values.setdefault(place, []).append(value)
    mean, std = np.full(shape, np.nan), np.full(shape, np.nan)
    count = np.zeros(shape, dtype=int)
    for place, found in values.items():
        summary = spread(found)
        if summary is not None:
            mean[place], count[place] = summary.mean, summary.count
            std[place] = np.nan if summary.std is None else summary.std
    return Grid(x, y, xs, ys, mean, std, count, without)


def best_places(grid: Grid, metric: str) -> list[tuple[int, int]]:
    """Rows and columns of the best mean, several where it is the same; none of an empty grid."""
    if np.isnan(grid.mean).all():
        return []
    best = np.nanmax(better(metric) * grid.mean)
    return [(int(row), int(column)) for row, column in np.argwhere(better(metric) * grid.mean == best)]


def drawn(axis: Axis) -> bool:
    """Whether values were drawn from a range, as Optuna does, and not chosen one by one."""
    known = len([value for value in axis.values if value != NOT_RECORDED])
    return axis.numeric and len(axis.known) > MANY and len(axis.known) > 0.5 * known


def panels(axes: Sequence[Axis], members: Sequence[int]) -> dict[tuple[Value, ...], list[int]]:
    """Runs by the values of the settings that a figure's axes do not show, sorted by value."""
    groups: dict[tuple[Value, ...], list[int]] = {}
    for index in members:
        groups.setdefault(tuple(axis.values[index] for axis in axes), []).append(index)
    order = [{value: i for i, value in enumerate([*axis.known, NOT_RECORDED])} for axis in axes]
    return dict(
        sorted(groups.items(), key=lambda item: [where[v] for where, v in zip(order, item[0], strict=True)])
    )


def best_so_far(values: Sequence[float | None], metric: str) -> list[float]:
    """The best value up to each run; NaN before the first, and runs without one change nothing."""
    found = np.array([np.nan if value is None else better(metric) * value for value in values], dtype=float)
    return list(better(metric) * np.fmax.accumulate(found))
