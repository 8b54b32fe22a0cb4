"""The report's figures. The page adds colours, for its dark or light theme, font sizes and margins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cmt_aqr.runs.folder import CURVES, Curve
from cmt_aqr.studies.records import Comparison, is_numeric, label, sign_of, spread, value_text

COLORS = (
    *("#3b7dd8", "#e07b39", "#3a9a5b", "#c6484e", "#8a63c8"),
    *("#a5713f", "#d46fae", "#8c8c3a", "#2fa3b5", "#7a7f87"),
)
BLUE, ORANGE, GREY = "#3b7dd8", "#e07b39", "#8a9099"
MOST_PANELS = 12
MOST_LINES = len(COLORS)
CURVE_POINTS = 300
"""Maximum points of a learning curve; longer ones are averaged over neighbouring steps."""
SAMPLED = 8
"""With more distinct numbers, and more than half of the runs with one of their own, a setting was sampled."""


class Picture(NamedTuple):
    """A figure of the page."""

    title: str
    figure: go.Figure
    caption: str = ""


def overview(comparison: Comparison, x: str | None = None, y: str | None = None) -> list[Picture]:
    """Figures of the metric over the settings that differ.

    One setting gives a line, or bars if it is not a number; two a heat map, or a scatter plot if the values were
    sampled from a range; more give panels. Runs that differ in the seed alone are averaged.

    Args:
        comparison: of the runs.
        x: the setting along x, ``None`` for a default.
        y: the setting along y, or along x if it is the only one.

    Raises:
        UserError: ``x`` or ``y`` is not a setting that differs.
    """
    chosen = [comparison.axis(name, option) for option, name in (("x", x), ("y", y)) if name is not None]
    values = comparison.values
    if values.isna().all():
        return []
    others = [axis for axis in comparison.axes if axis.name not in [one.name for one in chosen]]
    others.sort(key=lambda axis: -len(axis.cat.categories))
    history = [_history(comparison)] if any(map(sampled, comparison.axes)) else []
    if not chosen:
        if len(others) > 2 and (history or len(list(panels(others[2:], values))) > MOST_PANELS):
            return [_each_setting(comparison), *history]
        chosen, others = others[:2] or comparison.axes_and_seed, others[2:]
    if len(chosen) < 2:
        return [_lines(values, axis, others) for axis in chosen]
    if any(map(sampled, chosen)):
        return [_scatter(comparison, chosen[0], chosen[1], others), *history]
    return [_heat_maps(values, chosen[0], chosen[1], others)]


def sampled(axis: pd.Series) -> bool:
    """Whether values were sampled from a range, as Optuna does, and not chosen one by one."""
    return is_numeric(axis) and axis.nunique() > max(SAMPLED, 0.5 * axis.count())


def panels(axes: Sequence[pd.Series], values: pd.Series) -> Iterator[tuple[str, pd.Series]]:
    """Titles and values of the groups by the settings that a figure's axes do not show."""
    if not axes:
        yield "", values
        return
    for _, group in values.groupby(list(axes), observed=True, dropna=False):
        yield escape(label(axes, group.index[0])), group


def _averaged(
    axes: Sequence[pd.Series], values: pd.Series, by: Sequence[pd.Series], most: int
) -> tuple[list[tuple[str, pd.DataFrame]], str]:
    """Titles and :func:`spread` of at most ``most`` panels, else of all runs together; and a caption."""
    groups, scope = list(panels(axes, values)), "the runs of each cell or point"
    if len(groups) > most:
        groups, scope = [("", values)], f"all runs of each cell or point, whatever their {_names(axes)}"
    stats = [(title, spread(group, [axis[group.index] for axis in by], empty=True)) for title, group in groups]
    together = pd.concat([part for _, part in stats])
    sentences = []
    if together["count"].max() > 1:
        sentences.append(f"Mean ± sample standard deviation over {scope}; n is their number, if above one.")
    missing = int((together["size"] - together["count"]).sum())
    if missing:
        sentences.append(f"Runs without {values.name}, failed or unfinished, which do not count: {missing}.")
    return stats, " ".join(sentences)


