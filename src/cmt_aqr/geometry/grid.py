"""The voxel grid and its BEV map.

The published 0.1 m configuration declares 1024 cells over a range of 1080 cells: voxels and features occupy the
1024 cells from the range's corner, while position encodings cover the full range. So there are two scales:
:meth:`BEVGrid.cell_of` for features, and the unit cube of :func:`to_unit` for encodings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmt_aqr.errors import SettingError
from cmt_aqr.tensors import from_host


@dataclass(frozen=True)
class BEVGrid:
    """Geometry of the voxels and of the BEV feature map.

    Attributes:
        point_range: x0, y0, z0, x1, y1, z1 in metres, LiDAR frame.
        voxel_size: x, y, z in metres.
        sparse_shape: cells along z, y, x. z has one more than the voxels need, as SECOND's encoder expects.
        stride: width of a BEV cell in voxels.
    """

    point_range: tuple[float, float, float, float, float, float]
    voxel_size: tuple[float, float, float]
    sparse_shape: tuple[int, int, int]
    stride: int

    def __post_init__(self) -> None:
        for name in ("point_range", "voxel_size", "sparse_shape"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        low, high = self.point_range[:3], self.point_range[3:]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            raise SettingError(f"point_range={list(self.point_range)}: each minimum must be below its maximum")
        if any(size <= 0 for size in self.voxel_size):
            raise SettingError(f"voxel_size={list(self.voxel_size)}: sizes in metres must be above 0")
        if any(cells % self.stride for cells in self.sparse_shape[1:]):
            raise SettingError(
                f"sparse_shape={list(self.sparse_shape)}: the y and x cells must be multiples of the "
                f"BEV stride {self.stride}"
            )

    @property
    def bev_shape(self) -> tuple[int, int]:
        """Rows (y) and columns (x) of the BEV map."""
        return self.sparse_shape[1] // self.stride, self.sparse_shape[2] // self.stride

    @property
    def cell_size(self) -> tuple[float, float]:
        """Width in x and in y of a BEV cell, in metres."""
        return self.voxel_size[0] * self.stride, self.voxel_size[1] * self.stride

    def cell_of(self, xy: Tensor) -> Tensor:
        """Continuous BEV position (..., 2) as (column, row) of points (..., 2) in metres, LiDAR frame.

        A cell covers [i, i + 1), so its centre is at i + 0.5. A position outside [0, width) x [0, height)
        has no cell.
        """
        low, size = from_host((self.point_range[:2], self.cell_size), xy.device, xy.dtype)
        return (xy - low) / size

    def metres_of(self, cell: Tensor) -> Tensor:
        """Metres (..., 2) of continuous BEV positions (column, row): the inverse of :meth:`cell_of`."""
        low, size = from_host((self.point_range[:2], self.cell_size), cell.device, cell.dtype)
        return cell * size + low

    def unit_cell_centres(self, device: torch.device | None = None) -> Tensor:
        """Centres (row * column, 2) as (x, y) in [0, 1], row-major: (index + 0.5) / count.

        CMT encodes BEV cells by these, independently of the range (see the module's docstring).
        """
        rows, columns = self.bev_shape
        y = (torch.arange(rows, device=device) + 0.5) / rows
        x = (torch.arange(columns, device=device) + 0.5) / columns
        return torch.cartesian_prod(y, x).flip(-1)


def inverse_sigmoid(value: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of a value in [0, 1], with the value and its complement clamped to ``eps`` (as in DETR)."""
    value = value.clamp(0, 1)
    return torch.log(value.clamp(min=eps) / (1 - value).clamp(min=eps))


def to_unit(points: Tensor, point_range: Sequence[float]) -> Tensor:
    """Metres (..., 3) to the unit cube of the range (x0, y0, z0, x1, y1, z1)."""
    low, high = from_host(point_range, points.device, points.dtype).view(2, 3)
    return (points - low) / (high - low)


def to_metres(unit: Tensor, point_range: Sequence[float]) -> Tensor:
    """The unit cube (..., 3) to metres: the inverse of :func:`to_unit`."""
    low, high = from_host(point_range, unit.device, unit.dtype).view(2, 3)
    return unit * (high - low) + low
