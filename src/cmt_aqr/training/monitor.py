"""Monitors AQR: logs its statistics, prints and writes them, and warns where something is wrong."""

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
from cmt_aqr.training.observation import (
    BETA,
    GRADIENT,
    MAPS,
    WEIGHTS,
    Observation,
    Summary,
    prefixed,
    scalars,
)

log = logging.getLogger(__name__)

FILE = "map_statistics.json"


class AQRMonitor(pl.Callback):
    """Observes AQR every N steps and at the first step of every epoch.

    Between observations it computes nothing and does not synchronise with the device. With several processes
    only the first one observes, on its own share of the batch. Without AQR it does nothing.

    "Watching the maps" in docs/aqr.md lists what is logged per observation, epoch and evaluation.
    ``map_statistics.json`` keeps the numbers of the last epoch, or of the evaluation where nothing is trained.

    Args:
        folder: where ``map_statistics.json`` goes.
        every_n_steps: steps between observations; in evaluation, batches.
        max_over_mean_limit: warn once per map whose max/mean exceeds this; ``None``: never.
        histogram_bins: bins of the histograms.

    Raises:
        SettingError: a value is out of range.
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
        self._observation: Observation | None = None
        self._doubts: dict[str, list[Tensor]] = {}

    def setup(self, *_: Any, **__: Any) -> None:
        """Discard an observation that an exception interrupted."""
        self._close_observation()
        self._doubts = {}

    # In training an observation lasts from the start of a batch until the optimiser has taken its step.

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Open an observation if one is due; with gradient accumulation, at the first batch of the step."""
        step = trainer.global_step
        if self._observation is None and (batch_idx == 0 or step % self.every_n_steps == 0):
            if self._epoch_number != trainer.current_epoch:
                self._close_epoch(trainer)
                self._epoch_number = trainer.current_epoch
            self._open_observation(trainer, pl_module, step)

    def on_before_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Record the generator's gradient norm: over all processes, unscaled, before clipping."""
        if self._observation is not None:
            self._observation.add_gradient()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Read the outputs of the step's first batch; log them once the optimiser has taken its step."""
        observation = self._observation
        if observation is None:
            return
        observation.add_outputs(outputs)
        if trainer.global_step == observation.step:
            return
        numbers = observation.numbers()
        self._epoch.add(numbers)
        self._log(trainer, "aqr", numbers, observation.step, trainer.current_epoch)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                self._log_histograms(logger, observation)
        self._warn(numbers, observation.step)
        self._close_observation()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's numbers and write them to ``map_statistics.json``."""
        self._close_epoch(trainer)

    on_train_end = on_train_epoch_end  # closes an epoch that was already finished when a run resumed

    def _close_epoch(self, trainer: pl.Trainer) -> None:
        """Log and write the open epoch, if there is one.

        A checkpoint written between an epoch's last step and its end leaves the epoch open; the resumed run
        closes it when it starts the next epoch, or ends.
        """
        if self._epoch.looks == 0 or self._epoch_number is None:
            return
        self._log(trainer, EPOCH, self._epoch.numbers, trainer.global_step - 1, self._epoch_number)
        write_json(self.path, self._epoch.grouped())
        self._last_epoch, self._epoch = (self._epoch_number, self._epoch), Summary()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the last epoch's numbers."""
        if self._last_epoch is not None:
            epoch, summary = self._last_epoch
            summary.print(f"epoch {epoch}")
            if GRADIENT in summary.numbers:
                console().print(f"Gradient norm of the weight generator: {summary.numbers[GRADIENT]:.4g}")

    # In evaluation an observation is one batch.

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, *_: Any, **__: Any
    ) -> None:
        """Open an observation every N batches."""
        if self._observation is None and batch_idx % self.every_n_steps == 0 and not trainer.sanity_checking:
            self._open_observation(trainer, pl_module, trainer.global_step)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Close the observation; collect AQR's doubts from every batch, where the damage is known."""
        if self._observation is not None:
            self._observation.add_outputs(outputs)
            self._evaluation.add(self._observation.numbers())
            self._close_observation()
        if aqr_of(pl_module) is not None and trainer.is_global_zero and not trainer.sanity_checking:
            for sensor, pairs in doubts(aqr_output(outputs["aqr"])).items():
                self._doubts.setdefault(sensor, []).append(pairs.cpu())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the evaluation's numbers; print and write them where nothing was trained."""
        if self._evaluation.looks == 0:
            return
        prefix = BETA if isinstance(aqr_of(pl_module), AttentionBias) else WEIGHTS
        all_doubts = {sensor: torch.cat(pairs, dim=1) for sensor, pairs in self._doubts.items()}
        self._evaluation.numbers |= scalars(prefixed(prefix, detection_of_damage(all_doubts)))
        self._doubts = {}
        step = max(trainer.global_step - 1, 0)
        self._log(trainer, "aqr/val", self._evaluation.numbers, step, trainer.current_epoch)
        if trainer.state.fn == TrainerFn.VALIDATING and self._last_epoch is None:
            write_json(self.path, self._evaluation.grouped())
            self._evaluation.print("evaluation")
        self._evaluation = Summary()

    def state_dict(self) -> dict[str, Any]:
        """The open epoch and the warnings given: a resumed run averages and warns like an uninterrupted one."""
        return {
            "epoch_number": self._epoch_number,
            "epoch": dataclasses.asdict(self._epoch),
            "warned": sorted(self._warned),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict`."""
        self._epoch_number = state_dict["epoch_number"]
        self._epoch = Summary(**state_dict["epoch"])
        self._warned = set(state_dict["warned"])

    def _open_observation(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        if aqr_of(module) is not None and trainer.is_global_zero:
            self._observation = Observation(module.model, step)  # type: ignore[arg-type]  # a model with AQR is CMT

    def _close_observation(self) -> None:
        if self._observation is not None:
            self._observation.close()
            self._observation = None

    def _log_histograms(self, logger: TensorBoardLogger, observation: Observation) -> None:
        """Log weights binned over [0, 1], and beta binned symmetrically about 0."""
        for name, on_device in observation.histograms.items():
            values = on_device.float().cpu()
            values = values[values.isfinite()]  # the loss guard reports the others
            if len(values):
                low, high = 0.0, 1.0
                if name.startswith(BETA):
                    high = max(values.abs().max().item(), 1e-3)
                    low = -high
                edges = torch.linspace(low, high, self.histogram_bins + 1).tolist()
                logger.experiment.add_histogram(f"aqr/{name}", values, observation.step, bins=edges)

    def _warn(self, numbers: dict[str, float], step: int) -> None:
        advice = "see 'Watching the maps' in docs/aqr.md"
        for name in MAPS:
            ratio, limit = numbers.get(f"{name}/max_over_mean", 0.0), self.max_over_mean_limit
            if limit is not None and ratio > limit and name not in self._warned:
                self._warned.add(name)
                log.warning(
                    f"AQR's {name} map at step {step}: its maximum of {numbers[f'{name}/max']:.4g} before the "
                    f"clamp is {ratio:.4g} times its mean of {numbers[f'{name}/mean']:.4g} "
                    f"(callbacks.aqr_monitor.max_over_mean_limit={limit:g}): many queries share one cell; {advice}"
                )
        if numbers.get(GRADIENT) == 0 and GRADIENT not in self._warned:
            self._warned.add(GRADIENT)
            log.warning(
                f"AQR's weight generator has a gradient of exactly 0 at step {step}: the loss does not reach it, "
                f"so it does not learn; {advice}"
            )

    def _log(self, trainer: pl.Trainer, prefix: str, numbers: dict[str, float], step: int, epoch: int) -> None:
        values = {f"{prefix}/{key}": value for key, value in numbers.items()}
        for logger in trainer.loggers:
            logger.log_metrics({**values, "epoch": epoch}, step=step)


def is_epoch_open(checkpoint: dict[str, Any]) -> bool:
    """Whether a resumed run logs the numbers of the epoch that the checkpoint is in."""
    state = checkpoint.get("callbacks", {}).get(AQRMonitor.__qualname__)
    return state is not None and state["epoch"]["looks"] > 0