def _cell_texts(stats: pd.DataFrame) -> list[str]:
    """Mean, and for several runs deviation and number, in HTML."""
    cells = []
    for mean, std, count, _ in stats.itertuples(index=False):
        several = f"<br>± {std:.4f}, n={count}" if count > 1 else ""
        cells.append(f"{mean:.4f}{several}" if count else "")
    return cells


def _heat_maps(values: pd.Series, x: pd.Series, y: pd.Series, others: Sequence[pd.Series]) -> Picture:
    """A heat map per combination of the other settings; the best cells are framed, missing ones outlined."""
    stats, caption = _averaged(others, values, [y, x], MOST_PANELS)
    width, height = max(250, 95 * len(x.cat.categories)) + 110, max(110, 50 * len(y.cat.categories)) + 90
    figure, places = _subplots(len(stats), width, height, subplot_titles=[title for title, _ in stats])
    for place, (_, part) in zip(places, stats, strict=True):
        shape = [len(level) for level in part.index.levels]
        figure.add_heatmap(
            z=part["mean"].to_numpy().reshape(shape),
            text=np.reshape(_cell_texts(part), shape),
            texttemplate="%{text}",
            hovertemplate="%{yaxis.title.text}: %{y}<br>%{xaxis.title.text}: %{x}<br>%{text}<extra></extra>",
            hoverongaps=False,
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            **place,
        )
        scores = sign_of(values.name) * part["mean"]
        for number, (score, size) in enumerate(zip(scores, part["size"], strict=True)):
            row, column = divmod(number, shape[1])
            corners = {"x0": column - 0.49, "x1": column + 0.49, "y0": row - 0.49, "y1": row + 0.49}
            if score == scores.max():
                figure.add_shape(**corners, **place, line={"color": ORANGE, "width": 3})
            elif np.isnan(score):
                figure.add_shape(**corners, **place, line={"color": GREY, "width": 0.5})
                text = f"no {escape(values.name)}" if size else ""
                figure.add_annotation(x=column, y=row, text=text, showarrow=False, **place)
    figure.update_xaxes(**_scale(x, categorical=True), showgrid=False)
    figure.update_yaxes(**_scale(y, categorical=True), showgrid=False)
    figure.update_coloraxes(colorscale="Blues", reversescale=sign_of(values.name) < 0, showscale=False)
    best = "The best is framed; the darker, the better." if len(stats) == 1 else "The best of each is framed."
    return Picture(f"{values.name} over {x.name} and {y.name}", figure, f"{best} {caption}")


def _lines(values: pd.Series, x: pd.Series, others: Sequence[pd.Series]) -> Picture:
    """A metric along a setting, with a line or a set of bars per combination of the other settings."""
    as_bars = not is_numeric(x) or x.name == "seed"
    stats, caption = _averaged(others, values, [x], MOST_LINES)
    figure = go.Figure()
    for (title, part), color in zip(stats, COLORS, strict=False):
        trace: dict[str, Any] = {
            "x": list(range(len(part))) if as_bars else part.index,
            "y": part["mean"],
            "error_y": {"type": "data", "array": part["std"], "color": GREY if as_bars else color},
            "name": title,
            "text": _cell_texts(part),
            "hovertemplate": "%{xaxis.title.text}: %{x}<br>%{text}",
        }
        if as_bars:
            figure.add_bar(**trace, marker_color=color, texttemplate="%{y:.4f}", insidetextanchor="start")
        else:
            figure.add_scatter(**trace, line_color=color, mode="lines+markers")
    figure.update_xaxes(**_scale(x, categorical=as_bars), showgrid=not as_bars)
    figure.update_yaxes(title_text=escape(values.name))
    figure.update_layout(width=700, height=340, showlegend=len(stats) > 1)
    if x.name == "seed" and not others:
        caption = f"Mean {values.mean():.4f}, sample standard deviation {values.std():.4f}. {caption}"
    return Picture(f"{values.name} over {x.name}", figure, caption)


