"""Builds parts from the composed configuration, and checks it before any data are read."""

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
from cmt_aqr.runs.trainer_settings import check_trainer, setting_to_blame
from cmt_aqr.runs.tree import unresolved
from cmt_aqr.runs.typed import mistyped


def build(config: DictConfig | None, **arguments: Any) -> Any:
    """Instantiate a part of the configuration, with additional arguments; ``None`` makes ``None``.

    Raises:
        UserError: the constructor refuses a value. Here, and only here, the sentence of a :class:`SettingError`,
            which begins with a parameter, gets the configuration's key.
    """
    if config is None:
        return None
    # Before Hydra resolves interpolations, of this part and of those that it is interpolated from.
    written = unresolved(config._get_root())
    target = config.get("_target_")
    if target != current_names(target):
        config = config.copy()
        config._target_ = current_names(target)
    try:
        built = hydra.utils.instantiate(config, **arguments)
    except InstantiationException as error:
        message = _refusal(error, written, config)
        if message is None:
            _check_types(config, written)
            raise
        raise UserError(message) from error
    _check_types(config, written)
    return built


def _check_types(config: DictConfig, written: Any) -> None:
    """Refuse a value of another type than its constructor declares."""
    plain = OmegaConf.to_container(config, resolve=True)
    for key, value, allowed in mistyped(current_names(plain), config._get_full_key(None)):
        require(False, _source(written, key), value, allowed)


def in_terms_of_keys(message: str, place: str, written: Any = None) -> str:
    """Put the configuration's key in front of a constructor's message, in place of the parameter that it names.

    Args:
        message: as in ``heads=3: must be ...``; one without a parameter gets the key of the part.
        place: key of the part that was built, as in ``model.network.decoder``; empty where it has none.
        written: the unresolved configuration: the message names the key that the value is interpolated from.
    """
    parameter = re.match(r"\w+(?=[=:.\[])", message)
    if not place:
        return message
    if parameter is None:
        return f"{_source(written, place)}: {message}"
    return _source(written, f"{place}.{parameter[0]}") + message[parameter.end() :]


def _source(written: Any, key: str) -> str:
    """The key that a key's value is interpolated from, or the key itself."""
    for target, source in links(written):
        if below(key, [target]):
            return _source(written, source + key.removeprefix(target))
    return key


def _refusal(error: InstantiationException, written: Any, settings: Mapping[Any, Any]) -> str | None:
    """A sentence if settings are to blame for the failure to build a class; ``None`` for a bug."""
    cause = error.__cause__
    message = " ".join(str(cause).split())
    match = re.search(r"full_key: (\S+)", str(error))
    key = match[1] if match else ""
    if isinstance(cause, SettingError):
        return in_terms_of_keys(message, key, written)
    if isinstance(cause, UserError):
        return message
    prefix = f"{key}." if key else ""
    missing = re.search(r"Error locating target '([^']+)'", str(error))
    if missing is not None:
        return f"{prefix}_target_={missing[1]}: there is no such class or function"
    call = re.search(r"Error in call to target '([^']+)'", str(error))
    target = call[1] if call else "it"
    if isinstance(cause, TypeError):
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", message):
            return f"{prefix}{unknown[1]}: there is no such setting of {target}: drop or rename it"
        if required := re.search(r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)", message):
            names = re.findall(r"'(\w+)'", required[1])
            return f"{key}: {target} needs {' and '.join(names)}; give {prefix}{names[0]}=..."
    if key.startswith(("callbacks.", "logger.")) and not target.startswith("cmt_aqr."):
        # The user chose both the class and its settings, so this is no bug of this project.
        return f"{key}: {target} refuses these settings ({type(cause).__name__}: {message}); see its documentation"
    setting = setting_to_blame(message, settings) if target.startswith("pytorch_lightning.") else None
    if setting is not None:
        return f"{prefix}{setting}: {message}"
    return f"{key}: {message}" if isinstance(cause, MisconfigurationException) else None


