"""The fault study: runs of several variants and seeds, each evaluated on clean frames and with bad sensors."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.table import Table
from torchmetrics import MeanMetric

from cmt_aqr.aqr.statistics import detection_of_damage, doubts, used_weights
from cmt_aqr.errors import UserError
from cmt_aqr.files import nan_to_null, write_json, written_at_once
from cmt_aqr.outputs import AQROutput, aqr_output
from cmt_aqr.runs.checkpoints import read_checkpoint, saved_config
from cmt_aqr.runs.configuration import check_config
from cmt_aqr.runs.console import console
from cmt_aqr.runs.folder import Run, find_runs
from cmt_aqr.studies.evaluating import digest, keep_metrics, kept_metrics, measured, told, under_condition
from cmt_aqr.studies.records import spread
from cmt_aqr.studies.region import BrokenRegion
from cmt_aqr.studies.robustness_scores import CLEAN

BAD = "bad"
"""The mean over all conditions but ``CLEAN``."""

REGION = "mAP of the broken region"
"""Of boxes where a sensor is broken."""

HEADLINES = ("mAP", "NDS", REGION)
"""Metrics that are printed, those of the region for the conditions that break a sensor; all are written."""

WEIGHTS = {"lidar": "mean LiDAR weight", "camera": "mean camera weight"}
"""AQR's weights of each sensor, printed too, for the variants that have AQR."""

FOUND_OUT = {"auc_lidar": "AUC of LiDAR damage", "auc_camera": "AUC of camera damage"}
"""How well AQR tells what is broken, mean over the batches in which something is and something is not."""

CHECKPOINT = "checkpoints/last.ckpt"
FINISHED = ("record.json", "metrics.json", CHECKPOINT)
"""What the folder of a finished run holds."""


class WhatAQRSaid(pl.Callback):
    """Means over an evaluation: of the rendered weights, for each sensor, and of how well AQR finds damage.

    NaN without AQR, for weights where it has none, and where nothing is broken.
    """

    def __init__(self) -> None:
        names = (WEIGHTS | FOUND_OUT).values()
        self._means = {name: MeanMetric().set_dtype(torch.float64) for name in names}

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Add up a batch's."""
        if outputs["aqr"] is None:
            return
        said = aqr_output(outputs["aqr"])
        if isinstance(said, AQROutput):
            for sensor, weights in used_weights(said).items():
                self._means[WEIGHTS[sensor]].update(weights.cpu())
        for name, value in detection_of_damage(doubts(said)).items():
            self._means[FOUND_OUT[name]].update(value.cpu())

    def means(self) -> dict[str, float]:
        """By their printed names."""
        means = self._means.items()
        return {name: float(mean.compute()) if mean.update_called else math.nan for name, mean in means}


def study(config: DictConfig) -> pd.DataFrame:
    """Evaluate every finished run under every condition, print the tables and write them.

    Args:
        config: of ``conf/fault_study.yaml``.

    Returns:
        A row for each run and condition: ``variant``, ``seed``, ``condition``, official metrics, weights,
        ``folder``.
    """
    folder = Path(config.folder)
    runs, unfinished = study_runs(folder)
    runs.sort(key=lambda run: run.config["name"] != config.baseline)
    out = console()
    for run in unfinished:
        out.print(f"left out: {run.folder} holds a run that has not finished", style="yellow", soft_wrap=True)
    steps = {_title(run): int(read_checkpoint(run.folder / CHECKPOINT)["global_step"]) for run in runs}
    if len(set(steps.values())) > 1:
        out.print(f"the runs have different numbers of steps, so they compare badly: {steps}", style="yellow")
    results = with_bad(_evaluate_all(config, runs))
    with written_at_once(folder / "fault_study.csv") as partial:
        results.to_csv(partial, index=False)
    summary: dict[str, Any] = {"baseline": config.baseline}
    over_seeds = "mean ± standard deviation over seeds"
    for metric in HEADLINES:
        values = values_of(results, metric)
        values = values[values.notna().groupby("condition").transform("all")]
        summary[metric] = summary_of(values)
        if not summary[metric]:
            continue
        out.print(table_of(summary[metric], f"{metric}: {over_seeds}"))
        if config.baseline in values.index.unique("variant"):
            less = summary[f"{metric} less baseline"] = summary_of(differences(values, config.baseline))
            title = f"{metric} less that of {config.baseline} with the same seed: {over_seeds}; each seed"
            if less:
                out.print(table_of(less, title, each=True))
    for metric in (*WEIGHTS.values(), *FOUND_OUT.values()):
        values = values_of(results, metric)
        group = "variant" if metric in WEIGHTS.values() else ["variant", "condition"]
        summary[metric] = summary_of(values[values.notna().groupby(group).transform("all")])
        if summary[metric]:
            out.print(table_of(summary[metric], f"{metric}: {over_seeds}"))
    if config.baseline not in results["variant"].values:
        out.print(f"no differences: there is no run named baseline={config.baseline}", style="yellow")
    write_json(folder / "fault_study.json", summary)
    out.print(f"Written to {folder / 'fault_study.csv'} and {folder / 'fault_study.json'}", soft_wrap=True)
    return results


