"""Composes a command's configuration before Hydra does, and reports a mistake in it in one sentence.

Hydra's own messages take several lines and name no alternatives.
"""

import argparse
import contextlib
import itertools
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import cmt_aqr.runs.sweep_runs  # noqa: F401  # registers the resolvers of conf/
from cmt_aqr.errors import UserError
from cmt_aqr.files import check_folder
from cmt_aqr.runs.command_line import read_arguments, to_type
from cmt_aqr.runs.explain import explain
from cmt_aqr.runs.unread import refuse_unread


def check_overrides(
    config_dir: Path, config_name: str, arguments: Sequence[str], script: Path | None = None
) -> None:
    """Refuse a command line that Hydra or this project cannot work with.

    Args:
        config_dir: folder of the Hydra configuration.
        config_name: name of the primary configuration in it.
        arguments: flags and overrides of the command line.
        script: the file that ``--config-path`` is relative to.

    Raises:
        UserError: unknown flag, key, group or option; unreadable override; results folder that cannot be created.
    """
    flags, overrides = read_arguments(arguments)
    _check_flags(flags, overrides)
    if flags.help or flags.hydra_help or flags.shell_completion:
        return
    config_name = flags.config_name or config_name
    try:
        app = _initialize(flags, config_dir, script)
        sweeps, singles = _single_runs(overrides)
        first = singles[0]
        config, *_ = [hydra.compose(config_name, run, return_hydra_config=True) for run in singles]
        if flags.resolve and flags.cfg:
            _resolve_as_shown(app, config, flags.cfg)
    except (HydraException, OmegaConfBaseException) as error:
        advice = "; --cfg all --resolve has Hydra's part with what it refers to" if flags.cfg == "hydra" else ""
        raise UserError(explain(error, config_name, overrides) + advice) from error
    except ValueError as error:
        if "group override must be" in str(error):
            _check_groups(overrides, r"[\w/]+=(null)?")
        raise
    else:
        _check_groups(first, r"[\w/]+=\[\]")
        _check_references(config, first)
        refuse_unread(config, config_name, first)
    finally:
        GlobalHydra.instance().clear()
    runs = flags.cfg is None and flags.info is None  # rather than printing the configuration
    multirun = runs and (flags.multirun or config.hydra.mode == RunMode.MULTIRUN)
    if sweeps and not multirun:
        item, (key, _, values) = sweeps[0], sweeps[0].partition("=")
        raise UserError(
            f"{item}: several values are a sweep, which takes -m{'' if runs else ' and no --cfg or --info'}; "
            f"to give it as one text, type {to_type(item)}, and as a list {shlex.quote(f'{key}=[{values}]')}"
        )
    with resolvable(config):
        if multirun:
            key = "sweep_dir" if config.get("sweep_dir") else "hydra.sweep.dir"
            check_folder(key, Path(config.hydra.sweep.dir))
        elif runs and (config.hydra.output_subdir is not None or not Path(config.hydra.run.dir).is_dir()):
            check_folder("hydra.run.dir", Path(config.hydra.run.dir))


def print_help(config_dir: Path, config_name: str, arguments: Sequence[str], script: Path) -> bool:
    """Print the help that ``--help`` or ``--hydra-help`` requests, as Hydra does, but in a third of the time.

    Hydra copies all configurations of its plugins for each of a hundred groups whose options it lists.

    Returns:
        Whether help was requested.
    """
    flags, _ = read_arguments(arguments)
    if not (flags.help or flags.hydra_help):
        return False
    app = _initialize(flags, config_dir, script)
    loader: Any = app.config_loader
    loader.get_group_options = loader.repository.get_group_options
    print_page = app.app_help if flags.help else app.hydra_help
    print_page(flags.config_name or config_name, get_args_parser(), flags)
    GlobalHydra.instance().clear()
    return True


@contextlib.contextmanager
def resolvable(config: DictConfig) -> Iterator[None]:
    """Within the context, ``${hydra:...}`` refers to this configuration's Hydra part."""
    outer = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = outer


