"""The configuration in a checkpoint, and how the overrides of a later command change it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.runs.tree import at, nodes, unresolved

_LINK = re.compile(r"\$\{(?:oc\.select:)?(\w[\w.]*)(?:,[^}]*)?\}")
"""A value that is interpolated from another key, which is named from the top."""

_WITHOUT_CLASS = ("optimizer", "lr_mult", "training.denoising")
"""Groups that old checkpoints hold without the class to build from them."""

_OLD_DATA_DEFAULT = {"scenes": 10, "seed": 0}
"""``data.make`` of old checkpoints, which would generate data at any ``data.root``; nobody requested that."""

_RENAMED = (
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
"""Old and current beginnings of class names."""


def override_keys(overrides: Sequence[str]) -> list[str]:
    """The keys and groups that command-line overrides name: ``+a.b=1`` is ``a.b``, ``~c`` is ``c``.

    A relocated group is named by its new place: ``+eval_fault@conditions.fog=fog`` is ``conditions.fog``.
    """
    keys = []
    for item in overrides:
        group, _, package = item.lstrip("+~").split("=")[0].partition("@")
        place = package.rpartition(":")[2]
        keys.append(group.replace("/", ".") if place in ("", "_global_", "_group_") else place)
    return keys


def without(overrides: Sequence[str], names: Sequence[str]) -> list[str]:
    """The overrides without those of some keys and of keys below them."""
    keys = override_keys(overrides)
    return [item for item, key in zip(overrides, keys, strict=True) if not below(key, names)]


def below(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key is one of some names, or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def with_overrides(saved: Mapping[str, Any], composed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Apply the overrides of a later command to a checkpoint's configuration.

    Neither configuration is resolved, so that an override reaches every key that is interpolated from it.

    Args:
        saved: the configuration in the checkpoint.
        composed: the later command's composition, which holds the overridden values.
        overrides: as typed on the command line: ``group=choice`` replaces the group, ``a.b=c`` the value.

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
    for key in _WITHOUT_CLASS:
        group, current = at(unresolved(config), key), at(plain, key)
        if group is not None and current is not None:
            added = {name: current[name] for name in ("_target_", "_convert_") if name in current}
            OmegaConf.update(config, key, added | group, merge=False)
    if at(saved, "data.make") == _OLD_DATA_DEFAULT:
        OmegaConf.update(config, "data.make", dict.fromkeys(_OLD_DATA_DEFAULT), merge=False)
    # weights= started the saved run; they must not be loaded again.
    for key in ["ckpt_path", "weights", "name", *keys]:
        OmegaConf.update(config, key, at(plain, key), merge=False, force_add=True)
    for key, override in zip(keys, overrides, strict=True):
        # Removed as in a composition; a top-level group stays as null, because commands read it.
        parent_key, _, name = key.rpartition(".")
        parent = OmegaConf.select(config, parent_key) if parent_key else None
        if override.startswith("~") and isinstance(parent, DictConfig):
            parent.pop(name, None)
    return config


def current_names(config: Any) -> Any:
    """A configuration with the current names of renamed classes."""
    if isinstance(config, Mapping):
        return {key: current_names(value) for key, value in config.items()}
    if isinstance(config, list):
        return [current_names(value) for value in config]
    if isinstance(config, str):
        for old, new in _RENAMED:
            if config.startswith(old):
                return new + config.removeprefix(old)
    return config


def links(tree: Any) -> Iterator[tuple[str, str]]:
    """Dotted keys that are interpolated from another key, each with that key, from outside to inside."""
    for key, value in nodes(tree):
        if isinstance(value, str) and (match := _LINK.fullmatch(value)):
            yield key, match[1]


def _linked(config: DictConfig, composed: Mapping[str, Any], overridden: Sequence[str]) -> DictConfig:
    """Restore interpolations that an old checkpoint holds resolved, where both keys have the same value.

    Checkpoints of versions before 2026-11-25 hold their configuration resolved.
    """
    plain = unresolved(config)
    for target, source in links(composed):
        written = at(plain, target)
        if isinstance(written, str) and _LINK.fullmatch(written):
            continue
        value, source_value = (OmegaConf.select(config, key) for key in (target, source))
        part = target.rpartition(".")[0]
        if value is None and part and OmegaConf.select(config, part) is None:
            continue  # this model has no such part
        if value == source_value:
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
"""Keys that an evaluation does not read."""


def check_evaluation(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse the first override that would change nothing in this evaluation.

    Args:
        config: with the overrides applied.
        overrides: as typed on the command line.
    """
    transforms = OmegaConf.select(config, "data.eval_transforms") or {}
    is_random = OmegaConf.select(config, "eval_fault.share") or any(transforms.values())
    for key in override_keys(overrides):
        no_effect = f"{key} has no effect on an evaluation"
        if below(key, ["fault"]):
            raise UserError(f"{no_effect}: give eval_fault= instead")
        if below(key, _FOR_TRAINING):
            raise UserError(f"{no_effect}: it is for training; drop it")
        if below(key, ["seed", "data.seed"]) and not is_random:
            raise UserError(f"{no_effect} without eval_fault=, in which nothing is random; drop it")
        if key == "data.batch_size" and config.data.get("eval_batch_size"):
            raise UserError(f"{no_effect} with data.eval_batch_size, which is set; change that one")
        if key == "modulator.residual_weight" and OmegaConf.select(config, "modulator.learnable_modulation"):
            raise UserError(f"{no_effect} with modulator.learnable_modulation=true: the checkpoint has its own")