def _title(run: Run) -> str:
    return f"{run.config['name']}, seed {run.config['seed']}"


def study_runs(folder: Path) -> tuple[list[Run], list[Run]]:
    """The finished runs below a folder, by variant (their ``name``) and seed, and the unfinished ones.

    Raises:
        UserError: there is no finished run, or there are two of a variant and seed.
    """
    finished: dict[tuple[str, int], Run] = {}
    unfinished = []
    for run in find_runs(folder):
        if not all((run.folder / name).is_file() for name in FINISHED):
            unfinished.append(run)
            continue
        if not run.config.keys() >= {"name", "seed"}:
            raise UserError(f"{run.folder / 'config.yaml'}: has no name and seed; move this run out of the folder")
        other = finished.setdefault((str(run.config["name"]), int(run.config["seed"])), run)
        if other is not run:
            raise UserError(
                f"{other.folder} and {run.folder} are both {_title(run)}: move one of them out of the folder"
            )
    if not finished:
        raise UserError(f"folder={folder}: it holds no finished run, which has {', '.join(FINISHED)}")
    return [finished[key] for key in sorted(finished)], unfinished


def _evaluate_all(config: DictConfig, runs: Sequence[Run]) -> pd.DataFrame:
    """Every run under every condition; what is not kept is evaluated, and it is told how far that is."""
    evaluations = [
        Evaluation(run, str(name), evaluation_config(run, condition, config.override, config.seed))
        for run, (name, condition) in itertools.product(runs, config.conditions.items())
    ]
    to_do = [one for one in evaluations if config.refresh or one.kept() is None]
    for evaluation in told(to_do, lambda one: f"{_title(one.run)}, {one.condition}"):
        evaluation.evaluate()
    return pd.DataFrame([one.row() for one in evaluations])


def evaluation_config(run: Run, condition: DictConfig, override: DictConfig, seed: int) -> DictConfig:
    """The run's configuration, made to evaluate its last checkpoint under a condition.

    Args:
        run: the run.
        condition: a choice of the group ``eval_fault``.
        override: values put into every run's configuration, such as ``{data: {root: /elsewhere}}``.
        seed: of the faults' noise: the same for all runs, whatever seed they were trained with.
    """
    config = OmegaConf.create(saved_config(run.folder / CHECKPOINT))
    OmegaConf.set_struct(config, True)
    try:
        config.merge_with(override)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"override={override} does not fit {run.folder / 'config.yaml'}: {reason}") from error
    fixed = {"ckpt_path": str(run.folder / CHECKPOINT), "weights": None, "data.damage": True}
    config = under_condition(config, condition, seed, fixed)
    check_config(config)
    return config


