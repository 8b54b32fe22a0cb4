"""Checks of the composed configuration, before any data is read."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from cmt_aqr.checks import is_count, require, require_count, require_number, require_whole
from cmt_aqr.constants import CLASSES
from cmt_aqr.errors import SettingError, UserError
from cmt_aqr.runs.saved import below, current_names, links, override_keys
from cmt_aqr.runs.trainer_settings import blamed, check_trainer
from cmt_aqr.runs.tree import unresolved
from cmt_aqr.runs.typed import mistyped


def build(config: DictConfig | None, **arguments: Any) -> Any:
    """Instantiate a configuration; a refused value becomes a :class:`UserError` with the refusal's sentence.

    A :class:`SettingError` names a parameter of a constructor; here, and only here, the configuration's key gets
    in front.

    Args:
        config: with ``_target_``; ``None`` makes ``None``.
        **arguments: of the constructor, besides.
    """
    if config is None:
        return None
    # Before Hydra resolves interpolations, also those of other parts that this one is interpolated from.
    written = unresolved(config._get_root())
    target = config.get("_target_")
    if target != current_names(target):
        config = config.copy()
        config._target_ = current_names(target)
    try:
        built = hydra.utils.instantiate(config, **arguments)
    except InstantiationException as error:
        told = _told(error, written, config)
        if told is None:
            _check_types(config, written)
            raise
        raise UserError(told) from error
    _check_types(config, written)
    return built


def _check_types(config: DictConfig, written: Any) -> None:
    """Refuse a value of another type than its constructor declares, and did not look at itself."""
    plain = OmegaConf.to_container(config, resolve=True)
    for key, value, allowed in mistyped(current_names(plain), config._get_full_key(None)):
        require(False, _source(written, key), value, allowed)


def in_terms_of_keys(said: str, place: str, written: Any = None) -> str:
    """A constructor's sentence with the configuration's key in front of the parameter that it begins with.

    Args:
        said: as in ``heads=3: must be ...``; one that begins with no parameter gets the part's key in front.
        place: key of the part that was built, as in ``model.network.decoder``; empty where it has none.
        written: the configuration, not resolved: the key is the one that the value is interpolated from.
    """
    named = re.match(r"\w+(?=[=:.\[])", said)
    if not place:
        return said
    if named is None:
        return f"{_source(written, place)}: {said}"
    return _source(written, f"{place}.{named[0]}") + said[named.end() :]


def _source(written: Any, key: str) -> str:
    """The key that a key's value is interpolated from, or the key itself."""
    for target, source in links(written):
        if below(key, [target]):
            return _source(written, source + key.removeprefix(target))
    return key


def _told(error: InstantiationException, written: Any, settings: Mapping[Any, Any]) -> str | None:
    """The sentence about a class that could not be built, where the settings are to blame; else ``None``."""
    cause = error.__cause__
    said = " ".join(str(cause).split())
    at = re.search(r"full_key: (\S+)", str(error))
    key = at[1] if at else ""
    if isinstance(cause, SettingError):
        return in_terms_of_keys(said, key, written)
    if isinstance(cause, UserError):
        return said
    place = f"{key}." if key else ""
    absent = re.search(r"Error locating target '([^']+)'", str(error))
    if absent is not None:
        return f"{place}_target_={absent[1]}: there is no such class or function"
    built = re.search(r"Error in call to target '([^']+)'", str(error))
    target = built[1] if built else "it"
    unknown = re.search(r"unexpected keyword argument '(\w+)'", said)
    if isinstance(cause, TypeError) and unknown is not None:
        return f"{place}{unknown[1]}: there is no such setting of {target}: drop or rename it"
    lacking = re.search(r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)", said)
    if isinstance(cause, TypeError) and lacking:
        names = re.findall(r"'(\w+)'", lacking[1])
        return f"{key}: {target} needs {' and '.join(names)}; give {place}{names[0]}=..."
    if key.startswith(("callbacks.", "logger.")) and not target.startswith("cmt_aqr."):
        # A class that the user chose, with settings that the user gave: none of ours can be at fault.
        return f"{key}: {target} refuses these settings ({type(cause).__name__}: {said}); see its documentation"
    setting = blamed(said, settings) if target.startswith("pytorch_lightning.") else None
    if setting is not None or isinstance(cause, MisconfigurationException):
        return f"{place}{setting}: {said}" if setting is not None else f"{key}: {said}"
    return None


