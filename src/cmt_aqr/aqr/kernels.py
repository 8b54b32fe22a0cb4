"""Kernels that spread the queries' weights over a map, one class per ``render_method``.

A kernel is called with the queries on a stack of maps:

- weights (map, query): 0 for a query that is not rendered;
- inside (map, query) bool: whether the query is rendered;
- position (map, query, 2), exact, and cell (map, query, 2) int64, as (column, row), see
  :mod:`cmt_aqr.aqr.placement`;
- size: rows and columns;

and returns maps (map, row, column). It is a fixed linear function of the weights (``direct``: a maximum), so the
detection loss reaches the generator through it. The weights of queries in one cell are summed first, so that the
kernel costs the same for one query and for thousands. A kernel is truncated at the border of the map: the cells
inside are what they would be on a larger map.

To add a method, add a class here, a line to :data:`METHODS`, and one to ``conf/renderer/base.yaml`` and
docs/aqr.md.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from cmt_aqr.checks import require_above_zero, require_choice, require_number
from cmt_aqr.tensors import from_host

KERNEL_NORMALIZATIONS = ("sum", "peak")

Size = tuple[int, int]


@dataclass(frozen=True)
class Kernel:
    """Base of all kernels. The fields of a subclass are its settings, under their names in the configuration."""

    background: ClassVar[float] = 0.0
    """Value of a map where no query reaches."""

    def __call__(self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: Size) -> Tensor:
        """Render maps, see the module's docstring."""
        raise NotImplementedError


