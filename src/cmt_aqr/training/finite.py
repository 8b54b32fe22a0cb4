"""Detection of losses and weights that are not finite, without synchronising with the device in every step."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cmt_aqr.errors import UserError
from cmt_aqr.structures import Batch


class NotFiniteError(UserError):
    """The training diverged, or data made the loss infinite or NaN."""


class LossGuard:
    """Collects the losses of recent batches and checks them together, in one transfer from the device."""

    def __init__(self) -> None:
        self._recent: list[tuple[int, tuple[str, ...], dict[str, Tensor], Mapping[str, Tensor]]] = []

    def __len__(self) -> int:
        return len(self._recent)

    def add(
        self, step: int, tokens: tuple[str, ...], losses: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
    ) -> None:
        """Add a batch's losses (scalars) and :func:`finite_inputs`, without synchronising."""
        self._recent.append((step, tokens, {name: value.detach() for name, value in losses.items()}, inputs))

    def problem(self) -> str | None:
        """Describe the first batch whose loss is not finite, if any, and forget all batches.

        Synchronises once with the device.
        """
        recent, self._recent = self._recent, []
        if not recent:
            return None
        scalars = [part.float() for *_, losses, inputs in recent for part in (*losses.values(), *inputs.values())]
        values = iter(torch.stack(scalars).tolist())
        for step, tokens, losses, inputs in recent:
            terms = {name: next(values) for name in losses}
            bad_inputs = [name for name in inputs if not next(values)]
            if not all(map(math.isfinite, terms.values())):
                listed = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
                problem = f"step {step}: the loss is not finite ({listed}) on frames {', '.join(tokens)}"
                return f"{problem}; {_bad_input(bad_inputs[0])}" if bad_inputs else problem
        return None


def _bad_input(part: str) -> str:
    return f"the {part} were not finite before the model read them: check the data, transforms and faults"


def finite_inputs(batch: Batch) -> dict[str, Tensor]:
    """Whether the points, images, projections and boxes of a batch are finite: scalars, on its device."""
    parts = {"points": batch.points, "images": batch.images, "lidar2img": batch.lidar2img, "boxes": batch.boxes}
    return {name: part.isfinite().all() for name, part in parts.items() if part is not None}


def why_not_finite(batch: Batch, weights: Iterable[tuple[str, Tensor]]) -> str:
    """Explain outputs that are not finite by an input, else by a weight or buffer, else by divergence."""
    parts: dict[str, Sequence[Tensor]] = {
        "points": batch.points.split(batch.point_counts),
        "images": () if batch.images is None else tuple(batch.images),
        "lidar2img": tuple(batch.lidar2img),
        "boxes": batch.boxes_of_each(),
    }
    for name, per_frame in parts.items():
        for token, part in zip(batch.tokens, per_frame, strict=False):
            if not part.isfinite().all():
                return _bad_input(f"{name} of frame {token}")
    bad = _not_finite(weights)
    if bad:
        return f"{len(bad)} weights were not finite before this step, the first is {bad[0]}"
    return "inputs and weights are finite, so the outputs diverged: lower optimizer.lr"


def weights_problem(named: Iterable[tuple[str, Tensor]], step: int) -> str | None:
    """Describe weights that are not finite after ``step`` steps, if any; synchronises once with the device."""
    weights = dict(named)
    bad = _not_finite(weights.items())
    if not bad:
        return None
    return f"after step {step - 1}: {len(bad)} of {len(weights)} weights are not finite, the first is {bad[0]}"


def _not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of tensors that are not finite, except clamp limits, which may be infinite."""
    tensors = {name: value.detach() for name, value in named if not name.endswith("clamp_limit")}
    flags = [value.isfinite().all() for value in tensors.values()]
    finite = torch.stack(flags).tolist() if flags else []
    return [name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite]
