"""Losses and weights that are not finite, found without waiting for the device in every step."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cmt_aqr.errors import UserError
from cmt_aqr.structures import Batch


class NotFiniteError(UserError):
    """The training diverged, or data made the loss infinite or NaN."""


class LossGuard:
    """Remembers the losses of the last batches and looks at all of them at once, now and then."""

    def __init__(self) -> None:
        self._recent: list[tuple[int, tuple[str, ...], dict[str, Tensor], Mapping[str, Tensor]]] = []

    def __len__(self) -> int:
        return len(self._recent)

    def add(
        self, step: int, tokens: tuple[str, ...], losses: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
    ) -> None:
        """Remember losses (scalars) and which parts of the batch are finite, without waiting for the device."""
        self._recent.append((step, tokens, {name: value.detach() for name, value in losses.items()}, inputs))

    def problem(self) -> str | None:
        """A sentence about the first batch whose loss is not finite, or ``None``; then all are forgotten.

        One wait for the device.
        """
        recent, self._recent = self._recent, []
        if not recent:
            return None
        scalars = [part.float() for *_, losses, inputs in recent for part in (*losses.values(), *inputs.values())]
        values = iter(torch.stack(scalars).tolist())
        for step, tokens, losses, inputs in recent:
            terms = {name: next(values) for name in losses}
            bad = [name for name in inputs if not next(values)]
            if not all(map(math.isfinite, terms.values())):
                listed = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
                said = f"step {step}: the loss is not finite ({listed}) on {frames(tokens)}"
                return f"{said}; {_from_outside(bad[0], 'there')}" if bad else said
        return None


def _from_outside(part: str, where: str) -> str:
    return (
        f"the {part} {where} were not finite before the model saw them: look at the data, and at transforms and "
        "faults"
    )


def finite_inputs(batch: Batch) -> dict[str, Tensor]:
    """Whether the points, images, projections and boxes of a batch are finite: scalars, on its device."""
    parts = {"points": batch.points, "images": batch.images, "lidar2img": batch.lidar2img, "boxes": batch.boxes}
    return {name: part.isfinite().all() for name, part in parts.items() if part is not None}


def why_not_finite(batch: Batch, weights: Iterable[tuple[str, Tensor]]) -> str:
    """Why outputs for a batch are not finite: its inputs, a weight or buffer, or neither; waits for the device."""
    parts: dict[str, Sequence[Tensor]] = {
        "points": batch.points.split(batch.point_counts),
        "images": () if batch.images is None else tuple(batch.images),
        "lidar2img": tuple(batch.lidar2img),
        "boxes": batch.boxes_of_each(),
    }
    for name, of_frames in parts.items():
        for token, part in zip(batch.tokens, of_frames, strict=False):
            if not part.isfinite().all():
                return _from_outside(name, f"of frame {token}")
    bad = _not_finite(weights)
    if bad:
        return f"{len(bad)} weights were not finite before this step, {bad[0]} the first of them"
    return "inputs and weights are finite, so the outputs diverged: lower optimizer.lr"


def frames(tokens: Iterable[str]) -> str:
    """Frames by their sample tokens, for a sentence."""
    return f"frames {', '.join(tokens)}"


def weights_problem(named: Iterable[tuple[str, Tensor]], step: int) -> str | None:
    """A sentence about weights that are not finite after ``step`` steps, or ``None``; one wait for the device."""
    weights = dict(named)
    bad = _not_finite(weights.items())
    if not bad:
        return None
    return (
        f"after step {step - 1}: {len(bad)} of {len(weights)} weights are not finite, {bad[0]} the first of them"
    )


def _not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of tensors that are not finite; one wait for the device. A clamp is infinite where there is none."""
    looked_at = {name: value.detach() for name, value in named if not name.endswith("clamp_limit")}
    flags = [value.isfinite().all() for value in looked_at.values()]
    finite = torch.stack(flags).tolist() if flags else []
    return [name for name, is_finite in zip(looked_at, finite, strict=True) if not is_finite]
