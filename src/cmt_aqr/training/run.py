"""A training run and an evaluation, from a composed configuration to metrics.json."""

import logging
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ProgressBar

from cmt_aqr.aqr import AQR
from cmt_aqr.checks import require
from cmt_aqr.constants import CAMERAS
from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.tables import is_annotated
from cmt_aqr.errors import UserError
from cmt_aqr.evaluation.metric import NuScenesMetric
from cmt_aqr.evaluation.table import metrics_table
from cmt_aqr.files import nan_to_null, remove_partial, write_json, write_table
from cmt_aqr.lab import LabCamera
from cmt_aqr.model.cmt import CMT
from cmt_aqr.model.decoder import DecoderLayer
from cmt_aqr.model.image import ImageBranch
from cmt_aqr.runs.checkpoints import AtomicCheckpointIO, Checkpoints, newest_checkpoint, read_checkpoint
from cmt_aqr.runs.configuration import build, build_data
from cmt_aqr.runs.console import console
from cmt_aqr.runs.curves import CurveLogger
from cmt_aqr.runs.loggers import build_loggers
from cmt_aqr.runs.memory import keep_freed_memory
from cmt_aqr.runs.precision import build_trainer
from cmt_aqr.runs.records import RunRecord, is_rank_zero, recorded
from cmt_aqr.runs.resuming import check_callbacks
from cmt_aqr.runs.saved import below, override_keys
from cmt_aqr.runs.stopping import Stopped, StopSignals
from cmt_aqr.runs.threads import threads_for
from cmt_aqr.runs.tree import unresolved
from cmt_aqr.training.finite import NotFiniteError
from cmt_aqr.training.logged import check_monitors
from cmt_aqr.training.module import DetectorModule
from cmt_aqr.training.monitor import is_epoch_open
from cmt_aqr.weights import load_weights
from cmt_aqr.weights.files import require_finite

log = logging.getLogger(__name__)

RESULTS = "results_nusc.json"
"""The devkit's name for a file of detections."""


def train(config: DictConfig, folder: Path, overrides: list[str]) -> dict[str, float]:
    """Train, then evaluate the final weights.

    Returns:
        The official metrics, as written to ``metrics.json``.
    """
    with StopSignals() as signals, recorded(folder, config, overrides) as record:
        try:
            return _train(config, folder, overrides, record, signals)
        except NotFiniteError as error:
            path = newest_checkpoint(folder)
            hint = "no checkpoint was written yet" if path is None else f"the last good checkpoint is {path}"
            raise NotFiniteError(f"{error}; {hint}") from error
        except SystemExit:
            if signals.received is None:
                raise
            if not is_rank_zero():
                raise SystemExit(0) from None  # with an error status Lightning would kill the main process
            _print_how_to_resume(folder, signals.received)
            raise Stopped(signals.received) from None


def _print_how_to_resume(folder: Path, signum: int) -> None:
    path = newest_checkpoint(folder)
    if path is None:
        status = "stopped before the first checkpoint; the same command starts again"
    else:
        step = read_checkpoint(path)["global_step"]
        status = f"stopped with {path} of step {step}; resume with hydra.run.dir={folder} ckpt_path=auto"
    print(f"{signal.Signals(signum).name}: {status}", file=sys.stderr)


def _train(
    config: DictConfig, folder: Path, overrides: list[str], record: RunRecord, signals: StopSignals
) -> dict[str, float]:
    keep_freed_memory()
    if is_rank_zero():
        remove_partial(folder)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    named = build_callbacks(config)
    callbacks = list(named.values())
    check_monitors(named, config)
    if config.ckpt_path:
        check_callbacks(named)
    callbacks += [build(config.clamp_schedule), record]
    for callback in callbacks:
        if isinstance(callback, Checkpoints):
            callback.signals = signals
    loggers = build_loggers(config)
    trainer, data, module = _build(config, callbacks=callbacks, logger=loggers, plugins=[AtomicCheckpointIO()])
    if config.weights is not None:
        loaded = load_weights(module.model, config.weights)
        if is_rank_zero():
            console().print(loaded.table())
    if config.ckpt_path:
        # Loaded before Lightning does, to refuse a checkpoint of another model in one sentence.
        checkpoint = read_checkpoint(Path(config.ckpt_path))
        load_checkpoint_weights(module, checkpoint, Path(config.ckpt_path), overrides)
        for logger in loggers:
            if isinstance(logger, CurveLogger):
                logger.resume(checkpoint, is_epoch_open(checkpoint))
    trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
    if module.evaluated is None or module.evaluated[0] != trainer.global_step:
        trainer.validate(module, datamodule=data, verbose=False)
    return report(trainer, module, folder)


