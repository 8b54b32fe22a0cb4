"""Pictures of a frame: AQR's output, ground truth and detections, from above and in the cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, TwoSlopeNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from cmt_aqr.aqr.statistics import map_statistics
from cmt_aqr.geometry import BEVGrid, pixel_of_cell
from cmt_aqr.studies.rendering import (
    DASHED_STYLE,
    SOLID_STYLE,
    VIEWS,
    StyledBoxes,
    box_handles,
    render_cameras,
    render_from_above,
)

_BEV_OPACITY, _CAMERA_OPACITY = 0.75, 0.55
"""Maximum opacity of a map."""

_LOST = LinearSegmentedColormap.from_list("lost", [(0.85, 0.1, 0.75, 0.0), (0.85, 0.1, 0.75, _CAMERA_OPACITY)])
"""Colours of damage, from transparent to magenta."""


@dataclass(frozen=True)
class MapPair:
    """AQR's maps of one sensor, (row, column) or (view, row, column)."""

    before: Tensor  # as rendered
    after: Tensor  # after threshold and clamp; this map modulates the features
    clamp: float | None  # the limit in force; None: no clamp


@dataclass(frozen=True)
class QueryBeta:
    """The attention bias of a frame's queries."""

    positions: Tensor  # (query, 3), metres, LiDAR frame
    beta: Tensor  # (query,), above 0 if a query prefers the LiDAR
    lost: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # (query,) damage, 0 to 1, of "LiDAR" and "cameras"; empty: unknown
    image_damage: Tensor | None = None  # (view, row, column), 0 to 1, of the stored images


@dataclass(frozen=True)
class Scene:
    """A frame with the model's detections and AQR's output, on the CPU."""

    title: str
    grid: BEVGrid  # of the model: the rendered range, and the cells of the BEV map
    points: Tensor  # (point, >= 3), metres, LiDAR frame; empty if the model reads no LiDAR
    images: NDArray[np.uint8] | None  # (view, height, width, 3), RGB, as stored; None if the model reads none
    image_extent: tuple[float, float, float, float] | None  # left, right, bottom, top, in the network's pixels
    image_size: tuple[int, int]  # height and width of the network's images
    lidar2img: Tensor  # (view, 4, 4), LiDAR frame to the network's pixels
    truth: Tensor  # (box, 9) annotated boxes, LiDAR frame
    detections: Tensor  # (box, 9), LiDAR frame
    min_score: float  # threshold of the detections
    bev: MapPair | None = None  # None without AQR's maps, or without LiDAR
    camera: MapPair | None = None  # None without AQR's maps, or without cameras
    beta: QueryBeta | None = None  # if AQR is an attention bias, instead of maps

    @property
    def boxes(self) -> StyledBoxes:
        """Annotated boxes and detections."""
        return (self.truth, SOLID_STYLE), (self.detections, DASHED_STYLE)


