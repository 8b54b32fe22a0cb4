"""The runs of a sweep, and how each one gets its folder."""

import functools
import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from cmt_aqr.runs.folder import SWEEP_KEYS, Run, natural


def key_values(overrides: Sequence[str]) -> dict[str, str]:
    """Keys and values of overrides, in their order, without those that only determine how runs are started."""
    values = dict(_key_and_value(override) for override in overrides)
    if values.get("ckpt_path") == "auto":
        del values["ckpt_path"]
    return {key: value for key, value in values.items() if key not in SWEEP_KEYS}


def identity(overrides: Sequence[str]) -> frozenset[tuple[str, str]]:
    """What identifies a run: keys and values of its overrides, in any order and spelling."""
    return frozenset(key_values(overrides).items())


@functools.cache
def _key_and_value(override: str) -> tuple[str, str]:
    parsed = OverridesParser.create().parse_override(override)
    return parsed.get_key_element(), parsed.get_value_element_as_str()


def runs_of(sweep_dir: Path) -> list[Run]:
    """All runs in a sweep's folder, by their numbers."""
    folders = {path.parent.parent for path in sweep_dir.glob("[!.]*/.hydra/*")}
    return [Run(folder) for folder in sorted(folders, key=lambda folder: natural(folder.name))]


def run_folder(sweep_dir: str, number: int, overrides: Sequence[str], claim: bool = True) -> str:
    """The name of a run's folder in its sweep: its existing one, else its number or the next free one.

    A claimed folder appears atomically with its overrides, so that runs which start at the same time get different
    folders, and the processes of one run the same.
    """
    this_run = identity(overrides)
    while True:
        numbers = [-1]
        for folder in Path(sweep_dir).glob("[!.]*"):
            if (folder / ".hydra").is_dir() and identity(Run(folder).claimed) == this_run:
                return folder.name
            numbers += [int(folder.name)] if folder.name.isdecimal() else []
        name = str(max(numbers) + 1 if number in numbers else number)
        if not claim or _claim(Path(sweep_dir) / name, overrides):
            return name


def _folder_of_this_run(sweep_dir: str, number: int | None, overrides: Sequence[str]) -> str:
    """The value of ``hydra.sweep.subdir``; only a run that starts claims a folder, not ``--cfg``."""
    if number is None:
        return "NUMBER"  # as with --cfg all --resolve: no run has a number yet
    return run_folder(sweep_dir, number, overrides, claim=_is_starting(sweep_dir, number, overrides))


def _is_starting(sweep_dir: str, number: int, overrides: Sequence[str]) -> bool:
    """Whether Hydra is about to start this run: the run's configuration is then the process's own."""
    if not HydraConfig.initialized():
        return False
    hydra = HydraConfig.get()
    return (
        hydra.mode == RunMode.MULTIRUN
        and not OmegaConf.is_missing(hydra.job, "num")
        and hydra.job.num == number
        and str(hydra.sweep.dir) == sweep_dir
        and list(hydra.overrides.task) == list(overrides)
    )


def _claim(folder: Path, overrides: Sequence[str]) -> bool:
    """Create a run's folder; false if another run was faster."""
    draft = folder.with_name(f".{uuid.uuid4().hex[:12]}.begun")
    (draft / ".hydra").mkdir(parents=True)
    (draft / ".hydra" / "run.json").write_text(json.dumps(list(overrides)), encoding="utf-8")
    try:
        draft.rename(folder)
    except OSError:
        shutil.rmtree(draft)
        return False
    return True


OmegaConf.register_new_resolver("sweep_folder", lambda sweep_dir, default: sweep_dir or default, replace=True)
OmegaConf.register_new_resolver("run_folder", _folder_of_this_run, replace=True)