def build_data(config: DictConfig, evaluating: bool = False) -> Any:
    """The data module of a full configuration with its faults; ``evaluating`` reads only ``data.eval_split``."""
    for name, group in (("train_fault", "fault"), ("eval_fault", "eval_fault")):
        if name in config.data:
            raise UserError(f"data.{name}: nothing reads it, so it would change nothing: choose {group}=")
    # Old checkpoints have no faults.
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
        _check_affected_sensors(group, fault, {"camera": data.cameras, "lidar": data.lidar})
    if data.half_size_images and getattr(eval_fault, "needs_full_size", False):
        raise UserError(
            "data.half_size_images=true with eval_fault=: this failure of the cameras is defined in pixels of "
            "full-size images; give data.half_size_images=false"
        )
    return data


def _reader_of_damage(config: DictConfig) -> str | None:
    """The setting with which AQR learns from, or is given, what faults broke; ``None`` without one."""
    weight = OmegaConf.select(config, "training.criterion.signal_weight")
    if weight:
        return f"training.criterion.signal_weight={weight}"
    return "aqr.beta=oracle" if OmegaConf.select(config, "aqr.beta") == "oracle" else None


def _check_affected_sensors(group: str, fault: Any, is_read: Mapping[str, bool]) -> None:
    """Refuse a fault that affects only sensors which the model does not read."""
    affected = list(getattr(fault, "strikes", is_read))
    if fault is not None and affected and not any(is_read[sensor] for sensor in affected):
        name = {"camera": "cameras", "lidar": "LiDAR"}[affected[0]]
        raise UserError(f"{group}: it strikes the {name} alone, which this model does not read; drop {group}=")


def check_config(config: DictConfig, overrides: Sequence[str] = (), evaluating: bool = False) -> None:
    """Refuse values out of range and pairs that contradict each other, naming key, value and what is allowed.

    Args:
        config: the composed configuration of a training run.
        overrides: as typed on the command line, to distinguish a contradiction from a preset.
        evaluating: whether it is for an evaluation of a checkpoint.
    """
    for key in _REQUIRED_PARTS:
        if OmegaConf.select(config, key, default=key) is None:
            advice = "training.denoising.groups=0 switches it off" if "denoising" in key else "drop it"
            raise UserError(f"{key}=null: a run needs this part; {advice}")
    check_complete(config)
    _check_values(config)
    _check_aqr(config, override_keys(overrides))
    _check_sensors(config)
    _check_signal(config, evaluating)
    _check_start(config)
    check_trainer(config.trainer)
    _check_packages(config)
    for group in ("optimizer", "lr_mult", "renderer", "modulator", "aqr", "clamp_schedule"):
        _check_effect(group, config[group], build(config[group]), overrides)
    build(config.training.denoising)
    for name, callback in (build(config.callbacks) or {}).items():
        if callback is not None and not isinstance(callback, Callback):
            raise UserError(
                f"callbacks.{name}: is no callback of Lightning; give its class, as "
                f"+callbacks.{name}._target_=pytorch_lightning.callbacks.EarlyStopping"
            )
    build_data(config, evaluating)


def _check_effect(group: str, config: DictConfig, part: Any, overrides: Sequence[str]) -> None:
    """Refuse overrides of settings that have no effect with the other settings of their part."""
    unread = part.unread() if hasattr(part, "unread") else {}
    for key in override_keys(overrides):
        name = key.removeprefix(f"{group}.")
        if key != name and name in unread:
            raise UserError(f"{key}={config[name]} has no effect with {group}.{unread[name]}: drop one of them")


