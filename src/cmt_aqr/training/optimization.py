"""AdamW with multipliers per module, and CMT's one-cycle schedule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cmt_aqr.checks import is_number, require, require_choice, require_count, require_number
from cmt_aqr.errors import SettingError

MODULES = {
    "img_backbone": "image.backbone.",
    "img_neck": "image.neck.",
    "pts_backbone": "lidar.",
    "aqr_weight_generator": "aqr.",
    "transformer": "decoder.",
    "task_heads": "head.task.",
    "embeddings": "head.",
}
"""Modules by their names in ``lr_mult``, with the prefix of their parameters; the first match counts.

``pts_backbone`` is the entire LiDAR branch; ``embeddings`` is the head without its outputs.
"""


def module_of(parameter: str) -> str:
    """Name of the module (a key of ``MODULES``) that a parameter of CMT belongs to.

    Raises:
        KeyError: the parameter belongs to none.
    """
    for name, prefix in MODULES.items():
        if parameter.startswith(prefix):
            return name
    raise KeyError(f"parameter {parameter} belongs to none of the modules {', '.join(MODULES)}")


@dataclass(frozen=True)
class Multipliers:
    """Factors of learning rate and weight decay per module, 1 by default.

    A learning-rate factor of 0 freezes a module: no gradients, and batch norms keep their statistics.
    """

    lr: Mapping[str, float] = field(default_factory=dict)
    weight_decay: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, values in (("", self.lr), ("weight_decay.", self.weight_decay)):
            for name, value in values.items():
                if name not in MODULES:
                    raise SettingError(f"{kind}{name}={value}: no such module; choose from {', '.join(MODULES)}")
                valid = is_number(value) and value >= 0
                require(valid, f"{kind}{name}", value, "a number of 0 (frozen) or more")

    def frozen(self) -> set[str]:
        """Names of the frozen modules."""
        return {name for name, value in self.lr.items() if value == 0}


def multipliers(weight_decay: Mapping[str, float] | None = None, **rates: float) -> Multipliers:
    """Build the factors of an ``lr_mult`` group: learning rates by module, and ``weight_decay`` by module."""
    return Multipliers(lr=rates, weight_decay=weight_decay or {})


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, multipliers: Multipliers
) -> list[dict[str, Any]]:
    """Optimiser groups, one per module with trainable parameters, named after it."""
    groups: dict[str, dict[str, Any]] = {
        name: {
            "name": name,
            "params": [],
            "lr": lr * multipliers.lr.get(name, 1.0),
            "weight_decay": weight_decay * multipliers.weight_decay.get(name, 1.0),
        }
        for name in MODULES
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[module_of(name)]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW's settings.

    Attributes:
        lr: base learning rate.
        weight_decay: decoupled weight decay.
        lr_for_batch: samples per step that ``lr`` refers to; ``lr`` scales in proportion to the actual number.
            ``None``: ``lr`` does not scale.
        schedule: ``one_cycle`` or ``constant``.
        peak: highest learning rate of one-cycle, as a multiple of ``lr``.
        final: last learning rate of one-cycle, as a multiple of ``lr``.
        warmup: share of the steps in which the learning rate rises, linearly in ``constant``.
        lowest_beta: beta1 at the peak of one-cycle.
    """

    lr: float = 2e-4
    weight_decay: float = 0.01
    lr_for_batch: int | None = None
    schedule: str = "one_cycle"
    peak: float = 6.0
    final: float = 1e-4
    warmup: float = 0.4
    lowest_beta: float = 0.8052632

    def __post_init__(self) -> None:
        for name in ("peak", "final", "lowest_beta"):
            require_number(name, getattr(self, name))
        if self.lr_for_batch is not None:
            require_count("lr_for_batch", self.lr_for_batch)
        require_number("lr", self.lr, above=0, below=1)
        require_number("weight_decay", self.weight_decay, 0)
        require_number("warmup", self.warmup, 0, below=1)
        require_choice("schedule", self.schedule, ("one_cycle", "constant"))

    def unread(self) -> dict[str, str]:
        """Settings without effect, each with the setting that disables it."""
        if self.schedule == "one_cycle":
            return {}
        return dict.fromkeys(("peak", "final", "lowest_beta"), f"schedule={self.schedule}")

    def scaled_lr(self, samples: int) -> float:
        """Learning rate for a number of samples per step."""
        return self.lr if self.lr_for_batch is None else self.lr * samples / self.lr_for_batch

    def build(
        self, model: nn.Module, multipliers: Multipliers, samples: int, steps: int
    ) -> tuple[Optimizer, LRScheduler]:
        """Optimiser and scheduler for a run of ``steps`` steps of ``samples`` samples."""
        groups = parameter_groups(model, self.scaled_lr(samples), self.weight_decay, multipliers)
        optimizer = AdamW(groups, betas=(0.9, 0.999), weight_decay=self.weight_decay, fused=True)
        if self.schedule == "constant":
            return optimizer, ConstantWithWarmup(optimizer, steps, self.warmup)
        return optimizer, OneCycle(optimizer, steps, self.peak, self.final, self.warmup, self.lowest_beta)


class ConstantWithWarmup(LRScheduler):
    """A linear rise over the first ``warmup`` share of the steps, then constant."""

    def __init__(self, optimizer: Optimizer, steps: int, warmup: float) -> None:
        self.rise = max(1, round(steps * warmup))
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Learning rate of every group at the current step."""
        factor = min(1.0, (self.last_epoch + 1) / self.rise)
        return [base * factor for base in self.base_lrs]


class OneCycle(LRScheduler):
    """One cosine cycle of the learning rate, and the inverse cycle of beta1 (as in mmcv's cyclic updaters).

    Over the first ``warmup`` share of the steps the rate rises from its base to ``peak`` times the base, then it
    falls to ``final`` times the base. beta1 falls from the optimiser's value to ``lowest_beta`` and rises back.
    """

    def __init__(
        self, optimizer: Optimizer, steps: int, peak: float, final: float, warmup: float, lowest_beta: float
    ) -> None:
        self.steps = max(1, steps)
        self.peak, self.final, self.lowest_beta = peak, final, lowest_beta
        self.turn = max(1, int(self.steps * warmup))
        self.base_beta = optimizer.param_groups[0]["betas"][0]
        super().__init__(optimizer)

    def _between(self, start: float, middle: float, end: float) -> float:
        step = min(self.last_epoch, self.steps)
        if step < self.turn:
            begin, stop, progress = start, middle, step / self.turn
        else:
            begin, stop = middle, end
            progress = (step - self.turn) / max(1, self.steps - self.turn)
        return stop + (begin - stop) * (1 + math.cos(math.pi * progress)) / 2

    def get_lr(self) -> list[float | torch.Tensor]:
        """Set beta1, and return the learning rate of every group at the current step."""
        beta = self._between(self.base_beta, self.lowest_beta, self.base_beta)
        for group in self.optimizer.param_groups:
            group["betas"] = (beta, group["betas"][1])
        factor = self._between(1.0, self.peak, self.final)
        return [base * factor for base in self.base_lrs]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position, but keep this run's length.

        A run resumed with another length follows the longer, or shorter, cycle from here on.
        """
        changed = state_dict["steps"] != self.steps
        super().load_state_dict({key: value for key, value in state_dict.items() if key not in ("steps", "turn")})
        if changed:
            for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
                group["lr"] = rate
