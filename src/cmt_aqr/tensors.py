"""Dataclasses of tensors that move between devices as one."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import torch
from numpy.typing import ArrayLike
from torch import Tensor


def _map_tensors(value: Any, function: Any) -> Any:
    """Apply ``function`` to every tensor in a dataclass, tuple or tensor; anything else stays as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(_map_tensors(item, function) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            field.name: _map_tensors(getattr(value, field.name), function) for field in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **changed)
    return value


class TensorStructure:
    """Base of dataclasses of tensors. Lightning calls ``to`` and ``pin_memory`` by name."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Return a copy with ``Tensor.to(*args, **kwargs)`` applied to every tensor."""
        return _map_tensors(self, lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory, for asynchronous copies to a GPU."""
        return _map_tensors(self, lambda tensor: tensor.pin_memory())

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields replaced."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


def from_host(values: ArrayLike, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy numbers from the host to a device without synchronising.

    ``new_tensor`` and ``torch.tensor(..., device=...)`` copy from pageable memory, which blocks the host until the
    GPU has finished its queue; a copy from pinned memory is queued instead.
    """
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
