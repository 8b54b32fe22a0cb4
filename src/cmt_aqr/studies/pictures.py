"""Pictures of a frame: AQR's maps, ground truth and detections, from above and in the cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    FOUND_STYLE,
    TRUTH_STYLE,
    VIEWS,
    Styled,
    box_handles,
    render_cameras,
    render_from_above,
)

_BEV_OPACITY, _CAMERA_OPACITY = 0.75, 0.55
"""Of the strongest colours of a map."""

_LOST = LinearSegmentedColormap.from_list("lost", [(0.85, 0.1, 0.75, 0.0), (0.85, 0.1, 0.75, _CAMERA_OPACITY)])
"""Of what faults broke: nothing shows nothing."""


@dataclass(frozen=True)
class MapPair:
    """AQR's maps of one sensor, before and after post-processing.

    Attributes:
        before: (row, column) or (view, row, column), as rendered.
        after: the same after threshold and clamp; what modulated the features.
        clamp: the limit in force, ``None`` without one.
    """

    before: Tensor
    after: Tensor
    clamp: float | None


@dataclass(frozen=True)
class QueryBeta:
    """What the queries of a frame said by a bias in the decoder's attention.

    Attributes:
        places: (query, 3), metres, LiDAR frame.
        beta: (query,), above 0 where a query prefers the LiDAR.
        lost: (query,) what faults broke there, 0 to 1, of ``LiDAR`` and ``cameras``; empty: not known.
        cells: (view, row, column) the same of the images as stored, or ``None``.
    """

    places: Tensor
    beta: Tensor
    lost: Mapping[str, Tensor] = field(default_factory=dict)
    cells: Tensor | None = None


@dataclass(frozen=True)
class Scene:
    """One frame, what the model found there and how it weighed it; everything on the CPU.

    Attributes:
        title: which frame of what.
        grid: of the model; its range is rendered, its cells are those of the BEV map.
        points: (point, >= 3), metres, LiDAR frame; empty where the model reads no LiDAR.
        images: (view, height, width, 3) uint8, RGB, as stored, or ``None`` where the model reads none.
        image_extent: left, right, bottom, top edges of the stored images in the network's pixels.
        image_size: height and width of the network's images.
        lidar2img: (view, 4, 4), LiDAR frame to the network's pixels.
        truth: (box, 9) annotated boxes, LiDAR frame.
        found: (box, 9) detections.
        min_score: the lowest score among those that may be in ``found``.
        bev: maps from above, or ``None`` without AQR or LiDAR.
        camera: maps of the cameras likewise.
        beta: what the queries said, where AQR is a bias; in place of maps.
    """

    title: str
    grid: BEVGrid
    points: Tensor
    images: NDArray[np.uint8] | None
    image_extent: tuple[float, float, float, float] | None
    image_size: tuple[int, int]
    lidar2img: Tensor
    truth: Tensor
    found: Tensor
    min_score: float
    bev: MapPair | None = None
    camera: MapPair | None = None
    beta: QueryBeta | None = None

    @property
    def boxes(self) -> Styled:
        """Annotated and detected ones."""
        return (self.truth, TRUTH_STYLE), (self.found, FOUND_STYLE)


def bev_edges(grid: BEVGrid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Borders of the BEV cells in metres, LiDAR frame: x of the columns, y of the rows, one more than cells."""
    rows, columns = grid.bev_shape
    count = max(rows, columns) + 1
    index = torch.arange(count, dtype=torch.float64)
    metres = grid.metres_of(torch.stack((index, index), dim=-1)).numpy()
    return metres[: columns + 1, 0], metres[: rows + 1, 1]


