"""The report's figures. Ink and grid get their colours from the page, which is dark or light."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cmt_aqr.runs.folder import CURVES, Curve, Run
from cmt_aqr.studies.records import (
    better,
    choose_axis,
    is_numeric,
    label,
    measured,
    spread,
    value_text,
    with_seed,
)

COLORS = (
    *("#3b7dd8", "#e07b39", "#3a9a5b", "#c6484e", "#8a63c8"),
    *("#a5713f", "#d46fae", "#8c8c3a", "#2fa3b5", "#7a7f87"),
)
BLUE, ORANGE, GREY = "#3b7dd8", "#e07b39", "#8a9099"
MOST_PANELS = 12
MOST_LINES = len(COLORS)
CURVE_POINTS = 300
"""Points of a learning curve that are shown; more are averaged over neighbours."""
MANY = 8
"""More distinct numbers than this, nearly all of them different, were drawn from a range and not chosen."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    title: str
    figure: go.Figure
    caption: str = ""


def overview(
    runs: Sequence[Run], axes: Sequence[pd.Series], metric: str, x: str | None, y: str | None
) -> list[Picture]:
    """Figures of a metric over what was varied.

    One setting gives a line, or bars where it is no number; two a heat map, or a scatter plot where the values
    were drawn from a range; more give panels. Runs that differ in the seed alone are averaged.

    Args:
        runs: of the report.
        axes: settings that differ.
        metric: of ``metrics.json``.
        x: the setting to put along x, if a user chose it.
        y: the same along y, or along x if it is the only one.

    Raises:
        UserError: ``x`` or ``y`` names no setting that differs.
    """
    chosen = [choose_axis(axes, runs, name, by) for name, by in ((x, "x"), (y, "y")) if name is not None]
    values = measured(runs, metric)
    if values.isna().all():
        return []
    rest = [axis for axis in axes if axis.name not in [one.name for one in chosen]]
    rest.sort(key=lambda axis: -len(axis.cat.categories))
    history = [_history(runs, axes, values)] if any(map(drawn, axes)) else []
    if not chosen:
        if len(rest) > 2 and (history or len(list(panels(rest[2:], values))) > MOST_PANELS):
            return [_each_setting(runs, axes, values), *history]
        chosen, rest = rest[:2] or with_seed([], runs), rest[2:]
    if len(chosen) < 2:
        return [_lines(values, x_axis, rest) for x_axis in chosen]
    if any(map(drawn, chosen)):
        return [_scatter(runs, values, chosen, rest), *history]
    return [_heat_maps(values, chosen[0], chosen[1], rest)]


def drawn(axis: pd.Series) -> bool:
    """Whether values were drawn from a range, as Optuna does, and not chosen one by one."""
    return is_numeric(axis) and axis.nunique() > max(MANY, 0.5 * axis.count())


def panels(axes: Sequence[pd.Series], values: pd.Series) -> Iterator[tuple[str, pd.Series]]:
    """Values by the settings that a figure's axes do not show, in the settings' order, with a title."""
    if not axes:
        yield "", values
        return
    for _, group in values.groupby(list(axes), observed=True, dropna=False):
        yield escape(label(axes, group.index[0])), group


def _averaged(
    axes: Sequence[pd.Series], values: pd.Series, by: Sequence[pd.Series], most: int
) -> tuple[list[tuple[str, pd.DataFrame]], str]:
    """Mean and spread at every place, for at most so many panels, else for all runs at once; and a caption."""
    found, whose = list(panels(axes, values)), "the runs there"
    if len(found) > most:
        found, whose = [("", values)], f"all runs there, whatever their {_names(axes)}"
    stats = [(title, spread(part, [axis[part.index] for axis in by], empty=True)) for title, part in found]
    together = pd.concat([part for _, part in stats])
    sentences = []
    if together["count"].max() > 1:
        sentences.append(f"Mean ± sample standard deviation over {whose}; n is their number, where above one.")
    without = int((together["size"] - together["count"]).sum())
    if without:
        sentences.append(f"Runs without {values.name}, failed or unfinished, which do not count: {without}.")
    return stats, " ".join(sentences)