@dataclass(frozen=True)
class _GaussianWidth(Kernel):
    """A Gaussian over int(6 sigma + 1) cells along a side, one more if that is even.

    It is centred on the query's cell, not on its exact position.
    """

    gaussian_sigma: float = 1.0

    def __post_init__(self) -> None:
        require_above_zero("gaussian_sigma", self.gaussian_sigma)

    @property
    def kernel_size(self) -> int:
        """Cells along a side."""
        size = int(6 * self.gaussian_sigma + 1)
        return size + 1 - size % 2

    def _filter(self, cells: Tensor, sum_is_one: bool) -> Tensor:
        """Convolve maps (map, row, column) along both axes."""
        kernel = (self.kernel_size // 2, float(self.gaussian_sigma), sum_is_one, cells.dtype, cells.device)
        rows, columns = (_gaussian_band(side, *kernel) for side in cells.shape[-2:])
        return rows @ cells @ columns


@dataclass(frozen=True)
class Gaussian(_GaussianWidth):
    """Sum over the queries of weight times a Gaussian whose sum or whose peak is 1."""

    kernel_normalization: str = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("kernel_normalization", self.kernel_normalization, KERNEL_NORMALIZATIONS)

    def __call__(self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: Size) -> Tensor:
        """Render maps, see the module's docstring."""
        return self._filter(
            _sum_per_cell(weights, _cell_number(cell, size), size), self.kernel_normalization == "sum"
        )


@dataclass(frozen=True)
class KernelMean(_GaussianWidth):
    """Mean of the weights under a Gaussian k, sum(w k) / sum(k); 1 where no query reaches."""

    background: ClassVar[float] = 1.0

    def __call__(self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: Size) -> Tensor:
        """Render maps, see the module's docstring."""
        number = _cell_number(cell, size)
        weighted = self._filter(_sum_per_cell(weights, number, size), True)
        total = self._filter(_sum_per_cell(inside.to(weights.dtype), number, size), True)
        reached = total > 0
        return torch.where(reached, weighted / torch.where(reached, total, 1.0), self.background)


@dataclass(frozen=True)
class Bilinear(Kernel):
    """Distributes each weight over the four cells whose centres surround the exact position."""

    def __call__(self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: Size) -> Tensor:
        """Render maps, see the module's docstring."""
        rows, columns = size
        first = position.floor()
        share_x, share_y = (position - first).to(weights.dtype).unbind(-1)
        lower = weights * share_y
        upper = weights - lower
        upper_right, lower_right = upper * share_x, lower * share_x
        parts = torch.stack((upper - upper_right, upper_right, lower - lower_right, lower_right), dim=1)
        steps = from_host((0, 1, columns, columns + 1), weights.device)[:, None]
        number = _cell_number(first.long(), size)[:, None] + steps  # (map, 4, query)
        # Positions lie within the centres of the outermost cells: a share beyond them is 0.
        return _sum_per_cell(parts.flatten(1), number.flatten(1).clamp(max=rows * columns - 1), size)


@dataclass(frozen=True)
class Direct(Kernel):
    """Maximum of the weights of the queries in a cell."""

    def __call__(self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: Size) -> Tensor:
        """Render maps, see the module's docstring."""
        empty = weights.new_zeros(len(weights), size[0] * size[1])
        return empty.scatter_reduce(1, _cell_number(cell, size), weights, "amax").unflatten(1, size)


@dataclass(frozen=True)
class DistanceWeighted(Kernel):
    """Sum of weight times exp(-d / (``distance_decay`` * reach)) over the queries within reach, d in cells.

    ``reach_fraction`` is the reach as a share of the map's shorter side.
    """

    distance_decay: float = 0.8
    reach_fraction: float = 0.2

    def __post_init__(self) -> None:
        require_above_zero("distance_decay", self.distance_decay)
        require_number("reach_fraction", self.reach_fraction, above=0, high=1)

    def __call__(self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: Size) -> Tensor:
        """Render maps, see the module's docstring."""
        reach = self.reach_fraction * min(size)
        rows, columns = (next_fast_len(side + math.floor(reach), real=True) for side in size)
        spectra = _disc_spectra((rows, columns), reach, float(self.distance_decay), weights.dtype, weights.device)
        number = _cell_number(cell, (rows, columns))
        values = torch.cat((weights, inside.to(weights.dtype)))
        cells = _sum_per_cell(values, number.repeat(2, 1), (rows, columns)).unflatten(0, (2, -1))
        filtered = torch.fft.irfft2(torch.fft.rfft2(cells) * spectra[:, None], s=(rows, columns))
        # The transform leaves rounding noise where no query reaches. The number of queries in reach is an integer,
        # so it identifies these cells despite the noise.
        spread, queries_in_reach = filtered[..., : size[0], : size[1]]
        return torch.where(queries_in_reach > 0.5, spread, 0.0)


METHODS: dict[str, type[Kernel]] = {
    "gaussian": Gaussian,
    "bilinear": Bilinear,
    "direct": Direct,
    "distance_weighted": DistanceWeighted,
    "kernel_mean": KernelMean,
}
"""The kernels by ``renderer.render_method``."""


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _gaussian_band(
    cells: int, radius: int, sigma: float, sum_is_one: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The kernel along one axis as a symmetric matrix (cell, cell): k(i - j), 0 beyond ``radius``.

    Cached, because building it costs more than using it.
    """
    exponent = -0.5 / sigma**2
    norm = math.fsum(math.exp(exponent * step**2) for step in range(-radius, radius + 1)) if sum_is_one else 1.0
    index = torch.arange(cells, device=device)
    step = index[:, None] - index
    values = torch.exp(exponent * step.to(dtype) ** 2) / norm
    return torch.where(step.abs() <= radius, values, 0.0)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _disc_spectra(size: Size, reach: float, decay: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Spectra (2, row, column // 2 + 1) of exp(-d / (decay * reach)) and of 1 for d <= ``reach``, on a torus."""
    index = (torch.arange(side, device=device, dtype=dtype) for side in size)
    rows, columns = (torch.minimum(steps, side - steps) for steps, side in zip(index, size, strict=True))
    distance = torch.sqrt(rows[:, None] ** 2 + columns**2)
    disc = (distance <= reach).to(dtype)
    kernel = torch.exp(-distance / (decay * reach)) * disc
    spectra: Tensor = torch.fft.rfft2(torch.stack((kernel, disc)))
    return spectra


def _sum_per_cell(weights: Tensor, number: Tensor, size: Size) -> Tensor:
    """Sum of the weights (map, query) in each cell: (map, row, column)."""
    empty = weights.new_zeros(len(weights), size[0] * size[1])
    return empty.scatter_add(1, number, weights).unflatten(1, size)


def _cell_number(cell: Tensor, size: Size) -> Tensor:
    """Row-major number (map, query) of each query's cell (column, row)."""
    return cell[..., 1] * size[1] + cell[..., 0]
