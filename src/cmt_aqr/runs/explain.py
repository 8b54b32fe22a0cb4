"""Hydra's errors in one sentence, with the options or keys that exist instead."""

import difflib
import re

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from cmt_aqr.runs.saved import below, override_keys
from cmt_aqr.runs.tree import nodes, unresolved


def explain(error: Exception, config_name: str, overrides: list[str]) -> str:
    """One sentence for an error of Hydra, with the nearest existing key where a key is unknown."""
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return _no_such_option(group, choice, overrides)
    text = " ".join(str(error).split())
    existing = re.search(r"Could not append to config. An item is already at '([^']+)'", text)
    if existing is not None:
        item = next((item for item in overrides if override_keys([item]) == [existing[1]]), existing[1])
        return f"{item}: there is {existing[1]} already; give it without +"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown is None:
        return text
    key = unknown[1].lstrip("+~").split("@")[0]
    item = next((item for item in overrides if key in item), key)
    groups = [item for item in overrides if "/" not in item and "." not in item.split("=")[0] and key not in item]
    keys = _keys(config_name, groups)
    if key in keys:  # the value is a mapping, and one of its keys is unknown
        key = str(getattr(error.__cause__, "full_key", key))
    option = _option_with(config_name, key)
    if option is not None:
        return (
            f"{item}: {key} is a key of {option}: give {option}, too, or +{item} where a checkpoint brings "
            "that along"
        )
    parent = key.rpartition(".")[0]
    siblings = [name for name in keys if name.rpartition(".")[0] == parent]
    near = difflib.get_close_matches(key, [name for name in keys if not below(key, [name])], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"keys there are {', '.join(siblings[:20])}"
    if parent in keys and not siblings:
        hint = f"{parent} has none here"
    return f"{item}: there is no key {key} in the configuration; {hint} (+{item} adds a new key)"


def _no_such_option(group: str, choice: str, overrides: list[str]) -> str:
    """A sentence for an option that is missing from its group or, as in ``eval_fault=mome/fov6``, its folder."""
    if group in ("hydra/launcher", "hydra/sweeper"):
        if choice not in _PLUGINS:
            return f"{choice}: Hydra has no launcher or sweeper of this name; docs/sweeps.md lists them"
        item = next((item for item in overrides if item.startswith(("launcher=", "sweep="))), choice)
        return f"{item}: this needs an extra that is not installed: {_PLUGINS[choice]}"
    item = next((item for item in overrides if item.replace("=", "/", 1).endswith(f"{group}/{choice}")), "")
    key, _, value = (item or f"{group}={choice}").partition("=")
    key, folder = key.lstrip("+"), value.rpartition("/")[0]
    loader = GlobalHydra.instance().config_loader()
    options = [f"{folder}/{option}" for option in loader.get_group_options(f"{key}/{folder}")] if folder else []
    if not options:
        folders = [f"{name}/..." for name in loader.get_group_options(key, ObjectType.GROUP)]
        options = [*loader.get_group_options(key), *folders]
    return f"{key}={value}: there is no such option; choose from {', '.join(options)}"


_PLUGINS = {
    "joblib": "pip install -c constraints.txt -e '.[sweeps]'",
    "optuna": "pip install -c constraints.txt -e '.[sweeps]'",
    "submitit_slurm": "pip install -c constraints.txt -e '.[slurm]'",
    "submitit_local": "pip install -c constraints.txt -e '.[slurm]'",
    "ray": "pip install -c constraints.txt -e '.[ray]' && pip install --no-deps hydra-ray-launcher==1.2.2",
}
"""How to install Hydra's launchers and sweepers that are extras."""


def _option_with(config_name: str, key: str) -> str | None:
    """``group=option`` for an option that has such a key: the default one if it does, else the first."""
    group = key.partition(".")[0]
    options = GlobalHydra.instance().config_loader().get_group_options(group)
    for option in sorted(options, key=lambda name: name != "default"):
        if key in _keys(config_name, [f"{group}={option}"]):
            return f"{group}={option}"
    return None


def _keys(config_name: str, overrides: list[str]) -> list[str]:
    """Keys of the configuration with these overrides, or without them if they do not compose."""
    try:
        config = hydra.compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException):
        config = hydra.compose(config_name)
    return [key for key, _ in nodes(unresolved(config))]