def _check_flags(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Refuse flags that Hydra answers with a traceback."""
    modes = ("run", "multirun", "cfg", "info", "shell_completion")
    chosen = [name for name in modes if getattr(flags, name) not in (None, False)]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(f'--{name}' for name in chosen).replace('_', '-')}: give one of them")
    if flags.resolve and not (flags.cfg or flags.help):
        raise UserError("--resolve: goes with --cfg, as in --cfg job --resolve")
    if flags.experimental_rerun:
        raise UserError(
            f"--experimental-rerun={flags.experimental_rerun}: reads a pickle, which can run code, and is not "
            "supported; give the overrides of the run again, which are in its .hydra/overrides.yaml"
        )
    if flags.config_dir and not Path(flags.config_dir).is_dir():
        raise UserError(f"--config-dir={flags.config_dir}: there is no such folder")
    valid = len(overrides) == 1 and re.fullmatch("(install|uninstall|query)=(bash|fish|zsh)", overrides[0])
    by_hand = overrides and overrides[0].startswith("query") and "COMP_LINE" not in os.environ
    if flags.shell_completion and (not valid or by_hand):
        raise UserError("--shell-completion: takes one of install, uninstall and query, as in -sc install=bash")


def _initialize(flags: argparse.Namespace, config_dir: Path, script: Path | None) -> Hydra:
    """Set the search path that Hydra will use when it runs."""
    GlobalHydra.instance().clear()
    search = create_automatic_config_search_path(
        None if script is None else str(script),
        "" if script is None else None,
        flags.config_path or str(config_dir),
    )
    if flags.config_dir:
        anchor = SearchPathQuery(provider="schema")
        search.prepend("command-line", f"file://{Path(flags.config_dir).absolute()}", anchor)
    return Hydra.create_main_hydra2(task_name=script.stem if script else "check", config_search_path=search)


def _single_runs(overrides: list[str]) -> tuple[list[str], list[list[str]]]:
    """The overrides that are sweeps, and the overrides of single runs.

    The first run takes the first value of each sweep; one more follows for each other value that chooses a file.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = [_parse(parser, item) for item in overrides]
    choices = [_single_values(override, item) for override, item in zip(parsed, overrides, strict=True)]
    first = [values[0] for values in choices]
    others = [
        [*first[:place], value, *first[place + 1 :]]
        for place, values in enumerate(choices)
        for value in values[1:]
    ]
    sweeps = [item for override, item in zip(parsed, overrides, strict=True) if override.is_sweep_override()]
    return sweeps, [first, *others]


def _parse(parser: OverridesParser, item: str) -> Override:
    try:
        return parser.parse_overrides([item])[0]  # parse_override passes no config loader on, which glob() needs
    except HydraException as error:
        if "=" not in item or not re.match(r"[+~]*[\w@/.$-]+=", item, re.ASCII):
            raise UserError(f"{item}: cannot be read; give key=value, or group=option") from error
        raise UserError(
            f"{item}: cannot be read, because brackets, braces, quotes, commas and = mean something to Hydra; to "
            f"give the value as text, type {to_type(item)}"
        ) from error


def _single_values(override: Override, item: str) -> list[str]:
    if not override.is_sweep_override():
        return [item]
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}"]
    is_group = GlobalHydra.instance().config_loader().get_group_options(override.key_or_group)
    values = itertools.islice(override.sweep_string_iterator(), None if is_group else 1)  # seeds compose alike
    singles = [f"{key}={value}" for value in values]
    if not singles:
        raise UserError(f"{item}: stands for no value at all; name the values, as in {override.key_or_group}=a,b")
    return singles


def _check_groups(overrides: Sequence[str], empty: str) -> None:
    """Refuse overrides of a group that match ``empty``, a pattern for no choice; Hydra must be initialised."""
    for item in overrides:
        if not re.fullmatch(empty, item):
            continue
        options = GlobalHydra.instance().config_loader().get_group_options(item.partition("=")[0])
        if options:
            raise UserError(f"{item}: must be one of {', '.join(options)}; a single key below it may be null")


def _resolve_as_shown(app: Hydra, config: DictConfig, part: str) -> None:
    """Resolve a copy of what ``--cfg PART --resolve`` prints, for the errors that this may raise."""
    shown = config.copy()
    OmegaConf.set_readonly(shown.hydra, None)
    with resolvable(config):
        OmegaConf.resolve(app.get_sanitized_cfg(shown, part))


def _check_references(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse an override that refers to a missing key, or to itself."""
    for item in overrides:
        key, _, value = item.partition("=")
        if "${" not in value:
            continue
        try:
            with resolvable(config):
                node = OmegaConf.select(config, key.lstrip("+~").partition("@")[0].replace("/", "."))
                if OmegaConf.is_config(node):
                    OmegaConf.to_container(node, resolve=True)
        except OmegaConfBaseException as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{item}: {reason}; refer to an existing key, as in ${{model.layers}}") from error
