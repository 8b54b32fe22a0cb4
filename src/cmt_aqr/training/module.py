"""The LightningModule: training step, evaluation step and optimiser."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from cmt_aqr.aqr import AQR, AttentionBias
from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.evaluation.decoding import decode
from cmt_aqr.evaluation.metric import NuScenesMetric
from cmt_aqr.evaluation.official import check_anything_to_find
from cmt_aqr.model.cmt import CMT
from cmt_aqr.ops.devices import processes
from cmt_aqr.outputs import Predictions
from cmt_aqr.structures import Batch
from cmt_aqr.training.denoising import Denoising
from cmt_aqr.training.finite import LossGuard, NotFiniteError, finite_inputs, weights_problem, why_not_finite
from cmt_aqr.training.losses import Criterion, mean_over_processes
from cmt_aqr.training.optimization import MODULES, Multipliers, OptimizerSettings, module_of


class DetectorModule(pl.LightningModule):
    """Trains and evaluates a :class:`~cmt_aqr.model.cmt.CMT`.

    Args:
        denoising: ``None`` trains without denoising queries.
        multipliers: learning-rate and weight-decay factors by module.
        metric: ``None`` for a module that only trains.
        samples_per_step: frames per step over all processes; scales the learning rate.
        max_detections: maximum number of boxes per frame in evaluation.
        score_threshold: boxes with lower scores are dropped in evaluation.
        seed: of dropout and denoising noise, together with the batch number.
        config: the composed configuration, saved in every checkpoint.
    """

    model: CMT

    def __init__(
        self,
        model: CMT,
        criterion: Criterion,
        denoising: Denoising | None,
        optimizer: OptimizerSettings,
        multipliers: Multipliers,
        metric: NuScenesMetric | None = None,
        samples_per_step: int = 1,
        max_detections: int = 300,
        score_threshold: float = 0.0,
        seed: int = 0,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.denoising = denoising
        self.optimizer_settings = optimizer
        self.multipliers = multipliers
        self.metric = metric
        self.samples_per_step = samples_per_step
        self.max_detections = max_detections
        self.score_threshold = score_threshold
        self.seed = seed
        self._batch_seed = seed
        self.config = config or {}
        self.evaluated: tuple[int, dict[str, float]] | None = None
        """Step and metrics of the last full evaluation."""
        self.results_path: Path | None = None
        """Where an evaluation writes all boxes in nuScenes' format; ``None``: nowhere."""
        self._guard = LossGuard()
        for name, parameter in model.named_parameters():
            if module_of(name) in multipliers.frozen():
                parameter.requires_grad_(False)
        # Lightning keeps the mode in which it finds a module.
        self.train(self.training)

    def setup(self, stage: str) -> None:
        """Check that the frames to evaluate contain objects.

        Raises:
            DataError: the official filters leave no object in them.
        """
        data = getattr(self.trainer, "datamodule", None)
        if self.metric is not None and isinstance(data, NuScenesDataModule) and data.annotated:
            check_anything_to_find(self.metric.truth, np.arange(len(data.dataset("val"))))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen modules, and so their batch norms' statistics, stay in evaluation mode."""
        super().train(mode)
        frozen = self.multipliers.frozen()
        for name, part in self.model.named_modules():  # not cached, because norms may have been replaced
            prefix = f"{name}."
            if prefix.startswith(tuple(MODULES.values())) and module_of(prefix) in frozen:
                part.training = False
        return self

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout and noise by (seed, batch, process), so that a resumed run equals an uninterrupted one."""
        # The batch number over all epochs, not the step: a step that accumulates gradients has several batches.
        batch_number = batch_idx if self._trainer is None else self.trainer.fit_loop.total_batch_idx
        self._batch_seed = (self.seed * 1_000_003 + batch_number) * 1_009 + self.global_rank
        torch.manual_seed(self._batch_seed)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return the sum of a batch's losses and AQR's output; log the losses, averaged over processes."""
        targets = None
        if self.denoising is not None:
            head = self.model.head
            # A separate generator, so that AQR's dropout and maps do not depend on the number of boxes.
            noise = torch.Generator(self.device).manual_seed(self._batch_seed + 2**48)
            targets = self.denoising(batch, len(head.reference_points), tuple(head.point_range), generator=noise)
        predictions = self.model(batch, None if targets is None else targets.queries)
        try:
            losses = self.criterion(predictions, batch, targets, same_terms=self.denoising is not None)
        except NotFiniteError as error:
            weights = (*self.model.named_parameters(), *self.model.named_buffers())
            raise NotFiniteError(
                self._guard.problem()
                or f"step {self.global_step}: {error} on frames {', '.join(batch.tokens)}; "
                f"{why_not_finite(batch, weights)}"
            ) from error
        self._guard.add(self.global_step, batch.tokens, losses, finite_inputs(batch))
        values = torch.stack(list(losses.values()))
        total = values.sum()
        means = mean_over_processes(values.detach())
        logged = {f"train/{name}": value for name, value in zip(losses, means.unbind(), strict=True)}
        self.log_dict(logged, batch_size=batch.size)
        self.log("train/loss", means.sum(), prog_bar=True, batch_size=batch.size)
        return {"loss": total, "aqr": aqr_fields(predictions)}

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Check the losses as often as they are logged, since both synchronise with the device."""
        if len(self._guard) >= self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._stop_on(self._guard.problem())

    def _stop_on(self, problem: str | None) -> None:
        """Stop all processes if any has a problem; all must call this at the same point.

        Raises:
            NotFiniteError: with the message of the first process that has one.
        """
        if processes() > 1:
            if not self.trainer.strategy.reduce_boolean_decision(problem is not None, all=False):
                return
            problems: list[str | None] = [None] * processes()
            torch.distributed.all_gather_object(problems, problem)
            problem = next(filter(None, problems))
        if problem is not None:
            raise NotFiniteError(problem)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Decode a batch and update the metric; return the detections and AQR's output."""
        if self.metric is None:
            raise RuntimeError("this DetectorModule was built without a metric and cannot evaluate")
        predictions = self.model(batch)
        detections = decode(
            predictions.matching, self.max_detections, score_threshold=self.score_threshold, tokens=batch.tokens
        )
        self.metric.update(detections, batch.tokens, batch.lidar2global)
        return {"aqr": aqr_fields(predictions), "detections": detections}

    def on_validation_epoch_end(self) -> None:
        """Compute, log and store the official metrics."""
        if self.metric is None:
            return
        metrics = self.metric.compute()
        if self.results_path is not None:
            use_camera, use_lidar = self.model.image is not None, self.model.lidar is not None
            self.metric.write(self.results_path, use_camera=use_camera, use_lidar=use_lidar)
        self.metric.reset()
        # Every process already has the gathered result.
        self.log_dict({f"val/{name}": float(value) for name, value in metrics.items()}, sync_dist=False)
        for name in ("NDS", "mAP"):
            if name in metrics:
                self.log(name, float(metrics[name]), prog_bar=True, logger=False)
        if not self.trainer.sanity_checking:
            self.evaluated = self.global_step, metrics

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and its schedule, which advances with every step."""
        steps = int(self.trainer.estimated_stepping_batches)
        # Counting the steps has built the training loader before the checkpoint is read. Lightning restores the
        # position only of loaders built afterwards, so with this one a run resumed within an epoch would restart
        # it.
        self.trainer.fit_loop._combined_loader = None
        optimizer, scheduler = self.optimizer_settings.build(
            self.model, self.multipliers, self.samples_per_step, steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the configuration in the checkpoint, as plain values.

        Raises:
            NotFiniteError: a loss or a weight is not finite, so that the checkpoint would be useless.
        """
        weights = weights_problem(self.model.named_parameters(), self.global_step)
        self._stop_on(self._guard.problem() or weights)
        checkpoint["config"] = self.config


def aqr_of(module: pl.LightningModule) -> AQR | AttentionBias | None:
    """The module's AQR; ``None`` for plain CMT."""
    return module.model.aqr if isinstance(module, DetectorModule) else None


def aqr_fields(predictions: Predictions) -> dict[str, Tensor | None] | None:
    """AQR's output for callbacks, as a dictionary of detached fields: Lightning refuses frozen dataclasses."""
    if predictions.aqr is None:
        return None
    return {name: None if value is None else value.detach() for name, value in vars(predictions.aqr).items()}
