"""A training run and an evaluation, from a composed configuration to metrics.json."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.cluster import is_first_process
from cmt_aqr.configuration import build, clamp_given, multipliers, optimizer_settings
from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.errors import UserError
from cmt_aqr.evaluation.table import metrics_table, write_metrics
from cmt_aqr.memory import keep_freed_memory
from cmt_aqr.training.checkpoints import AtomicCheckpointIO, read_checkpoint
from cmt_aqr.training.clamp import GivenClamp, renderer_of
from cmt_aqr.training.denoising import Denoising
from cmt_aqr.training.loggers import build_loggers
from cmt_aqr.training.module import DetectorModule
from cmt_aqr.visual.console import console
from cmt_aqr.weights import load_weights

PACKAGES = ("torch", "lightning", "torchmetrics", "hydra-core", "timm", "nuscenes-devkit", "numpy", "scipy")


def train(config: DictConfig, folder: Path, overrides: list[str]) -> dict[str, float]:
    """Train, then evaluate the weights the run ended with.

    Args:
        config: composed and checked.
        folder: the run's folder.
        overrides: as given on the command line, for the record.

    Returns:
        The official metrics, as written to ``metrics.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if is_first_process():
        write_record(config, folder, overrides)
    keep_freed_memory()
    L.seed_everything(config.seed, workers=True, verbose=False)
    callbacks = [build(callback) for callback in config.callbacks.values() if callback is not None]
    if config.ckpt_path and clamp_given(overrides) and config.aqr is not None:
        callbacks.append(GivenClamp(config.renderer.max_weight_clamp))
    callbacks.append(build(config.clamp_schedule))
    loggers = build_loggers(config)
    trainer = build(config.trainer, callbacks=callbacks, logger=loggers, plugins=[AtomicCheckpointIO()])
    data = build(config.data)
    module = build_module(config, data, trainer.num_devices * trainer.num_nodes)
    start_from_weights(config, module)
    if config.ckpt_path:
        # Before Lightning does: a checkpoint of another model is then refused in one sentence.
        load_checkpoint_weights(module, read_checkpoint(Path(config.ckpt_path)), Path(config.ckpt_path))
    trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
    if module.evaluated is None or module.evaluated[0] != trainer.global_step:
        trainer.validate(module, datamodule=data, verbose=False)
    return report(trainer, module, folder)


def evaluate(config: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Evaluate a checkpoint.

    Args:
        config: the run's configuration with the evaluation's overrides; ``ckpt_path`` names the checkpoint.
        folder: where ``metrics.json`` goes.
        overrides: as given on the command line. Without one of ``renderer.max_weight_clamp`` the checkpoint's
            clamp holds.

    Returns:
        The official metrics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    checkpoint = read_checkpoint(Path(config.ckpt_path))
    callbacks = [build(config.callbacks.progress)] if config.callbacks.get("progress") else []
    trainer = build(config.trainer, callbacks=callbacks, logger=False, enable_checkpointing=False)
    data = build(config.data)
    module = build_module(config, data, trainer.num_devices * trainer.num_nodes)
    load_checkpoint_weights(module, checkpoint, Path(config.ckpt_path))
    renderer = renderer_of(module)
    if clamp_given(overrides) and renderer is not None:
        renderer.set_clamp(config.renderer.max_weight_clamp)
    trainer.validate(module, datamodule=data, verbose=False)
    return report(trainer, module, folder)


def build_module(config: DictConfig, data: NuScenesDataModule, processes: int) -> DetectorModule:
    """The LightningModule of a configuration, with fresh weights."""
    samples = config.data.batch_size * config.trainer.accumulate_grad_batches * processes
    plain = OmegaConf.to_container(config, resolve=True)
    if not isinstance(plain, dict):
        raise TypeError("a configuration is a mapping")
    # The folders of callbacks and loggers belong to this run; one that goes on from its checkpoint has its own.
    written_out = OmegaConf.to_container(config, resolve=False)
    if isinstance(written_out, dict):
        plain.update({group: written_out[group] for group in ("callbacks", "logger")})
    denoising = Denoising(**plain["training"]["denoising"])
    return DetectorModule(
        model=build(config.model.network),
        criterion=build(config.training.criterion, background_above=denoising.background_above),
        denoising=denoising if denoising.groups else None,
        optimizer=optimizer_settings(config),
        multipliers=multipliers(config),
        metric=data.metric(),
        samples_per_step=samples,
        max_detections=config.evaluation.max_detections,
        score_threshold=config.evaluation.get("score_threshold", 0.0),
        seed=config.seed,
        config={str(key): value for key, value in plain.items()},
    )


def start_from_weights(config: DictConfig, module: DetectorModule) -> None:
    """Load ``weights=``, if given, and print what was loaded; the configured clamp stays in force."""
    if config.weights is None:
        return
    report = load_weights(module.model, Path(config.weights))
    if is_first_process():
        console().print(report.table())
    renderer = renderer_of(module)
    if renderer is not None:
        renderer.set_clamp(config.renderer.max_weight_clamp)


def load_checkpoint_weights(module: DetectorModule, checkpoint: dict[str, Any], path: Path) -> None:
    """Load a training checkpoint's weights into a module of the same configuration."""
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"ckpt_path={path}: it holds another model than the configuration: {first}") from error


def report(trainer: L.Trainer, module: DetectorModule, folder: Path) -> dict[str, float]:
    """Print the table of metrics and write ``metrics.json``, on one process."""
    if module.evaluated is None:
        raise RuntimeError("the run ended without an evaluation")
    _, metrics = module.evaluated
    if trainer.is_global_zero:
        console().print(metrics_table(metrics))
        path = write_metrics(metrics, folder / "metrics.json")
        console().print(f"Metrics are in {path}; the run's folder is {folder}", soft_wrap=True)
    return metrics


def write_record(config: DictConfig, folder: Path, overrides: list[str]) -> None:
    """Keep what the run was: composed configuration, overrides, versions, machine and git commit."""
    OmegaConf.save(config, folder / "config.yaml", resolve=True)
    record = {
        "command": sys.argv,
        "overrides": overrides,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {package: version(package) for package in PACKAGES},
    }
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")


def _git(*arguments: str) -> str | None:
    """Output of git in the code's folder; ``None`` where the code is no git checkout or git is missing."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
