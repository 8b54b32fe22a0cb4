"""The page's figures, as SVG that takes its ink from the page, so that it can be read on dark and on light."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cmt_aqr.studies.reports.grids import Grid, best_places, best_so_far, drawn, make_grid, panels
from cmt_aqr.studies.reports.runs import CURVES, Curve, Run
from cmt_aqr.studies.reports.settings import (
    NOT_RECORDED,
    Axis,
    choose_axis,
    label,
    seed_axis,
    status_text,
    value_text,
)
from cmt_aqr.studies.reports.table import better, measured

INK, GRID = "#0a0b0c", "#0d0e0f"
"""Colours that stand for the page's own text and line colours until the SVG is written."""
COLORS = (
    "#3b7dd8",
    "#e07b39",
    "#3a9a5b",
    "#c6484e",
    "#8a63c8",
    "#a5713f",
    "#d46fae",
    "#8c8c3a",
    "#2fa3b5",
    "#7a7f87",
)
STYLE: Any = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "font.size": 9,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "legend.frameon": False,
    "svg.fonttype": "none",
}
MOST_PANELS = 12
MOST_LINES = len(COLORS)
CURVE_POINTS = 300
"""Points of a learning curve that are drawn; more are averaged over neighbours."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    title: str
    svg: str
    caption: str


def overview(
    runs: Sequence[Run], axes: Sequence[Axis], metric: str, x: str | None, y: str | None
) -> list[Picture]:
    """Figures of a metric over what was varied.

    One setting gives a line, or bars where it is no number; two a heat map, or a scatter plot where the values
    were drawn from a range; more give panels. Runs that differ in the seed alone are averaged.

    Args:
        runs: of the report.
        axes: settings that differ.
        metric: of ``metrics.json``.
        x: the setting to put along x, if a user chose it.
        y: likewise along y, or along x of the second axis of a heat map.

    Raises:
        UserError: ``x`` or ``y`` names no setting that differs.
    """
    if y is not None and x is None:
        x, y = y, None
    chosen = [choose_axis(axes, runs, name, by) for name, by in ((x, "x"), (y, "y")) if name is not None]
    if all(measured(run, metric) is None for run in runs):
        return []
    members = list(range(len(runs)))
    rest = [axis for axis in axes if axis not in chosen]
    if not chosen and len(rest) > 2:
        rest = sorted(rest, key=lambda axis: -len(axis.known))
        if any(map(drawn, axes)) or len(panels(rest[2:], members)) > MOST_PANELS:
            return [_each_setting(runs, axes, metric), *_history(runs, axes, metric)]
    if not chosen:
        chosen, rest = rest[:2], rest[2:]
    if not chosen:
        seeds = seed_axis(runs)
        return [_lines(runs, seeds, [], metric)] if len(seeds.known) > 1 else []
    if len(chosen) == 1:
        return [_lines(runs, chosen[0], rest, metric)]
    if any(map(drawn, chosen)):
        return [_scatter(runs, chosen[0], chosen[1], rest, metric), *_history(runs, axes, metric)]
    return [_heat_maps(runs, chosen[0], chosen[1], rest, metric)]


def _heat_maps(runs: Sequence[Run], x: Axis, y: Axis, rest: Sequence[Axis], metric: str) -> Picture:
    """A heat map, or one for each combination of the other settings."""
    groups = panels(rest, range(len(runs)))
    pooled = len(groups) > MOST_PANELS
    if pooled:
        groups = {(): list(range(len(runs)))}
    grids = [make_grid(runs, members, x, y, metric) for members in groups.values()]
    columns = min(len(grids), 3)
    rows = -(-len(grids) // columns)
    width = max(2.6, 0.95 * len(grids[0].xs)) + 0.9
    height = max(1.3, 0.5 * len(grids[0].ys)) + 0.9
    with mpl.rc_context(STYLE):
        figure = _figure(width * columns, height * rows)
        places = figure.subplots(rows, columns, squeeze=False).ravel()
        values = np.concatenate([grid.mean.ravel() for grid in grids])
        limits = float(np.nanmin(values)), float(np.nanmax(values))
        for place, grid, key in zip(places, grids, groups, strict=False):
            _heat_map(place, grid, metric, limits)
            if key:
                parts = zip(rest, key, strict=True)
                place.set_title(", ".join(f"{axis.short}={value_text(value)}" for axis, value in parts))
        for place in places[len(grids) :]:
            place.set_axis_off()
        svg = _svg(figure, "heat")
    counts = np.concatenate([grid.count.ravel() for grid in grids])
    caption = (
        "The best is framed; the darker, the better." if len(grids) == 1 else "The best of each panel is framed."
    )
    if counts.max() > 1:
        what = f"all runs there, whatever their {_names(rest)}" if pooled else "the runs there"
        caption += f" Mean ± sample standard deviation over {what}; n is their number where it is above one."
    if any((grid.without[grid.count == 0] > 0).any() for grid in grids):
        caption += f" Hatched: only runs without {metric}, failed or unfinished."
    elif any(grid.without.any() for grid in grids):
        caption += f" Runs without {metric}, which do not count: {sum(int(grid.without.sum()) for grid in grids)}."
    return Picture(f"{metric} over {x.name} and {y.name}", svg, caption)


def _heat_map(place: Axes, grid: Grid, metric: str, limits: tuple[float, float]) -> None:
    """Draw a grid with its numbers in the cells; ``limits`` are those of the colours."""
    colors = mpl.colormaps["Blues" if better(metric) > 0 else "Blues_r"]
    low, high = limits
    share = (grid.mean - low) / (high - low) if high > low else np.full(grid.mean.shape, 0.5)
    place.set_xlim(-0.5, len(grid.xs) - 0.5)
    place.set_ylim(-0.5, len(grid.ys) - 0.5)
    for (row, column), value in np.ndenumerate(grid.mean):
        corner = (column - 0.5, row - 0.5)
        if np.isnan(value):
            hatch = "////" if grid.without[row, column] else None
            place.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=GRID, hatch=hatch, linewidth=0.5))
            if grid.without[row, column]:
                place.text(column, row, f"no {metric}", ha="center", va="center", fontsize=8)
            continue
        shade = colors(0.12 + 0.76 * share[row, column])
        place.add_patch(Rectangle(corner, 1, 1, facecolor=shade, edgecolor="white", linewidth=1))
        ink = "black" if np.dot(shade[:3], (0.299, 0.587, 0.114)) > 0.55 else "white"
        text = f"{value:.4f}"
        if grid.count[row, column] > 1:
            text += f"\n± {grid.std[row, column]:.4f}, n={grid.count[row, column]}"
        place.text(column, row, text, ha="center", va="center", color=ink, fontsize=9)
    for row, column in best_places(grid, metric):
        corner = (column - 0.47, row - 0.47)
        place.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor="#e07b39", linewidth=2.5))
    place.set_xticks(range(len(grid.xs)), [value_text(value) for value in grid.xs])
    place.set_yticks(range(len(grid.ys)), [value_text(value) for value in grid.ys])
    place.tick_params(length=0)
    place.spines[:].set_visible(False)
    place.set_xlabel(grid.x.name)
    if grid.y is not None:
        place.set_ylabel(grid.y.name)


def _lines(runs: Sequence[Run], x: Axis, rest: Sequence[Axis], metric: str) -> Picture:
    """A metric along one setting, one line (or set of bars) for each combination of the others."""
    groups = panels(rest, range(len(runs)))
    pooled = len(groups) > MOST_LINES
    if pooled:
        groups = {(): list(range(len(runs)))}
    grids = [make_grid(runs, members, x, None, metric) for members in groups.values()]
    seeds_only = x.keys == ("seed",)
    with mpl.rc_context(STYLE):
        figure = _figure(7.0, 3.4)
        place = figure.subplots()
        for number, (key, grid, color) in enumerate(zip(groups, grids, cycle(COLORS), strict=False)):
            named = (
                ", ".join(f"{axis.short}={value_text(v)}" for axis, v in zip(rest, key, strict=True))
                if key
                else None
            )
            if x.numeric and not seeds_only:
                _line(place, grid, color, named)
            else:
                _bars(place, grid, color, named, number, len(grids))
        if x.numeric and not seeds_only:
            _number_axis(place, x)
        else:
            place.set_xticks(range(len(x.known)), [value_text(value) for value in x.known])
        _finish(place, x.name, metric, legend=len(groups) > 1)
        svg = _svg(figure, "lines")
    return Picture(f"{metric} over {x.name}", svg, _lines_caption(grids, x, rest, pooled))


def _lines_caption(grids: Sequence[Grid], x: Axis, rest: Sequence[Axis], pooled: bool) -> str:
    parts = []
    if max(grid.count.max() for grid in grids) > 1:
        who = f"all runs there, whatever their {_names(rest)}" if pooled else "the runs with the same settings"
        shape = "the band" if x.numeric and x.keys != ("seed",) else "the whisker"
        parts.append(f"Mean over {who}; {shape} is ± one sample standard deviation.")
    elif x.keys == ("seed",):
        values = np.array([grid.mean[0] for grid in grids]).ravel()
        values = values[~np.isnan(values)]
        if len(values) > 1:
            parts.append(f"Mean {values.mean():.4f}, sample standard deviation {values.std(ddof=1):.4f}.")
    missing = int(sum(grid.without.sum() for grid in grids))
    if missing:
        parts.append(f"Runs not drawn because they have no value: {missing}.")
    return " ".join(parts)


def _line(place: Axes, grid: Grid, color: str, named: str | None) -> None:
    there = ~np.isnan(grid.mean[0])
    xs = np.array(grid.xs, dtype=float)[there]
    mean, std = grid.mean[0][there], np.nan_to_num(grid.std[0][there])
    place.plot(xs, mean, color=color, marker="o", markersize=4, linewidth=1.5, label=named)
    if std.any():
        place.fill_between(xs, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)


def _bars(place: Axes, grid: Grid, color: str, named: str | None, number: int, of: int) -> None:
    width = 0.6 / of
    at = np.arange(len(grid.xs)) + (number - (of - 1) / 2) * width
    there = ~np.isnan(grid.mean[0])
    mean, std = grid.mean[0][there], np.nan_to_num(grid.std[0][there])
    place.bar(at[there], mean, width * 0.94, color=color, label=named)
    many = grid.count[0][there] > 1
    place.errorbar(at[there][many], mean[many], std[many], fmt="none", ecolor=INK, capsize=3, linewidth=1)
    for where, value in zip(at[there], mean, strict=True):
        place.annotate(
            f"{value:.4f}",
            (where, 0),
            (0, 4),
            textcoords="offset points",
            ha="center",
            color="white",
            fontsize=8 if of < 3 else 6,
        )


def _scatter(runs: Sequence[Run], x: Axis, y: Axis, rest: Sequence[Axis], metric: str) -> Picture:
    """Runs at their place in two settings, the metric as colour."""
    there, values = _with_value(runs, [x, y], metric)
    with mpl.rc_context(STYLE):
        figure = _figure(7.0, 4.2)
        place = figure.subplots()
        colors = mpl.colormaps["viridis" if better(metric) > 0 else "viridis_r"].resampled(24)
        points = place.scatter(
            _at(x, there), _at(y, there), c=values, cmap=colors, s=38, edgecolor=INK, linewidth=0.4
        )
        best = int(np.argmax(better(metric) * np.array(values)))
        place.scatter(
            [_at(x, there)[best]], [_at(y, there)[best]], s=150, facecolor="none", edgecolor="#e07b39", linewidth=2
        )
        _number_axis(place, x)
        _number_axis(place, y, vertical=True)
        figure.colorbar(points, ax=place, label=metric).outline.set_visible(False)
        _finish(place, x.name, y.name, legend=False)
        svg = _svg(figure, "scatter")
    caption = f"Each point is a run ({len(there)} with {metric}, of {len(runs)}); the best is ringed."
    if rest:
        caption += f" The runs also differ in {_names(rest)}."
    return Picture(f"{metric} over {x.name} and {y.name}", svg, caption)


def _each_setting(runs: Sequence[Run], axes: Sequence[Axis], metric: str) -> Picture:
    """The metric against each setting by itself, one panel each."""
    columns = min(len(axes), 3)
    rows = -(-len(axes) // columns)
    with mpl.rc_context(STYLE):
        figure = _figure(3.6 * columns, 2.6 * rows)
        places = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for place, axis in zip(places, axes, strict=False):
            there, values = _with_value(runs, [axis], metric)
            place.scatter(_at(axis, there), values, s=22, color=COLORS[0], alpha=0.7, linewidth=0)
            best = int(np.argmax(better(metric) * np.array(values)))
            place.scatter(
                [_at(axis, there)[best]], [values[best]], s=90, facecolor="none", edgecolor=COLORS[1], linewidth=2
            )
            _number_axis(place, axis)
            _finish(place, axis.name, metric, legend=False)
        for place in places[len(axes) :]:
            place.set_axis_off()
        svg = _svg(figure, "each")
    return Picture(
        f"{metric} over each setting",
        svg,
        "Each point is a run; the best is ringed. Choose two settings with x=... and y=... to see them together.",
    )


def _history(runs: Sequence[Run], axes: Sequence[Axis], metric: str) -> list[Picture]:
    """The metric in the order of the runs, with the best so far: whether a search still finds better ones."""
    if not any(map(drawn, axes)):
        return []
    values = [measured(run, metric) for run in runs]
    with mpl.rc_context(STYLE):
        figure = _figure(7.0, 2.8)
        place = figure.subplots()
        numbers = range(len(runs))
        place.plot(
            numbers,
            [np.nan if v is None else v for v in values],
            "o",
            color=COLORS[0],
            markersize=4,
            alpha=0.7,
            label="run",
        )
        place.step(numbers, best_so_far(values, metric), where="post", color=COLORS[1], label="best so far")
        _finish(place, "run, in the order of their names", metric, legend=True)
        svg = _svg(figure, "history")
    return [Picture(f"{metric} in the order of the runs", svg, "")]


def learning_curves(runs: Sequence[Run], axes: Sequence[Axis], order: Sequence[int]) -> Picture | None:
    """Training loss and validation metrics over steps; ``None`` where no run has logged any.

    Args:
        runs: of the report.
        axes: settings that differ; they name the lines.
        order: of the runs, the best first.
    """
    there = [i for i in order if any(curve[0] for curve in runs[i].curves.values())]
    if not there:
        return None
    few = len(there) <= MOST_LINES
    seeds = [*axes, seed_axis(runs)] if len(seed_axis(runs).known) > 1 else axes
    with mpl.rc_context(STYLE):
        figure = _figure(9.4, 2.9 + (0.2 * -(-len(there) // 2) if few else 0.3))
        places = figure.subplots(1, len(CURVES))
        for rank, index in reversed(list(enumerate(there))):
            named = label(seeds, index) or runs[index].name
            if runs[index].status not in (None, "complete"):
                named += f" ({status_text(runs[index])})"
            color = COLORS[rank] if few else COLORS[1] if rank == 0 else "#8a9099"
            for place, name in zip(places, CURVES, strict=True):
                steps, values = thinned(runs[index].curves.get(name, ([], [])))
                place.plot(
                    steps,
                    values,
                    color=color,
                    label=named if few or rank == 0 else None,
                    linewidth=1.4 if few or rank == 0 else 0.6,
                    alpha=1 if few or rank == 0 else 0.6,
                    marker="o" if len(steps) <= 20 else None,
                    markersize=3,
                )
        for place, name in zip(places, CURVES, strict=True):
            _finish(place, "step", name, legend=False)
        handles, names = places[0].get_legend_handles_labels()
        figure.legend(handles[::-1], names[::-1], loc="outside lower left", ncols=2, fontsize=8)
        svg = _svg(figure, "curves")
    thin = any(len(curve[0]) > CURVE_POINTS for i in there for curve in runs[i].curves.values())
    caption = "" if few else "The best run in colour, all others in grey. "
    caption += (
        f"Each point is the mean of neighbouring steps, at most {CURVE_POINTS} points a run." if thin else ""
    )
    missing = len(runs) - len(there)
    caption += f" Runs without a recorded curve: {missing}." if missing else ""
    return Picture("Learning curves", svg, caption.strip())


def thinned(curve: Curve, most: int = CURVE_POINTS) -> tuple[list[float], list[float]]:
    """A curve with at most ``most`` points, each the mean of neighbours."""
    steps, values = np.array(curve[0], dtype=float), np.array(curve[1], dtype=float)
    if len(steps) <= most:
        return list(steps), list(values)
    edges = np.linspace(0, len(steps), most + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(steps)))
    return list(np.add.reduceat(steps, edges) / counts), list(np.add.reduceat(values, edges) / counts)


def _names(axes: Sequence[Axis]) -> str:
    return ", ".join(axis.name for axis in axes)


def _with_value(runs: Sequence[Run], axes: Sequence[Axis], metric: str) -> tuple[list[int], list[float]]:
    """Runs whose settings are known and that have the metric, and its values."""
    found = [(i, measured(run, metric)) for i, run in enumerate(runs)]
    there = [(i, v) for i, v in found if v is not None and all(axis.values[i] != NOT_RECORDED for axis in axes)]
    return [i for i, _ in there], [v for _, v in there]


def _at(axis: Axis, members: Sequence[int]) -> list[float]:
    """Where runs stand along an axis: at their number, else at the place of their word."""
    if axis.numeric:
        return [float(axis.values[i]) for i in members]  # type: ignore[arg-type]
    return [float(axis.known.index(axis.values[i])) for i in members]


def _number_axis(place: Axes, axis: Axis, vertical: bool = False) -> None:
    """Ticks at the values where they are few; a logarithmic scale over more than one and a half decades."""
    side = place.yaxis if vertical else place.xaxis
    known = axis.known
    if not axis.numeric:
        side.set_ticks(range(len(known)), [value_text(value) for value in known])
        return
    numbers = [float(value) for value in known]  # type: ignore[arg-type]
    if min(numbers) > 0 and max(numbers) / min(numbers) > 30:
        (place.set_yscale if vertical else place.set_xscale)("log")
    if len(numbers) <= 10:
        side.set_ticks(numbers, [value_text(value) for value in known])
        side.set_ticks([], minor=True)


def _finish(place: Axes, x: str, y: str, legend: bool) -> None:
    place.set_xlabel(x)
    place.set_ylabel(y)
    place.grid(True, linewidth=0.5)
    place.set_axisbelow(True)
    if legend:
        place.legend(fontsize=8)


def _figure(width: float, height: float) -> Figure:
    """A figure of so many inches with nothing behind it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    return figure


def _svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element to stand in a page.

    Ids get the figure's name in front, so that those of two figures do not meet; our two colours become those of
    the page.
    """
    for place in figure.axes:
        place.patch.set_visible(False)
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    return svg.replace(INK, "currentColor").replace(GRID, "var(--line)")
