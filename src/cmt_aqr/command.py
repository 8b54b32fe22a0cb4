"""What all commands share: composing the configuration, and saying what is wrong with it in one sentence."""

from __future__ import annotations

import difflib
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cmt_aqr import sweeps
from cmt_aqr.cluster import outside_environment, share_folder, shared_folder
from cmt_aqr.errors import UserError
from cmt_aqr.threads import sleep_while_waiting

_FLAGS_WITH_VALUES = (
    "-c",
    "--cfg",
    "-cd",
    "--config-dir",
    "-cn",
    "--config-name",
    "-cp",
    "--config-path",
    "--experimental-rerun",
)


def command(config_dir: Path, config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a function of a composed configuration into a command line.

    A mistake in the overrides, and every :class:`UserError`, ends the command with one sentence on stderr and
    exit status 1; ``HYDRA_FULL_ERROR=1`` shows the traceback as well.

    Args:
        config_dir: folder of the Hydra configuration.
        config_name: name of the primary configuration in it.
    """

    def wrap(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def quietly(config: DictConfig) -> Any:
            hide_noise()
            return function(config)

        @functools.wraps(function)
        def job(config: DictConfig) -> Any:
            outside = outside_environment()
            if outside is not None and outside.rank == 0:
                share_folder(outside, Path(HydraConfig.get().runtime.output_dir))
            if sweeps.in_sweep():
                return sweeps.run(quietly, config)
            try:
                return quietly(config)
            except UserError as error:
                if _full_errors() or HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise
                sys.exit(f"error: {error}")

        def main() -> None:
            sleep_while_waiting()
            if not any(flag in sys.argv for flag in _FLAGS_WITH_VALUES):
                # argparse refuses overrides on both sides of a flag such as -m.
                sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: not argument.startswith("-"))
            try:
                join_first_process(sys.argv)
                check_overrides(config_dir, config_name, sys.argv[1:])
            except UserError as error:
                if _full_errors():
                    raise
                sys.exit(f"error: {error}")
            try:
                hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)(job)()
            finally:  # also where the sweep was stopped
                trouble = sweeps.finish()
                if trouble:
                    print(f"error: {trouble}", file=sys.stderr)
            if trouble:
                sys.exit(1)

        return main

    return wrap


_NOISE = ("litlogger", "Loading `train_dataloader` to estimate", "TPU available")
"""Parts of messages of Lightning that tell a user of ours nothing."""


def hide_noise() -> None:
    """Drop messages of libraries about themselves; their warnings about a run stay."""
    # Lightning prints what it logs, and so does Hydra, whose format has the time and goes to the log file, too.
    import pytorch_lightning  # noqa: F401  # its handler is there only after the import

    logging.getLogger("pytorch_lightning").handlers.clear()
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not any(part in record.getMessage() for part in _NOISE))
    # Frozen modules, and batch norms with norm_eval, are in eval mode on purpose.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
    # The metric is gathered already; every process logs the same number.
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self.log\(.*sync_dist=True")
    # DDP's remark on 1 x 1 convolutions, whose two ways to lay out memory are the same.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # Lightning's own use of a class that PyTorch is about to replace.
    warnings.filterwarnings("ignore", message=r"`?isinstance\(treespec, LeafSpec\)")


def join_first_process(arguments: list[str]) -> None:
    """Where torchrun or srun started this process as another than the first, let it use the first one's folder.

    Args:
        arguments: the command line, extended here.

    Raises:
        UserError: for a sweep, whose runs start processes of their own.
    """
    outside = outside_environment()
    if outside is None:
        return
    sweep = [item for item in arguments if item in ("-m", "--multirun") or item.startswith("sweep=")]
    if sweep:
        raise UserError(
            f"{sweep[0]} does not go with {outside.name}: start the sweep without, and each run starts its own "
            "processes"
        )
    if outside.rank > 0:
        quoted = str(shared_folder(outside)).replace("\\", r"\\").replace("'", r"\'")
        arguments += [f"hydra.run.dir='{quoted}'", "hydra.output_subdir=null"]


def _full_errors() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def check_overrides(config_dir: Path, config_name: str, arguments: list[str]) -> None:
    """Compose once before Hydra does, to explain a mistake in one sentence.

    Hydra's own messages take several lines and name no alternatives.

    Raises:
        UserError: for an unknown key, group or option, or an override that cannot be read.
    """
    if any(flag in arguments for flag in _FLAGS_WITH_VALUES):
        return
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir), version_base="1.3"):
        try:
            for singles in _without_sweeps(overrides):
                hydra.compose(config_name, singles, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(error, config_name, overrides)) from error


def _without_sweeps(overrides: list[str]) -> Iterator[list[str]]:
    """The overrides with single values in place of sweeps: with the first of each, then each other one once."""
    choices = [_single_values(item) for item in overrides]
    first = [values[0] for values in choices]
    yield first
    for place, values in enumerate(choices):
        for value in values[1:]:
            yield [*first[:place], value, *first[place + 1 :]]


def _single_values(item: str) -> list[str]:
    try:
        override = OverridesParser.create().parse_override(item)
    except HydraException as error:
        raise UserError(
            f"{item}: cannot be read as key=value or group=option; quote what the shell would change, "
            "as in 'key=[1,2]'"
        ) from error
    if not override.is_sweep_override():
        return [item]
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [f"{override.get_key_element()}={value.start}"]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _explain(error: Exception, config_name: str, overrides: list[str]) -> str:
    """One sentence out of Hydra's several lines, with the nearest existing key where a key is unknown."""
    text = " ".join(str(error).split())
    option = re.search(
        r"Could not find '([^']+)/([^'/]+)'.*Available options in '[^']+': (.*?)( Config search|$)", text
    )
    if option is not None and option.group(1) in ("hydra/launcher", "hydra/sweeper"):
        return _missing_plugin(option.group(2), overrides)
    if option is not None:
        group, choice, options = option.group(1), option.group(2), option.group(3).split()
        return f"{group}={choice}: there is no such option; choose from {', '.join(options)}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown is None:
        return text
    key = unknown.group(1).lstrip("+~").split("@")[0]
    given = next((item for item in overrides if key in item), key)
    groups = [item for item in overrides if "/" not in item and "." not in item.split("=")[0] and key not in item]
    known = list(flatten(_composed(config_name, groups)))
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
    hint = f"did you mean {' or '.join(near)}?" if near else f"keys there are {', '.join(siblings[:20])}"
    return f"{given}: there is no key {key} in the configuration; {hint} (+{given} adds a new key)"


_PLUGINS = {
    "joblib": "pip install -c constraints.txt -e '.[sweeps]'",
    "optuna": "pip install -c constraints.txt -e '.[sweeps]'",
    "submitit_slurm": "pip install -c constraints.txt -e '.[slurm]'",
    "submitit_local": "pip install -c constraints.txt -e '.[slurm]'",
    "ray": "pip install -c constraints.txt -e '.[ray]' && pip install --no-deps hydra-ray-launcher==1.2.2",
}
"""How to install Hydra's launchers and sweepers that are extras."""


def _missing_plugin(name: str, overrides: list[str]) -> str:
    given = next((item for item in overrides if item.startswith(("launcher=", "sweep="))), name)
    if name not in _PLUGINS:
        return f"{name}: Hydra has no launcher or sweeper of this name; docs/sweeps.md lists them"
    return f"{given}: this needs an extra that is not installed: {_PLUGINS[name]}"


def _composed(config_name: str, overrides: list[str]) -> DictConfig:
    try:
        return hydra.compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException):
        return hydra.compose(config_name)


def flatten(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys of a configuration, groups and leaves."""
    for key in config.keys():  # noqa: SIM118  # items() would resolve interpolations
        name = f"{prefix}{key!s}"
        yield name
        child = config._get_node(key)
        if isinstance(child, DictConfig) and not (
            child._is_none() or child._is_missing() or child._is_interpolation()
        ):
            yield from flatten(child, f"{name}.")
