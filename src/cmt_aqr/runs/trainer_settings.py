"""Checks of settings of Lightning's Trainer, before data are read, and again when the batches are counted."""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer

from cmt_aqr.checks import is_whole, require, require_choice, require_number, require_whole
from cmt_aqr.errors import UserError
from cmt_aqr.runs.typed import mistyped

_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")

_NOT_SUPPORTED = {
    "callbacks": "add +callbacks.<name>._target_=<class> instead",
    "logger": "choose logger=<option> instead",
    "plugins": "precision and checkpoints have their own; choose trainer.precision",
    "overfit_batches": "choose experiment=overfit, or data.limit_train_frames",
    "fast_dev_run": "give trainer.max_steps=2 data.limit_train_frames=4 data.limit_eval_frames=2",
    "enable_checkpointing": "drop it; callbacks.checkpoint sets when checkpoints are written",
    "limit_test_batches": "an evaluation is Lightning's validation; give data.limit_eval_frames",
    "limit_predict_batches": "an evaluation is Lightning's validation; give data.limit_eval_frames",
    "barebones": "it runs without checkpoints and curves; drop it",
    "reload_dataloaders_every_n_epochs": "drop it; the frames of every epoch are sampled anew",
}
"""Arguments of Lightning's Trainer that a run sets itself or cannot finish with, and what to use instead."""

_LOWEST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": -1,
    "num_nodes": 1,
    "min_epochs": 0,
    "min_steps": 0,
}
"""Settings that are whole numbers, and the lowest value of each."""

_MAY_BE_NULL = ("check_val_every_n_epoch", "min_epochs", "min_steps")


def check_trainer(trainer: DictConfig) -> None:
    """Refuse settings of the ``trainer`` group that are not supported, of another type, or out of range."""
    canonical_precision(trainer.get("precision", "32-true"))
    for name, instead in _NOT_SUPPORTED.items():
        if name in trainer:
            raise UserError(f"trainer.{name}={trainer[name]} is not supported: {instead}")
    if trainer.get("use_distributed_sampler"):
        raise UserError("trainer.use_distributed_sampler=true: the data module distributes the frames; drop it")
    if trainer.get("sync_batchnorm"):
        raise UserError("trainer.sync_batchnorm=true: drop it; each process normalises its frames, as published")
    if "fsdp" in str(trainer.get("strategy")).lower():
        raise UserError(
            f"trainer.strategy={trainer.strategy}: FSDP cannot clip gradients by their norm; choose trainer=ddp"
        )
    if isinstance(trainer.get("accelerator"), str):
        require_choice("trainer.accelerator", trainer.accelerator, ("auto", "cpu", "gpu", "cuda", "mps"))
    for name, low in _LOWEST.items():
        value = trainer.get(name)
        if name in trainer and not (value is None and name in _MAY_BE_NULL):
            require_whole(f"trainer.{name}", value, low)
    for key, value, allowed in mistyped(OmegaConf.to_container(trainer, resolve=True), "trainer"):
        require(key == "trainer.precision", key, value, allowed)
    if trainer.get("gradient_clip_val") is not None:
        require_number("trainer.gradient_clip_val", trainer.gradient_clip_val, 0)
    _check_end(trainer)
    if trainer.get("limit_val_batches") == 0:
        raise UserError(
            "trainer.limit_val_batches=0: a run ends with an evaluation; data.limit_eval_frames=1 makes it short"
        )
    if trainer.get("limit_train_batches") == 0:
        raise UserError("trainer.limit_train_batches=0: nothing would be trained; scripts/evaluate.py evaluates")


def _check_end(trainer: DictConfig) -> None:
    """Refuse a training without an end, or with an end before its minimum."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    for key, value in (("trainer.max_epochs", epochs), ("trainer.max_steps", steps)):
        fits = is_whole(value, -1) or (key == "trainer.max_epochs" and value is None)
        require(fits, key, value, "a whole number, or -1 for no limit")
    if epochs in (None, -1) and steps == -1:
        raise UserError(f"trainer.max_epochs={epochs} and trainer.max_steps={steps}: one must set an end")
    for unit, most in (("epochs", epochs), ("steps", steps)):
        least = trainer.get(f"min_{unit}") or 0
        if most not in (None, -1) and least > most:
            raise UserError(f"trainer.min_{unit}={least} is more than trainer.max_{unit}={most}: drop one of them")


def canonical_precision(value: Any) -> str:
    """The full name of a ``trainer.precision``, of which Lightning also takes the part before the hyphen."""
    for name in _PRECISIONS:
        if str(value) in (name, name.partition("-")[0]):
            return name
    raise UserError(
        f"trainer.precision={value}: must be one of {', '.join(_PRECISIONS)}; weights, and operations that need "
        "it, stay in float32"
    )


def setting_to_blame(message: str, settings: Mapping[Any, Any]) -> str | None:
    """The setting whose name or value a constructor's error contains, as ``name=value``, if any."""
    names = [
        name for name in settings if f"`{name}" in message or ("_" in name and re.search(rf"\b{name}\b", message))
    ]
    texts = [name for name, value in settings.items() if isinstance(value, str) and value != "auto"]
    names += [name for name in texts if re.search(rf"(?<![\w.]){re.escape(settings[name])}(?![\w.])", message)]
    if not names:
        return None
    value = settings[names[0]]
    return f"{names[0]}={str(value).lower() if isinstance(value, bool) else value}"


def check_batch_limits(trainer: Trainer, split: str, batches: int) -> None:
    """Refuse a fraction of the batches that is none of them, and an evaluation interval beyond the epoch.

    Args:
        trainer: the Trainer with the limits.
        split: ``train`` or ``val``.
        batches: number of batches per epoch on this device.
    """
    name = f"limit_{split}_batches"
    limit = getattr(trainer, name, None)
    if isinstance(limit, float) and limit * batches < 1:
        raise UserError(
            f"trainer.{name}={limit}: of {batches} batches this is none; give a number of batches, as in "
            f"trainer.{name}=1"
        )
    interval = getattr(trainer, "val_check_interval", None)
    most = min(batches, limit) if isinstance(limit, int) else batches
    if split == "train" and is_whole(interval, most + 1) and trainer.check_val_every_n_epoch is not None:
        raise UserError(
            f"trainer.val_check_interval={interval}: an epoch has {most} batches; give trainer."
            "check_val_every_n_epoch=null, too, to count them over all epochs"
        )
