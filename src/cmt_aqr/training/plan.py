"""Prints a model's parameters and the plan of a run before it starts, and estimates the remaining time."""

import logging
import time
from collections import Counter
from typing import Any

import pytorch_lightning as pl
from rich.table import Table
from torch import nn

from cmt_aqr.checks import require_count
from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.files import folder_size
from cmt_aqr.runs.console import console
from cmt_aqr.training.module import DetectorModule
from cmt_aqr.training.optimization import MODULES, Multipliers, OptimizerSettings, module_of

log = logging.getLogger(__name__)

_WARM_UP = 5
"""First steps that are not timed, because workers start and kernels are selected."""

_BYTES_PER_PARAMETER = 12
"""Size of a parameter in a checkpoint: the weight and AdamW's two moments, float32."""

_CHECKPOINTS = 3
"""``last.ckpt``, ``previous.ckpt`` and ``best.ckpt``."""


def parameter_table(model: nn.Module, optimizer: OptimizerSettings, factors: Multipliers, samples: int) -> Table:
    """Parameters, learning rate and weight decay of every module."""
    lr = optimizer.scaled_lr(samples)
    table = Table("module", title=f"Parameters by module (learning rate {lr:g} for {samples} samples per step)")
    for heading in ("parameters", "trainable", "learning rate", "weight decay"):
        table.add_column(heading, justify="right")
    counts: dict[str, Counter[bool]] = {module: Counter() for module in MODULES}
    for name, parameter in model.named_parameters():
        counts[module_of(name)][parameter.requires_grad] += parameter.numel()
    for module, count in counts.items():
        rate = lr * factors.lr.get(module, 1.0)
        decay = optimizer.weight_decay * factors.weight_decay.get(module, 1.0)
        if count:
            rate_cell = f"{rate:.2e}" if rate else "frozen"
            table.add_row(module, f"{count.total():,}", f"{count[True]:,}", rate_cell, f"{decay:g}")
    table.add_section()
    total = sum(counts.values(), Counter())
    table.add_row("all", f"{total.total():,}", f"{total[True]:,}", "", "")
    return table


class ParameterSummary(pl.Callback):
    """Prints the parameters by module when a fit starts."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the table, on one process."""
        if trainer.is_global_zero and isinstance(pl_module, DetectorModule):
            settings, factors = pl_module.optimizer_settings, pl_module.multipliers
            console().print(parameter_table(pl_module.model, settings, factors, pl_module.samples_per_step))


class RunPlan(pl.Callback):
    """Prints frames, steps, learning rate, pasting epochs and disk space before a run starts.

    After ``steps`` timed steps it logs the remaining hours, without evaluations.

    Raises:
        SettingError: ``steps`` is no whole number above 0.
    """

    def __init__(self, steps: int = 50) -> None:
        require_count("steps", steps)
        self.steps = steps
        self._first: int | None = None
        self._since = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the plan, on one process, and start to count steps."""
        self._first = trainer.global_step
        data = getattr(trainer, "datamodule", None)
        if (
            isinstance(pl_module, DetectorModule)
            and isinstance(data, NuScenesDataModule)
            and trainer.is_global_zero
        ):
            console().print(plan_table(trainer, pl_module, data))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Time the first steps, then log the remaining time once."""
        if self._first is None:
            return
        done = trainer.global_step - self._first
        if done <= _WARM_UP:
            self._since = time.monotonic()
        elif done == _WARM_UP + self.steps:
            seconds = (time.monotonic() - self._since) / self.steps
            left = max(0, int(trainer.estimated_stepping_batches) - trainer.global_step)
            if trainer.is_global_zero:
                hours = left * seconds / 3600
                log.info("About %.1f hours left without evaluations: %d steps of %.2f s", hours, left, seconds)
            self._first = None


def plan_table(trainer: pl.Trainer, module: DetectorModule, data: NuScenesDataModule) -> Table:
    """The plan of a run, once its loaders exist."""
    steps, epochs = int(trainer.estimated_stepping_batches), trainer.max_epochs
    per_epoch = int(trainer.num_training_batches) * data.batch_size * trainer.world_size
    settings, samples = module.optimizer_settings, module.samples_per_step
    lr = settings.scaled_lr(samples)
    rule = "as given" if settings.lr_for_batch is None else f"{settings.lr:g} for {settings.lr_for_batch} frames"
    rate = f"{lr:.3g} ({rule})"
    if settings.schedule == "one_cycle":
        rate += f", up to {lr * settings.peak:.3g} at step {int(steps * settings.warmup)}"
    table = Table(title="Plan of the run", title_justify="left", show_header=False)
    frames = f"{per_epoch:,}"
    if data.resampling != "none":
        frames += f", drawn by {data.resampling} from {len(data.dataset('train')):,}"
    table.add_row("frames per epoch", frames)
    length = "" if epochs in (None, -1) else f" in at most {epochs} epochs"
    table.add_row("steps", f"{steps:,} of {samples} frames{length}")
    table.add_row("learning rate", rate)
    if data.sampling is not None:
        until = data.sampling.until_epoch
        pasted = "all epochs" if until is None else f"epochs 0 to {until - 1}, none from epoch {until} on"
        table.add_row("objects pasted", pasted)
    parameters = sum(parameter.numel() for parameter in module.model.parameters())
    disk = f"{_CHECKPOINTS * _BYTES_PER_PARAMETER * parameters / 1e9:.2f} GB of checkpoints"
    folder = data.database_folder()
    if folder is not None:
        disk += f", {folder_size(folder) / 1e9:.2f} GB of objects in {folder}"
    table.add_row("disk", disk)
    return table