def image_edges(
    map_size: tuple[int, int], image_size: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Borders of the image cells in pixels: u of the columns, v of the rows.

    A cell takes the pixels that are nearest to its own position (see :mod:`cmt_aqr.geometry.cameras`), so the
    first is half as wide as the others, and the last half as wide again: it reaches to the image's border.
    """
    rows, columns = map_size

    def borders(count: int) -> Tensor:
        inner = torch.arange(1, count, dtype=torch.float64) - 0.5
        return torch.cat((inner.new_zeros(1), inner, inner.new_full((1,), count)))

    across, down = borders(columns), borders(rows)
    u = pixel_of_cell(torch.stack((across, across), dim=-1), image_size, map_size)[:, 0]
    v = pixel_of_cell(torch.stack((down, down), dim=-1), image_size, map_size)[:, 1]
    return u.numpy(), v.numpy()


def colour_scale(maps: MapPair) -> TwoSlopeNorm:
    """Colours for both maps of a pair: neutral at 1, where features stay as they are.

    The scale ends at the largest value, but not beyond 1.5 times the clamp: one hot spot would leave no
    colours for the rest. It always shows the clamp.
    """
    clamp = maps.clamp or 0.0
    largest = float(maps.before.max())
    top = min(largest, 1.5 * clamp) if clamp else largest
    return TwoSlopeNorm(vcenter=1.0, vmin=0.0, vmax=max(top, clamp, 1.5))


def see_through(strongest: float) -> ListedColormap:
    """Blue below 1, red above, and the more opaque the further away: up to ``strongest`` in [0, 1]."""
    share = np.linspace(-1, 1, 257)
    # Steeper near 1, where a straight ramp of colour and opacity together would show nothing.
    strength = np.abs(share) ** 0.6
    colours = colormaps["RdBu_r"](0.5 + 0.45 * np.sign(share) * strength)
    colours[:, 3] = strongest * strength
    return ListedColormap(colours)


def bev_picture(scene: Scene) -> Figure:
    """The frame from above: points, boxes, and the BEV map before and after the clamp."""
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
            _paint(axis, bev_edges(scene.grid), weights, scene.bev, strongest=_BEV_OPACITY)
        _colour_bar(figure, axes, scene.bev, strongest=_BEV_OPACITY)
    if scene.beta is not None:
        _render_beta(figure, axes, scene.beta)
    _legend(figure, scene, ego=True)
    return figure


def _render_beta(figure: Figure, axes: Sequence[Axes], said: QueryBeta) -> None:
    """Queries as dots: what they said, and beside it what faults broke of each sensor there."""
    x, y = said.places[:, 0].numpy(), said.places[:, 1].numpy()
    most = max(float(said.beta.abs().max()), 0.1)
    dots = axes[0].scatter(
        x, y, c=said.beta.numpy(), cmap="RdBu_r", vmin=-most, vmax=most, s=26, edgecolors="0.4", zorder=3
    )
    axes[0].set_title("beta of each query: red reads the LiDAR, blue the cameras", fontsize=10)
    figure.colorbar(dots, ax=axes[0], shrink=0.7, label="beta")
    for axis, (sensor, lost) in zip(axes[1:], said.lost.items(), strict=True):
        axis.set_title(f"what faults broke of the {sensor} at each query", fontsize=10)
        dots = axis.scatter(x, y, c=lost.numpy(), cmap="Greys", vmin=0, vmax=1, s=26, edgecolors="0.4", zorder=3)
        figure.colorbar(dots, ax=axis, shrink=0.7, label="share lost")


def camera_picture(scene: Scene) -> Figure:
    """The six images, which must be there, with projected boxes and the camera maps before and after the clamp."""
    maps: Sequence[tuple[str, Tensor | None]] = [("", None)] if scene.camera is None else _versions(scene.camera)
    height, width = scene.image_size
    row_height = 14.2 / 3 * height / width + 0.25
    figure = Figure(figsize=(15.6, 1.1 + len(maps) * (2 * row_height + 0.35)), layout="constrained")
    what = _title(scene, "cameras", scene.camera)
    if scene.beta is not None and scene.beta.cells is not None:
        what = f"{scene.title}: cameras, and what faults broke of them (magenta)"
    figure.suptitle(what, fontsize=13, fontweight="bold")
    parts = figure.subfigures(len(maps), 1, squeeze=False)[:, 0]
    for part, (heading, weights) in zip(parts, maps, strict=True):
        axes = _render_cameras(part, scene, weights)
        if scene.camera is not None:
            part.suptitle(heading, fontsize=10.5)
            _colour_bar(part, axes, scene.camera, strongest=_CAMERA_OPACITY)
    _legend(figure, scene, ego=False)
    return figure


def _title(scene: Scene, what: str, maps: MapPair | None) -> str:
    return f"{scene.title}: {what}" + (" (boxes only, no AQR map)" if maps is None else "")


def _versions(maps: MapPair) -> list[tuple[str, Tensor]]:
    """Headings and maps: before, after."""
    numbers = {name: value.item() for name, value in map_statistics(maps.before, maps.after).items()}
    end = "no clamp" if maps.clamp is None else f"clamp at {maps.clamp:g}"
    before = f"as rendered: max {numbers['max']:.3g}, mean {numbers['mean']:.3g}"
    after = f"after threshold and {end}: max {numbers['max_after']:.3g}, mean {numbers['mean_after']:.3g}"
    if maps.clamp is not None:
        after += f", {numbers['clamped']:.1%} of cells clamped"
    return [(before, maps.before), (after, maps.after)]


def _render_cameras(part: Figure | SubFigure, scene: Scene, weights: Tensor | None) -> list[Axes]:
    """The six images, with a map (view, row, column) over them if one is given; returns their axes."""
    axes: list[Axes] = list(part.subplots(2, 3).flat)
    assert scene.images is not None
    render_cameras(axes, scene.images, scene.boxes, scene.lidar2img, scene.image_size, scene.image_extent)
    for axis, view in zip(axes, VIEWS, strict=True):
        if scene.beta is not None and scene.beta.cells is not None:
            lost = scene.beta.cells[view].numpy()
            axis.imshow(lost, cmap=_LOST, vmin=0, vmax=1, extent=scene.image_extent, aspect="auto", zorder=3)
        if weights is not None and scene.camera is not None:
            edges = image_edges((weights.shape[1], weights.shape[2]), scene.image_size)
            _paint(axis, edges, weights[view], scene.camera, strongest=_CAMERA_OPACITY)
    return axes


def _paint(
    axis: Axes,
    edges: tuple[NDArray[np.float64], NDArray[np.float64]],
    weights: Tensor,
    maps: MapPair,
    strongest: float,
) -> None:
    """A map (row, column) as coloured cells between its borders in data coordinates."""
    limits = axis.get_xlim(), axis.get_ylim()
    axis.pcolorfast(*edges, weights.numpy(), cmap=see_through(strongest), norm=colour_scale(maps), zorder=3)
    axis.set(xlim=limits[0], ylim=limits[1])


def _colour_bar(figure: Figure | SubFigure, axes: Sequence[Axes], maps: MapPair, strongest: float) -> None:
    scale = colour_scale(maps)
    beyond = "max" if maps.before.max() > float(scale.vmax or 0) else "neither"
    colours = ScalarMappable(norm=scale, cmap=see_through(strongest))
    bar = figure.colorbar(colours, ax=list(axes), extend=beyond, shrink=0.9, pad=0.015, aspect=28)
    bar.set_label("map value W (1: features F · W = F)", fontsize=9, labelpad=10)
    marks = {0.0: "0", 0.5: "0.5", 1.0: "1", float(scale.vmax or 0): f"{scale.vmax:.2g}"}
    if maps.clamp is not None:
        marks[maps.clamp] = f"{maps.clamp:g} clamp"
        bar.ax.axhline(maps.clamp, color="black", linewidth=2.2)
    bar.set_ticks(list(marks), labels=list(marks.values()), fontsize=9)
    bar.minorticks_off()


def _legend(figure: Figure, scene: Scene, ego: bool) -> None:
    handles = box_handles(
        f"ground truth ({len(scene.truth)} boxes)",
        f"detections with a score of {scene.min_score:g} or more ({len(scene.found)})",
    )
    if ego:
        handles.append(Line2D([], [], color="black", marker="^", markersize=9, linestyle="none", label="the car"))
        if len(scene.points):
            handles.append(Line2D([], [], color="#3a3a3a", marker=".", linestyle="none", label="LiDAR points"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)
