"""The fault study: runs of several variants and seeds, each evaluated on clean frames and with bad sensors."""

from __future__ import annotations

import csv
import functools
import hashlib
import logging
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch.utils.hooks import RemovableHandle

from cmt_aqr.aqr.statistics import used_weights
from cmt_aqr.configuration import check_config
from cmt_aqr.errors import UserError
from cmt_aqr.evaluation.table import nan_to_null, null_to_nan
from cmt_aqr.files import read_json, write_json, written_at_once
from cmt_aqr.structures import AQROutput
from cmt_aqr.training.checkpoints import read_checkpoint, saved_config
from cmt_aqr.training.monitor import aqr_of
from cmt_aqr.training.run import measure
from cmt_aqr.visual.console import console

CLEAN = "clean"
"""The condition without a fault."""

BAD = "bad"
"""The mean over all conditions but ``CLEAN``."""

HEADLINES = ("mAP", "NDS")
"""Metrics that are printed; all are written."""

WEIGHTS = {"lidar": "mean LiDAR weight", "camera": "mean camera weight"}
"""AQR's weights of each sensor, printed too, for the variants that have AQR."""


class MeanWeights(pl.Callback):
    """The mean over an evaluation of the weights that draw, for each sensor; NaN without AQR."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(WEIGHTS, 0.0)
        self._counts = dict.fromkeys(WEIGHTS, 0)
        self._handle: RemovableHandle | None = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to look."""
        aqr = aqr_of(pl_module)
        if aqr is not None:
            self._handle = aqr.register_forward_hook(self._see)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop looking."""
        if self._handle is not None:
            self._handle.remove()

    def _see(self, aqr: torch.nn.Module, args: Any, output: AQROutput) -> None:
        for sensor, weights in used_weights(output).items():
            self._sums[sensor] += float(weights.double().sum())
            self._counts[sensor] += weights.numel()

    def means(self) -> dict[str, float]:
        """By the names in :data:`WEIGHTS`."""
        return {
            name: self._sums[sensor] / self._counts[sensor] if self._counts[sensor] else math.nan
            for sensor, name in WEIGHTS.items()
        }


@dataclass(frozen=True)
class StudyRun:
    """A finished training run.

    Attributes:
        folder: of the run.
        variant: the run's ``name``.
        seed: it was trained with.
    """

    folder: Path
    variant: str
    seed: int

    @property
    def checkpoint(self) -> Path:
        """The weights that the run ended with."""
        return self.folder / "checkpoints" / "last.ckpt"

    @functools.cached_property
    def saved_config(self) -> dict[str, Any]:
        """The configuration in the checkpoint."""
        return saved_config(self.checkpoint)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the checkpoint."""
        return hashlib.sha256(self.checkpoint.read_bytes()).hexdigest()

    @property
    def steps(self) -> int:
        """Training steps that the checkpoint has behind it."""
        return int(read_checkpoint(self.checkpoint)["global_step"])


@dataclass(frozen=True)
class Result:
    """What a run reached.

    Attributes:
        run: the run.
        condition: the name of what it was evaluated under, or ``BAD``.
        metrics: official metrics, and :data:`WEIGHTS`.
    """

    run: StudyRun
    condition: str
    metrics: dict[str, float]


Values = dict[str, dict[str, dict[int, float]]]
"""A metric by variant, condition and seed."""


def study(config: DictConfig) -> list[Result]:
    """Evaluate every finished run under every condition, print the tables and write them.

    Args:
        config: of ``conf/fault_study.yaml``.

    Raises:
        UserError: no run, two runs of a variant and seed, or an override that does not fit.
    """
    folder = Path(config.folder)
    runs, unfinished = find_runs(folder)
    runs.sort(key=lambda run: run.variant != config.baseline)
    out = console()
    for path in unfinished:
        out.print(f"left out: {path} holds a run that has not finished", style="yellow", soft_wrap=True)
    steps = {f"{run.variant}, seed {run.seed}": run.steps for run in runs}
    if len(set(steps.values())) > 1:
        out.print(f"the runs have different numbers of steps, so they compare badly: {steps}", style="yellow")
    results = with_bad(_evaluate_all(config, runs))
    _write_csv(results, folder / "fault_study.csv")
    _write_summary(results, config.baseline, folder / "fault_study.json")
    for metric in HEADLINES:
        values = values_of(results, metric)
        out.print(table_of(values, f"{metric}: mean ± standard deviation over seeds", spread_text))
        if config.baseline in values and len(values) > 1:
            title = (
                f"{metric} less that of {config.baseline} with the same seed: mean ± standard deviation; each seed"
            )
            out.print(table_of(differences(values, config.baseline), title, difference_text))
    for metric in WEIGHTS.values():
        values = with_numbers(values_of(results, metric))
        if values:
            out.print(table_of(values, f"{metric}: mean ± standard deviation over seeds", spread_text))
    if config.baseline not in {run.variant for run in runs}:
        out.print(f"no differences: there is no run named baseline={config.baseline}", style="yellow")
    out.print(f"Written to {folder / 'fault_study.csv'} and {folder / 'fault_study.json'}", soft_wrap=True)
    return results


