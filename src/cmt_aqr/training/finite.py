"""Losses and weights that are not finite, found without waiting for the device in every step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cmt_aqr.errors import UserError


class NotFiniteError(UserError):
    """The training diverged, or data made the loss infinite or NaN."""


@dataclass(frozen=True)
class _Losses:
    """A batch's losses, still on the device.

    Attributes:
        step: the optimiser step that the batch belongs to, from 0.
        tokens: the frames.
        names: of the loss terms.
        values: (term,).
    """

    step: int
    tokens: tuple[str, ...]
    names: tuple[str, ...]
    values: Tensor


class LossGuard:
    """Remembers the losses of the last batches and looks at all of them at once, now and then."""

    def __init__(self) -> None:
        self._recent: list[_Losses] = []

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, step: int, tokens: tuple[str, ...], losses: Mapping[str, Tensor]) -> None:
        """Remember a batch's loss terms (scalars); does not wait for the device."""
        values = torch.stack([value.detach() for value in losses.values()])
        self._recent.append(_Losses(step, tokens, tuple(losses), values))

    def problem(self) -> str | None:
        """A sentence about the first batch whose loss is not finite, or ``None``; then all are forgotten.

        One wait for the device.
        """
        recent, self._recent = self._recent, []
        if not recent:
            return None
        values = torch.cat([losses.values for losses in recent]).tolist()
        start = 0
        for losses in recent:
            terms = dict(zip(losses.names, values[start:], strict=False))
            start += len(losses.names)
            if not all(map(math.isfinite, terms.values())):
                listed = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
                return f"step {losses.step}: the loss is not finite ({listed}) on {frames(losses.tokens)}"
        return None


def frames(tokens: Iterable[str]) -> str:
    """Frames by their sample tokens, for a sentence."""
    return f"frames {', '.join(tokens)}"


def weights_problem(named: Iterable[tuple[str, Tensor]], step: int) -> str | None:
    """A sentence about weights that are not finite, or ``None``; one wait for the device.

    Args:
        named: parameters by name.
        step: number of optimiser steps done.
    """
    names, flags = [], []
    for name, value in named:
        names.append(name)
        flags.append(value.detach().isfinite().all())
    bad = [name for name, finite in zip(names, torch.stack(flags).tolist(), strict=True) if not finite]
    if not bad:
        return None
    return f"after step {step - 1}: {len(bad)} of {len(names)} weights are not finite, {bad[0]} the first of them"