@dataclass(frozen=True)
class Evaluation:
    """A run under a condition; its metrics and weights are kept in ``faults/`` of its folder.

    What was kept counts as long as checkpoint, data settings, decoding and condition are the same.
    """

    run: Run
    condition: str
    config: DictConfig  # of evaluation_config

    @property
    def path(self) -> Path:
        """Where they are kept."""
        return self.run.folder / "faults" / f"{self.condition}.json"

    @functools.cached_property
    def made_from(self) -> dict[str, Any]:
        """What they depend on."""
        groups = ("eval_fault", "data", "evaluation")
        return {
            "checkpoint_sha256": digest(self.run.folder / CHECKPOINT),
            **{group: OmegaConf.to_container(self.config[group]) for group in groups},
        }

    def kept(self) -> dict[str, float] | None:
        """What an earlier call, or this one, evaluated."""
        kept = kept_metrics(self.path, self.made_from)
        return kept if kept is not None and kept.keys() >= {REGION, *WEIGHTS.values()} else None

    def evaluate(self) -> None:
        """Evaluate, whatever was kept."""
        said, region = WhatAQRSaid(), BrokenRegion()
        metrics = measured(self.config, self.run.folder, watching=[said, region]) | said.means()
        keep_metrics(self.path, self.made_from, metrics | {REGION: region.mean_precision()})

    def row(self) -> dict[str, Any]:
        """What the table says of it, once it is evaluated."""
        kept = self.kept()
        assert kept is not None
        named = {"variant": str(self.run.config["name"]), "seed": int(self.run.config["seed"])}
        return {**named, "condition": self.condition, **kept, "folder": str(self.run.folder)}


def with_bad(results: pd.DataFrame) -> pd.DataFrame:
    """The results, and for every run its mean over the conditions that are not clean."""
    faulty = results[results["condition"] != CLEAN]
    means = faulty.groupby(["variant", "seed", "folder"], sort=False).mean(numeric_only=True, skipna=False)
    return pd.concat([results, means.reset_index().assign(condition=BAD)], ignore_index=True)[results.columns]


def values_of(results: pd.DataFrame, metric: str) -> pd.Series:
    """A metric by variant, condition and seed."""
    return results.set_index(["variant", "condition", "seed"])[metric]


def differences(values: pd.Series, baseline: str) -> pd.Series:
    """Every other variant less the baseline of the same seed; seeds that the baseline lacks are left out."""
    others = values.drop(baseline, level="variant")
    base = values.xs(baseline, level="variant").reindex(others.index.droplevel("variant"))
    return (others - base.to_numpy()).dropna()


Summary = dict[str, dict[str, dict[str, Any]]]
"""``mean``, ``std`` (``None`` of one seed) and single ``seeds``, by variant and condition."""


def summary_of(values: pd.Series) -> Summary:
    """Mean and spread of a metric, or its differences, by variant, condition and seed."""
    summary: Summary = {}
    cells = values.groupby(["variant", "condition"], sort=False)
    for (variant, condition), stats in spread(values, ["variant", "condition"])[["mean", "std"]].iterrows():
        seeds = cells.get_group((variant, condition)).droplevel(["variant", "condition"])
        cell = {**nan_to_null(stats.to_dict()), "seeds": seeds.to_dict()}
        summary.setdefault(variant, {})[condition] = cell
    return summary


def table_of(summary: Summary, title: str, each: bool = False) -> Table:
    """Variants down, conditions across; ``each``: signs, and every seed's value below."""

    def text(cell: dict[str, Any]) -> str:
        spread_of = "" if cell["std"] is None else f" ± {cell['std']:.3f}"
        if each:
            return f"{cell['mean']:+.3f}{spread_of}\n" + "  ".join(
                f"{value:+.3f}" for value in cell["seeds"].values()
            )
        return f"{cell['mean']:.3f}{spread_of}"

    conditions = list(next(iter(summary.values())))
    table = Table("variant", "seeds", *conditions, title=title, title_justify="left")
    for variant, cells in summary.items():
        seeds = ", ".join(map(str, cells[conditions[0]]["seeds"]))
        table.add_row(variant, seeds, *(text(cells[condition]) for condition in conditions))
    return table
