"""The fault study: runs of several variants and seeds, each evaluated on clean frames and with broken sensors."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
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
from cmt_aqr.files import atomic_write, nan_to_null, write_json
from cmt_aqr.outputs import AQROutput, aqr_output
from cmt_aqr.runs.checkpoints import read_checkpoint, saved_config
from cmt_aqr.runs.configuration import check_config
from cmt_aqr.runs.console import console
from cmt_aqr.runs.folder import Run, find_runs
from cmt_aqr.studies.evaluating import (
    cache_metrics,
    cached_metrics,
    config_under,
    evaluate_checkpoint,
    sha256,
    with_progress,
)
from cmt_aqr.studies.records import spread
from cmt_aqr.studies.region import BrokenRegion
from cmt_aqr.studies.robustness_scores import CLEAN

BAD = "bad"
"""The mean over all conditions except ``CLEAN``."""

REGION = "mAP of the broken region"

HEADLINES = ("mAP", "NDS", REGION)
"""Official metrics with printed tables; fault_study.csv has all metrics."""

WEIGHTS = {"lidar": "mean LiDAR weight", "camera": "mean camera weight"}
"""AQR's mean weight per sensor."""

DAMAGE_AUC = {"auc_lidar": "AUC of LiDAR damage", "auc_camera": "AUC of camera damage"}
"""How well AQR's weights detect damage, mean over the batches with broken and intact queries."""

CHECKPOINT = "checkpoints/last.ckpt"
FINISHED = ("record.json", "metrics.json", CHECKPOINT)
"""Files in the folder of a finished run."""


