"""The configuration in a checkpoint, and what a later command changes in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.runs.tree import at, nodes, unresolved

_LINK = re.compile(r"\$\{(?:oc\.select:)?(\w[\w.]*)(?:,[^}]*)?\}")
"""A value that is another key's, named from the top."""

_ONCE_BUILT_BY_HAND = ("optimizer", "lr_mult", "training.denoising")
"""Groups that old checkpoints hold without the name of what to build from them."""

_ONCE_MADE = {"scenes": 10, "seed": 0}
"""``data.make`` of old checkpoints, then the default: nobody asked for data to be made at any ``data.root``."""

_BEFORE = (
    ("lightning.pytorch.", "pytorch_lightning."),
    ("lightning.Trainer", "pytorch_lightning.Trainer"),
    ("cmt_aqr.training.curves.", "cmt_aqr.runs.curves."),
    ("cmt_aqr.training.checkpoints.", "cmt_aqr.runs.checkpoints."),
    ("cmt_aqr.visual.progress.", "cmt_aqr.runs.progress."),
    ("cmt_aqr.visual.summary.", "cmt_aqr.training.plan."),
    ("cmt_aqr.training.summary.", "cmt_aqr.training.plan."),
    ("cmt_aqr.data.augmentation.MaskModality", "cmt_aqr.data.masking.MaskModality"),
    ("cmt_aqr.data.augmentation.GridMask", "cmt_aqr.data.masking.GridMask"),
)
"""Names that classes went by, and go by now."""


def override_keys(overrides: Sequence[str]) -> list[str]:
    """The keys and groups that command-line overrides name: ``+a.b=1`` is ``a.b``, ``~c`` is ``c``.

    A group that is put somewhere else is named by that place: ``+eval_fault@conditions.fog=fog`` is
    ``conditions.fog``.
    """
    keys = []
    for item in overrides:
        group, _, package = item.lstrip("+~").split("=")[0].partition("@")
        place = package.rpartition(":")[2]
        keys.append(group.replace("/", ".") if place in ("", "_global_", "_group_") else place)
    return keys


def without(overrides: Sequence[str], names: Sequence[str]) -> list[str]:
    """The overrides but those of some keys, and of what stands below them."""
    keys = override_keys(overrides)
    return [item for item, key in zip(overrides, keys, strict=True) if not below(key, names)]


