"""Settings of Lightning's Trainer, checked before data are read, and once more when the batches are counted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer

from cmt_aqr.checks import is_whole, require, require_choice, require_number, require_whole
from cmt_aqr.errors import UserError
from cmt_aqr.runs.typed import mistyped

_PRECISIONS = {
    "32-true": ("32", "32-true"),
    "bf16-mixed": ("bf16", "bf16-mixed"),
    "16-mixed": ("16", "16-mixed"),
}
"""What the model trains in, and how Lightning lets it be written."""

_OURS = {
    "callbacks": "add +callbacks.<name>._target_=<class> instead",
    "logger": "choose logger=<option> instead",
    "plugins": "precision and checkpoints have their own; choose trainer.precision",
    "overfit_batches": "choose experiment=overfit, or data.limit_train_frames",
    "fast_dev_run": "give trainer.max_steps=2 data.limit_train_frames=4 data.limit_eval_frames=2",
    "enable_checkpointing": "drop it; callbacks.checkpoint says when to write",
    "limit_test_batches": "an evaluation is Lightning's validation; give data.limit_eval_frames",
    "limit_predict_batches": "an evaluation is Lightning's validation; give data.limit_eval_frames",
    "barebones": "it runs without checkpoints and curves; drop it",
    "reload_dataloaders_every_n_epochs": "drop it; what an epoch reads is drawn anew in each",
}
"""Arguments of Lightning's Trainer that the run sets itself or cannot end with, and what to give instead."""

_LOWEST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": -1,
    "num_nodes": 1,
    "min_epochs": 0,
    "min_steps": 0,
}
"""Whole numbers, and the lowest that each may be."""

_MAY_BE_NULL = ("check_val_every_n_epoch", "min_epochs", "min_steps")


def check_trainer(trainer: DictConfig) -> None:
    """Refuse arguments of the Trainer, in its group, that are not offered, of another type, or out of range."""
    precision_named(trainer.get("precision", "32-true"))
    for name, instead in _OURS.items():
        if name in trainer:
            raise UserError(f"trainer.{name}={trainer[name]} is not offered: {instead}")
    if trainer.get("use_distributed_sampler"):
        raise UserError("trainer.use_distributed_sampler=true: the data module shares the frames out; drop it")
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
    """Refuse a training without an end, or whose end comes before it may."""
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


def precision_named(given: Any) -> str:
    """The precision that a ``trainer.precision`` means: ``32-true``, ``bf16-mixed`` or ``16-mixed``."""
    for name, spellings in _PRECISIONS.items():
        if str(given) in spellings:
            return name
    raise UserError(
        f"trainer.precision={given}: must be one of {', '.join(_PRECISIONS)}; weights are kept in float32, and so "
        "is what needs its digits"
    )


def blamed(said: str, settings: Mapping[Any, Any]) -> str | None:
    """The setting that a sentence of Lightning is about, as ``name=value``; ``None`` where it names none.

    Args:
        said: by a constructor, of an argument or its value.
        settings: what the constructor was given.
    """
    names = [name for name in settings if f"`{name}" in said or ("_" in name and re.search(rf"\b{name}\b", said))]
    texts = [name for name, value in settings.items() if isinstance(value, str) and value != "auto"]
    names += [name for name in texts if re.search(rf"(?<![\w.]){re.escape(settings[name])}(?![\w.])", said)]
    if not names:
        return None
    value = settings[names[0]]
    return f"{names[0]}={str(value).lower() if isinstance(value, bool) else value}"


def check_shares(trainer: Trainer, split: str, batches: int) -> None:
    """Refuse a share of the batches that is none of them, and an evaluation that would never take place.

    Args:
        trainer: with its limits.
        split: ``train`` or ``val``.
        batches: of an epoch on this device.
    """
    name = f"limit_{split}_batches"
    limit = getattr(trainer, name, None)
    if isinstance(limit, float) and limit * batches < 1:
        raise UserError(
            f"trainer.{name}={limit}: of {batches} batches this is none; give a number of batches, as in "
            f"trainer.{name}=1"
        )
    every = getattr(trainer, "val_check_interval", None)
    most = min(batches, limit) if isinstance(limit, int) else batches
    if split == "train" and is_whole(every, most + 1) and trainer.check_val_every_n_epoch is not None:
        raise UserError(
            f"trainer.val_check_interval={every}: an epoch has {most} batches; give trainer."
            "check_val_every_n_epoch=null, too, to count them over all epochs"
        )