def check_complete(config: DictConfig) -> None:
    """Refuse a configuration in which a value without a default is missing."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]} has no default: give {missing[0]}=...")


_REQUIRED_PARTS = (
    *("model.network", "model.network.head", "model.network.decoder", "model.grid"),
    *("training", "training.criterion", "training.denoising", "evaluation", "recipe"),
)
"""Parts that a run needs, besides groups, which Hydra does not allow to be null."""


def _check_values(config: DictConfig) -> None:
    size = OmegaConf.select(config, "model.image_size")
    sides = isinstance(size, Sequence) and len(size) == 2 and all(is_count(side) for side in size)
    require(sides, "model.image_size", size, "height and width in whole pixels, as in [320,800]")
    for key in ("evaluation.max_detections", "model.layers", "model.queries"):
        require_count(key, OmegaConf.select(config, key))
    require_whole("seed", config.seed, 0, 2**32 - 1)  # the range of numpy's generator
    threshold = OmegaConf.select(config, "evaluation.score_threshold", default=0.0)
    require_number("evaluation.score_threshold", threshold, 0, below=1)
    for part in ("model.network.head", "training.criterion", "training.denoising"):
        classes = OmegaConf.select(config, f"{part}.classes")
        if classes is not None and classes != len(CLASSES):
            raise UserError(
                f"{part}.classes={classes}: the classes are nuScenes' ten, whose metric has no others; drop it"
            )


_PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}
"""Packages that loggers need, each installed by the extra of its name."""


def _check_packages(config: DictConfig) -> None:
    for logger in (config.logger or {}).values():
        package = _PACKAGES.get(str(logger.get("_target_")).rpartition(".")[2]) if logger is not None else None
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(
                f"logger={package}: the package {package} is not installed; "
                f"pip install -c constraints.txt -e '.[{package}]' adds it"
            )


def _check_aqr(config: DictConfig, overridden: Sequence[str]) -> None:
    milestones = config.clamp_schedule.milestones
    if milestones and "renderer.max_weight_clamp" in overridden:
        raise UserError(
            f"renderer.max_weight_clamp={config.renderer.max_weight_clamp} contradicts the clamp schedule, which "
            f"sets the clamp by epoch ({milestones}): give one of them, or clamp_schedule=constant"
        )
    if config.aqr is not None and "renderer" in config.aqr:
        return
    choice = "aqr=none" if config.aqr is None else "aqr=attention_bias"
    unused = sorted(key for key in overridden if key.split(".")[0] in ("renderer", "modulator"))
    if unused:
        raise UserError(f"{unused[0]} has no effect with {choice}: drop it, or choose aqr=default")
    if milestones:
        raise UserError(f"clamp_schedule has milestones, but {choice} has nothing to clamp: drop one of them")
    if config.aqr is not None and None in (config.model.network.get("lidar"), config.model.network.get("image")):
        raise UserError("aqr=attention_bias weighs two sensors, and this model reads one: choose aqr=none")


def _check_sensors(config: DictConfig) -> None:
    for sensor, branch, model in (("lidar", "lidar", "tiny_camera"), ("cameras", "image", "tiny_lidar")):
        value = config.data.get(sensor, True)
        is_read = value or not (config.data.get("lidar") or config.data.get("cameras"))
        if config.model.network.get(branch) is not None and not is_read:
            raise UserError(
                f"data.{sensor}={str(value).lower()}: this model has a branch for a sensor that is not read; "
                f"drop it, or choose a model without that sensor, as model={model}"
            )


def _check_signal(config: DictConfig, evaluating: bool) -> None:
    """Refuse a damage signal without a reader or without a source."""
    reader = _reader_of_damage(config)
    if reader is not None and config.data.get("damage") is False:
        raise UserError(f"data.damage=false contradicts {reader}, which reads what faults broke: drop one of them")
    if evaluating or reader is None or reader.startswith("aqr"):
        return
    beta = OmegaConf.select(config, "aqr.beta")
    if config.aqr is None or beta in ("oracle", "zero"):
        choice = "aqr=none" if config.aqr is None else f"aqr.beta={beta}"
        raise UserError(f"{reader} has no effect with {choice}, which learns no weight: drop one of them")
    if not config.aqr.get("stop_gradient"):
        raise UserError(
            f"{reader} would train the features to reveal where they are broken: give aqr.stop_gradient=true"
        )


def _check_start(config: DictConfig) -> None:
    """Refuse a start from two files, from missing files, or without weights that the experiment needs."""
    if config.ckpt_path and config.weights:
        raise UserError(
            f"ckpt_path={config.ckpt_path} and weights={config.weights}: a run resumes from a checkpoint or "
            "starts from weights, not both"
        )
    weights = config.weights if OmegaConf.is_list(config.weights) else [config.weights]
    require(len(weights) > 0, "weights", weights, "a file, a list of files, or null")
    for key, file in (("ckpt_path", config.ckpt_path), *(("weights", file) for file in weights)):
        if file and not Path(str(file)).is_file():
            is_folder = Path(str(file)).is_dir()
            raise UserError(
                f"{key}={file}: {'it is a folder; name a file in it' if is_folder else 'there is no such file'}"
            )
    if config.recipe.needs_weights and config.weights is None and config.ckpt_path is None:
        raise UserError("weights=null: this experiment starts from trained weights; add weights=FILE")
