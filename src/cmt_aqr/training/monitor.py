"""Watching AQR's maps: their numbers in every logger, a table, a file, and a warning where something is wrong."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from cmt_aqr.aqr import AttentionBias
from cmt_aqr.aqr.statistics import detection_of_damage, doubts
from cmt_aqr.checks import require_above_zero, require_count, require_folder
from cmt_aqr.files import write_json
from cmt_aqr.outputs import aqr_output
from cmt_aqr.runs.console import console
from cmt_aqr.runs.curves import EPOCH
from cmt_aqr.training.module import aqr_of
from cmt_aqr.training.watched import BETA, GRADIENT, MAPS, WEIGHTS, Look, Summary, named, scalars

log = logging.getLogger(__name__)

FILE = "map_statistics.json"


class AQRMonitor(pl.Callback):
    """Looks at what AQR does every N steps, and at the first step of every epoch.

    Between looks nothing is computed and nothing synchronises with the device. Of several processes the first one
    looks, at its own share of the batch. Without AQR it does nothing.

    What is logged at a look, at the end of an epoch and of an evaluation, and under which names, says the table of
    docs/aqr.md, "Watching the maps". ``map_statistics.json`` keeps the last epoch's numbers, or the evaluation's
    where nothing is trained.

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
        self._look: Look | None = None
        self._doubts: dict[str, list[Tensor]] = {}

    def setup(self, *_: Any, **__: Any) -> None:
        """Drop what an exception broke off."""
        self._end_look()
        self._doubts = {}

    # A look in training: from the start of a batch to the end of the batch that takes the optimiser's step.

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a look where one is due; with gradient accumulation at the first batch of the step."""
        step = trainer.global_step
        if self._look is None and (batch_idx == 0 or step % self.every_n_steps == 0):
            if self._epoch_number != trainer.current_epoch:
                self._close_epoch(trainer)
                self._epoch_number = trainer.current_epoch
            self._begin_look(trainer, pl_module, step)

    def on_before_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Take the generator's gradient norm: over all processes, unscaled, before it is clipped."""
        if self._look is not None:
            self._look.see_gradient()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Look at the step's first batch; log and sum up once the optimiser took its step."""
        look = self._look
        if look is None:
            return
        look.see(outputs)
        if trainer.global_step == look.step:
            return
        numbers = look.numbers()
        self._epoch.add(numbers)
        self._log(trainer, "aqr", numbers, look.step, trainer.current_epoch)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                self._log_histograms(logger, look)
        self._warn(numbers, look.step)
        self._end_look()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's numbers and write them to ``map_statistics.json``."""
        self._close_epoch(trainer)

    on_train_end = on_train_epoch_end  # of an epoch that a run from a checkpoint found finished

    def _close_epoch(self, trainer: pl.Trainer) -> None:
        """End the epoch that is open, if there is one.

        A checkpoint that was written after an epoch's last step and before its end leaves it open; the run that
        resumes from there closes it where it begins the next epoch, or ends.
        """
        if self._epoch.looks == 0 or self._epoch_number is None:
            return
        self._log(trainer, EPOCH, self._epoch.numbers, trainer.global_step - 1, self._epoch_number)
        write_json(self.path, self._epoch.by_map())
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
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, *_: Any, **__: Any
    ) -> None:
        """Begin a look every N batches."""
        if self._look is None and batch_idx % self.every_n_steps == 0 and not trainer.sanity_checking:
            self._begin_look(trainer, pl_module, trainer.global_step)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Look; what tells how well damage is found is kept of every batch, where the damage is known."""
        if self._look is not None:
            self._look.see(outputs)
            self._evaluation.add(self._look.numbers())
            self._end_look()
        if aqr_of(pl_module) is not None and trainer.is_global_zero and not trainer.sanity_checking:
            for sensor, pairs in doubts(aqr_output(outputs["aqr"])).items():
                self._doubts.setdefault(sensor, []).append(pairs.cpu())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the evaluation's numbers; where nothing was trained, print and write them, too."""
        if self._evaluation.looks == 0:
            return
        prefix = BETA if isinstance(aqr_of(pl_module), AttentionBias) else WEIGHTS
        every = {sensor: torch.cat(pairs, dim=1) for sensor, pairs in self._doubts.items()}
        self._evaluation.numbers |= scalars(named(prefix, detection_of_damage(every)))
        self._doubts = {}
        step = max(trainer.global_step - 1, 0)
        self._log(trainer, "aqr/val", self._evaluation.numbers, step, trainer.current_epoch)
        if trainer.state.fn == TrainerFn.VALIDATING and self._last_epoch is None:
            write_json(self.path, self._evaluation.by_map())
            self._evaluation.print("evaluation")
        self._evaluation = Summary()

    def state_dict(self) -> dict[str, Any]:
        """The epoch so far, and what was warned of: a resumed run counts and warns as if it never stopped."""
        return {
            "epoch_number": self._epoch_number,
            "epoch": dataclasses.asdict(self._epoch),
            "warned": sorted(self._warned),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._epoch_number = state_dict["epoch_number"]
        self._epoch = Summary(**state_dict["epoch"])
        self._warned = set(state_dict["warned"])

    def _begin_look(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        if aqr_of(module) is not None and trainer.is_global_zero:
            self._look = Look(module.model, step)  # type: ignore[arg-type]  # a model with AQR is CMT

    def _end_look(self) -> None:
        if self._look is not None:
            self._look.end()
            self._look = None

    def _log_histograms(self, logger: TensorBoardLogger, look: Look) -> None:
        """Of the weights over [0, 1], of beta over what it reaches to either side of 0."""
        for name, on_device in look.values.items():
            values = on_device.float().cpu()
            values = values[values.isfinite()]  # the loss' guard speaks of others
            if len(values):
                low, high = 0.0, 1.0
                if name.startswith(BETA):
                    high = max(values.abs().max().item(), 1e-3)
                    low = -high
                edges = torch.linspace(low, high, self.histogram_bins + 1).tolist()
                logger.experiment.add_histogram(f"aqr/{name}", values, look.step, bins=edges)

    def _warn(self, numbers: dict[str, float], step: int) -> None:
        advice = "see 'Watching the maps' in docs/aqr.md"
        for name in MAPS:
            ratio, limit = numbers.get(f"{name}/max_over_mean", 0.0), self.max_over_mean_limit
            if limit is not None and ratio > limit and name not in self._warned:
                self._warned.add(name)
                log.warning(
                    f"AQR's {name} map at step {step}: its highest cell is {numbers[f'{name}/max']:.4g}, "
                    f"{ratio:.4g} times its mean of {numbers[f'{name}/mean']:.4g}, before the clamp "
                    f"(callbacks.aqr_monitor.max_over_mean_limit={limit:g}): many queries draw in one cell; "
                    f"{advice}"
                )
        if numbers.get(GRADIENT) == 0 and GRADIENT not in self._warned:
            self._warned.add(GRADIENT)
            log.warning(
                f"AQR's weight generator has a gradient of exactly 0 at step {step}: the loss does not reach it, "
                f"and it does not learn; {advice}"
            )

    def _log(self, trainer: pl.Trainer, prefix: str, numbers: dict[str, float], step: int, epoch: int) -> None:
        values = {f"{prefix}/{key}": value for key, value in numbers.items()}
        for logger in trainer.loggers:
            logger.log_metrics({**values, "epoch": epoch}, step=step)


def is_epoch_open(checkpoint: dict[str, Any]) -> bool:
    """Whether a resumed run logs the numbers of the epoch that the checkpoint is in."""
    state = checkpoint.get("callbacks", {}).get(AQRMonitor.__qualname__)
    return state is not None and state["epoch"]["looks"] > 0