def find_runs(folder: Path) -> tuple[list[StudyRun], list[Path]]:
    """The finished runs below a folder, by variant and seed, and the folders of unfinished ones.

    Raises:
        UserError: there is no finished run, or there are two of a variant and seed.
    """
    finished: dict[tuple[str, int], StudyRun] = {}
    unfinished = []
    for record in sorted(folder.rglob("record.json")):
        run_folder = record.parent
        if not (run_folder / "metrics.json").is_file() or not (run_folder / "checkpoints" / "last.ckpt").is_file():
            unfinished.append(run_folder)
            continue
        config = OmegaConf.load(run_folder / "config.yaml")
        run = StudyRun(run_folder, str(config.name), int(config.seed))
        other = finished.setdefault((run.variant, run.seed), run)
        if other is not run:
            raise UserError(
                f"{other.folder} and {run_folder} are both {run.variant} with seed {run.seed}: move one of them "
                "out of the folder"
            )
    if not finished:
        raise UserError(f"folder={folder}: it holds no finished run (record.json, metrics.json, last.ckpt)")
    return [finished[key] for key in sorted(finished)], unfinished


def _evaluate_all(config: DictConfig, runs: Sequence[StudyRun]) -> list[Result]:
    """Every run under every condition, with a progress bar on stderr."""
    # Lightning introduces itself anew for every evaluation.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results = []
    with Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task("Evaluations", total=len(runs) * len(config.conditions))
        for run in runs:
            for name, condition in config.conditions.items():
                bar.update(task, description=f"{run.variant}, seed {run.seed}, {name}")
                merged = evaluation_config(run, condition, config.override, config.seed)
                results.append(evaluate_run(merged, run, str(name), config.refresh))
                bar.advance(task)
    return results


def evaluation_config(run: StudyRun, condition: DictConfig, override: DictConfig, seed: int) -> DictConfig:
    """The run's configuration, made to evaluate its last checkpoint under a condition.

    Args:
        run: the run.
        condition: a choice of the group ``eval_fault``.
        override: values put into every run's configuration, such as ``{data: {root: /elsewhere}}``.
        seed: of the faults' noise: the same for all runs, whatever seed they were trained with.

    Raises:
        UserError: an override that does not fit the configuration, or a value out of range.
    """
    config = OmegaConf.create(run.saved_config)
    OmegaConf.set_struct(config, True)
    try:
        config.merge_with(override)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"override={override} does not fit {run.folder / 'config.yaml'}: {reason}") from error
    changes: dict[str, Any] = {
        "ckpt_path": str(run.checkpoint),
        "weights": None,
        "eval_fault": condition,
        "data.seed": seed,
        "callbacks": {},  # they would write into a run's folder
        "logger": {},
        "trainer.enable_progress_bar": False,
    }
    for key, value in changes.items():
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    check_config(config)
    return config


def evaluate_run(config: DictConfig, run: StudyRun, condition: str, refresh: bool = False) -> Result:
    """Evaluate a run, or read what an earlier call kept in ``faults/`` of the run's folder.

    What was kept counts as long as checkpoint, data settings, decoding and condition are the same.

    Args:
        config: of :func:`evaluation_config`.
        run: the run.
        condition: its name.
        refresh: evaluate whatever was kept.
    """
    path = run.folder / "faults" / f"{condition}.json"
    made_from = {
        "checkpoint_sha256": run.digest,
        **{group: OmegaConf.to_container(config[group]) for group in ("eval_fault", "data", "evaluation")},
    }
    kept = read_json(path)
    if kept.get("made_from") == made_from and kept["metrics"].keys() >= set(WEIGHTS.values()) and not refresh:
        return Result(run, condition, null_to_nan(kept["metrics"]))
    weights = MeanWeights()
    _, module = measure(config, watching=[weights])
    if module.evaluated is None:
        raise RuntimeError("the evaluation gave no metrics")
    metrics = module.evaluated[1] | weights.means()
    write_json(path, {"made_from": made_from, "metrics": nan_to_null(metrics)})
    return Result(run, condition, metrics)


