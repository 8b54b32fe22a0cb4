"""What all commands share: composing the configuration, and saying what is wrong with it in one sentence."""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import itertools
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
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

from cmt_aqr.errors import UserError
from cmt_aqr.files import check_folder
from cmt_aqr.runs import sweep, sweep_job
from cmt_aqr.runs.cluster import outside_environment, share_folder, shared_folder, starter
from cmt_aqr.runs.command_line import home_written_out, in_order, read_arguments, to_type, use_utf8
from cmt_aqr.runs.explain import explain
from cmt_aqr.runs.references import check_references, resolvable, resolve
from cmt_aqr.runs.threads import sleep_while_waiting
from cmt_aqr.runs.unread import refuse_unread


def command(several: Sequence[str] = ()) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a function of a composed configuration into a command line.

    The primary configuration has the name of the function's file, and lies in the nearest ``conf`` above it. A
    mistake in the overrides, and every :class:`UserError`, ends the command with one sentence on stderr and exit
    status 1; ``HYDRA_FULL_ERROR=1`` shows the traceback as well.

    Args:
        several: keys that may be a list of paths in this command.
    """

    def wrap(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        script = Path(inspect.getfile(function)).resolve()
        config_dir = next(parent / "conf" for parent in script.parents if (parent / "conf").is_dir())

        def quietly(config: DictConfig) -> Any:
            hide_noise()
            # Paths mean the folder that the command was given in, also with hydra.job.chdir=true.
            os.chdir(HydraConfig.get().runtime.cwd)
            check_paths(config, several)
            return function(config)

        @functools.wraps(function)
        def job(config: DictConfig) -> Any:
            outside = outside_environment()
            if outside is not None and outside.global_rank() == 0:
                share_folder(Path(HydraConfig.get().runtime.output_dir))
            if sweep_job.in_sweep():
                return sweep_job.run(quietly, config)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                return sweep_job.run_part(quietly, config)
            with _one_sentence():
                return quietly(config)

        def main() -> None:
            use_utf8()
            sleep_while_waiting()
            with _one_sentence():
                join_first_process(sys.argv)
                sys.argv[1:] = in_order(sys.argv[1:])
                check_overrides(config_dir, script.stem, sys.argv[1:], script)
            if print_help(config_dir, script.stem, sys.argv[1:], script):
                return
            try:
                hydra.main(version_base="1.3", config_path=str(config_dir), config_name=script.stem)(job)()
            finally:  # also where the sweep was stopped
                trouble = sweep.finish()
                if trouble:
                    print(f"error: {trouble}", file=sys.stderr)
            if trouble:
                sys.exit(1)

        return main

    return wrap


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    """End the command at a :class:`UserError`, unless the traceback is asked for."""
    try:
        yield
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.exit(f"error: {error}")


_NOISE = ("litlogger", "Loading `train_dataloader` to estimate", "TPU available")
"""Parts of messages of Lightning that tell a user of ours nothing."""


def hide_noise() -> None:
    """Drop messages of libraries about themselves; their warnings about a run stay."""
    # Lightning, which may be loaded later or never, prints what it logs where nobody else does, and so does Hydra,
    # whose format has the time and goes to the log file, too.
    logging.getLogger("pytorch_lightning").handlers.clear()
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero"):
        logger = logging.getLogger(name)
        logger.addFilter(lambda record: not any(part in record.getMessage() for part in _NOISE))
        if not logging.getLogger().hasHandlers():
            logger.setLevel(logging.WARNING)
    # Frozen modules, and batch norms with norm_eval, are in eval mode on purpose.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
    # The metric is gathered already; every process logs the same number.
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self.log\(.*sync_dist=True")
    # DDP's remark on 1 x 1 convolutions, whose two ways to lay out memory are the same.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if "SLURM_JOB_ID" not in os.environ:  # on a machine that has Slurm, outside of its jobs
        warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not used")
    # Lightning's own use of a class that PyTorch is about to replace.
    warnings.filterwarnings("ignore", message=r"`?isinstance\(treespec, LeafSpec\)")


_MAY_BE_NULL = ("ckpt_path", "weights", "sweep_dir", "out", "data.sampling.database")
_PATHS = (*_MAY_BE_NULL, "folder", "source", "target", "data.root", "data.cache_dir")
"""Keys of all commands that are paths."""


def check_paths(config: DictConfig, several: Sequence[str] = ()) -> None:
    """Make every path of a configuration a text, with the home folder written out; changed in place.

    Args:
        config: of a command.
        several: keys that may be a list of paths, besides ``weights``.

    Raises:
        UserError: something else is given; the sentence says how to type a path that looks like it.
    """
    for key in _PATHS:
        value = OmegaConf.select(config, key, default=_MAY_BE_NULL)  # absent, or ???
        if value is _MAY_BE_NULL or (value is None and key in _MAY_BE_NULL):
            continue
        if key in (*several, "weights") and OmegaConf.is_list(value):
            OmegaConf.update(config, key, [home_written_out(str(path)) for path in value])
            continue
        if isinstance(value, bool | float) or not isinstance(value, str | int) or value == "":
            given = "null" if value is None else value
            raise UserError(
                f"{key}={given}: must be a path; quote one that looks like this, as in '{key}=\"1.0\"'"
            )
        OmegaConf.update(config, key, home_written_out(str(value)))


def join_first_process(arguments: list[str]) -> None:
    """Let a process that torchrun or srun started, and not as the first, use the first one's folder.

    Args:
        arguments: the command line, extended here.

    Raises:
        UserError: for a sweep, whose runs start processes of their own.
    """
    outside = outside_environment()
    if outside is None:
        return
    sweeps = [item for item in arguments if item in ("-m", "--multirun") or item.startswith("sweep=")]
    if sweeps:
        raise UserError(
            f"{sweeps[0]} does not go with {starter()}: start the sweep without, each run starts its own"
        )
    if outside.global_rank() > 0:
        quoted = str(shared_folder()).replace("\\", r"\\").replace("'", r"\'")
        arguments += [f"hydra.run.dir='{quoted}'", "hydra.output_subdir=null"]


def check_overrides(
    config_dir: Path, config_name: str, arguments: Sequence[str], script: Path | None = None
) -> None:
    """Compose once before Hydra does, whose own messages take several lines and name no alternatives.

    Args:
        config_dir: folder of the Hydra configuration.
        config_name: name of the primary configuration in it.
        arguments: of the command line, flags and overrides.
        script: what ``--config-path`` is relative to.

    Raises:
        UserError: for an unknown flag, key, group or option, an override that cannot be read, or a folder for
            the results that cannot be made.
    """
    flags, overrides = read_arguments(arguments)
    _check_flags(flags, overrides)
    if flags.help or flags.hydra_help or flags.shell_completion:
        return
    config_name = flags.config_name or config_name
    try:
        _initialize(flags, config_dir, script)
        swept, combinations = _without_sweeps(overrides)
        first, *others = combinations
        configs = [hydra.compose(config_name, singles, return_hydra_config=True) for singles in (first, *others)]
        if flags.resolve and flags.cfg:
            resolve(configs[0], flags.cfg)
    except (HydraException, OmegaConfBaseException) as error:
        advice = "; --cfg all --resolve has Hydra's part with what it refers to" if flags.cfg == "hydra" else ""
        raise UserError(explain(error, config_name, overrides) + advice) from error
    except ValueError as error:
        if "group override must be" in str(error):
            _check_groups(overrides, r"[\w/]+=(null)?")
        raise
    else:
        _check_groups(first, r"[\w/]+=\[\]")
        check_references(configs[0], first)
        refuse_unread(configs[0], config_name, first)
    finally:
        GlobalHydra.instance().clear()
    looking = flags.cfg is not None or flags.info is not None
    several = not looking and (flags.multirun or configs[0].hydra.mode == RunMode.MULTIRUN)
    if swept and not several:
        item, (key, _, values) = swept[0], swept[0].partition("=")
        raise UserError(
            f"{item}: several values are a sweep, which takes -m{' and no --cfg or --info' if looking else ''}; "
            f"to give it as one text, type {to_type(item)}, and as a list {shlex.quote(f'{key}=[{values}]')}"
        )
    if not looking:
        with resolvable(configs[0]):
            _check_folder_of_results(configs[0], several)


def _check_groups(overrides: Sequence[str], empty: str) -> None:
    """Refuse a group of which no option is chosen, by a pattern of such overrides; Hydra must be initialised."""
    for item in overrides:
        options = GlobalHydra.instance().config_loader().get_group_options(item.partition("=")[0])
        if options and re.fullmatch(empty, item):
            raise UserError(f"{item}: must be one of {', '.join(options)}; a single key below it may be null")


def print_help(config_dir: Path, config_name: str, arguments: Sequence[str], script: Path) -> bool:
    """Print what ``--help`` or ``--hydra-help`` asks for, as Hydra does, but in a third of the time.

    Hydra lists the options of a hundred groups, and for each copies all configurations of its plugins first.
    False where neither was asked for.
    """
    flags, _ = read_arguments(arguments)
    if not (flags.help or flags.hydra_help):
        return False
    asked = _initialize(flags, config_dir, script)
    loader: Any = asked.config_loader
    loader.get_group_options = loader.repository.get_group_options
    show = asked.app_help if flags.help else asked.hydra_help
    show(flags.config_name or config_name, get_args_parser(), flags)
    GlobalHydra.instance().clear()
    return True


def _check_flags(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Refuse what Hydra answers with a traceback."""
    exclusive = ("run", "multirun", "cfg", "info", "shell_completion")
    asked = [name for name in exclusive if getattr(flags, name) not in (None, False)]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(f'--{name}' for name in asked).replace('_', '-')}: give one of them")
    if flags.resolve and not (flags.cfg or flags.help):
        raise UserError("--resolve: goes with --cfg, as in --cfg job --resolve")
    if flags.experimental_rerun:
        raise UserError(
            f"--experimental-rerun={flags.experimental_rerun}: reads a pickle, which can run code, and is not "
            "offered; give the overrides of the run again, which are in its .hydra/overrides.yaml"
        )
    if flags.config_dir and not Path(flags.config_dir).is_dir():
        raise UserError(f"--config-dir={flags.config_dir}: there is no such folder")
    known = re.compile("(install|uninstall|query)=(bash|fish|zsh)")
    asked_by_hand = overrides and overrides[0].startswith("query") and "COMP_LINE" not in os.environ
    if flags.shell_completion and (len(overrides) != 1 or not known.fullmatch(overrides[0]) or asked_by_hand):
        raise UserError("--shell-completion: takes one of install, uninstall and query, as in -sc install=bash")