def _cells(stats: pd.DataFrame) -> list[str]:
    """Mean, and spread and number where there are several runs, for plotly."""
    cells = []
    for mean, std, count, _ in stats.itertuples(index=False):
        several = f"<br>± {std:.4f}, n={count}" if count > 1 else ""
        cells.append(f"{mean:.4f}{several}" if count else "")
    return cells


def _heat_maps(values: pd.Series, x: pd.Series, y: pd.Series, rest: Sequence[pd.Series]) -> Picture:
    """A heat map, or one for each combination of the other settings."""
    stats, caption = _averaged(rest, values, [y, x], MOST_PANELS)
    width, height = max(250, 95 * len(x.cat.categories)) + 110, max(110, 50 * len(y.cat.categories)) + 90
    figure, places = _subplots(len(stats), width, height, subplot_titles=[title for title, _ in stats])
    for place, (_, part) in zip(places, stats, strict=True):
        _heat_map(figure, place, part, values)
    figure.update_xaxes(**_scale(x, places=True), showgrid=False)
    figure.update_yaxes(**_scale(y, places=True), showgrid=False)
    figure.update_coloraxes(colorscale="Blues", reversescale=better(values.name) < 0, showscale=False)
    framed = "The best is framed; the darker, the better." if len(stats) == 1 else "The best of each is framed."
    return Picture(f"{values.name} over {x.name} and {y.name}", figure, f"{framed} {caption}")


def _heat_map(figure: go.Figure, place: dict[str, int], stats: pd.DataFrame, values: pd.Series) -> None:
    """Add a heat map with its numbers in the cells; the best are framed, and places without a value outlined."""
    shape = [len(level) for level in stats.index.levels]
    figure.add_heatmap(
        z=stats["mean"].to_numpy().reshape(shape),
        text=np.reshape(_cells(stats), shape),
        texttemplate="%{text}",
        hovertemplate="%{yaxis.title.text}: %{y}<br>%{xaxis.title.text}: %{x}<br>%{text}<extra></extra>",
        hoverongaps=False,
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        **place,
    )
    scores = better(values.name) * stats["mean"]
    for number, (score, size) in enumerate(zip(scores, stats["size"], strict=True)):
        row, column = divmod(number, shape[1])
        corners = {"x0": column - 0.49, "x1": column + 0.49, "y0": row - 0.49, "y1": row + 0.49}
        if score == scores.max():
            figure.add_shape(**corners, **place, line={"color": ORANGE, "width": 3})
        elif np.isnan(score):
            figure.add_shape(**corners, **place, line={"color": GREY, "width": 0.5})
            text = f"no {escape(values.name)}" if size else ""
            figure.add_annotation(x=column, y=row, text=text, showarrow=False, **place)


def _lines(values: pd.Series, x: pd.Series, rest: Sequence[pd.Series]) -> Picture:
    """A metric along one setting, one line (or set of bars) for each combination of the others."""
    as_bars = not is_numeric(x) or x.name == "seed"
    stats, caption = _averaged(rest, values, [x], MOST_LINES)
    figure = go.Figure()
    for (named, part), color in zip(stats, COLORS, strict=False):
        look: dict[str, Any] = {
            "x": list(range(len(part))) if as_bars else part.index,
            "y": part["mean"],
            "error_y": {"type": "data", "array": part["std"], "color": GREY if as_bars else color},
            "name": named,
            "text": _cells(part),
            "hovertemplate": "%{xaxis.title.text}: %{x}<br>%{text}",
        }
        if as_bars:
            figure.add_bar(**look, marker_color=color, texttemplate="%{y:.4f}", insidetextanchor="start")
        else:
            figure.add_scatter(**look, line_color=color, mode="lines+markers")
    figure.update_xaxes(**_scale(x, places=as_bars), showgrid=not as_bars)
    figure.update_yaxes(title_text=escape(values.name))
    figure.update_layout(showlegend=len(stats) > 1)
    if x.name == "seed" and not rest:
        caption = f"Mean {values.mean():.4f}, sample standard deviation {values.std():.4f}. {caption}"
    return Picture(f"{values.name} over {x.name}", _sized(figure, 700, 340), caption)