def with_bad(results: Sequence[Result]) -> list[Result]:
    """The results, and for every run its mean over the conditions that are not clean."""
    means = []
    for run in dict.fromkeys(result.run for result in results):
        faulty = [result.metrics for result in results if result.run == run and result.condition != CLEAN]
        if faulty:
            means.append(
                Result(run, BAD, {key: statistics.fmean(one[key] for one in faulty) for key in faulty[0]})
            )
    return [*results, *means]


def values_of(results: Iterable[Result], metric: str) -> Values:
    """A metric by variant, condition and seed."""
    table: Values = {}
    for result in results:
        seeds = table.setdefault(result.run.variant, {}).setdefault(result.condition, {})
        seeds[result.run.seed] = result.metrics[metric]
    return table


def with_numbers(values: Values) -> Values:
    """The variants for which the metric is a number."""
    return {
        variant: conditions
        for variant, conditions in values.items()
        if all(math.isfinite(value) for seeds in conditions.values() for value in seeds.values())
    }


def differences(values: Values, baseline: str) -> Values:
    """Every other variant less the baseline of the same seed; seeds that the baseline lacks are left out."""
    base = values[baseline]
    return {
        variant: {
            condition: {
                seed: value - base[condition][seed] for seed, value in seeds.items() if seed in base[condition]
            }
            for condition, seeds in conditions.items()
        }
        for variant, conditions in values.items()
        if variant != baseline
    }


def mean_and_spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (divided by n - 1), which is NaN for fewer than two values."""
    values = list(values)
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan


def spread_text(seeds: dict[int, float], sign: str = "") -> str:
    """Such as ``0.123 ± 0.004``; of a single seed without a spread."""
    mean, std = mean_and_spread(seeds.values())
    return f"{mean:{sign}.3f}" + ("" if math.isnan(std) else f" ± {std:.3f}")


def difference_text(seeds: dict[int, float]) -> str:
    """Mean and spread, and the single seeds' values below."""
    return "\n".join((spread_text(seeds, "+"), "  ".join(f"{value:+.3f}" for value in seeds.values())))


def table_of(values: Values, title: str, text: Callable[[dict[int, float]], str]) -> Table:
    """Variants down, conditions across.

    Args:
        values: a metric, or its differences.
        title: of the table.
        text: of a cell, from its values by seed.
    """
    conditions = list(next(iter(values.values())))
    table = Table("variant", "seeds", *conditions, title=title, title_justify="left")
    for variant, by_condition in values.items():
        seeds = ", ".join(map(str, by_condition[conditions[0]]))
        table.add_row(variant, seeds, *(text(by_condition[condition]) for condition in conditions))
    return table


def _write_csv(results: Sequence[Result], path: Path) -> None:
    """One row for each run and condition."""
    with written_at_once(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("variant", "seed", "condition", *results[0].metrics, "folder"))
        for result in results:
            run = result.run
            numbers = nan_to_null(result.metrics).values()
            writer.writerow((run.variant, run.seed, result.condition, *numbers, run.folder))


def _write_summary(results: Sequence[Result], baseline: str, path: Path) -> None:
    """Mean, spread and single seeds of headlines, their differences to the baseline, and weights."""
    summary: dict[str, Any] = {"baseline": baseline}
    for metric in HEADLINES:
        values = values_of(results, metric)
        summary[metric] = _summary(values)
        if baseline in values:
            summary[f"{metric} less baseline"] = _summary(differences(values, baseline))
    for metric in WEIGHTS.values():
        summary[metric] = _summary(with_numbers(values_of(results, metric)))
    write_json(path, summary)


def _summary(values: Values) -> dict[str, Any]:
    def cell(seeds: dict[int, float]) -> dict[str, Any]:
        mean, std = mean_and_spread(seeds.values())
        return {**nan_to_null({"mean": mean, "std": std}), "seeds": seeds}

    return {
        variant: {condition: cell(seeds) for condition, seeds in conditions.items()}
        for variant, conditions in values.items()
    }