def _scatter(comparison: Comparison, x: pd.Series, y: pd.Series, others: Sequence[pd.Series]) -> Picture:
    """Runs over two settings, coloured by the metric."""
    metric = comparison.metric
    figure = go.Figure()
    count = _add_runs(figure, comparison, [x, y, *others], _coordinates(x), _coordinates(y))
    scale = {"colorscale": "Viridis", "reversescale": sign_of(metric) < 0, "colorbar_title_text": escape(metric)}
    figure.update_layout(width=700, height=420, coloraxis=scale)
    figure.update_xaxes(**_scale(x))
    figure.update_yaxes(**_scale(y))
    caption = f"Each point is a run ({count} with {metric}, of {len(comparison.runs)}); the best is circled."
    if others:
        caption += f" The runs also differ in {_names(others)}."
    return Picture(f"{metric} over {x.name} and {y.name}", figure, caption)


def _each_setting(comparison: Comparison) -> Picture:
    """The metric over each setting, in a panel each."""
    figure, places = _subplots(len(comparison.axes), 360, 260, shared_yaxes=True)
    for place, axis in zip(places, comparison.axes, strict=True):
        _add_runs(figure, comparison, comparison.axes, _coordinates(axis), comparison.values, **place)
        figure.update_xaxes(**_scale(axis), **place)
    figure.update_yaxes(title_text=escape(comparison.metric), col=1)
    caption = "Each point is a run; the best is circled. x=... and y=... show two settings together."
    return Picture(f"{comparison.metric} over each setting", figure, caption)


def _history(comparison: Comparison) -> Picture:
    """The metric in the order of the runs, with the best so far: whether a search still improves."""
    metric, values = comparison.metric, comparison.values
    figure = go.Figure()
    _add_runs(figure, comparison, comparison.axes, values.index.to_series(), values)
    best = sign_of(metric) * (sign_of(metric) * values).cummax().ffill()
    figure.add_scatter(x=best.index, y=best, line={"shape": "hv", "color": ORANGE}, name="best so far")
    figure.update_xaxes(title_text="run, in the order of their names")
    figure.update_yaxes(title_text=escape(metric))
    figure.update_layout(width=700, height=280)
    return Picture(f"{metric} in the order of the runs", figure)


def _add_runs(
    figure: go.Figure, comparison: Comparison, axes: Sequence[pd.Series], x: pd.Series, y: pd.Series, **place: int
) -> int:
    """Add a point per run with a value and coordinates, and a circle around the best; return their number.

    The axes are named in the points' texts. Points are coloured by the metric unless it is along y.
    """
    values, runs = comparison.values, comparison.runs
    points = pd.DataFrame({"x": x, "y": y, "value": values}).dropna()
    texts = [f"{escape(runs[i].name)}<br>{escape(label(axes, i))}<br>{values[i]:.4f}" for i in points.index]
    style = {"mode": "markers", "showlegend": False, **place}
    marker: dict[str, Any] = {"color": BLUE, "size": 8}
    if y is not values:
        marker |= {"color": points["value"], "coloraxis": "coloraxis"}
    figure.add_scatter(x=points["x"], y=points["y"], marker=marker, hovertext=texts, hoverinfo="text", **style)
    best = points.loc[(sign_of(comparison.metric) * points["value"]).nlargest(1).index]
    circle = {"symbol": "circle-open", "size": 17, "color": ORANGE, "line_width": 2}
    figure.add_scatter(x=best["x"], y=best["y"], marker=circle, hoverinfo="skip", **style)
    return len(points)


