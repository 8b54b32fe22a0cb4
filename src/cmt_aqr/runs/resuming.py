"""Resuming a run: from which checkpoint, with which configuration, and which changes are allowed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import callbacks
from rich.table import Table

from cmt_aqr.errors import UserError
from cmt_aqr.runs.checkpoints import newest_checkpoint, saved_config
from cmt_aqr.runs.configuration import check_config
from cmt_aqr.runs.console import console
from cmt_aqr.runs.records import is_rank_zero
from cmt_aqr.runs.saved import below, check_evaluation, current_names, links, override_keys, with_overrides
from cmt_aqr.runs.tree import nodes, unresolved

log = logging.getLogger(__name__)

AUTO = "auto"


def checkpoint_path(value: str | None, folder: Path, folder_given: bool = True) -> Path | None:
    """The checkpoint file of ``ckpt_path=``; ``None`` for null, or for ``auto`` before the first checkpoint.

    Args:
        value: a file; a run's folder, for its newest readable checkpoint; or ``auto``, for that of ``folder``.
        folder: this run's folder.
        folder_given: whether the user named it; a folder created for this run has no checkpoint.

    Raises:
        UserError: ``auto`` without a folder, or a folder without a readable checkpoint.
    """
    if value is None:
        return None
    if value == AUTO:
        if not folder_given:
            raise UserError(
                "ckpt_path=auto: looks in the run's folder, which must be named, too: add "
                "hydra.run.dir=outputs/my_run (of a sweep, hydra.sweep.dir=...)"
            )
        newest = newest_checkpoint(folder)
        if is_rank_zero():
            log.info("ckpt_path=auto: %s", f"resuming from {newest}" if newest else f"none in {folder}, a new run")
        return newest
    if not Path(value).is_dir():
        return Path(value)
    newest = newest_checkpoint(Path(value))
    if newest is None:
        raise UserError(f"ckpt_path={value}: there is no checkpoint in this folder")
    return newest


def configuration_to_evaluate(config: DictConfig, overrides: Sequence[str], folder: Path) -> DictConfig:
    """The configuration for evaluating a checkpoint: the checkpoint's with the overrides applied, checked.

    Args:
        config: as composed by this command; its ``ckpt_path`` is a file, or a run's folder for its newest one.
        overrides: as typed on the command line.
        folder: this run's folder.
    """
    path = checkpoint_path(config.ckpt_path, folder, folder_given=False)
    if path is None:
        raise UserError(
            "ckpt_path is missing: name a checkpoint or the folder of a run, as in ckpt_path=outputs/.../best.ckpt"
        )
    config.ckpt_path = str(path)
    merged = with_overrides(saved_config(path), config, overrides)
    check_evaluation(merged, overrides)
    if {"renderer", "renderer.max_weight_clamp"} & set(override_keys(overrides)):
        merged.clamp_schedule.milestones = None  # the overridden clamp counts, not that of the checkpoint's epoch
    check_config(merged, overrides, evaluating=True)
    return merged


def configuration(config: DictConfig, overrides: Sequence[str], path: Path | None) -> DictConfig:
    """The configuration of a resumed run: the checkpoint's with the overrides applied. Prints the changes.

    Args:
        config: as composed by this command.
        overrides: as typed on the command line; with ``experiment=``, the command's composition replaces the
            checkpoint's.
        path: the checkpoint; ``None``: a new run with the composed configuration.

    Raises:
        UserError: a change would make the rest of the run another training.
    """
    config = config.copy()
    automatic = config.ckpt_path == AUTO
    config.ckpt_path = None if path is None else str(path)
    if path is None or (config.weights and not automatic):
        return config  # check_config refuses both
    config.weights = None  # they started the resumed run
    saved = saved_config(path)
    merged = config if "experiment" in override_keys(overrides) else with_overrides(saved, config, overrides)
    changed = changes(saved, merged)
    if changed and is_rank_zero():
        table = Table("setting", "was", "is", "", title="Changed since the checkpoint", title_justify="left")
        for change in changed:
            table.add_row(change.key, str(change.old), str(change.new), "refused" if change.refusal else "")
        console().print(table)
    for change in changed:
        if change.refusal is not None:
            raise UserError(
                f"{change}: {change.refusal}; it cannot change on a resume: leave it as it was, or start a "
                f"new run from these weights with weights={path}"
            )
    lengths = [change for change in changed if change.key in ("trainer.max_epochs", "trainer.max_steps")]
    if lengths and merged.optimizer.schedule == "one_cycle" and is_rank_zero():
        log.warning(
            "%s: optimizer.schedule=one_cycle spans the full run, so from here on the learning rate is that of a "
            "run of the new length; the earlier steps followed the old one",
            ", ".join(map(str, lengths)),
        )
    return merged


@dataclass(frozen=True)
class Change:
    """A value that differs between a checkpoint's configuration and the one a run is resumed with."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"

    @property
    def refusal(self) -> str | None:
        """Why a run cannot be resumed with this change, or ``None`` if it can."""
        if below(self.key, _ALLOWED):
            return None
        return next(reason for key, reason in _REASONS.items() if not key or below(self.key, [key]))