class AQRMeans(pl.Callback):
    """Means of :data:`WEIGHTS` and :data:`DAMAGE_AUC` over an evaluation.

    NaN where AQR has no such weights, and where nothing is broken.
    """

    def __init__(self) -> None:
        names = (WEIGHTS | DAMAGE_AUC).values()
        self._means = {name: MeanMetric().set_dtype(torch.float64) for name in names}

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Add a batch."""
        if outputs["aqr"] is None:
            return
        output = aqr_output(outputs["aqr"])
        if isinstance(output, AQROutput):
            for sensor, weights in used_weights(output).items():
                self._means[WEIGHTS[sensor]].update(weights.cpu())
        for name, value in detection_of_damage(doubts(output)).items():
            self._means[DAMAGE_AUC[name]].update(value.cpu())

    def means(self) -> dict[str, float]:
        """The means by name."""
        means = self._means.items()
        return {name: float(mean.compute()) if mean.update_called else math.nan for name, mean in means}


def study(config: DictConfig) -> pd.DataFrame:
    """Evaluate every finished run under every condition of ``conf/fault_study.yaml``; print and write the tables.

    Returns:
        A row per run and condition: ``variant``, ``seed``, ``condition``, official metrics, AQR's means,
        ``folder``.
    """
    folder = Path(config.folder)
    runs, unfinished = study_runs(folder)
    runs.sort(key=lambda run: run.config["name"] != config.baseline)
    out = console()
    for run in unfinished:
        out.print(f"left out: {run.folder} is the folder of an unfinished run", style="yellow", soft_wrap=True)
    steps = {_title(run): int(read_checkpoint(run.folder / CHECKPOINT)["global_step"]) for run in runs}
    if len(set(steps.values())) > 1:
        out.print(f"the runs have different numbers of steps, so they compare badly: {steps}", style="yellow")
    results = with_bad(_evaluate_all(config, runs))
    with atomic_write(folder / "fault_study.csv") as partial:
        results.to_csv(partial, index=False)
    summary: dict[str, Any] = {"baseline": config.baseline}

    def tabulate(name: str, heading: str, values: pd.Series, each: bool = False) -> None:
        summary[name] = summary_of(values)
        if summary[name]:
            title = f"{heading}: mean ± standard deviation over seeds{'; each seed' if each else ''}"
            out.print(table_of(summary[name], title, each))

    values_of = results.set_index(["variant", "condition", "seed"])
    for metric in HEADLINES:
        values = defined(values_of[metric], "condition")
        tabulate(metric, metric, values)
        if config.baseline in values.index.unique("variant"):
            heading = f"{metric} less that of {config.baseline} with the same seed"
            tabulate(f"{metric} less baseline", heading, differences(values, config.baseline), each=True)
    for metric in (*WEIGHTS.values(), *DAMAGE_AUC.values()):
        levels = ["variant"] if metric in WEIGHTS.values() else ["variant", "condition"]
        tabulate(metric, metric, defined(values_of[metric], *levels))
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
        UserError: there is no finished run, or there are two of the same variant and seed.
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
    """Evaluate every run under every condition, unless the result is cached."""
    evaluations = []
    for run in runs:
        digest = sha256(run.folder / CHECKPOINT)
        configs = evaluation_configs(run, config.conditions, config.override, config.seed)
        evaluations += [Evaluation(run, name, composed, digest) for name, composed in configs.items()]
    pending = [one for one in evaluations if config.refresh or one.cached() is None]
    for evaluation in with_progress(pending, lambda one: f"{_title(one.run)}, {one.condition}"):
        evaluation.evaluate()
    return pd.DataFrame([one.row() for one in evaluations])


def evaluation_configs(
    run: Run, conditions: Mapping[Any, Any], override: DictConfig, seed: int
) -> dict[str, DictConfig]:
    """The configurations that evaluate a run's last checkpoint, by name of the condition.

    Args:
        run: a finished run.
        conditions: options of the group ``eval_fault`` by name.
        override: values for every run's configuration, such as ``{data: {root: /elsewhere}}``.
        seed: of the faults' noise, the same for all runs whatever seed they were trained with.
    """
    trained = OmegaConf.create(saved_config(run.folder / CHECKPOINT))
    OmegaConf.set_struct(trained, True)
    try:
        trained.merge_with(override)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"override={override} does not fit {run.folder / 'config.yaml'}: {reason}") from error
    changes = {"ckpt_path": str(run.folder / CHECKPOINT), "weights": None, "data.damage": True}
    configs = {str(name): config_under(trained, fault, seed, changes) for name, fault in conditions.items()}
    for config in configs.values():
        check_config(config)
    return configs


@dataclass(frozen=True)
class Evaluation:
    """A run under a condition; the result is cached in ``faults/`` of the run's folder.

    A cached result is valid while checkpoint, data settings, decoding and condition are the same.
    """

    run: Run
    condition: str
    config: DictConfig  # of evaluation_configs
    digest: str  # SHA-256 of the checkpoint

    @property
    def path(self) -> Path:
        """The cached result."""
        return self.run.folder / "faults" / f"{self.condition}.json"

    @functools.cached_property
    def made_from(self) -> dict[str, Any]:
        """What the result depends on."""
        groups = ("eval_fault", "data", "evaluation")
        return {
            "checkpoint_sha256": self.digest,
            **{group: OmegaConf.to_container(self.config[group]) for group in groups},
        }

    def cached(self) -> dict[str, float] | None:
        """The cached result, if there is one."""
        metrics = cached_metrics(self.path, self.made_from)
        return metrics if metrics is not None and metrics.keys() >= {REGION, *WEIGHTS.values()} else None

    def evaluate(self) -> None:
        """Evaluate, and cache the result."""
        aqr, region = AQRMeans(), BrokenRegion()
        metrics = evaluate_checkpoint(self.config, self.run.folder, callbacks=[aqr, region]) | aqr.means()
        cache_metrics(self.path, self.made_from, metrics | {REGION: region.mean_precision()})

    def row(self) -> dict[str, Any]:
        """The row of the results, after the evaluation."""
        metrics = self.cached()
        assert metrics is not None
        run = {"variant": str(self.run.config["name"]), "seed": int(self.run.config["seed"])}
        return {**run, "condition": self.condition, **metrics, "folder": str(self.run.folder)}


def with_bad(results: pd.DataFrame) -> pd.DataFrame:
    """Append to the results, for every run, the mean over all conditions except the clean one."""
    faulty = results[results["condition"] != CLEAN]
    means = faulty.groupby(["variant", "seed", "folder"], sort=False).mean(numeric_only=True, skipna=False)
    return pd.concat([results, means.reset_index().assign(condition=BAD)], ignore_index=True)[results.columns]


def defined(values: pd.Series, *levels: str) -> pd.Series:
    """The values of those groups, by index levels, that contain no NaN."""
    return values[values.notna().groupby(list(levels)).transform("all")]


def differences(values: pd.Series, baseline: str) -> pd.Series:
    """Every other variant less the baseline of the same seed, for the seeds of the baseline."""
    others = values.drop(baseline, level="variant")
    base = values.xs(baseline, level="variant").reindex(others.index.droplevel("variant"))
    return (others - base.to_numpy()).dropna()


Summary = dict[str, dict[str, dict[str, Any]]]
"""``mean``, ``std`` (``None`` for one seed) and the values by seed (``seeds``), by variant and condition."""


def summary_of(values: pd.Series) -> Summary:
    """Summarise a metric, or its differences, given by variant, condition and seed."""
    summary: Summary = {}
    cells = values.groupby(["variant", "condition"], sort=False)
    for (variant, condition), stats in spread(values, ["variant", "condition"])[["mean", "std"]].iterrows():
        seeds = cells.get_group((variant, condition)).droplevel(["variant", "condition"])
        cell = {**nan_to_null(stats.to_dict()), "seeds": seeds.to_dict()}
        summary.setdefault(variant, {})[condition] = cell
    return summary


def table_of(summary: Summary, title: str, each: bool = False) -> Table:
    """A table of variants by conditions; with ``each``, signed and with the value of every seed."""

    def text(cell: dict[str, Any]) -> str:
        sign = "+" if each else ""
        deviation = "" if cell["std"] is None else f" ± {cell['std']:.3f}"
        seeds = "\n" + "  ".join(f"{value:+.3f}" for value in cell["seeds"].values()) if each else ""
        return f"{cell['mean']:{sign}.3f}{deviation}{seeds}"

    conditions = list(dict.fromkeys(condition for cells in summary.values() for condition in cells))
    table = Table("variant", "seeds", *conditions, title=title, title_justify="left")
    for variant, cells in summary.items():
        seeds = ", ".join(map(str, next(iter(cells.values()))["seeds"]))
        table.add_row(variant, seeds, *(text(cells[name]) if name in cells else "" for name in conditions))
    return table
