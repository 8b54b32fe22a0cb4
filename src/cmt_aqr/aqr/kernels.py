"""How a query's weight spreads over a map: one class a ``render_method``.

Each takes the queries on a stack of maps and gives the maps:

- weights (map, query): 0 for a query that does not draw there;
- inside (map, query) bool: whether it draws;
- position (map, query, 2), exact, and cell (map, query, 2) int64, as (column, row), see
  :mod:`cmt_aqr.aqr.placement`;
- size: rows and columns;

and returns (map, row, column). A kernel is a fixed linear map of the weights (``direct``: a maximum), so the
detection loss reaches the generator through it. Queries that stand in the same cell are first added up there;
what the kernel does to the cells then costs the same for one query and for thousands. It is cut at the border of
the map: what would fall outside is lost, and the cells inside are what they would be on a larger map.

A new method is a class here, a line in :data:`METHODS`, and one in ``conf/renderer/base.yaml`` and docs/aqr.md.
"""

from __future__ import annotations

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


class Kernel:
    """What all methods share. The fields of a subclass are its settings, by their names in the configuration."""

    background: ClassVar[float] = 0.0
    """A map's value where no query reaches."""

    def __call__(self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: Size) -> Tensor:
        """The maps, see the module's docstring."""
        raise NotImplementedError


@dataclass(frozen=True)
class _GaussianWidth(Kernel):
    """A Gaussian on int(6 sigma + 1) cells along a side, one more if that is even.

    It stands on the query's cell, not on its exact position.
    """

    gaussian_sigma: float = 1.0

    def __post_init__(self) -> None:
        require_above_zero("gaussian_sigma", self.gaussian_sigma)

    @property
    def kernel_size(self) -> int:
        """Cells along a side."""
        size = int(6 * self.gaussian_sigma + 1)
        return size + 1 - size % 2

    def _filter(self, added: Tensor, sum_is_one: bool) -> Tensor:
        """The kernel on maps (map, row, column), along both axes in turn."""
        rows, columns = (
            _gaussian_band(
                side, self.kernel_size // 2, float(self.gaussian_sigma), sum_is_one, added.dtype, added.device
            )
            for side in added.shape[-2:]
        )
        return rows @ added @ columns


@dataclass(frozen=True)
class Gaussian(_GaussianWidth):
    """Sum over the queries of weight times Gaussian, which sums to 1 or has its peak at 1."""

    kernel_normalization: str = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("kernel_normalization", self.kernel_normalization, KERNEL_NORMALIZATIONS)

    def __call__(self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: Size) -> Tensor:
        """See :mod:`cmt_aqr.aqr.kernels`."""
        return self._filter(_add_up(weights, _cell_number(cell, size), size), self.kernel_normalization == "sum")


@dataclass(frozen=True)
class KernelMean(_GaussianWidth):
    """The Gaussian's mean of the weights, sum(w k) / sum(k); 1 where no query reaches."""

    background: ClassVar[float] = 1.0

    def __call__(self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: Size) -> Tensor:
        """See :mod:`cmt_aqr.aqr.kernels`."""
        number = _cell_number(cell, size)
        weighted = self._filter(_add_up(weights, number, size), True)
        total = self._filter(_add_up(inside.to(weights.dtype), number, size), True)
        reached = total > 0
        return torch.where(reached, weighted / torch.where(reached, total, 1.0), self.background)


@dataclass(frozen=True)
class Bilinear(Kernel):
    """Each weight is shared out over the four cells whose centres surround the exact position."""

    def __call__(self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: Size) -> Tensor:
        """See :mod:`cmt_aqr.aqr.kernels`."""
        rows, columns = size
        first = position.floor()
        share_x, share_y = (position - first).to(weights.dtype).unbind(-1)
        lower = weights * share_y
        upper = weights - lower
        upper_right, lower_right = upper * share_x, lower * share_x
        parts = torch.stack((upper - upper_right, upper_right, lower - lower_right, lower_right), dim=1)
        steps = from_host((0, 1, columns, columns + 1), weights.device)[:, None]
        number = _cell_number(first.long(), size)[:, None] + steps  # (map, 4, query)
        # No position lies beyond the last row or column: what would go past it has a share of 0.
        return _add_up(parts.flatten(1), number.flatten(1).clamp(max=rows * columns - 1), size)


@dataclass(frozen=True)
class Direct(Kernel):
    """The largest weight of the queries in a cell."""

    def __call__(self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: Size) -> Tensor:
        """See :mod:`cmt_aqr.aqr.kernels`."""
        empty = weights.new_zeros(len(weights), size[0] * size[1])
        return empty.scatter_reduce(1, _cell_number(cell, size), weights, "amax").unflatten(1, size)


@dataclass(frozen=True)
class DistanceWeighted(Kernel):
    """Sum of weight times exp(-d / (``distance_decay`` * reach)) over the queries within reach, d in cells.

    The reach is ``reach_fraction`` of the map's shorter side.
    """

    distance_decay: float = 0.8
    reach_fraction: float = 0.2

    def __post_init__(self) -> None:
        require_above_zero("distance_decay", self.distance_decay)
        require_number("reach_fraction", self.reach_fraction, above=0, high=1)

    def __call__(self, weights: Tensor, inside: Tensor, position: Tensor, cell: Tensor, size: Size) -> Tensor:
        """See :mod:`cmt_aqr.aqr.kernels`."""
        reach = self.reach_fraction * min(size)
        rows, columns = (next_fast_len(side + math.floor(reach), real=True) for side in size)
        spectra = _disc_spectra((rows, columns), reach, float(self.distance_decay), weights.dtype, weights.device)
        number = _cell_number(cell, (rows, columns))
        both = torch.cat((weights, inside.to(weights.dtype)))
        added = _add_up(both, number.repeat(2, 1), (rows, columns)).unflatten(0, (2, -1))
        filtered = torch.fft.irfft2(torch.fft.rfft2(added) * spectra[:, None], s=(rows, columns))
        # The transform leaves rounding noise where no query reaches. How many reach is a whole number, so
        # it tells these cells apart for certain.
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


def _add_up(weights: Tensor, number: Tensor, size: tuple[int, int]) -> Tensor:
    """Sum of the weights (map, query) in each cell: (map, row, column)."""
    empty = weights.new_zeros(len(weights), size[0] * size[1])
    return empty.scatter_add(1, number, weights).unflatten(1, size)


def _cell_number(cell: Tensor, size: tuple[int, int]) -> Tensor:
    """Row-major number (map, query) of each query's cell (column, row)."""
    return cell[..., 1] * size[1] + cell[..., 0]
