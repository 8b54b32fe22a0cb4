"""Checkpoints evaluated under conditions, and their metrics kept: what the studies of failures share."""

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


def under_condition(
    config: DictConfig, fault: Any, seed: int, more: Mapping[str, Any] | None = None
) -> DictConfig:
    """A checkpoint's configuration, to evaluate it under a condition without writing into a run's folder.

    Args:
        config: of the checkpoint.
        fault: a choice of the group ``eval_fault``.
        seed: of the faults' noise.
        more: values by dotted key.
    """
    config = config.copy()
    fixed = {"callbacks": {}, "logger": {}, "trainer.enable_progress_bar": False}
    for key, value in {"eval_fault": fault, "data.seed": seed, **fixed, **(more or {})}.items():
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    return config


def measured(
    config: DictConfig, folder: Path, overrides: Sequence[str] = (), watching: Sequence[pl.Callback] = ()
) -> dict[str, float]:
    """The official metrics of a checkpoint under its ``eval_fault``: a task that writes nothing."""
    # Lightning introduces itself anew for every evaluation.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    _, module = measure(config, overrides, watching=watching)
    assert module.evaluated is not None
    return module.evaluated[1]


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def kept_metrics(path: Path, made_from: dict[str, Any]) -> dict[str, float] | None:
    """What :func:`keep_metrics` wrote; ``None`` where it is absent, or made from something else."""
    kept = read_json(path)
    return null_to_nan(kept["metrics"]) if kept.get("made_from") == made_from else None


def keep_metrics(path: Path, made_from: dict[str, Any], metrics: dict[str, float]) -> None:
    """Write metrics with all that they depend on."""
    write_json(path, {"made_from": made_from, "metrics": nan_to_null(metrics)})


def told(items: Sequence[Item], name: Callable[[Item], str]) -> Iterator[Item]:
    """The items; stderr says before each which it is, and how long the rest takes if it takes as long."""
    began = time.monotonic()
    for number, item in enumerate(items):
        left = ""
        if number:
            seconds = (time.monotonic() - began) / number * (len(items) - number)
            left = f", about {datetime.timedelta(seconds=round(seconds))} left"
        console(stderr=True).print(f"{number + 1} of {len(items)}{left}: {name(item)}", soft_wrap=True)
        yield item