def below(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key is one of some names, or stands below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def with_overrides(saved: Mapping[str, Any], composed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A checkpoint's configuration with the overrides of a later command put in.

    Neither is resolved, so that an override reaches every key that is interpolated from it.

    Args:
        saved: the configuration in the checkpoint.
        composed: the later command's own composition, which holds the overridden values.
        overrides: as given on the command line: ``group=choice`` replaces the group, ``a.b=c`` the value.

    Raises:
        UserError: for ``experiment=``, and for an override that an old checkpoint's configuration cannot follow.
    """
    keys = override_keys(overrides)
    if "experiment" in keys:
        raise UserError(
            "experiment= with ckpt_path=: the checkpoint brings its configuration along; drop experiment=, and "
            "override single values or groups"
        )
    plain = unresolved(composed)
    config = _linked(OmegaConf.create(current_names(saved)), plain, keys)
    for key in _ONCE_BUILT_BY_HAND:
        own = at(unresolved(config), key)
        if own is None or at(plain, key) is None:
            continue
        built_as = {name: value for name, value in at(plain, key).items() if name in ("_target_", "_convert_")}
        OmegaConf.update(config, key, built_as | own, merge=False)
    if at(saved, "data.make") == _ONCE_MADE:
        OmegaConf.update(config, "data.make", dict.fromkeys(_ONCE_MADE), merge=False)
    # weights= started the run that the checkpoint resumes; it must not be loaded again.
    for key in ["ckpt_path", "weights", "name", *keys]:
        OmegaConf.update(config, key, at(plain, key), merge=False, force_add=True)
    for key, override in zip(keys, overrides, strict=True):
        # Taken out, as in a composition; a whole group stays as null, for whoever asks for it.
        part, _, name = key.rpartition(".")
        parent = OmegaConf.select(config, part) if part else None
        if override.startswith("~") and isinstance(parent, DictConfig):
            parent.pop(name, None)
    return config


def current_names(config: Any) -> Any:
    """A configuration with classes by the names they go by now."""
    if isinstance(config, Mapping):
        return {key: current_names(value) for key, value in config.items()}
    if isinstance(config, list):
        return [current_names(value) for value in config]
    if isinstance(config, str):
        for before, now in _BEFORE:
            if config.startswith(before):
                return now + config.removeprefix(before)
    return config


def links(tree: Any) -> Iterator[tuple[str, str]]:
    """Dotted keys whose value is another key's, with that key, from outside to inside; nothing is resolved."""
    for key, value in nodes(tree):
        if isinstance(value, str) and (found := _LINK.fullmatch(value)):
            yield key, found[1]


def _linked(config: DictConfig, composed: Mapping[str, Any], overridden: Sequence[str]) -> DictConfig:
    """Link keys again that an old checkpoint holds as copies: those with the value of the key they came from.

    Checkpoints of versions before 2026-11-25 hold their configuration resolved.
    """
    plain = unresolved(config)
    for target, source in links(composed):
        value = at(plain, target)
        if isinstance(value, str) and _LINK.fullmatch(value):
            continue
        own, other = (OmegaConf.select(config, key) for key in (target, source))
        part = target.rpartition(".")[0]
        if own is None and part and OmegaConf.select(config, part) is None:
            continue  # a part that this model has not
        if own == other:
            OmegaConf.update(config, target, f"${{{source}}}", merge=False)
        elif any(below(source, [key]) or below(key, [source]) for key in overridden) and target not in overridden:
            raise UserError(
                f"{source}: cannot be changed on this checkpoint, in which {target} had a value of its own; "
                f"give {target}, too"
            )
    return config


_FOR_TRAINING = (
    *("optimizer", "lr_mult", "training", "clamp_schedule", "logger", "callbacks.checkpoint"),
    *("callbacks.learning_rate", "trainer.max_epochs", "trainer.max_steps", "trainer.max_time"),
    *("trainer.min_epochs", "trainer.min_steps", "trainer.gradient_clip_val"),
    *("trainer.gradient_clip_algorithm", "trainer.detect_anomaly", "trainer.accumulate_grad_batches"),
    *("trainer.check_val_every_n_epoch", "trainer.val_check_interval", "trainer.limit_train_batches"),
    *("trainer.log_every_n_steps", "trainer.num_sanity_val_steps", "data.train_split"),
    *("data.limit_train_frames", "data.train_transforms", "data.resampling", "data.sampling"),
    *("data.replace_empty_frames", "data.scene_augmentation", "data.image_augmentation", "data.min_points"),
    *("data.crop_points", "data.shuffle_points", "data.half_points"),
)
"""What an evaluation does not read."""


def check_for_evaluation(overrides: Sequence[str]) -> None:
    """Refuse overrides of what only a training reads, by the first of them."""
    for key in override_keys(overrides):
        if below(key, ["fault"]):
            raise UserError(f"{key} has no effect on an evaluation: give eval_fault= instead")
        if below(key, _FOR_TRAINING):
            raise UserError(f"{key} has no effect on an evaluation: it is for training; drop it")


def check_evaluation(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse overrides that would change nothing in this evaluation, by the first of them.

    Args:
        config: with the overrides put in.
        overrides: as given on the command line.
    """
    transforms = OmegaConf.select(config, "data.eval_transforms") or {}
    drawn = OmegaConf.select(config, "eval_fault.share") or any(transforms.values())
    for key in override_keys(overrides):
        if below(key, ["seed", "data.seed"]) and not drawn:
            raise UserError(
                f"{key} has no effect on an evaluation without eval_fault=, for nothing is drawn; drop it"
            )
        if key == "data.batch_size" and config.data.get("eval_batch_size"):
            raise UserError(
                "data.batch_size has no effect on this evaluation: data.eval_batch_size is set; give that"
            )
        if key == "modulator.residual_weight" and OmegaConf.select(config, "modulator.learnable_modulation"):
            raise UserError(
                f"{key} has no effect: with modulator.learnable_modulation=true the checkpoint's own holds"
            )