def learning_curves(comparison: Comparison) -> list[Picture]:
    """A figure of training loss and validation metrics over steps; none if no run has logged any."""
    runs = comparison.runs
    logged = [i for i in comparison.order if any(steps for steps, _ in runs[i].curves.values())]
    if not logged:
        return []
    colored = len(logged) <= MOST_LINES
    # A run that ended before the first record of its loss has only metrics.
    names = [name for name in CURVES if any(runs[i].curves[name][0] for i in logged)]
    figure, places = _subplots(len(names), 440, 330)
    for rank, index in reversed(list(enumerate(logged))):
        run = runs[index]
        title = label(comparison.axes_and_seed, index) or run.name
        for place, name in zip(places, names, strict=True):
            steps, values = thinned(run.curves[name])
            figure.add_scatter(
                x=steps,
                y=values,
                name=escape(title if run.status in (None, "complete") else f"{title} ({run.ending})"),
                legendgroup=index,
                legendrank=rank,
                showlegend=place is places[0],
                line={"color": COLORS[rank] if colored else ORANGE if rank == 0 else GREY, "width": 1.5},
                opacity=1 if colored or rank == 0 else 0.6,
                mode="lines+markers" if len(steps) <= 20 else "lines",
                hovertemplate="step %{x}: %{y:.4g}",
                **place,
            )
    for place, name in zip(places, names, strict=True):
        figure.update_yaxes(title_text=name, **place)
    figure.update_xaxes(title_text="step", matches="x")
    figure.update_layout(hoverlabel_namelength=-1)
    sentences = [] if colored else ["The best run is in colour, all others are grey."]
    if any(len(steps) > CURVE_POINTS for i in logged for steps, _ in runs[i].curves.values()):
        sentences.append(f"Each point is the mean of neighbouring steps, at most {CURVE_POINTS} points per run.")
    if len(runs) > len(logged):
        sentences.append(f"Runs without a recorded curve: {len(runs) - len(logged)}.")
    return [Picture("Learning curves", figure, " ".join(sentences))]


def thinned(curve: Curve, most: int = CURVE_POINTS) -> Curve:
    """Reduce a curve to at most ``most`` points, each the mean of neighbours."""
    points = pd.DataFrame({"step": curve[0], "value": curve[1]})
    if len(points) > most:
        points = points.groupby(np.arange(len(points)) * most // len(points)).mean()
    return points["step"].tolist(), points["value"].tolist()


def _names(axes: Sequence[pd.Series]) -> str:
    return ", ".join(str(axis.name) for axis in axes)


def _coordinates(axis: pd.Series) -> pd.Series:
    """Numbers as they are, words as their positions; NaN if not recorded."""
    return axis.astype(float) if is_numeric(axis) else axis.cat.codes.where(axis.notna())


def _scale(axis: pd.Series, categorical: bool = False) -> dict[str, Any]:
    """Title, ticks at up to ten values or at words, and a logarithmic scale over more than one and a half decades.

    Args:
        axis: a setting.
        categorical: whether numbers, too, are spaced evenly.
    """
    values = axis.cat.categories
    categorical |= not is_numeric(axis)
    scale: dict[str, Any] = {"title_text": escape(str(axis.name))}
    if categorical or len(values) <= 10:
        texts = [escape(value_text(value)) for value in values]
        scale |= {"tickvals": list(range(len(values))) if categorical else list(values), "ticktext": texts}
    if not categorical and values.min() > 0 and values.max() / values.min() > 30:
        scale["type"] = "log"
    return scale


def _subplots(count: int, width: int, height: int, **options: Any) -> tuple[go.Figure, list[dict[str, int]]]:
    """A figure of ``count`` plots, at most three per row, of ``width`` x ``height`` pixels, and their places."""
    columns = min(count, 3)
    rows = -(-count // 3)
    gaps = {"horizontal_spacing": 90 / (width * columns), "vertical_spacing": 80 / (height * rows)}
    figure = make_subplots(rows, columns, **gaps, **options)
    figure.update_layout(width=width * columns, height=height * rows)
    return figure, [{"row": number // columns + 1, "col": number % columns + 1} for number in range(count)]
