"""The renderer: the queries' weights, drawn onto a feature map.

Every method is a fixed linear map of the weights (``direct``: a maximum), so the detection loss reaches the
generator through it. Queries that stand in the same cell are first added up there; what the kernel does to
the cells then costs the same for one query and for thousands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn

from cmt_aqr.aqr.checks import (
    is_count,
    is_number,
    require,
    require_above_zero,
    require_choice,
    require_flag,
)
from cmt_aqr.aqr.placement import Placement
from cmt_aqr.errors import SettingError

RENDER_METHODS = ("gaussian", "bilinear", "direct", "distance_weighted", "kernel_mean")
KERNEL_NORMALIZATIONS = ("sum", "peak")
CLAMP_MODES = ("hard", "soft")


class Renderer(nn.Module):
    r"""Draws weights onto maps, then post-processes them: threshold, clamp. BEV and cameras alike.

    With w_q the weight of query q, c_q its cell and d the distance from c_q to a cell p in cells, the map is

    - ``gaussian``: sum over q of w_q k(p - c_q), with k the Gaussian of ``gaussian_sigma`` cells on
      int(6 sigma + 1) cells along a side, one more if that is even; normalised to sum 1 or to peak 1
      (``kernel_normalization``). The kernel stands on the query's cell, not on its exact position.
    - ``bilinear``: each weight is shared out over the four cells whose centres surround the exact position.
    - ``direct``: the largest weight of the queries in a cell.
    - ``distance_weighted``: sum over q of w_q exp(-d / (``distance_decay`` * reach)) where d <= reach, with
      reach = ``reach_fraction`` of the map's shorter side, in cells.
    - ``kernel_mean``: the Gaussian's mean of the weights, sum(w_q k) / sum(k); 1 where no query reaches.

    A kernel is cut at the border of the map: what would fall outside is lost, and the cells inside are what
    they would be on a larger map. Post-processing, in this order:

    1. values below ``min_weight_threshold`` become 0;
    2. with ``normalize_weights`` the map x is clamped to [0, L], L = ``max_weight_clamp``: ``clamp_mode``
       hard min(x, L), whose gradient above L is 0; or soft, x up to L / 2 and L - (L / 2)^2 / x above, which
       stays below L and keeps the slope (L / 2x)^2.

    The limit is a buffer: a schedule changes it with :meth:`set_clamp`, and it travels in checkpoints.

    Args:
        render_method: one of :data:`RENDER_METHODS`.
        gaussian_sigma: in cells, for ``gaussian`` and ``kernel_mean``.
        kernel_normalization: ``sum`` or ``peak``, for ``gaussian``.
        distance_decay: for ``distance_weighted``.
        reach_fraction: for ``distance_weighted``, in (0, 1].
        min_weight_threshold: at least 0; 0 keeps everything.
        normalize_weights: whether to clamp.
        clamp_mode: ``hard`` or ``soft``.
        max_weight_clamp: above 0, or ``None`` for no clamp.
        bev_feature_shape: rows and columns that the BEV features must have; ``None`` takes them as they are.
        pers_feature_shape: views, rows and columns that the image features must have; ``None`` likewise.

    Raises:
        SettingError: a value is out of range; the sentence names its configuration key.
    """

    clamp_limit: Tensor

    def __init__(
        self,
        render_method: str = "gaussian",
        gaussian_sigma: float = 1.0,
        kernel_normalization: str = "sum",
        distance_decay: float = 0.8,
        reach_fraction: float = 0.2,
        min_weight_threshold: float = 0.01,
        normalize_weights: bool = True,
        clamp_mode: str = "hard",
        max_weight_clamp: float | None = 2.0,
        bev_feature_shape: Sequence[int] | None = None,
        pers_feature_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        require_choice("renderer.render_method", render_method, RENDER_METHODS)
        require_above_zero("renderer.gaussian_sigma", gaussian_sigma)
        require_choice("renderer.kernel_normalization", kernel_normalization, KERNEL_NORMALIZATIONS)
        require_above_zero("renderer.distance_decay", distance_decay)
        require(
            is_number(reach_fraction) and 0 < reach_fraction <= 1,
            "renderer.reach_fraction",
            reach_fraction,
            "above 0 and at most 1",
        )
        require(
            is_number(min_weight_threshold) and min_weight_threshold >= 0,
            "renderer.min_weight_threshold",
            min_weight_threshold,
            "a number of at least 0",
        )
        require_flag("renderer.normalize_weights", normalize_weights)
        require_choice("renderer.clamp_mode", clamp_mode, CLAMP_MODES)
        self.render_method = render_method
        self.gaussian_sigma = float(gaussian_sigma)
        self.kernel_normalization = kernel_normalization
        self.distance_decay = float(distance_decay)
        self.reach_fraction = float(reach_fraction)
        self.min_weight_threshold = float(min_weight_threshold)
        self.normalize_weights = normalize_weights
        self.clamp_mode = clamp_mode
        self.bev_feature_shape = _checked_shape("bev_feature_shape", bev_feature_shape, 2)
        self.pers_feature_shape = _checked_shape("pers_feature_shape", pers_feature_shape, 3)
        self.register_buffer("clamp_limit", torch.tensor(math.inf))
        self.set_clamp(max_weight_clamp)

    @property
    def max_weight_clamp(self) -> float | None:
        """The clamp's current limit, ``None`` for no clamp. Reading it waits for the device."""
        limit = self.clamp_limit.item()
        return None if math.isinf(limit) else limit

    def set_clamp(self, value: float | None) -> None:
        """Change the clamp's limit from now on: above 0, or ``None`` for no clamp.

        Raises:
            SettingError: the value is not above 0.
        """
        require(
            value is None or (is_number(value) and value > 0),
            "renderer.max_weight_clamp",
            value,
            "above 0, or null for no clamp",
        )
        self.clamp_limit.fill_(math.inf if value is None else value)

    @property
    def kernel_size(self) -> int:
        """Cells along a side of the Gaussian kernel: int(6 sigma + 1), one more if that is even."""
        size = int(6 * self.gaussian_sigma + 1)
        return size + 1 - size % 2

    @property
    def background(self) -> float:
        """A map's value where no query reaches, before post-processing."""
        return 1.0 if self.render_method == "kernel_mean" else 0.0

    def check_shapes(self, bev_shape: tuple[int, int] | None, image_shape: tuple[int, int, int] | None) -> None:
        """Compare the features' shapes with the configured ones, where both are there.

        Args:
            bev_shape: rows and columns of the BEV features.
            image_shape: views, rows and columns of the image features.

        Raises:
            SettingError: they differ.
        """
        for name, actual in (("bev_feature_shape", bev_shape), ("pers_feature_shape", image_shape)):
            declared = getattr(self, name)
            if declared is not None and actual is not None and declared != tuple(actual):
                raise SettingError(
                    f"renderer.{name}={list(declared)}: must be {list(actual)}, the shape of the model's "
                    "features, or null to take it from them"
                )

    def forward(self, weights: Tensor, placement: Placement, draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw and post-process.

        Args:
            weights: (..., query); leading dimensions broadcast to the placement's.
            placement: where the queries stand, leading shape (...).
            draws: (..., query) bool, queries that may draw; ``None``: all. Those outside a map never do.

        Returns:
            the maps (..., row, column) as drawn, and after post-processing; float32 or better.
        """
        dtype = torch.promote_types(weights.dtype, torch.float32)
        with torch.autocast(weights.device.type, enabled=False):
            drawn = self.draw(weights.to(dtype), placement, draws)
            return drawn, self.post_process(drawn)

    def draw(self, weights: Tensor, placement: Placement, draws: Tensor | None = None) -> Tensor:
        """The maps (..., row, column) before post-processing, from weights (..., query)."""
        inside = placement.inside if draws is None else placement.inside & draws
        leading, count = inside.shape[:-1], inside.shape[-1]
        # A query that does not draw adds 0 to the cell that its position is kept in.
        drawing = torch.where(inside, weights, 0.0)
        method = getattr(self, f"_draw_{self.render_method}")
        maps = math.prod(leading)
        drawn: Tensor = method(
            drawing.reshape(maps, count),
            inside.reshape(maps, count),
            placement.position.reshape(maps, count, 2),
            placement.cell.reshape(maps, count, 2),
            placement.map_size,
        )
        return drawn.view(*leading, *placement.map_size)

    def post_process(self, drawn: Tensor) -> Tensor:
        """Threshold, then clamp if ``normalize_weights``: maps of any shape to maps of the same shape."""
        kept = torch.where(drawn < self.min_weight_threshold, 0.0, drawn)
        if not self.normalize_weights:
            return kept
        limit = self.clamp_limit.to(drawn.dtype)
        kept = kept.clamp(min=0)
        return torch.minimum(kept, limit) if self.clamp_mode == "hard" else soft_clamp(kept, limit)

    # The methods: weights (0 where not inside) and inside (map, query), position and cell (map, query, 2)
    # -> (map, row, column).

    def _draw_gaussian(
        self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: tuple[int, int]
    ) -> Tensor:
        return self._gaussian_filter(_add_up(weights, _cell_number(cell, size), size))

    def _draw_kernel_mean(
        self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: tuple[int, int]
    ) -> Tensor:
        number = _cell_number(cell, size)
        weighted = self._gaussian_filter(_add_up(weights, number, size))
        total = self._gaussian_filter(_add_up(inside.to(weights.dtype), number, size))
        reached = total > 0
        return torch.where(reached, weighted / torch.where(reached, total, 1.0), 1.0)

    def _draw_bilinear(
        self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: tuple[int, int]
    ) -> Tensor:
        rows, columns = size
        first = position.floor()
        share_x, share_y = (position - first).to(weights.dtype).unbind(-1)
        lower = weights * share_y
        upper = weights - lower
        upper_right, lower_right = upper * share_x, lower * share_x
        parts = torch.stack((upper - upper_right, upper_right, lower - lower_right, lower_right), dim=1)
        steps = torch.tensor((0, 1, columns, columns + 1), device=weights.device)[:, None]
        number = _cell_number(first.long(), size)[:, None] + steps
        # No position lies beyond the last row or column: what would go past it has a share of 0.
        return _add_up(parts.flatten(1), number.flatten(1).clamp(max=rows * columns - 1), size)

    def _draw_direct(
        self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: tuple[int, int]
    ) -> Tensor:
        empty = weights.new_zeros(len(weights), size[0] * size[1])
        return empty.scatter_reduce(1, _cell_number(cell, size), weights, "amax").unflatten(1, size)

    def _draw_distance_weighted(
        self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: tuple[int, int]
    ) -> Tensor:
        reach = self.reach_fraction * min(size)
        rows, columns = (next_fast_len(side + math.floor(reach), real=True) for side in size)
        spectra = _disc_spectra((rows, columns), reach, self.distance_decay, weights.dtype, weights.device)
        number = _cell_number(cell, (rows, columns))
        both = torch.cat((weights, inside.to(weights.dtype)))
        added = _add_up(both, number.repeat(2, 1), (rows, columns)).unflatten(0, (2, -1))
        filtered = torch.fft.irfft2(torch.fft.rfft2(added) * spectra[:, None], s=(rows, columns))
        # The transform leaves rounding noise where no query reaches. How many reach is a whole number, so
        # it tells these cells apart for certain.
        spread, queries_in_reach = filtered[..., : size[0], : size[1]]
        return torch.where(queries_in_reach > 0.5, spread, 0.0)

    def _gaussian_filter(self, added: Tensor) -> Tensor:
        """Gaussian kernel on maps (map, row, column), along both axes in turn, cut at the border."""
        rows, columns = (
            _gaussian_band(
                side,
                self.kernel_size // 2,
                self.gaussian_sigma,
                self.kernel_normalization == "sum",
                added.dtype,
                added.device,
            )
            for side in added.shape[-2:]
        )
        return rows @ added @ columns


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _gaussian_band(
    cells: int, radius: int, sigma: float, sum_is_one: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The kernel along one axis as a symmetric matrix (cell, cell): k(i - j), 0 beyond ``radius``.

    Kept, because making it costs more than using it.
    """
    exponent = -0.5 / sigma**2
    norm = math.fsum(math.exp(exponent * step**2) for step in range(-radius, radius + 1)) if sum_is_one else 1.0
    index = torch.arange(cells, device=device)
    step = index[:, None] - index
    values = torch.exp(exponent * step.to(dtype) ** 2) / norm
    return torch.where(step.abs() <= radius, values, 0.0)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _disc_spectra(
    size: tuple[int, int], reach: float, decay: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Spectra of exp(-d / (decay * reach)) and of 1, both for d <= ``reach``, on a map whose borders meet.

    Both in one, (2, row, column // 2 + 1). Kept like :func:`_gaussian_band`.
    """
    along = []
    for side in size:
        index = torch.arange(side, device=device, dtype=dtype)
        along.append(torch.minimum(index, side - index))
    distance = torch.sqrt(along[0][:, None] ** 2 + along[1] ** 2)
    disc = (distance <= reach).to(dtype)
    kernel = torch.exp(-distance / (decay * reach)) * disc
    spectra: Tensor = torch.fft.rfft2(torch.stack((kernel, disc)))
    return spectra


def soft_clamp(value: Tensor, limit: Tensor) -> Tensor:
    """x up to L / 2, above it L - (L / 2)^2 / x: smooth, below L, with the slope (L / 2x)^2 above L / 2.

    Args:
        value: at least 0.
        limit: scalar L above 0; infinity changes nothing.
    """
    below = value <= limit / 2
    # Both branches stay finite everywhere, so that neither poisons the other's gradient.
    finite_limit = torch.where(limit.isinf(), torch.ones_like(limit), limit)
    above_value = torch.where(below, torch.ones_like(value), value)
    return torch.where(below, value, finite_limit - (finite_limit / 2) ** 2 / above_value)


def _add_up(weights: Tensor, number: Tensor, size: tuple[int, int]) -> Tensor:
    """Sum of the weights (map, query) in each cell: (map, row, column)."""
    empty = weights.new_zeros(len(weights), size[0] * size[1])
    return empty.scatter_add(1, number, weights).unflatten(1, size)


def _cell_number(cell: Tensor, size: tuple[int, int]) -> Tensor:
    """Row-major number (map, query) of each query's cell (column, row)."""
    return cell[..., 1] * size[1] + cell[..., 0]


def _checked_shape(name: str, shape: Sequence[int] | None, length: int) -> tuple[int, ...] | None:
    if shape is None:
        return None
    is_list = isinstance(shape, Sequence) and not isinstance(shape, str)
    require(
        is_list and len(shape) == length and all(is_count(side) for side in shape),
        f"renderer.{name}",
        shape,
        f"{length} whole numbers of at least 1, or null to take them from the features",
    )
    return tuple(shape)