def bev_edges(grid: BEVGrid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges of the BEV cells in metres, LiDAR frame: x (column + 1,) and y (row + 1,)."""
    rows, columns = grid.bev_shape
    count = max(rows, columns) + 1
    index = torch.arange(count, dtype=torch.float64)
    metres = grid.metres_of(torch.stack((index, index), dim=-1)).numpy()
    return metres[: columns + 1, 0], metres[: rows + 1, 1]


def image_edges(
    map_size: tuple[int, int], image_size: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges of the image cells in pixels: u (column + 1,) and v (row + 1,).

    A cell covers the pixels nearest to its position (see :mod:`cmt_aqr.geometry.cameras`): the first cell is half
    as wide as the others; the last, which extends to the image's border, one and a half times as wide.
    """
    rows, columns = map_size

    def edges(count: int) -> Tensor:
        inner = torch.arange(1, count, dtype=torch.float64) - 0.5
        cells = torch.cat((inner.new_zeros(1), inner, inner.new_full((1,), count)))
        return pixel_of_cell(torch.stack((cells, cells), dim=-1), image_size, map_size)

    return edges(columns)[:, 0].numpy(), edges(rows)[:, 1].numpy()


def colour_scale(maps: MapPair) -> TwoSlopeNorm:
    """The scale of both maps of a pair: neutral at 1, where features are unchanged.

    It ends at the largest value, but at most at 1.5 times the clamp, so that a single peak does not use up the
    colours, and at least at the clamp.
    """
    clamp = maps.clamp or 0.0
    largest = float(maps.before.max())
    top = min(largest, 1.5 * clamp) if clamp else largest
    return TwoSlopeNorm(vcenter=1.0, vmin=0.0, vmax=max(top, clamp, 1.5))


def translucent(opacity: float) -> ListedColormap:
    """Blue below 1, red above, and more opaque with the distance from 1, up to ``opacity``."""
    offset = np.linspace(-1, 1, 257)
    # Steeper near 1, where linear ramps of colour and opacity would hardly be visible.
    strength = np.abs(offset) ** 0.6
    colours = colormaps["RdBu_r"](0.5 + 0.45 * np.sign(offset) * strength)
    colours[:, 3] = opacity * strength
    return ListedColormap(colours)


def bev_picture(scene: Scene) -> Figure:
    """The frame from above: points, boxes, and the BEV map before and after post-processing, or beta."""
    panels = 2 if scene.bev is not None else 1 if scene.beta is None else 1 + len(scene.beta.lost)
    figure = Figure(figsize=(1.2 + 6.6 * panels, 7.7), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, panels, sharex=True, sharey=True, squeeze=False)[0]
    title = f"{scene.title}: from above" if scene.beta is not None else _title(scene, "from above", scene.bev)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    for axis in axes:
        render_from_above(axis, scene.points, scene.boxes, scene.grid.point_range)
    axes[0].set_ylabel("y, forward (m)")
    if scene.bev is not None:
        for axis, (heading, weights) in zip(axes, _versions(scene.bev), strict=True):
            axis.set_title(heading, fontsize=10)
            image = _render_map(axis, bev_edges(scene.grid), weights, scene.bev, _BEV_OPACITY)
        _colour_bar(figure, axes, image, scene.bev)
    if scene.beta is not None:
        _render_beta(figure, axes, scene.beta)
    _legend(figure, scene, ego=True)
    return figure


def _render_beta(figure: Figure, axes: Sequence[Axes], queries: QueryBeta) -> None:
    """Render queries as dots: their beta, and on further axes the damage of each sensor."""
    most = max(float(queries.beta.abs().max()), 0.1)
    panels = [
        ("beta of each query: red reads the LiDAR, blue the cameras", "beta", queries.beta, "RdBu_r", -most, most)
    ]
    for sensor, lost in queries.lost.items():
        panels.append((f"damage of the {sensor} at each query", "share lost", lost, "Greys", 0, 1))
    x, y = queries.positions[:, 0].numpy(), queries.positions[:, 1].numpy()
    for axis, (title, label, values, colours, low, high) in zip(axes, panels, strict=True):
        axis.set_title(title, fontsize=10)
        style: Any = {"cmap": colours, "vmin": low, "vmax": high, "s": 26, "edgecolors": "0.4", "zorder": 3}
        dots = axis.scatter(x, y, c=values.numpy(), **style)
        figure.colorbar(dots, ax=axis, shrink=0.7, label=label)


def camera_picture(scene: Scene) -> Figure:
    """The six images with projected boxes, and the camera map before and after post-processing, or the damage."""
    maps: Sequence[tuple[str, Tensor | None]] = [("", None)] if scene.camera is None else _versions(scene.camera)
    height, width = scene.image_size
    row_height = 14.2 / 3 * height / width + 0.25
    figure = Figure(figsize=(15.6, 1.1 + len(maps) * (2 * row_height + 0.35)), layout="constrained")
    title = _title(scene, "cameras", scene.camera)
    if scene.beta is not None and scene.beta.image_damage is not None:
        title = f"{scene.title}: cameras, with their damage in magenta"
    figure.suptitle(title, fontsize=13, fontweight="bold")
    parts = figure.subfigures(len(maps), 1, squeeze=False)[:, 0]
    for part, (heading, weights) in zip(parts, maps, strict=True):
        axes = _render_cameras(part, scene, weights)
        if scene.camera is not None:
            part.suptitle(heading, fontsize=10.5)
            _colour_bar(part, axes, axes[0].images[-1], scene.camera)
    _legend(figure, scene, ego=False)
    return figure


def _title(scene: Scene, view: str, maps: MapPair | None) -> str:
    return f"{scene.title}: {view}" + (" (boxes only, no AQR map)" if maps is None else "")


def _versions(maps: MapPair) -> list[tuple[str, Tensor]]:
    """Headings and maps before and after post-processing."""
    numbers = {name: value.item() for name, value in map_statistics(maps.before, maps.after).items()}
    limit = "no clamp" if maps.clamp is None else f"clamp at {maps.clamp:g}"
    before = f"as rendered: max {numbers['max']:.3g}, mean {numbers['mean']:.3g}"
    after = f"after threshold and {limit}: max {numbers['max_after']:.3g}, mean {numbers['mean_after']:.3g}"
    if maps.clamp is not None:
        after += f", {numbers['clamped']:.1%} of cells clamped"
    return [(before, maps.before), (after, maps.after)]


def _render_cameras(part: Figure | SubFigure, scene: Scene, weights: Tensor | None) -> list[Axes]:
    """Render the six images, with damage and a map (view, row, column) over them, if any; returns their axes."""
    axes: list[Axes] = list(part.subplots(2, 3).flat)
    assert scene.images is not None
    render_cameras(axes, scene.images, scene.boxes, scene.lidar2img, scene.image_size, scene.image_extent)
    for axis, view in zip(axes, VIEWS, strict=True):
        if scene.beta is not None and scene.beta.image_damage is not None:
            damage = scene.beta.image_damage[view].numpy()
            axis.imshow(damage, cmap=_LOST, vmin=0, vmax=1, extent=scene.image_extent, aspect="auto", zorder=3)
        if weights is not None and scene.camera is not None:
            edges = image_edges((weights.shape[1], weights.shape[2]), scene.image_size)
            _render_map(axis, edges, weights[view], scene.camera, _CAMERA_OPACITY)
    return axes


def _render_map(
    axis: Axes,
    edges: tuple[NDArray[np.float64], NDArray[np.float64]],
    weights: Tensor,
    maps: MapPair,
    opacity: float,
) -> ScalarMappable:
    """Render a map (row, column) of a pair as coloured cells between edges in data coordinates."""
    limits = axis.get_xlim(), axis.get_ylim()
    image = axis.pcolorfast(*edges, weights.numpy(), cmap=translucent(opacity), norm=colour_scale(maps), zorder=3)
    axis.set(xlim=limits[0], ylim=limits[1])
    return image


def _colour_bar(figure: Figure | SubFigure, axes: Sequence[Axes], image: ScalarMappable, maps: MapPair) -> None:
    top = float(colour_scale(maps).vmax or 0)
    extend = "max" if maps.before.max() > top else "neither"
    bar = figure.colorbar(image, ax=list(axes), extend=extend, shrink=0.9, pad=0.015, aspect=28)
    bar.set_label("map value W (1: features F · W = F)", fontsize=9, labelpad=10)
    ticks = {0.0: "0", 0.5: "0.5", 1.0: "1", top: f"{top:.2g}"}
    if maps.clamp is not None:
        ticks[maps.clamp] = f"{maps.clamp:g} clamp"
        bar.ax.axhline(maps.clamp, color="black", linewidth=2.2)
    bar.set_ticks(list(ticks), labels=list(ticks.values()), fontsize=9)
    bar.minorticks_off()


def _legend(figure: Figure, scene: Scene, ego: bool) -> None:
    handles = box_handles(
        f"ground truth ({len(scene.truth)} boxes)",
        f"detections with a score of {scene.min_score:g} or more ({len(scene.detections)})",
    )
    if ego:
        handles.append(Line2D([], [], color="black", marker="^", markersize=9, linestyle="none", label="the car"))
        if len(scene.points):
            handles.append(Line2D([], [], color="#3a3a3a", marker=".", linestyle="none", label="LiDAR points"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)
