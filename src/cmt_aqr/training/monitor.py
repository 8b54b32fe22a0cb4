"""Watching AQR's maps: their numbers in every logger, a table, a file, and a warning where something is wrong."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
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
from cmt_aqr.checks import require_above_zero, require_count, require_folder
from cmt_aqr.files import write_json
from cmt_aqr.model.cmt import CMT
from cmt_aqr.outputs import BiasOutput, aqr_output
from cmt_aqr.runs.console import console
from cmt_aqr.runs.curves import EPOCH
from cmt_aqr.training.watched import ATTENTION, BETA, MAPS, WEIGHTS, AttentionWatch, Summary, scalars

log = logging.getLogger(__name__)

GRADIENT = "generator_gradient"
FILE = "map_statistics.json"


class AQRMonitor(pl.Callback):
    """Looks at what AQR does every N steps, and at the first step of every epoch.

    A look computes :func:`~cmt_aqr.aqr.statistics.output_statistics` of the batch and the distribution of the
    weights that drew, or of a bias in the attention the distribution of beta by what is broken; the LiDAR's share
    of the attention in the last decoder layer, and the generator's gradient norm before clipping. Between looks
    nothing is computed and nothing synchronises with the device. Of several processes the first one looks, at its
    own share of the batch. Without AQR it does nothing.

    Logged at each look: ``aqr/bev/mean`` and so on, ``aqr/camera/...``, ``aqr/weights/lidar_mean``,
    ``lidar_std``, ``camera_mean``, ``camera_std``, or ``aqr/beta/...``; ``aqr/attention/...`` for a model of both
    sensors, ``aqr/generator_gradient``, and for TensorBoard the histograms ``aqr/weights/lidar`` and
    ``aqr/weights/camera``, or ``aqr/beta/histogram/all`` and those by what is broken. At the end of an epoch the
    same numbers under ``aqr/epoch/``, and of an evaluation under ``aqr/val/``: means over the looks, but the
    highest ``max``, ``max_over_mean`` and ``max_after`` and the lowest ``min``; an evaluation's ``auc_...`` are
    over all its batches. ``map_statistics.json`` keeps the last epoch's, or the evaluation's where nothing is
    trained.

    Args:
        folder: where ``map_statistics.json`` goes.
        every_n_steps: steps from one look to the next; in evaluation, batches.
        max_over_mean_limit: a map whose max/mean is higher is warned of, once; ``None``: never.
        histogram_bins: bins of the histograms.

    Raises:
        SettingError: for values out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        every_n_steps: int = 50,
        max_over_mean_limit: float | None = 100.0,
        histogram_bins: int = 50,
    ) -> None:
        require_folder("folder", folder)
        require_count("every_n_steps", every_n_steps)
        require_count("histogram_bins", histogram_bins)
        if max_over_mean_limit is not None:
            require_above_zero("max_over_mean_limit", max_over_mean_limit)
        self.path = Path(folder) / FILE
        self.every_n_steps = every_n_steps
        self.max_over_mean_limit = max_over_mean_limit
        self.histogram_bins = histogram_bins
        self._epoch = Summary()
        self._epoch_number: int | None = None
        self._last_epoch: tuple[int, Summary] | None = None
        self._evaluation = Summary()
        self._warned: set[str] = set()
        self._step: int | None = None
        self._seen = False
        self._found: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}
        self._attention: AttentionWatch | None = None
        self._doubts: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Drop what an exception broke off."""
        self._forget()
        self._doubts = {}

    # A look in training: from the start of a batch to the end of the batch that takes the optimiser's step.

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a look where one is due; with gradient accumulation at the first batch of the step."""
        step = trainer.global_step
        if self._step is None and (batch_idx == 0 or step % self.every_n_steps == 0):
            if self._epoch_number != trainer.current_epoch:
                self._close_epoch(trainer)
                self._epoch_number = trainer.current_epoch
            self._look(trainer, pl_module, step)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Take the generator's gradient norm: over all processes, unscaled, before it is clipped."""
        aqr = aqr_of(pl_module)
        if self._step is None or aqr is None:
            return
        part = aqr if isinstance(aqr, AttentionBias) else aqr.generator
        learning = [parameter for parameter in part.parameters() if parameter.requires_grad]
        if learning:
            gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients) if gradients else learning[0].new_zeros(())
            self._found[GRADIENT] = norm.detach()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the step's first batch; end the look once the optimiser took its step."""
        self._see(pl_module, outputs)
        if self._step is not None and trainer.global_step > self._step:
            self._finish(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's numbers and write them to ``map_statistics.json``."""
        self._close_epoch(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close an epoch that a run from a checkpoint found finished."""
        self._close_epoch(trainer)

    def _close_epoch(self, trainer: pl.Trainer) -> None:
        """End the epoch that is open, if there is one.

        A checkpoint that was written after an epoch's last step and before its end leaves it open; the run that
        resumes from there closes it where it begins the next epoch, or ends.
        """
        if self._epoch.looks == 0 or self._epoch_number is None:
            return
        self._log(trainer, EPOCH, self._epoch.numbers, trainer.global_step - 1, self._epoch_number)
        self._write(self._epoch)
        self._last_epoch, self._epoch = (self._epoch_number, self._epoch), Summary()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the last epoch's numbers."""
        if self._last_epoch is not None:
            epoch, summary = self._last_epoch
            summary.print(f"epoch {epoch}")
            if GRADIENT in summary.numbers:
                console().print(f"Gradient norm of the weight generator: {summary.numbers[GRADIENT]:.4g}")

    # A look in evaluation: one batch.

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Begin a look every N batches."""
        if self._step is None and batch_idx % self.every_n_steps == 0 and not trainer.sanity_checking:
            self._look(trainer, pl_module, trainer.global_step)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look; what tells how well damage is found is kept of every batch, where the damage is known."""
        if self._step is not None:
            self._see(pl_module, outputs)
            self._evaluation.add(scalars(self._found))
            self._forget()
        if aqr_of(pl_module) is not None and trainer.is_global_zero and not trainer.sanity_checking:
            for sensor, pair in doubts(aqr_output(outputs["aqr"])).items():
                self._doubts.setdefault(sensor, []).append((pair[0].cpu(), pair[1].cpu()))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the evaluation's numbers; where nothing was trained, print and write them, too."""
        if self._evaluation.looks == 0:
            return
        prefix = BETA if isinstance(aqr_of(pl_module), AttentionBias) else WEIGHTS
        every = {name: _joined(pairs) for name, pairs in self._doubts.items()}
        self._evaluation.numbers |= scalars(_named(prefix, detection_of_damage(every)))
        self._doubts = {}
        step = max(trainer.global_step - 1, 0)
        self._log(trainer, "aqr/val", self._evaluation.numbers, step, trainer.current_epoch)
        if trainer.state.fn == TrainerFn.VALIDATING and self._last_epoch is None:
            self._write(self._evaluation)
            self._evaluation.print("evaluation")
        self._evaluation = Summary()

    def state_dict(self) -> dict[str, Any]:
        """The epoch so far, and what was warned of: a resumed run counts and warns as if it never stopped."""
        return {
            "epoch_number": self._epoch_number,
            "epoch": self._epoch.state(),
            "warned": sorted(self._warned),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._epoch_number = state_dict["epoch_number"]
        self._epoch = Summary(**state_dict["epoch"])
        self._warned = set(state_dict["warned"])

    def _look(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        if aqr_of(module) is not None and trainer.is_global_zero:
            self._step, self._seen = step, False
            model = module.model
            self._attention = AttentionWatch(model) if isinstance(model, CMT) else None

    def _see(self, module: pl.LightningModule, outputs: Any) -> None:
        """Take the numbers of a batch that is looked at from what the step returned."""
        aqr = aqr_of(module)
        if self._step is None or self._seen or aqr is None:
            return
        self._seen = True
        output = aqr_output(outputs["aqr"])
        if isinstance(output, BiasOutput):
            values = beta_values(output)
            self._found |= _named(BETA, spread(values) | detection_of_damage(doubts(output)))
            self._values = _named(f"{BETA}/histogram", values)
        elif isinstance(aqr, AQR):
            self._found |= output_statistics(output, aqr.renderer.background)
            self._found |= _named(WEIGHTS, detection_of_damage(doubts(output)))
            self._values = _named(WEIGHTS, used_weights(output))
        share = None if self._attention is None else self._attention.share
        if share is not None:
            self._found |= _named(ATTENTION, spread(share_values(share, output)))

    def _finish(self, trainer: pl.Trainer) -> None:
        """Log and sum up a look in training; here the device is waited for."""
        step = self._step or 0
        for name, values in self._values.items():
            if name.startswith(WEIGHTS) and len(values):
                self._found |= {f"{name}_mean": values.mean(), f"{name}_std": values.std(correction=0)}
        numbers = scalars(self._found)
        self._epoch.add(numbers)
        self._log(trainer, "aqr", numbers, step, trainer.current_epoch)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                self._log_histograms(logger, step)
        self._warn(numbers, step)
        self._forget()

    def _log_histograms(self, logger: TensorBoardLogger, step: int) -> None:
        """Of the weights over [0, 1], of beta over what it reaches to either side of 0."""
        for name, on_device in self._values.items():
            values = on_device.float().cpu()
            values = values[values.isfinite()]  # the loss' guard speaks of others
            if len(values):
                low, high = 0.0, 1.0
                if name.startswith(BETA):
                    high = max(values.abs().max().item(), 1e-3)
                    low = -high
                edges = torch.linspace(low, high, self.histogram_bins + 1).tolist()
                logger.experiment.add_histogram(f"aqr/{name}", values, step, bins=edges)

    def _forget(self) -> None:
        self._step, self._found, self._values = None, {}, {}
        if self._attention is not None:
            self._attention.end()
            self._attention = None

    def _warn(self, numbers: dict[str, float], step: int) -> None:
        for name in MAPS:
            ratio, limit = numbers.get(f"{name}/max_over_mean", 0.0), self.max_over_mean_limit
            if limit is not None and ratio > limit and name not in self._warned:
                self._warned.add(name)
                log.warning(
                    "AQR's %s map at step %d: its highest cell is %.4g, %.4g times its mean of %.4g, before the "
                    "clamp (callbacks.aqr_monitor.max_over_mean_limit=%g): many queries draw in one cell; see "
                    "'Watching the maps' in docs/aqr.md",
                    name,
                    step,
                    numbers[f"{name}/max"],
                    ratio,
                    numbers[f"{name}/mean"],
                    limit,
                )
        if numbers.get(GRADIENT) == 0 and GRADIENT not in self._warned:
            self._warned.add(GRADIENT)
            log.warning(
                "AQR's weight generator has a gradient of exactly 0 at step %d: the loss does not reach it, and "
                "it does not learn; see 'Watching the maps' in docs/aqr.md",
                step,
            )

    def _log(self, trainer: pl.Trainer, prefix: str, numbers: dict[str, float], step: int, epoch: int) -> None:
        values = {f"{prefix}/{key}": value for key, value in numbers.items()}
        for logger in trainer.loggers:
            logger.log_metrics({**values, "epoch": epoch}, step=step)

    def _write(self, summary: Summary) -> None:
        write_json(self.path, summary.by_map())


def is_epoch_open(checkpoint: dict[str, Any]) -> bool:
    """Whether a resumed run logs the numbers of the epoch that the checkpoint is in."""
    state = checkpoint.get("callbacks", {}).get(AQRMonitor.__qualname__)
    return state is not None and state["epoch"]["looks"] > 0


def _joined(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Doubts and truths of several batches in one row each."""
    doubt, broken = zip(*pairs, strict=True)
    return torch.cat(doubt), torch.cat(broken)


def _named(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """With a prefix to their names."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def aqr_of(module: pl.LightningModule) -> AQR | AttentionBias | None:
    """The module's AQR; ``None`` for plain CMT."""
    aqr = getattr(getattr(module, "model", None), "aqr", None)
    return aqr if isinstance(aqr, AQR | AttentionBias) else None