_ALLOWED = (
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.accelerator", "trainer.strategy"),
    *("trainer.check_val_every_n_epoch", "trainer.val_check_interval", "trainer.limit_val_batches"),
    *("trainer.log_every_n_steps", "trainer.num_sanity_val_steps", "trainer.enable_progress_bar"),
    *("trainer.enable_model_summary", "trainer.profiler", "trainer.default_root_dir", "evaluation"),
    *("model.network.image.checkpointing", "renderer.max_weight_clamp", "clamp_schedule", "data.root"),
    *("data.cache_dir", "data.cache_frames", "data.num_workers", "data.make", "data.sampling.database"),
    *("data.sampling.processes", "data.val_split", "data.eval_split", "data.eval_batch_size"),
    *("data.eval_transforms", "data.limit_eval_frames"),
)
"""Keys that may change: only the clamp affects the remaining steps, and its override is a feature."""

_MODEL = "the checkpoint's weights and optimiser state are those of the model as it was"
_STATE = "the optimiser's state and schedule were made for the old value"
_FRAMES = "the number of frames per step sets the steps of an epoch, their order and the learning rate"
_REASONS = {
    **dict.fromkeys(("model", "aqr", "renderer", "modulator"), _MODEL),
    **dict.fromkeys(("optimizer", "lr_mult"), _STATE),
    **dict.fromkeys(("data.batch_size", "trainer.accumulate_grad_batches"), _FRAMES),
    **dict.fromkeys(("trainer.devices", "trainer.num_nodes"), _FRAMES),
    "data": "the remaining training frames, or their augmentation, would differ",
    "seed": "it set the order of the frames, augmentation and noise so far",
    "training": "the loss would differ",
    "": "the rest of the training would not be the same",
}
"""Why other keys may not change, by key or group."""

_OF_THE_COMMAND = ("ckpt_path", "weights", "name", "callbacks", "logger", "recipe", "sweep_dir")
"""Keys that belong to a command and not to the training."""


def changes(saved: Mapping[str, Any], config: DictConfig) -> list[Change]:
    """Values that differ, by dotted key; a value that is missing on one side is ``None`` there."""
    old, new = (_training_values(part) for part in (OmegaConf.create(current_names(saved)), config))
    # A key that is interpolated from another changes with it, and is not listed again.
    copies = [target for target, _ in links(unresolved(config))]
    return [
        Change(key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not below(key, copies) and not _is_new_class(key, old)
    ]


def _is_new_class(key: str, old: Mapping[str, Any]) -> bool:
    """Whether a key is the class of a part that earlier versions built without naming it."""
    part, _, name = key.rpartition(".")
    return name == "_target_" and key not in old and any(below(other, [part]) for other in old)


def _training_values(config: DictConfig) -> dict[str, Any]:
    """Values by dotted key, without those of the command, and without ``_convert_``, in which versions differ."""
    training = OmegaConf.masked_copy(config, [str(key) for key in config if key not in _OF_THE_COMMAND])
    values = nodes(OmegaConf.to_container(training, resolve=True))
    return {key: value for key, value in values if not isinstance(value, dict) and not key.endswith("_convert_")}


_EXACT = (
    *(callbacks.LearningRateMonitor, callbacks.ProgressBar, callbacks.ModelSummary, callbacks.Timer),
    *(callbacks.DeviceStatsMonitor, callbacks.EarlyStopping, callbacks.ThroughputMonitor),
)
"""Callbacks of Lightning, and their subclasses, that continue exactly in a resumed run."""

_OTHER_RUN = (
    *(callbacks.StochasticWeightAveraging, callbacks.WeightAveraging, callbacks.BaseFinetuning),
    *(callbacks.LearningRateFinder, callbacks.BatchSizeFinder, callbacks.GradientAccumulationScheduler),
)
"""Callbacks that change weights, schedule or batches and do not save all of it in checkpoints."""


def check_callbacks(named: Mapping[str, Any]) -> None:
    """Refuse to resume with a callback that would change the rest of the run; warn of unknown ones."""
    for name, callback in named.items():
        kind = type(callback)
        if issubclass(kind, _OTHER_RUN):
            raise UserError(
                f"callbacks.{name}: a run cannot be resumed exactly with {kind.__name__}, which changes weights "
                f"or schedule itself; drop it with ~callbacks.{name}, or start a new run with weights="
            )
        if not kind.__module__.startswith("cmt_aqr.") and not issubclass(kind, _EXACT):
            log.warning(
                "callbacks.%s: it is not known whether %s resumes exactly where it stopped; see its documentation "
                "for what it keeps in checkpoints",
                name,
                kind.__name__,
            )