def _scatter(
    runs: Sequence[Run], values: pd.Series, axes: Sequence[pd.Series], rest: Sequence[pd.Series]
) -> Picture:
    """Runs at their place in two settings, the metric as colour."""
    metric, (x, y) = values.name, axes
    figure = go.Figure()
    count = _add_runs(figure, runs, [*axes, *rest], values, _at(x), _at(y))
    scale = {"colorscale": "Viridis", "reversescale": better(metric) < 0, "colorbar_title_text": escape(metric)}
    figure.update_layout(coloraxis=scale)
    figure.update_xaxes(**_scale(x))
    figure.update_yaxes(**_scale(y))
    caption = f"Each point is a run ({count} with {metric}, of {len(runs)}); the best is ringed."
    if rest:
        caption += f" The runs also differ in {_names(rest)}."
    return Picture(f"{metric} over {x.name} and {y.name}", _sized(figure, 700, 420), caption)


def _each_setting(runs: Sequence[Run], axes: Sequence[pd.Series], values: pd.Series) -> Picture:
    """The metric against each setting by itself, one panel each."""
    figure, places = _subplots(len(axes), 360, 260, shared_yaxes=True)
    for place, axis in zip(places, axes, strict=True):
        _add_runs(figure, runs, axes, values, _at(axis), values, **place)
        figure.update_xaxes(**_scale(axis), **place)
    figure.update_yaxes(title_text=escape(values.name), col=1)
    caption = "Each point is a run; the best is ringed. x=... and y=... show two settings together."
    return Picture(f"{values.name} over each setting", figure, caption)


def _history(runs: Sequence[Run], axes: Sequence[pd.Series], values: pd.Series) -> Picture:
    """The metric in the order of the runs, with the best so far: whether a search still finds better ones."""
    figure = go.Figure()
    _add_runs(figure, runs, axes, values, values.index.to_series(), values)
    best = better(values.name) * (better(values.name) * values).cummax().ffill()
    figure.add_scatter(x=best.index, y=best, line={"shape": "hv", "color": ORANGE}, name="best so far")
    figure.update_xaxes(title_text="run, in the order of their names")
    figure.update_yaxes(title_text=escape(values.name))
    return Picture(f"{values.name} in the order of the runs", _sized(figure, 700, 280))


def _add_runs(
    figure: go.Figure,
    runs: Sequence[Run],
    axes: Sequence[pd.Series],
    values: pd.Series,
    x: pd.Series,
    y: pd.Series,
    **place: int,
) -> int:
    """Add a point for each run that has a value and a place, and a ring around the best; give their number."""
    points = pd.DataFrame({"x": x, "y": y, "value": values}).dropna()
    texts = [f"{escape(runs[i].name)}<br>{escape(label(axes, i))}<br>{values[i]:.4f}" for i in points.index]
    color = BLUE if y is values else points["value"]
    look = {"mode": "markers", "showlegend": False, **place}
    marker = {"color": color, "coloraxis": None if y is values else "coloraxis", "size": 8}
    figure.add_scatter(x=points["x"], y=points["y"], marker=marker, hovertext=texts, hoverinfo="text", **look)
    best = points.loc[(better(values.name) * points["value"]).nlargest(1).index]
    ring = {"symbol": "circle-open", "size": 17, "color": ORANGE, "line_width": 2}
    figure.add_scatter(x=best["x"], y=best["y"], marker=ring, hoverinfo="skip", **look)
    return len(points)