def evaluate(config: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Evaluate a checkpoint, or, on a split without annotations, only write its boxes for nuScenes' server.

    Args:
        config: the run's configuration with the evaluation's overrides; ``ckpt_path`` is the checkpoint.
        folder: where ``metrics.json`` goes.
        overrides: from the command line, for error messages.

    Returns:
        The official metrics; only the number of frames without annotations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write = config.get("write_results") or not is_annotated(config.data.version)
    results = folder / RESULTS if write else None
    trainer, module = measure(config, overrides, results)
    if results is not None and trainer.is_global_zero:
        console().print(_results_message(results, trainer, module), soft_wrap=True)
    return report(trainer, module, folder)


def _results_message(results: Path, trainer: pl.Trainer, module: DetectorModule) -> str:
    """Whether a file of boxes covers the split, as nuScenes requires of a submission."""
    data: NuScenesDataModule = trainer.datamodule  # type: ignore[attr-defined]
    assert module.evaluated is not None
    frames, all_frames = int(module.evaluated[1]["frames"]), len(data.index(data.val_split))
    if frames == all_frames:
        note = "" if data.annotated else f"; split {data.val_split} has no annotations, so there are no metrics"
        return f"All boxes are in {results}, in nuScenes' format{note}"
    return (
        f"The boxes of {frames} frames are in {results}. nuScenes refuses this file as a submission, because "
        f"{all_frames - frames} of the {all_frames} frames of split {data.val_split} are missing; evaluate "
        "without data.limit_eval_frames"
    )


def measure(
    config: DictConfig,
    overrides: Sequence[str] = (),
    results: Path | None = None,
    watching: Sequence[pl.Callback] = (),
) -> tuple[pl.Trainer, DetectorModule]:
    """Evaluate as :func:`evaluate` does, without a report; the module's ``evaluated`` holds the metrics.

    Args:
        config: the run's configuration with the evaluation's overrides; ``ckpt_path`` is the checkpoint.
        overrides: from the command line, for error messages.
        results: file for all boxes, in nuScenes' format.
        watching: callbacks in addition to the configuration's.
    """
    keep_freed_memory()
    checkpoint = read_checkpoint(Path(config.ckpt_path))
    configured = build_callbacks(config, ("progress", "aqr_monitor")).values()
    trainer, data, module = _build(
        config, evaluating=True, callbacks=[*configured, *watching], logger=False, enable_checkpointing=False
    )
    restore(config, module, checkpoint, overrides)
    module.results_path = results
    trainer.validate(module, datamodule=data, verbose=False)
    return trainer, module


def build_callbacks(config: DictConfig, names: Sequence[str] | None = None) -> dict[str, pl.Callback]:
    """The callbacks of a configuration, or those among ``names``, by name."""
    callbacks = {
        name: build(value)
        for name, value in (config.callbacks or {}).items()
        if value is not None and (names is None or name in names)
    }
    if config.trainer.get("enable_progress_bar") is False:  # which Lightning refuses beside a progress bar
        return {name: callback for name, callback in callbacks.items() if not isinstance(callback, ProgressBar)}
    return callbacks


def _build(
    config: DictConfig, evaluating: bool = False, **settings: Any
) -> tuple[pl.Trainer, NuScenesDataModule, DetectorModule]:
    """The Trainer with further settings, data and module; sets the number of threads for the model and machine."""
    trainer = build_trainer(config, **settings)
    threads = threads_for(tuple(config.model.grid.sparse_shape), trainer.num_devices)
    if threads is not None:
        torch.set_num_threads(threads)
    data = build_data(config, evaluating=evaluating)
    return trainer, data, build_module(config, data, trainer.num_devices * trainer.num_nodes)


def build_module(config: DictConfig, data: NuScenesDataModule, processes: int) -> DetectorModule:
    """The LightningModule of a configuration, with fresh weights."""
    samples = config.data.batch_size * config.trainer.accumulate_grad_batches * processes
    denoising = build(config.training.denoising)
    model = build(config.model.network)
    check_aqr(model, config.model.image_size)
    return DetectorModule(
        model=model,
        criterion=build(config.training.criterion, background_above=denoising.background_above),
        denoising=denoising if denoising.groups else None,
        optimizer=build(config.optimizer),
        multipliers=build(config.lr_mult),
        metric=NuScenesMetric(data.ground_truth),
        samples_per_step=samples,
        max_detections=config.evaluation.max_detections,
        score_threshold=config.evaluation.get("score_threshold", 0.0),
        seed=config.seed,
        config=unresolved(config),  # so that overrides of a checkpoint's keys reach their interpolations
    )


def check_aqr(model: CMT, image_size: Sequence[int]) -> None:
    """Compare the shapes of AQR's maps and factors, where configured, with those of the model.

    Args:
        model: the detector.
        image_size: height and width of the images in pixels.

    Raises:
        SettingError: the shapes differ.
    """
    if isinstance(model.aqr, AQR):
        shapes: dict[str, tuple[int, ...]] = {}
        if model.lidar is not None:
            shapes["bev_feature_shape"] = model.head.grid.bev_shape
        if isinstance(model.image, ImageBranch | LabCamera):
            sides = (math.ceil(side / model.image.stride) for side in image_size)
            shapes["pers_feature_shape"] = (len(CAMERAS), *sides)
        for name, shape in shapes.items():
            declared = getattr(model.aqr.renderer, name)
            allowed = f"{list(shape)}, the shape of the model's features, or null to take it from them"
            require(declared in (None, shape), f"renderer.{name}", declared and list(declared), allowed)
    factors = getattr(model.aqr, "factors", None)
    heads = [layer.cross_attention.heads for layer in model.decoder.layers if isinstance(layer, DecoderLayer)]
    if factors is not None:
        allowed = (
            f"{[len(heads), heads[0]]}, the decoder's layers and heads; "
            "give 'aqr.per_layer_and_head=[${model.layers},${model.heads}]'"
        )
        require(factors.shape == (len(heads), heads[0]), "aqr.per_layer_and_head", list(factors.shape), allowed)


def restore(
    config: DictConfig, module: DetectorModule, checkpoint: dict[str, Any], overrides: Sequence[str] = ()
) -> None:
    """Restore a checkpoint's weights and the clamp of its epoch.

    Raises:
        UserError: the weights do not fit.
    """
    load_checkpoint_weights(module, checkpoint, Path(config.ckpt_path), overrides)
    build(config.clamp_schedule).set_for(module, checkpoint["epoch"])


def load_checkpoint_weights(
    module: DetectorModule, checkpoint: dict[str, Any], path: Path, overrides: Sequence[str] = ()
) -> None:
    """Load a training checkpoint's weights into a module; plain CMT (``aqr=none``) ignores AQR's.

    Raises:
        UserError: the weights do not fit; the message names the overrides that changed the model.
    """
    state = checkpoint["state_dict"]
    if module.model.aqr is None:
        state = {name: value for name, value in state.items() if not name.startswith("model.aqr.")}
        if len(state) < len(checkpoint["state_dict"]):
            log.info("aqr=none: plain CMT, without the checkpoint's AQR")
    require_finite(state, f"ckpt_path={path}")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        keys = [key for key in override_keys(overrides) if below(key, ["model", "aqr", "renderer", "modulator"])]
        cause = f"{' and '.join(keys)} cannot be changed on trained weights: " if keys else ""
        raise UserError(
            f"{cause}ckpt_path={path}: it holds another model than the configuration: {first}"
        ) from error


def report(trainer: pl.Trainer, module: DetectorModule, folder: Path) -> dict[str, float]:
    """Print the metrics, if any, and write ``metrics.json`` and ``metrics.csv``, on one process."""
    if module.evaluated is None:
        raise RuntimeError("the run ended without an evaluation")
    _, metrics = module.evaluated
    if not trainer.datamodule.annotated:  # type: ignore[attr-defined]
        return metrics
    if trainer.is_global_zero:
        console().print(metrics_table(metrics))
        write_json(folder / "metrics.json", nan_to_null(metrics))
        write_table(folder / "metrics.csv", [nan_to_null(metrics)])
        console().print(f"Metrics are in {folder / 'metrics.json'}; the run's folder is {folder}", soft_wrap=True)
    return metrics