def build_data(config: DictConfig, evaluating: bool = False) -> Any:
    """The data module of a configuration, with its sensor faults; those of old checkpoints have none.

    Args:
        config: the whole configuration.
        evaluating: whether ``data.eval_split`` is all that is read.
    """
    for name, chosen in (("train_fault", "fault"), ("eval_fault", "eval_fault")):
        if name in config.data:
            raise UserError(f"data.{name}: nothing reads it, so it would change nothing: choose {chosen}=")
    train_fault, eval_fault = (build(config.get(group)) for group in ("fault", "eval_fault"))
    damage = OmegaConf.select(config, "data.damage")
    data = build(
        config.data,
        train_fault=train_fault,
        eval_fault=eval_fault,
        evaluating=evaluating,
        damage=_reader_of_damage(config) is not None if damage is None else damage,
    )
    for group, fault in (("fault", train_fault), ("eval_fault", eval_fault)):
        _check_strikes(group, fault, {"cameras": data.cameras, "LiDAR": data.lidar})
    if data.half_size_images and getattr(eval_fault, "needs_full_size", False):
        raise UserError(
            "data.half_size_images=true with eval_fault=: this failure of the cameras is defined in pixels of "
            "whole images; give data.half_size_images=false"
        )
    return data


def _reader_of_damage(config: DictConfig) -> str | None:
    """What reads what faults broke: AQR that learns from it or is told; ``None`` where nothing does."""
    weight = OmegaConf.select(config, "training.criterion.signal_weight")
    if weight:
        return f"training.criterion.signal_weight={weight}"
    return "aqr.beta=oracle" if OmegaConf.select(config, "aqr.beta") == "oracle" else None


def _check_strikes(group: str, fault: Any, read: Mapping[str, bool]) -> None:
    """Refuse a fault that no sensor that is read can have."""
    names = {"camera": "cameras", "lidar": "LiDAR"}
    strikes = [names[sensor] for sensor in getattr(fault, "strikes", names)]
    if fault is not None and strikes and not any(read[sensor] for sensor in strikes):
        raise UserError(
            f"{group}: it strikes the {strikes[0]} alone, which this model does not read; drop {group}="
        )


def check_config(config: DictConfig, overrides: Sequence[str] = (), evaluating: bool = False) -> None:
    """Refuse values out of range and pairs that contradict each other, naming key, value and what is allowed.

    Args:
        config: the composed configuration of a training run.
        overrides: what was given on the command line, to tell a contradiction from a preset.
        evaluating: whether it is for an evaluation of a checkpoint.
    """
    for key in _PARTS:
        if OmegaConf.select(config, key, default=key) is None:
            advice = "training.denoising.groups=0 switches it off" if "denoising" in key else "drop it"
            raise UserError(f"{key}=null: a run needs this part; {advice}")
    check_complete(config)
    _check_numbers(config)
    _check_classes(config)
    _check_contradictions(config, set(override_keys(overrides)))
    _check_signal(config, evaluating)
    if config.recipe.needs_weights and config.weights is None and config.ckpt_path is None:
        raise UserError("weights=null: this experiment starts from trained weights; add weights=FILE")
    check_trainer(config.trainer)
    _check_packages(config)
    for group in ("optimizer", "lr_mult", "renderer", "modulator", "aqr", "clamp_schedule"):
        _check_read(group, config[group], build(config[group]), overrides)
    build(config.training.denoising)
    _check_callbacks(build(config.callbacks))
    build_data(config, evaluating)


def _check_read(group: str, config: DictConfig, part: Any, overrides: Sequence[str]) -> None:
    """Refuse overrides of settings of a part that its other settings leave without effect."""
    unread = part.unread() if hasattr(part, "unread") else {}
    for key in override_keys(overrides):
        name = key.removeprefix(f"{group}.")
        if key != name and name in unread:
            raise UserError(f"{key}={config[name]} has no effect with {group}.{unread[name]}: drop one of them")


def _check_callbacks(callbacks: Mapping[str, Any] | None) -> None:
    """Refuse what is no callback of Lightning."""
    for name, callback in (callbacks or {}).items():
        if callback is not None and not isinstance(callback, Callback):
            raise UserError(
                f"callbacks.{name}: is no callback of Lightning; give its class, as "
                f"+callbacks.{name}._target_=pytorch_lightning.callbacks.EarlyStopping"
            )


