"""The decorator that makes a function of a configuration a command, and what all commands share."""

import contextlib
import functools
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.runs import sweep, sweep_job
from cmt_aqr.runs.cluster import outside_environment, share_folder, shared_folder, starter
from cmt_aqr.runs.command_line import expand_home, in_order, use_utf8
from cmt_aqr.runs.composition import check_overrides, print_help
from cmt_aqr.runs.threads import sleep_while_waiting


def command(path_lists: Sequence[str] = ()) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a function of a composed configuration a command.

    The primary configuration has the name of the function's file, and lies in the nearest ``conf`` above it. A
    mistake in the overrides, and every :class:`UserError`, ends the command with one sentence on stderr and exit
    status 1; ``HYDRA_FULL_ERROR=1`` shows the traceback as well.

    Args:
        path_lists: keys that may be a list of paths in this command.
    """

    def wrap(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        script = Path(inspect.getfile(function)).resolve()
        config_dir = next(parent / "conf" for parent in script.parents if (parent / "conf").is_dir())

        def prepared(config: DictConfig) -> Any:
            hide_noise()
            # Paths are relative to the folder where the command was typed, also with hydra.job.chdir=true.
            os.chdir(HydraConfig.get().runtime.cwd)
            check_paths(config, path_lists)
            return function(config)

        @functools.wraps(function)
        def job(config: DictConfig) -> Any:
            outside = outside_environment()
            if outside is not None and outside.global_rank() == 0:
                share_folder(Path(HydraConfig.get().runtime.output_dir))
            if sweep_job.in_sweep():
                return sweep_job.run(prepared, config)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                return sweep_job.run_part(prepared, config)
            with _one_sentence():
                return prepared(config)

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
            finally:  # also after the sweep was interrupted
                failure = sweep.finish()
                if failure:
                    print(f"error: {failure}", file=sys.stderr)
            if failure:
                sys.exit(1)

        return main

    return wrap


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    """End the command at a :class:`UserError`, without a traceback unless one is requested."""
    try:
        yield
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.exit(f"error: {error}")


_NOISE = ("litlogger", "Loading `train_dataloader` to estimate", "TPU available")
"""Parts of Lightning's messages that are of no use here."""


def hide_noise() -> None:
    """Silence messages that libraries print about themselves; warnings about a run stay."""
    # Lightning, which may be loaded later or never, has a handler of its own beside Hydra's, which adds the time
    # and writes to the log file, too.
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
    # DDP's remark on 1 x 1 convolutions, whose two memory layouts are the same.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if "SLURM_JOB_ID" not in os.environ:  # outside of jobs, on a machine with Slurm
        warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not used")
    # Lightning's use of a class that PyTorch is about to replace.
    warnings.filterwarnings("ignore", message=r"`?isinstance\(treespec, LeafSpec\)")


_OPTIONAL_PATHS = ("ckpt_path", "weights", "sweep_dir", "out", "data.sampling.database")
_PATHS = (*_OPTIONAL_PATHS, "folder", "source", "target", "data.root", "data.cache_dir")
"""Keys of all commands that are paths; the optional ones may be null."""


def check_paths(config: DictConfig, path_lists: Sequence[str] = ()) -> None:
    """Make every path of a configuration a string with the home folder expanded, in place.

    ``weights`` and the keys in ``path_lists`` may be lists of paths.

    Raises:
        UserError: a value is no path; the sentence shows how to type a path that looks like the value.
    """
    absent = object()
    for key in _PATHS:
        value = OmegaConf.select(config, key, default=absent)  # also for a value of ???
        if value is absent or (value is None and key in _OPTIONAL_PATHS):
            continue
        if key in (*path_lists, "weights") and OmegaConf.is_list(value):
            OmegaConf.update(config, key, [expand_home(str(path)) for path in value])
            continue
        if isinstance(value, bool | float) or not isinstance(value, str | int) or value == "":
            shown = "null" if value is None else value
            raise UserError(
                f"{key}={shown}: must be a path; quote one that looks like this, as in '{key}=\"1.0\"'"
            )
        OmegaConf.update(config, key, expand_home(str(value)))


def join_first_process(arguments: list[str]) -> None:
    """Extend the command line of a process of torchrun or srun, in place, to use the first process's folder.

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
