"""One observation of AQR during a step, and running statistics over several observations."""

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
    "relative_change": "change",
    "lidar_broken": "LiDAR broken",
    "camera_broken": "camera broken",
    "auc_lidar": "AUC LiDAR",
    "auc_camera": "AUC camera",
}
_MAP_COLUMNS: tuple[str, ...] = (
    "mean",
    "std",
    "min",
    "max",
    "max_over_mean",
    "clamped",
    "drawn",
    "relative_change",
)
_BETA_COLUMNS = ("mean", "std", "min", "max", "lidar_broken", "camera_broken", "whole", "auc_lidar", "auc_camera")
_SHARES = ("clamped", "drawn", "relative_change")


@dataclass
class Summary:
    """Running statistics over observations: maximum of ``max...``, minimum of ``min``, mean of everything else.

    Checkpoints hold the fields, so that a resumed run continues with the same bits.

    Attributes:
        looks: number of observations.
        counts: number of observations in which a number was finite, by name.
        numbers: the statistics by name.
    """

    looks: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)

    def add(self, numbers: dict[str, float]) -> None:
        """Add the numbers of an observation; those that are not finite are ignored."""
        self.looks += 1
        for key, value in numbers.items():
            if not math.isfinite(value):
                continue
            current = self.numbers.setdefault(key, value)
            self.counts[key] = self.counts.get(key, 0) + 1
            kind = key.rpartition("/")[2].partition("_")[0]
            if kind in ("max", "min"):
                self.numbers[key] = max(current, value) if kind == "max" else min(current, value)
            else:
                self.numbers[key] = current + (value - current) / self.counts[key]

    def grouped(self) -> dict[str, dict[str, float]]:
        """The statistics of ``bev`` and ``camera``, or ``beta``, and of ``attention``."""
        groups: dict[str, dict[str, float]] = {}
        for key, value in self.numbers.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = value
        return {name: groups[name] for name in (*MAPS, BETA, ATTENTION) if "mean" in groups.get(name, {})}

    def print(self, title: str) -> None:
        """Print a table of the groups, and the AUC of AQR's weights where the damage is known."""
        groups = self.grouped()
        name, columns = "AQR's maps before the clamp", _MAP_COLUMNS
        if BETA in groups:
            name, columns = "AQR's beta", _BETA_COLUMNS
        table = Table("", title=f"{name}, {title} (observations: {self.looks})", title_justify="left")
        for key in columns:
            table.add_column(_HEADINGS.get(key, key), justify="right")
        for group, numbers in groups.items():
            cells = (
                "" if key not in numbers else format(numbers[key], ".1%" if key in _SHARES else ".4g")
                for key in columns
            )
            table.add_row("LiDAR's share" if group == ATTENTION else group, *cells)
        console().print(table)
        areas = {sensor: self.numbers.get(f"{WEIGHTS}/auc_{sensor}") for sensor in ("lidar", "camera")}
        listed = ", ".join(f"{sensor} {area:.4g}" for sensor, area in areas.items() if area is not None)
        if listed:
            console().print(f"AUC of the weights as detectors of damage: {listed}", highlight=False)


class Observation:
    """Collects the numbers of one step, from its start on.

    ``histograms`` holds the values to be binned, (value,) on the device, by name.
    """

    def __init__(self, model: CMT, step: int) -> None:
        self.step = step
        self.histograms: dict[str, Tensor] = {}
        self._numbers: dict[str, Tensor] = {}
        self._aqr = model.aqr
        self._attention = AttentionProbe(model)
        self._has_outputs = False

    def add_outputs(self, outputs: Any) -> None:
        """Add the numbers of a batch, given what its step returned; only the first batch of a step counts."""
        if self._has_outputs:
            return
        self._has_outputs = True
        output: AQROutput | BiasOutput = aqr_output(outputs["aqr"])
        if isinstance(output, BiasOutput):
            values = beta_values(output)
            self._numbers |= prefixed(BETA, spread(values) | detection_of_damage(doubts(output)))
            self.histograms = prefixed(f"{BETA}/histogram", values)
        elif isinstance(self._aqr, AQR):
            self._numbers |= output_statistics(output, self._aqr.renderer.background)
            self._numbers |= prefixed(WEIGHTS, detection_of_damage(doubts(output)))
            self.histograms = prefixed(WEIGHTS, used_weights(output))
            for name, weights in self.histograms.items():
                if len(weights):
                    self._numbers[f"{name}_mean"] = weights.mean()
                    self._numbers[f"{name}_std"] = weights.std(correction=0)
        if self._attention.share is not None:
            self._numbers |= prefixed(ATTENTION, spread(share_values(self._attention.share, output)))

    def add_gradient(self) -> None:
        """Add the norm of the generator's current gradient; a frozen generator has none."""
        part = self._aqr if isinstance(self._aqr, AttentionBias) else self._aqr.generator  # type: ignore[union-attr]
        parameters = [parameter for parameter in part.parameters() if parameter.requires_grad]
        if parameters:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients) if gradients else parameters[0].new_zeros(())
            self._numbers[GRADIENT] = norm.detach()

    def numbers(self) -> dict[str, float]:
        """All numbers, on the host; synchronises with the device."""
        return scalars(self._numbers)

    def close(self) -> None:
        """Release the model."""
        self._attention.close()


class AttentionProbe:
    """Reads the LiDAR's share of the attention in the last decoder layer at the next forward pass.

    A model of one sensor has no share. The share needs queries and keys, which no output holds: hence a hook.
    """

    def __init__(self, model: CMT) -> None:
        self.share: Tensor | None = None
        """(batch, matching query), mean over the heads; ``None`` until the model has run."""
        self._matching = len(model.head.reference_points)
        self._cells = math.prod(model.head.grid.bev_shape)
        last = model.decoder.layers[-1]
        assert isinstance(last, DecoderLayer)
        self._attention = last.cross_attention
        self._handle = None
        if model.lidar is not None and model.image is not None:
            self._handle = self._attention.register_forward_pre_hook(self._read, with_kwargs=True)

    def _read(self, _: torch.nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        query, key = (tokens.detach() for tokens in args[:2])
        lidar = torch.arange(key.shape[1], device=key.device) < self._cells
        bias = kwargs["bias"]
        if bias is not None:
            bias = bias.replace(beta=bias.beta[:, -self._matching :])
        self.share = self._attention.share(query[:, -self._matching :], key, lidar, bias)
        self.close()

    def close(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def prefixed(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values under the names ``<prefix>/<name>``."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def scalars(values: dict[str, Tensor]) -> dict[str, float]:
    """Scalars on the host, in one transfer."""
    numbers = torch.stack([value.to(torch.float32) for value in values.values()]).tolist() if values else []
    return dict(zip(values, numbers, strict=True))