def check_complete(config: DictConfig) -> None:
    """Refuse a configuration that lacks a value without a default."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]} has no default: give {missing[0]}=...")


def clamp_given(overrides: Sequence[str]) -> bool:
    """Whether the command line sets the clamp, by its value or by a renderer preset."""
    return bool({"renderer", "renderer.max_weight_clamp"} & set(override_keys(overrides)))


_PARTS = (
    *("model.network", "model.network.head", "model.network.decoder", "model.grid"),
    *("training", "training.criterion", "training.denoising", "evaluation", "recipe"),
)
"""What a run cannot do without; groups are refused by themselves."""


def _check_numbers(config: DictConfig) -> None:
    size = OmegaConf.select(config, "model.image_size")
    sides = isinstance(size, Sequence) and len(size) == 2 and all(is_count(side) for side in size)
    require(sides, "model.image_size", size, "height and width in whole pixels, as in [320,800]")
    for key in ("evaluation.max_detections", "model.layers", "model.queries"):
        require_count(key, OmegaConf.select(config, key))
    require_whole("seed", config.seed, 0, 2**32 - 1)  # as numpy's generator takes it
    threshold = OmegaConf.select(config, "evaluation.score_threshold", default=0.0)
    require_number("evaluation.score_threshold", threshold, 0, below=1)


def _check_classes(config: DictConfig) -> None:
    """Three parts know their number, and must agree with the data and the metric."""
    for part in ("model.network.head", "training.criterion", "training.denoising"):
        classes = OmegaConf.select(config, f"{part}.classes")
        if classes is not None and classes != len(CLASSES):
            raise UserError(
                f"{part}.classes={classes}: the classes are nuScenes' ten, whose metric knows no others; drop it"
            )


_OPTIONAL = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}
"""Loggers that need a package which is installed by choice: the extra has its name."""


def _check_packages(config: DictConfig) -> None:
    for logger in (config.logger or {}).values():
        package = _OPTIONAL.get(str(logger.get("_target_")).rpartition(".")[2]) if logger is not None else None
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(
                f"logger={package}: the package {package} is not installed; "
                f"pip install -c constraints.txt -e '.[{package}]' adds it"
            )


def _check_contradictions(config: DictConfig, given: set[str]) -> None:
    milestones = config.clamp_schedule.milestones
    if milestones and "renderer.max_weight_clamp" in given:
        raise UserError(
            f"renderer.max_weight_clamp={config.renderer.max_weight_clamp} contradicts the clamp schedule, which "
            f"sets the clamp by epoch ({milestones}): give one of them, or clamp_schedule=constant"
        )
    if config.aqr is None or "renderer" not in config.aqr:
        chosen = "aqr=none" if config.aqr is None else "aqr=attention_bias"
        unused = sorted(key for key in given if key.split(".")[0] in ("renderer", "modulator"))
        if unused:
            raise UserError(f"{unused[0]} has no effect with {chosen}: drop it, or choose aqr=default")
        if milestones:
            raise UserError(f"clamp_schedule has milestones, but {chosen} has nothing to clamp: drop one of them")
    for sensor, branch, single in (("lidar", "lidar", "tiny_camera"), ("cameras", "image", "tiny_lidar")):
        value = config.data.get(sensor, True)
        reads = value or not (config.data.get("lidar") or config.data.get("cameras"))
        if config.model.network.get(branch) is not None and not reads:
            raise UserError(
                f"data.{sensor}={str(value).lower()}: this model has a branch for what would not be read; "
                f"drop it, or choose a model without that sensor, as model={single}"
            )
    sensors = (config.model.network.get(name) for name in ("lidar", "image"))
    if config.aqr is not None and "renderer" not in config.aqr and None in sensors:
        raise UserError("aqr=attention_bias weighs two sensors, and this model reads one: choose aqr=none")
    if "fsdp" in str(config.trainer.get("strategy")).lower():
        raise UserError(
            f"trainer.strategy={config.trainer.strategy}: FSDP cannot clip gradients by their norm and is not "
            "offered; choose trainer=ddp"
        )
    if config.trainer.get("sync_batchnorm"):
        raise UserError(
            "trainer.sync_batchnorm=true: batch norms over all processes are not built, drop it; each process "
            "normalises its own frames, as in the published training"
        )
    if config.ckpt_path and config.weights:
        raise UserError(
            f"ckpt_path={config.ckpt_path} and weights={config.weights}: a run resumes from a checkpoint or "
            "starts from weights, not both"
        )
    weights = config.weights if OmegaConf.is_list(config.weights) else [config.weights]
    require(len(weights) > 0, "weights", weights, "a file, a list of files, or null")
    for key, file in (("ckpt_path", config.ckpt_path), *(("weights", file) for file in weights)):
        if file and not Path(str(file)).is_file():
            there = "it is a folder; name a file in it" if Path(str(file)).is_dir() else "there is no such file"
            raise UserError(f"{key}={file}: {there}")


def _check_signal(config: DictConfig, evaluating: bool) -> None:
    """Refuse a signal that nobody hears or that nobody gives."""
    reader = _reader_of_damage(config)
    if reader is not None and config.data.get("damage") is False:
        raise UserError(f"data.damage=false contradicts {reader}, which reads what faults broke: drop one of them")
    if evaluating or reader is None or reader.startswith("aqr"):
        return
    beta = OmegaConf.select(config, "aqr.beta")
    if config.aqr is None or beta in ("oracle", "zero"):
        chosen = "aqr=none" if config.aqr is None else f"aqr.beta={beta}"
        raise UserError(f"{reader} has no effect with {chosen}, which learns no weight: drop one of them")
    if not config.aqr.get("stop_gradient"):
        raise UserError(
            f"{reader} would teach the features to shout where they are broken: give aqr.stop_gradient=true"
        )
