"""Settings of Lightning's Trainer, checked before data are read, and once more when the batches are counted."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from omegaconf import DictConfig
from pytorch_lightning import Trainer

from cmt_aqr.checks import is_whole, require, require_number, require_whole
from cmt_aqr.errors import UserError

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

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
"""Values that YAML has of their own, and what they are called in a sentence."""


def check_trainer(trainer: DictConfig) -> None:
    """Refuse arguments of the Trainer that are not offered, of another type, or out of range.

    Args:
        trainer: the ``trainer`` group.

    Raises:
        UserError: naming key, value and what is allowed.
    """
    precision_named(trainer.get("precision", "32-true"))
    for name, instead in _OURS.items():
        if name in trainer:
            raise UserError(f"trainer.{name}={trainer[name]} is not offered: {instead}")
    for name, low in _LOWEST.items():
        value = trainer.get(name)
        if name in trainer and not (value is None and name in _MAY_BE_NULL):
            require_whole(f"trainer.{name}", value, low)
    _check_types(trainer)
    if trainer.get("gradient_clip_val") is not None:
        require_number("trainer.gradient_clip_val", trainer.gradient_clip_val, 0)
    _check_end(trainer)
    if trainer.get("limit_val_batches") == 0:
        raise UserError(
            "trainer.limit_val_batches=0: a run ends with an evaluation; data.limit_eval_frames=1 makes it short"
        )
    if trainer.get("limit_train_batches") == 0:
        raise UserError("trainer.limit_train_batches=0: nothing would be trained; scripts/evaluate.py evaluates")


def _check_types(trainer: DictConfig) -> None:
    """Compare plain values with the types that the Trainer declares: not all of them are looked at before use."""
    declared = typing.get_type_hints(Trainer.__init__)
    for name, value in trainer.items():
        if name not in declared or name == "precision" or type(value) not in _KINDS:
            continue
        kinds = _plain_kinds(declared[name])
        fits = type(value) in kinds or (type(value) is int and float in kinds)
        require(fits, f"trainer.{name}", value, " or ".join(_KINDS[kind] for kind in _KINDS if kind in kinds))


def _plain_kinds(declared: Any) -> set[type]:
    """Those of YAML's types that a declared type allows."""
    if get_origin(declared) is typing.Literal:
        return {type(value) for value in get_args(declared)}
    if get_origin(declared) is typing.Union:
        return set().union(*map(_plain_kinds, get_args(declared)))
    return {declared} & set(_KINDS)


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
    """The precision that a ``trainer.precision`` means: ``32-true``, ``bf16-mixed`` or ``16-mixed``.

    Raises:
        UserError: it is another one.
    """
    for name, spellings in _PRECISIONS.items():
        if str(given) in spellings:
            return name
    raise UserError(
        f"trainer.precision={given}: must be one of {', '.join(_PRECISIONS)}; weights are kept in float32, and so "
        "is what needs its digits"
    )


def blamed(said: str, settings: Mapping[str, Any], place: str) -> str:
    """Lightning's sentence about its Trainer, with the setting in front that it means, if it names one.

    Args:
        said: names an argument or quotes its value.
        settings: what the Trainer was given.
        place: key of the settings.
    """
    for name, value in settings.items():
        quoted = isinstance(value, str) and f"'{value}'" in said
        if quoted or f"`{name}" in said or ("_" in str(name) and re.search(rf"\b{name}\b", said)):
            return f"{place}.{name}={str(value).lower() if isinstance(value, bool) else value}: {said}"
    return f"{place}: {said}"


def check_shares(trainer: Trainer, split: str, batches: int) -> None:
    """Refuse a share of the batches that is none of them, and an evaluation that would never take place.

    Args:
        trainer: with its limits.
        split: ``train`` or ``val``.
        batches: of an epoch on this device.

    Raises:
        UserError: naming the setting.
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
