"""Why the maps of the old AQR exploded: five findings, each with numbers of the old behaviour and of ours.

The old code's behaviour is written here as formulas: where it rendered, what it rendered, and its gradient. It
needs a frame's calibration and boxes, but no trained weights. Every query has the weight :data:`WEIGHT`, as at the
start of training. ``benchmarks/old_aqr/README.md`` explains the findings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.table import Table
from scipy.stats import mannwhitneyu
from torch import Tensor

from cmt_aqr.aqr import (
    AQR,
    METHODS,
    Modulator,
    Placement,
    Renderer,
    WeightGenerator,
    place_on_bev,
    place_on_images,
)
from cmt_aqr.errors import UserError
from cmt_aqr.geometry import BEVGrid, to_metres, to_unit
from cmt_aqr.structures import Frame, Queries, Sensors, Views

WEIGHT = 0.82
"""sigmoid(1.5), every query's weight when training starts."""

MATCHING, DENOISING, PADDING = 900, 290, 540
"""Queries of a training step: learned, at noised boxes, and padding up to the fullest frame of a batch."""

IMAGE_STRIDE = 16
"""Pixels between cells of the camera maps."""

OLD_RESIDUAL, RESIDUAL = 0.7, 0.65
"""Residual weights r: of the run that reported the maximum of 70.83, and of the recommended preset."""

_DRAWS = 5
"""Number of seeds over which figures are averaged."""

_LEAK_DRAWS = 50
"""The same for the leak, where the values in the few cells with a box vary more."""


