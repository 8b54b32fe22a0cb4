"""Between metres and the unit cube that the head works in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmt_aqr.tensors import from_host


def inverse_sigmoid(value: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of a value in [0, 1], with both the value and its complement kept above ``eps`` (DETR's form)."""
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
