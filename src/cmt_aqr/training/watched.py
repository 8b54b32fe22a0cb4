"""One look at what AQR does in a batch, and the numbers of several looks in one."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from cmt_aqr.aqr import AQR, AttentionBias
from cmt_aqr.aqr.statistics import (
    beta_values,
    detection_of_damage,
    doubts,
    output_statistics,
    share_values,
    spread,
    used_weights,
)
from cmt_aqr.model.cmt import CMT
from cmt_aqr.model.decoder import DecoderLayer
from cmt_aqr.outputs import AQROutput, BiasOutput, aqr_output
from cmt_aqr.runs.console import console

MAPS = ("bev", "camera")
BETA = "beta"
ATTENTION = "attention"
WEIGHTS = "weights"
GRADIENT = "generator_gradient"

_HEADINGS = {
    "max_over_mean": "max/mean",
    "drawn": "drawn on",
    "relative_change": "change",
    "lidar_broken": "LiDAR broken",
    "camera_broken": "camera broken",
    "whole": "both whole",
    "auc_lidar": "AUC LiDAR",
    "auc_camera": "AUC camera",
}
_OF_MAPS = ("mean", "std", "min", "max", "max_over_mean", "clamped", "drawn", "relative_change")
_OF_BETA = ("mean", "std", "min", "max", "lidar_broken", "camera_broken", "whole", "auc_lidar", "auc_camera")
_SHARES = ("clamped", "drawn", "relative_change")


@dataclass
class Summary:
    """Numbers of several looks in one: the highest of what is called max, the lowest of min, else the mean.

    ``counts`` says of how many looks a number was finite.
    """

    looks: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)

    def add(self, numbers: dict[str, float]) -> None:
        """Take in the numbers of one more look; what is not finite stays out."""
        self.looks += 1
        for key, value in numbers.items():
            if not math.isfinite(value):
                continue
            known = self.numbers.setdefault(key, value)
            self.counts[key] = self.counts.get(key, 0) + 1
            kind = key.rpartition("/")[2].partition("_")[0]
            if kind in ("max", "min"):
                self.numbers[key] = max(known, value) if kind == "max" else min(known, value)
            else:
                self.numbers[key] = known + (value - known) / self.counts[key]

    def by_map(self) -> dict[str, dict[str, float]]:
        """The numbers by what they are of: ``bev`` and ``camera``, or ``beta``; ``attention``."""
        found: dict[str, dict[str, float]] = {}
        for name in (*MAPS, BETA, ATTENTION):
            prefix = f"{name}/"
            own = {key.removeprefix(prefix): x for key, x in self.numbers.items() if key.startswith(prefix)}
            if "mean" in own:
                found[name] = own
        return found

    def print(self, of: str) -> None:
        """Print the numbers of maps or beta and of the attention, and how well weights tell what is broken."""
        every = self.by_map()
        what, shown = ("AQR's beta", _OF_BETA) if BETA in every else ("AQR's maps before the clamp", _OF_MAPS)
        times = "once" if self.looks == 1 else f"{self.looks} times"
        table = Table("", title=f"{what}, {of} (looked at {times})", title_justify="left")
        for key in shown:
            table.add_column(_HEADINGS.get(key, key), justify="right")
        for name, numbers in every.items():
            cells = (
                "" if key not in numbers else format(numbers[key], ".1%" if key in _SHARES else ".4g")
                for key in shown
            )
            table.add_row("LiDAR's share" if name == ATTENTION else name, *cells)
        console().print(table)
        areas = {name: self.numbers.get(f"{WEIGHTS}/auc_{name}") for name in ("lidar", "camera")}
        told = ", ".join(f"{name} {value:.4g}" for name, value in areas.items() if value is not None)
        if told:
            console().print(f"AUC of the weights against what is broken: {told}", highlight=False)


class Look:
    """What is read off the batches of one step, which are yet to come.

    ``values`` are what histograms are of, (value,) on the device, by name.
    """

    def __init__(self, model: CMT, step: int) -> None:
        self.step = step
        self.values: dict[str, Tensor] = {}
        self._found: dict[str, Tensor] = {}
        self._aqr = model.aqr
        self._attention = AttentionWatch(model)
        self._seen = False

    def see(self, outputs: Any) -> None:
        """Take the numbers of a batch from what its step returned; the first batch counts."""
        if self._seen:
            return
        self._seen = True
        output: AQROutput | BiasOutput = aqr_output(outputs["aqr"])
        if isinstance(output, BiasOutput):
            values = beta_values(output)
            self._found |= named(BETA, spread(values) | detection_of_damage(doubts(output)))
            self.values = named(f"{BETA}/histogram", values)
        elif isinstance(self._aqr, AQR):
            self._found |= output_statistics(output, self._aqr.renderer.background)
            self._found |= named(WEIGHTS, detection_of_damage(doubts(output)))
            self.values = named(WEIGHTS, used_weights(output))
            for name, weights in self.values.items():
                if len(weights):
                    self._found[f"{name}_mean"] = weights.mean()
                    self._found[f"{name}_std"] = weights.std(correction=0)
        if self._attention.share is not None:
            self._found |= named(ATTENTION, spread(share_values(self._attention.share, output)))

    def see_gradient(self) -> None:
        """Take the norm of the generator's gradient as it is now; of one that is frozen there is none."""
        part = self._aqr if isinstance(self._aqr, AttentionBias) else self._aqr.generator  # type: ignore[union-attr]
        learning = [parameter for parameter in part.parameters() if parameter.requires_grad]
        if learning:
            gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients) if gradients else learning[0].new_zeros(())
            self._found[GRADIENT] = norm.detach()

    def numbers(self) -> dict[str, float]:
        """All numbers, on the host; waits for the device."""
        return scalars(self._found)

    def end(self) -> None:
        """Let go of the model."""
        self._attention.end()


class AttentionWatch:
    """Takes the LiDAR's share of the attention in the last decoder layer, once, of a model of both sensors."""

    def __init__(self, model: CMT) -> None:
        self.share: Tensor | None = None
        """(batch, matching query), mean over the heads, as soon as the model has run."""
        self._matching = len(model.head.reference_points)
        self._cells = math.prod(model.head.grid.bev_shape)
        last = model.decoder.layers[-1]
        assert isinstance(last, DecoderLayer)
        self._attention = last.cross_attention
        self._handle = None
        if model.lidar is not None and model.image is not None:
            self._handle = self._attention.register_forward_pre_hook(self._take, with_kwargs=True)

    def _take(self, _: torch.nn.Module, given: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        query, key = (tokens.detach() for tokens in given[:2])
        lidar = torch.arange(key.shape[1], device=key.device) < self._cells
        bias = named["bias"]
        if bias is not None:
            bias = bias.replace(beta=bias.beta[:, -self._matching :])
        self.share = self._attention.share(query[:, -self._matching :], key, lidar, bias)
        self.end()

    def end(self) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def named(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """With a prefix to their names."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def scalars(found: dict[str, Tensor]) -> dict[str, float]:
    """The scalars on the host, in one transfer."""
    values = torch.stack([value.to(torch.float32) for value in found.values()]).tolist() if found else []
    return dict(zip(found, values, strict=True))