def _initialize(flags: argparse.Namespace, config_dir: Path, script: Path | None) -> Hydra:
    """Let Hydra look for configurations where it will look when it runs."""
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


def _check_folder_of_results(config: DictConfig, several: bool) -> None:
    key, folder = (
        ("hydra.sweep.dir", config.hydra.sweep.dir) if several else ("hydra.run.dir", config.hydra.run.dir)
    )
    if several and config.get("sweep_dir"):
        key = "sweep_dir"
    if several or config.hydra.output_subdir is not None or not Path(folder).is_dir():
        check_folder(key, Path(folder))


def _without_sweeps(overrides: list[str]) -> tuple[list[str], Iterator[list[str]]]:
    """The overrides that are sweeps, and all overrides with single values in place of sweeps.

    First come the first values of each sweep, then each other one once, where it chooses a file.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = [_parse(parser, item) for item in overrides]
    choices = [_single_values(override, item) for override, item in zip(parsed, overrides, strict=True)]
    first = [values[0] for values in choices]

    def combinations() -> Iterator[list[str]]:
        yield first
        for place, values in enumerate(choices):
            for value in values[1:]:
                yield [*first[:place], value, *first[place + 1 :]]

    swept = [item for override, item in zip(parsed, overrides, strict=True) if override.is_sweep_override()]
    return swept, combinations()


def _parse(parser: OverridesParser, item: str) -> Override:
    try:
        return parser.parse_overrides([item])[0]  # parse_override gives it no config loader, for glob()
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
    chooses = GlobalHydra.instance().config_loader().get_group_options(override.key_or_group)
    values = itertools.islice(override.sweep_string_iterator(), None if chooses else 1)  # seeds are composed alike
    found = [f"{key}={value}" for value in values]
    if not found:
        raise UserError(f"{item}: stands for no value at all; name the values, as in {override.key_or_group}=a,b")
    return found
