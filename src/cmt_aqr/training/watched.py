"""What the monitor of AQR saw: numbers of several looks in one, and how attention is looked at."""

from __future__ import annotations

import math
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from cmt_aqr.model.cmt import CMT
from cmt_aqr.model.decoder import DecoderLayer
from cmt_aqr.runs.console import console

MAPS = ("bev", "camera")
BETA = "beta"
ATTENTION = "attention"
WEIGHTS = "weights"


class Summary:
    """Numbers of several looks in one: the highest of what is called max, the lowest of min, else the mean."""

    def __init__(
        self, looks: int = 0, counts: dict[str, int] | None = None, numbers: dict[str, float] | None = None
    ) -> None:
        self.looks = looks
        self.counts = dict(counts or {})
        self.numbers = dict(numbers or {})

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

    def state(self) -> dict[str, Any]:
        """What makes an equal one."""
        return {"looks": self.looks, "counts": dict(self.counts), "numbers": dict(self.numbers)}

    def by_map(self) -> dict[str, dict[str, float]]:
        """The numbers by what they are of: ``bev`` and ``camera``, or ``beta``; ``attention``."""
        return {
            name: {
                key.removeprefix(f"{name}/"): value
                for key, value in self.numbers.items()
                if key.startswith(f"{name}/")
            }
            for name in (*MAPS, BETA, ATTENTION)
            if f"{name}/mean" in self.numbers
        }

    def print(self, of: str) -> None:
        """Print the maps' numbers, or beta's, and the attention's, and how well weights tell what is broken.

        Args:
            of: what was looked at, for the title.
        """
        every = self.by_map()
        what, shown = ("AQR's beta", _OF_BETA) if BETA in every else ("AQR's maps before the clamp", _OF_MAPS)
        times = "once" if self.looks == 1 else f"{self.looks} times"
        table = Table(title=f"{what}, {of} (looked at {times})", title_justify="left")
        table.add_column("")
        for heading in shown.values():
            table.add_column(heading, justify="right")
        for name, numbers in every.items():
            table.add_row(_ROWS.get(name, name), *(_shown(key, numbers.get(key)) for key in shown))
        console().print(table)
        known = {name: self.numbers.get(f"{WEIGHTS}/auc_{name}") for name in ("lidar", "camera")}
        told = ", ".join(f"{name} {value:.4g}" for name, value in known.items() if value is not None)
        if told:
            console().print(f"AUC of the weights against what is broken: {told}", highlight=False)


_ROWS = {ATTENTION: "LiDAR's share"}

_OF_MAPS = {
    "mean": "mean",
    "std": "std",
    "min": "min",
    "max": "max",
    "max_over_mean": "max/mean",
    "clamped": "clamped",
    "drawn": "drawn on",
    "relative_change": "change",
}

_OF_BETA = {
    "mean": "mean",
    "std": "std",
    "min": "min",
    "max": "max",
    "lidar_broken": "LiDAR broken",
    "camera_broken": "camera broken",
    "whole": "both whole",
    "auc_lidar": "AUC LiDAR",
    "auc_camera": "AUC camera",
}


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if key in ("clamped", "drawn", "relative_change") else f"{value:.4g}"


class AttentionWatch:
    """Takes the LiDAR's share of the attention in the last decoder layer, once, of a model of both sensors."""

    def __init__(self, model: CMT) -> None:
        self.share: Tensor | None = None
        """(batch, matching query), mean over the heads, as soon as the model has run."""
        self._matching = len(model.head.reference_points)
        self._cells = math.prod(model.head.grid.bev_shape)
        *_, last = model.decoder.layers
        assert isinstance(last, DecoderLayer)
        self._attention = last.cross_attention
        self._handle = None
        if model.lidar is not None and model.image is not None:
            self._handle = self._attention.register_forward_pre_hook(self._take, with_kwargs=True)

    def _take(self, _: torch.nn.Module, given: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        query, key = (tokens.detach() for tokens in given[:2])
        lidar = torch.arange(key.shape[1], device=key.device) < self._cells
        self.share = self._attention.share(query[:, -self._matching :], key, lidar, self._bias(named))
        self.end()

    def _bias(self, named: dict[str, Any]) -> Any:
        bias = named.get("bias")
        return None if bias is None else bias.replace(beta=bias.beta[:, -self._matching :])

    def end(self) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def scalars(found: dict[str, Tensor]) -> dict[str, float]:
    """The scalars on the host, in one transfer."""
    values = torch.stack([value.to(torch.float32) for value in found.values()]).tolist() if found else []
    return dict(zip(found, values, strict=True))