@dataclass(frozen=True)
class MapScene:
    """The calibration and boxes of a frame.

    Attributes:
        lidar2img: (1, view, 4, 4), LiDAR frame to the network's pixels.
        boxes: (box, 9) that contain LiDAR points, LiDAR frame.
        image_size: height and width of the network's images in pixels.
        grid: grid of the BEV map.
    """

    lidar2img: Tensor
    boxes: Tensor
    image_size: tuple[int, int]
    grid: BEVGrid

    @classmethod
    def of_frame(cls, frame: Frame, grid: BEVGrid) -> MapScene:
        """Build from a frame as it enters the network.

        Raises:
            UserError: the frame has no images, or no box with LiDAR points.
        """
        boxes = frame.boxes[frame.box_points > 0]
        if frame.images is None or not len(boxes):
            raise UserError(f"frame {frame.token} has no images or no boxes with points: choose another frame=")
        size = (frame.images.shape[-2], frame.images.shape[-1])
        return cls(frame.lidar2img[None], boxes, size, grid)

    @property
    def image_map(self) -> tuple[int, int]:
        """Rows and columns of a camera map."""
        return self.image_size[0] // IMAGE_STRIDE, self.image_size[1] // IMAGE_STRIDE

    def queries(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random matching, denoising and padding queries (query, 3), metres, LiDAR frame.

        Matching queries are uniform over the range, denoising queries uniform in the boxes (as if all headings
        were 0), and padding is 0 in the unit cube, the corner of the range.
        """
        random = torch.Generator().manual_seed(seed)
        matching = to_metres(torch.rand(MATCHING, 3, generator=random), self.grid.point_range)
        boxes = self.boxes[torch.randint(0, len(self.boxes), (DENOISING,), generator=random)]
        noise = torch.rand(DENOISING, 3, generator=random) - 0.5
        padding = to_metres(torch.zeros(PADDING, 3), self.grid.point_range)
        return matching, boxes[:, :3] + noise * boxes[:, 3:6], padding

    def on_images(self, *parts: Tensor) -> Placement:
        """Place queries on the camera maps, in every view that sees them."""
        return place_on_images(torch.cat(parts)[None], self.lidar2img, self.image_size, self.image_map)

    def on_bev(self, *parts: Tensor) -> Placement:
        """Place queries on the BEV map."""
        return place_on_bev(torch.cat(parts)[None], self.grid)


@dataclass(frozen=True)
class Row:
    """A number of the old AQR and of ours, and the format specification of both."""

    quantity: str
    old: float
    ours: float
    form: str = ".2f"


@dataclass(frozen=True)
class Finding:
    """A defect, the function that measures it on a frame, and a note on the numbers."""

    title: str
    measure: Callable[[MapScene], list[Row]] = field(repr=False)
    note: str = ""


def finding_table(finding: Finding, rows: Sequence[Row]) -> Table:
    """A table of a finding's numbers."""
    table = Table(
        title=finding.title, caption=finding.note, title_justify="left", caption_justify="left", width=88
    )
    table.add_column("", ratio=1)
    table.add_column("old", justify="right")
    table.add_column("ours", justify="right")
    for row in rows:
        table.add_row(row.quantity, format(row.old, row.form), format(row.ours, row.form))
    return table


def in_first_view(placement: Placement) -> Placement:
    """The old placement on the camera maps: each query only in the first view that sees it."""
    first = placement.inside & (placement.inside.cumsum(dim=1) == 1)
    return Placement(placement.position, first, placement.map_size)


def unseen_at_first_cell(placement: Placement) -> Placement:
    """The old placement of queries that no camera sees: cell (0, 0) of view 0."""
    unseen = ~placement.inside.any(dim=1)
    inside, position = placement.inside.clone(), placement.position.clone()
    inside[:, 0] |= unseen
    position[:, 0][unseen] = 0.0
    return Placement(position, inside, placement.map_size)


def on_scaled_range(points: Tensor, grid: BEVGrid) -> Placement:
    """The old placement on the BEV map: (x - x_min) / (x_max - x_min) * columns, for points (batch, query, 3).

    The features' cells are (x - x_min) / (voxel size * stride), which agrees only if the cells span the range.
    """
    rows, columns = grid.bev_shape
    cell = to_unit(points, grid.point_range)[..., :2] * points.new_tensor((columns, rows))
    inside = ((cell >= 0) & (cell < cell.new_tensor((columns, rows)))).all(dim=-1)
    return Placement((cell - 0.5).clamp(min=0), inside, grid.bev_shape)


class DetachedRenderer(Renderer):
    """A renderer without gradients, as the old one, which rendered each weight as a Python number."""

    def render(self, weights: Tensor, placement: Placement, valid: Tensor | None = None) -> Tensor:
        """Render the same maps, detached from the weights."""
        return super().render(torch.tensor(weights.tolist(), dtype=weights.dtype), placement, valid)


def camera_figures(placement: Placement, residual: float, **settings: object) -> tuple[float, float, float, float]:
    """Maximum, mean and standard deviation of the camera maps, and relative change mean(|F' - F| / |F|)."""
    weights = torch.full((1, 1, placement.inside.shape[-1]), WEIGHT)
    _, rendered = Renderer(**settings)(weights, placement)  # type: ignore[arg-type]
    gain = Modulator(residual_weight=residual).gain(rendered, "image")
    return rendered.max().item(), rendered.mean().item(), rendered.std().item(), (gain - 1).abs().mean().item()


def _mean_over_draws(measure: Callable[[int], Sequence[float]], draws: int = _DRAWS) -> list[float]:
    """The mean of a measurement over seeds of the queries."""
    return np.mean([measure(seed) for seed in range(draws)], axis=0).tolist()


def pile_up(scene: MapScene) -> list[Row]:
    """The maximum of 70.83: padding queries in one pixel, and queries that no camera sees in another."""
    free = {"residual": OLD_RESIDUAL, "max_weight_clamp": None}

    def old(seed: int) -> tuple[float, ...]:
        matching, denoising, padding = scene.queries(seed)
        everything = in_first_view(scene.on_images(matching, denoising, padding))
        parts = (
            in_first_view(scene.on_images(matching, denoising)),
            in_first_view(scene.on_images(padding)),
            unseen_at_first_cell(in_first_view(scene.on_images(matching))),
        )
        highest = (camera_figures(part, **free)[0] for part in parts)  # type: ignore[arg-type]
        return (*camera_figures(everything, **free)[:3], *highest)  # type: ignore[arg-type]

    def ours(seed: int) -> tuple[float, ...]:
        matching, _, padding = scene.queries(seed)
        figures = camera_figures(scene.on_images(matching), RESIDUAL, max_weight_clamp=None)[:3]
        hidden = torch.zeros(1, 1, PADDING, dtype=torch.bool)
        empty = Renderer().render(torch.full((1, 1, PADDING), WEIGHT), scene.on_images(padding), hidden)
        return (*figures, figures[0], empty.max().item(), figures[0])

    quantities = (
        "maximum of the camera maps",
        "mean",
        "standard deviation",
        "maximum without the padding queries",
        f"maximum of the {PADDING} padding queries alone",
        "maximum, unseen matching queries at cell (0, 0)",
    )
    return _rows(quantities, _mean_over_draws(old), _mean_over_draws(ours))


def gradient(scene: MapScene) -> list[Row]:
    """Whether the loss reaches the weight generator, for each render method, on random features."""
    rows: list[Row] = []
    for method in METHODS:
        old_count, _, old_norm = _generator_gradient(scene, DetachedRenderer(method))
        count, total, norm = _generator_gradient(scene, Renderer(method))
        if not rows:
            rows.append(Row(f"generator's {total} parameter tensors that get a gradient", old_count, count, ".0f"))
        rows.append(Row(f"norm of the generator's gradient, {method}", old_norm, norm, ".1e"))
    return rows


def _generator_gradient(scene: MapScene, renderer: Renderer) -> tuple[int, int, float]:
    """The number of the generator's parameters with a gradient, of all its parameters, and the gradient's norm."""
    channels = 32
    (rows, columns), (height, width) = scene.grid.bev_shape, scene.image_map
    views = scene.lidar2img.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        aqr = AQR(WeightGenerator(embed_dims=channels, feedforward_dims=channels), renderer, Modulator()).eval()
        bev, images = torch.randn(1, channels, rows, columns), torch.randn(1, views, channels, height, width)
        embedding, places = torch.randn(1, MATCHING, channels), scene.queries(0)[0][None]
        # The backbones get their gradient either way, so the old code's loss went down all the same.
        sensors = Sensors(
            bev=bev.requires_grad_(),
            images=images.requires_grad_(),
            bev_position=torch.randn(rows * columns, channels),
            image_position=torch.randn(1, views, height * width, channels),
            grid=scene.grid,
            views=Views.of(scene.lidar2img, scene.image_size),
        )
        output = aqr(Queries(embedding, torch.zeros_like(places), places), sensors)
    (output.bev_features.square().mean() + output.image_features.square().mean()).backward()
    parameters = list(aqr.generator.parameters())
    norms = [p.grad.norm() for p in parameters if p.grad is not None and p.grad.abs().sum() > 0]
    return len(norms), len(parameters), torch.stack(norms).norm().item() if norms else 0.0


def leak(scene: MapScene) -> list[Row]:
    """How well the BEV map of a training step shows where the boxes are; without padding."""
    place = scene.on_bev(scene.boxes[:, :3])
    cells = place.cell[place.inside]
    box = torch.zeros(scene.grid.bev_shape, dtype=torch.bool)
    box[cells[:, 1], cells[:, 0]] = True
    renderer = Renderer()

    def both(seed: int) -> list[float]:
        matching, denoising, _ = scene.queries(seed)
        everything = scene.on_bev(matching, denoising)
        weights = torch.full(everything.inside.shape, WEIGHT)
        learned = (torch.arange(weights.shape[1]) < MATCHING)[None]
        test = renderer.render(weights[:, :MATCHING], scene.on_bev(matching))[0]
        figures = []
        for draws in (None, learned):  # old, ours
            training = renderer.render(weights, everything, draws)[0]
            means = [rendered[box].mean().item() for rendered in (training, test)]
            chances = [_chance_that_box_is_higher(rendered, box) for rendered in (training, test)]
            figures += [*means, *chances, (training - test).abs().max().item()]
        return figures

    numbers = _mean_over_draws(both, _LEAK_DRAWS)
    quantities = (
        "mean BEV map value in the boxes' cells, training",
        "the same at test time",
        "chance that a box's cell is higher than another, training",
        "the same at test time",
        "largest difference between training and test",
    )
    return _rows(quantities, numbers[:5], numbers[5:])


def _chance_that_box_is_higher(rendered: Tensor, box: Tensor) -> float:
    """Probability that a random cell with a box has a higher value than one without; ties count half.

    This is the area under the ROC curve, by the statistic of Mann and Whitney (1947); 0.5 is chance.
    """
    inside, outside = rendered[box].numpy(), rendered[~box].numpy()
    return float(mannwhitneyu(inside, outside, method="asymptotic").statistic) / (len(inside) * len(outside))


def offset(scene: MapScene) -> list[Row]:
    """The distance between a query's feature and its place on the BEV map: along the map, and for the boxes."""
    grid = scene.grid
    columns = grid.bev_shape[1]
    column = torch.arange(columns, dtype=torch.float64) + 0.5
    line = torch.zeros(1, columns, 3, dtype=torch.float64)
    line[0, :, :2] = grid.metres_of(torch.stack((column, torch.full_like(column, 0.5)), dim=-1))
    boxes = scene.boxes[None, :, :3].double()
    boxes = boxes[:, scene.on_bev(boxes[0]).inside[0]]

    def numbers(place: Callable[[Tensor, BEVGrid], Placement]) -> tuple[float, ...]:
        along = (place(line, grid).position + 0.5 - grid.cell_of(line[..., :2]))[..., 0].abs().max().item()
        cells = place(boxes, grid).cell - grid.cell_of(boxes[..., :2]).floor().long()
        metres = (cells * boxes.new_tensor(grid.cell_size)).norm(dim=-1)
        elsewhere = (cells != 0).any(dim=-1).double()
        return along, along * grid.cell_size[0], metres.mean().item(), metres.max().item(), elsewhere.mean().item()

    quantities = (
        "farthest that a query is rendered from its feature along x (cells)",
        "the same (m)",
        "from a box's feature cell to the cell of its map, mean (m)",
        "the same, largest (m)",
        "boxes whose map peaks in another cell than their feature",
    )
    forms = (".1f", ".1f", ".1f", ".1f", ".0%")
    return _rows(quantities, numbers(on_scaled_range), numbers(place_on_bev), forms)


def background(scene: MapScene) -> list[Row]:
    """How the features that no query reaches change, and their share of the relative change."""

    def measure(placement: Placement, residual: float, **settings: object) -> tuple[float, ...]:
        weights = torch.full((1, 1, placement.inside.shape[-1]), WEIGHT)
        unreached = Renderer(max_weight_clamp=None).render(weights, placement) == 0
        _, rendered = Renderer(**settings)(weights, placement)  # type: ignore[arg-type]
        gain = Modulator(residual_weight=residual).gain(rendered, "image")
        change = (gain - 1).abs()
        return (
            unreached.double().mean().item(),
            gain[unreached].mean().item(),
            change.mean().item(),
            (change * (gain < 1)).mean().item(),
        )

    def old(seed: int) -> tuple[float, ...]:
        placement = in_first_view(scene.on_images(*scene.queries(seed)))
        free = measure(placement, OLD_RESIDUAL, max_weight_clamp=None)
        return (*free, measure(placement, OLD_RESIDUAL, max_weight_clamp=1.5)[2])

    def ours(seed: int) -> tuple[float, ...]:
        placement = scene.on_images(scene.queries(seed)[0])
        free = measure(placement, RESIDUAL, render_method="kernel_mean", max_weight_clamp=None)
        return (*free, measure(placement, RESIDUAL, render_method="kernel_mean", max_weight_clamp=1.5)[2])

    quantities = (
        "camera cells that no query reaches",
        "what their features are multiplied with",
        "relative change of the camera features",
        "of that, by cells that shrink",
        "relative change with a clamp at 1.5",
    )
    forms = (".1%", ".2f", ".1%", ".1%", ".1%")
    return _rows(quantities, _mean_over_draws(old), _mean_over_draws(ours), forms)


def _rows(
    quantities: Sequence[str], old: Sequence[float], ours: Sequence[float], forms: Sequence[str] | None = None
) -> list[Row]:
    chosen = forms or [".2f"] * len(quantities)
    return [Row(*parts) for parts in zip(quantities, old, ours, chosen, strict=True)]


FINDINGS = {
    "pile_up": Finding(
        "The pile-up: padding in one pixel",
        pile_up,
        f"{MATCHING} matching, {DENOISING} denoising, {PADDING} padding queries, every weight {WEIGHT}, "
        f"sigma 1, no clamp; mean of {_DRAWS} draws.",
    ),
    "gradient": Finding(
        "No gradient: weights read out as numbers",
        gradient,
        "Random features and loss; the frame gives places. What counts is 0 or not 0.",
    ),
    "leak": Finding(
        "The leak: denoising queries show where the boxes are",
        leak,
        f"Mean of {_LEAK_DRAWS} draws. 0.5 is what a map without any knowledge of the boxes has.",
    ),
    "offset": Finding(
        "The wrong cell: the declared range scaled to the map's width",
        offset,
        "Along y it is the same, so that the corner of the map is off by 1.4 times as much.",
    ),
    "background": Finding(
        "Shrinking: features away from queries lose a share",
        background,
        f"Old: all queries, r {OLD_RESIDUAL}. Ours: matching queries, r {RESIDUAL}, render_method=kernel_mean; "
        "the presets keep the old formula, for comparison.",
    ),
}
"""The findings by the name that ``benchmarks/old_aqr/explain_maps.py`` takes."""
