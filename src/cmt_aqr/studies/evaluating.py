"""Evaluation of checkpoints under conditions, with cached metrics: shared by the studies of sensor failures."""

from __future__ import annotations

import datetime
import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.files import nan_to_null, null_to_nan, read_json, write_json
from cmt_aqr.runs.console import console
from cmt_aqr.training.run import measure

Item = TypeVar("Item")


def config_under(
    config: DictConfig, fault: Any, seed: int, changes: Mapping[str, Any] | None = None
) -> DictConfig:
    """A checkpoint's configuration for an evaluation under a condition, without callbacks and loggers.

    Args:
        config: of the checkpoint.
        fault: an option of the group ``eval_fault``.
        seed: of the faults' noise.
        changes: further values by dotted key.
    """
    config = config.copy()
    fixed = {"callbacks": {}, "logger": {}, "trainer.enable_progress_bar": False}
    for key, value in {"eval_fault": fault, "data.seed": seed, **fixed, **(changes or {})}.items():
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    return config


def evaluate_checkpoint(
    config: DictConfig, folder: Path, overrides: Sequence[str] = (), callbacks: Sequence[pl.Callback] = ()
) -> dict[str, float]:
    """The official metrics of a checkpoint under its ``eval_fault``; a task that writes no files."""
    # Lightning prints an introduction for every evaluation.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    _, module = measure(config, overrides, watching=callbacks)
    assert module.evaluated is not None
    return module.evaluated[1]


def sha256(file: Path) -> str:
    """The SHA-256 digest of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def cached_metrics(path: Path, made_from: dict[str, Any]) -> dict[str, float] | None:
    """The metrics in a file of :func:`cache_metrics`; ``None`` if it is absent or ``made_from`` differs."""
    cached = read_json(path)
    return null_to_nan(cached["metrics"]) if cached.get("made_from") == made_from else None


def cache_metrics(path: Path, made_from: dict[str, Any], metrics: dict[str, float]) -> None:
    """Write metrics together with everything that they depend on."""
    write_json(path, {"made_from": made_from, "metrics": nan_to_null(metrics)})


def with_progress(items: Sequence[Item], name: Callable[[Item], str]) -> Iterator[Item]:
    """Iterate over items; before each, print its name and an estimate of the time left on stderr."""
    start = time.monotonic()
    for number, item in enumerate(items):
        left = ""
        if number:
            seconds = (time.monotonic() - start) / number * (len(items) - number)
            left = f", about {datetime.timedelta(seconds=round(seconds))} left"
        console(stderr=True).print(f"{number + 1} of {len(items)}{left}: {name(item)}", soft_wrap=True)
        yield item