def learning_curves(runs: Sequence[Run], axes: Sequence[pd.Series], order: Sequence[int]) -> list[Picture]:
    """One figure of training loss and validation metrics over steps; none where no run has logged any.

    Args:
        runs: of the report.
        axes: settings that differ; they name the lines.
        order: of the runs, the best first.
    """
    there = [i for i in order if any(curve[0] for curve in runs[i].curves.values())]
    if not there:
        return []
    few, shown = len(there) <= MOST_LINES, with_seed(axes, runs)
    # A run that ended before its first record of the loss has metrics alone.
    logged = [name for name in CURVES if any(runs[i].curves[name][0] for i in there)]
    figure, places = _subplots(len(logged), 440, 330)
    for rank, index in reversed(list(enumerate(there))):
        run = runs[index]
        named = label(shown, index) or run.name
        for place, curve_name in zip(places, logged, strict=True):
            steps, values = thinned(run.curves[curve_name])
            figure.add_scatter(
                x=steps,
                y=values,
                name=escape(named if run.status in (None, "complete") else f"{named} ({run.ending})"),
                legendgroup=index,
                legendrank=rank,
                showlegend=place is places[0],
                line={"color": COLORS[rank] if few else ORANGE if rank == 0 else GREY, "width": 1.5},
                opacity=1 if few or rank == 0 else 0.6,
                mode="lines+markers" if len(steps) <= 20 else "lines",
                hovertemplate="step %{x}: %{y:.4g}",
                **place,
            )
    for place, name in zip(places, logged, strict=True):
        figure.update_yaxes(title_text=name, **place)
    figure.update_xaxes(title_text="step", matches="x")
    figure.update_layout(hoverlabel_namelength=-1)
    sentences = [] if few else ["The best run in colour, all others in grey."]
    if any(len(steps) > CURVE_POINTS for i in there for steps, _ in runs[i].curves.values()):
        sentences.append(f"Each point is the mean of neighbouring steps, at most {CURVE_POINTS} points per run.")
    if len(runs) > len(there):
        sentences.append(f"Runs without a recorded curve: {len(runs) - len(there)}.")
    return [Picture("Learning curves", figure, " ".join(sentences))]


def thinned(curve: Curve, most: int = CURVE_POINTS) -> Curve:
    """A curve with at most ``most`` points, each the mean of neighbours."""
    points = pd.DataFrame({"step": curve[0], "value": curve[1]})
    if len(points) > most:
        points = points.groupby(np.arange(len(points)) * most // len(points)).mean()
    return points["step"].tolist(), points["value"].tolist()


def _names(axes: Sequence[pd.Series]) -> str:
    return ", ".join(str(axis.name) for axis in axes)


def _at(axis: pd.Series) -> pd.Series:
    """Where runs stand along an axis: at their number, else at the place of their word; NaN: not known."""
    return axis.astype(float) if is_numeric(axis) else axis.cat.codes.where(axis.notna())


def _scale(axis: pd.Series, places: bool = False) -> dict[str, Any]:
    """Title, ticks at values that are few or words, and a logarithmic scale over more than one and a half decades.

    Args:
        axis: a setting.
        places: whether its values stand beside each other, numbers too.
    """
    known = axis.cat.categories
    places |= not is_numeric(axis)
    look: dict[str, Any] = {"title_text": escape(str(axis.name))}
    if places or len(known) <= 10:
        texts = [escape(value_text(value)) for value in known]
        look |= {"tickvals": list(range(len(known))) if places else list(known), "ticktext": texts}
    if not places and known.min() > 0 and known.max() / known.min() > 30:
        look["type"] = "log"
    return look


def _subplots(count: int, width: int, height: int, **more: Any) -> tuple[go.Figure, list[dict[str, int]]]:
    """Plots of so many pixels beside each other, at most three in a row, and their places."""
    columns = min(count, 3)
    rows = -(-count // 3)
    gaps = {"horizontal_spacing": 90 / (width * columns), "vertical_spacing": 80 / (height * rows)}
    figure = _sized(make_subplots(rows, columns, **gaps, **more), width * columns, height * rows)
    return figure, [{"row": number // columns + 1, "col": number % columns + 1} for number in range(count)]


def _sized(figure: go.Figure, width: int, height: int) -> go.Figure:
    """A figure of so many pixels with nothing behind it."""
    clear = "rgba(0,0,0,0)"
    figure.update_xaxes(title_font_size=12, title_standoff=8)
    figure.update_yaxes(title_font_size=12, title_standoff=8)
    return figure.update_layout(
        width=width,
        height=height,
        margin={"l": 70, "r": 20, "t": 30, "b": 55},
        font_size=12,
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        legend_bgcolor=clear,
    )
