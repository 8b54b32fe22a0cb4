"""Checkpoints under all sensor failures of a suite: evaluated condition by condition, cached, tabulated."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cmt_aqr.checks import require
from cmt_aqr.errors import UserError
from cmt_aqr.files import check_folder
from cmt_aqr.runs.configuration import build, build_data
from cmt_aqr.runs.console import console
from cmt_aqr.runs.processes import run_task
from cmt_aqr.runs.resuming import checkpoint_path, configuration_to_evaluate
from cmt_aqr.runs.saved import below, override_keys, without
from cmt_aqr.studies.evaluating import (
    cache_metrics,
    cached_metrics,
    config_under,
    evaluate_checkpoint,
    sha256,
    with_progress,
)
from cmt_aqr.studies.robustness_scores import CLEAN
from cmt_aqr.studies.robustness_tables import Row, report

COMMAND_KEYS = (
    *("ckpt_path", "names", "baseline", "seed", "severities", "part", "out", "refresh"),
    *("suite", "conditions", "launcher", "name"),
)
"""Keys of this command that are not put into a checkpoint's configuration."""

SENSORS = {"lidar": "LiDAR", "camera": "cameras"}

IRRELEVANT = (
    *("num_workers", "batch_size", "eval_batch_size", "cache_dir", "cache_frames", "train_split"),
    *("train_transforms", "scene_augmentation", "image_augmentation", "limit_train_frames", "make", "_target_"),
)
"""Data settings that do not affect the result of an evaluation."""


@dataclass(frozen=True)
class Condition:
    """The condition of an evaluation."""

    suite: str  # "clean" for clean frames
    name: str
    severity: int  # from 1; 0 for a condition without severities
    fault: dict[str, Any]  # an option of the group eval_fault, resolved

    @property
    def path(self) -> Path:
        """The file of its result, relative to a checkpoint's folder."""
        level = f"_{self.severity}" if self.severity else ""
        return Path(self.suite) / f"{self.name}{level}.json"

    def __str__(self) -> str:
        level = f", severity {self.severity}" if self.severity else ""
        return CLEAN if self.name == CLEAN else f"{self.suite}/{self.name}{level}"

    @functools.cached_property
    def affected(self) -> frozenset[str]:
        """The sensors that it affects; none for the clean one."""
        return build(OmegaConf.create(self.fault)).strikes


@dataclass(frozen=True)
class Model:
    """A checkpoint to evaluate."""

    name: str  # in tables
    config: DictConfig  # with the command's overrides
    digest: str  # SHA-256 of the file

    @property
    def sensors(self) -> frozenset[str]:
        """The sensors that it reads."""
        reads = {"camera": self.config.data.cameras, "lidar": self.config.data.lidar}
        return frozenset(sensor for sensor, read in reads.items() if read)


def robustness(config: DictConfig, overrides: Sequence[str]) -> list[Row]:
    """Evaluate every checkpoint under every condition of ``conf/robustness.yaml``; print and write the tables.

    Returns:
        The rows of the tables; for a ``part``, those available so far.
    """
    refused = next((key for key in override_keys(overrides) if below(key, ["eval_fault", "fault"])), None)
    if refused is not None:
        raise UserError(f"{refused}: the conditions of a suite are what is evaluated; choose suite= instead")
    out = Path(config.out)
    check_folder("out", out)
    conditions = conditions_of(config)
    models = models_of(config, overrides)
    names = [model.name for model in models]
    allowed = f"one of the checkpoints' names, {', '.join(names)}"
    require(config.baseline in (None, *names), "baseline", config.baseline, allowed)
    evaluations = [Evaluation(model, condition, config.seed, out) for model in models for condition in conditions]
    _print_spared(evaluations)
    needed = [one for one in _part(evaluations, str(config.part)) if not one.spared]
    for evaluation in needed:
        build_data(evaluation.config, evaluating=True)  # refuses invalid settings before the first evaluation
    pending = [one for one in needed if config.refresh or one.cached() is None]
    if len(pending) < len(needed):
        done = len(needed) - len(pending)
        console(stderr=True).print(f"{done} conditions were evaluated before; refresh=true evaluates them again")
    for evaluation in with_progress(pending, lambda one: f"{one.model.name}, {one.condition}"):
        evaluation.evaluate(overrides)
    rows = [row for evaluation in evaluations if (row := evaluation.row(evaluations)) is not None]
    if len(rows) == len(evaluations):
        report(rows, config.baseline, out)
    else:
        console().print(
            f"part={config.part} is done: {len(rows)} of {len(evaluations)} results are in {out}; the part that "
            "ends last, or this command without part=, writes the tables",
            soft_wrap=True,
        )
    return rows


def conditions_of(config: DictConfig) -> list[Condition]:
    """The clean condition, and those of the chosen suites in their order, one per severity.

    Raises:
        UserError: severities of a suite that is not chosen or has none, or an invalid severity.
    """
    severities = {} if config.severities is None else config.severities
    suites = config.conditions if OmegaConf.is_dict(config.conditions) else {}
    for key in ("conditions", *(f"conditions.{suite}" for suite in suites), "severities"):
        node = OmegaConf.select(config, key)
        valid = OmegaConf.is_dict(node) or (key == "severities" and node is None)
        require(valid, key, node, f"values by name; ~{key} leaves it out")
    unknown = [name for name in severities if name not in suites]
    if unknown:
        raise UserError(f"severities.{unknown[0]}: this suite is not chosen; the chosen ones: {', '.join(suites)}")
    conditions = [Condition(CLEAN, CLEAN, 0, {"_target_": "cmt_aqr.data.faults.SomeFrames", "share": 0.0})]
    for suite, members in suites.items():
        levels = severities.get(suite)
        valid = levels is None or (OmegaConf.is_list(levels) and len(levels) > 0)
        require(valid, f"severities.{suite}", levels, f"a list, as in severities.{suite}=[1,3]")
        for name, fault in members.items():
            if fault is None:
                continue  # conditions.mome.occlusion=null leaves it out
            if levels is not None and "severity" not in fault:
                raise UserError(f"severities.{suite}: {suite}/{name} has no severities; drop it")
            conditions += [_condition(str(suite), str(name), fault, level) for level in levels or [0]]
    return conditions


def _condition(suite: str, name: str, fault: DictConfig, severity: int) -> Condition:
    fault = fault.copy()
    if severity != 0:
        fault.severity = severity
    resolved: Any = OmegaConf.to_container(fault, resolve=True)
    condition = Condition(suite, name, severity, resolved)
    try:
        affected = condition.affected
    except UserError as error:
        raise UserError(f"conditions.{suite}.{name}: {error}") from error
    if not affected:
        raise UserError(f"conditions.{suite}.{name}: has no fault; drop it with conditions.{suite}.{name}=null")
    return condition


def models_of(config: DictConfig, overrides: Sequence[str]) -> list[Model]:
    """The checkpoints with their configurations and names.

    Raises:
        UserError: there is none, the names do not fit, or a checkpoint cannot be evaluated.
    """
    if not config.ckpt_path:
        raise UserError(
            "ckpt_path is missing: name a checkpoint or the folder of a run, or several, as in "
            "'ckpt_path=[outputs/fused,outputs/lidar_only]'"
        )
    paths = _as_list(config.ckpt_path)
    names = None if config.names is None else _as_list(config.names)
    valid = names is None or len(names) == len(set(names)) == len(paths)
    require(valid, "names", names, f"one name for each of the {len(paths)} checkpoints, all different")
    models: list[Model] = []
    for number, path in enumerate(paths):
        file = checkpoint_path(path, Path(), folder_given=False)
        if file is None or not file.is_file():
            raise UserError(f"ckpt_path={path}: there is no such file")
        composed = config.copy()
        composed.ckpt_path = str(file)
        merged = configuration_to_evaluate(composed, without(overrides, COMMAND_KEYS), Path())
        name = names[number] if names is not None else _name_of(file, [model.name for model in models])
        models.append(Model(name, merged, sha256(file)))
    return models


def _as_list(value: Any) -> list[str]:
    return [str(item) for item in value] if OmegaConf.is_list(value) else [str(value)]


def _name_of(file: Path, taken: Sequence[str]) -> str:
    """The name of the run's folder, with the file's name if it is taken."""
    folder = file.absolute().parent
    name = folder.parent.name if folder.name == "checkpoints" else folder.name
    candidates = (name, f"{name}/{file.stem}", f"{name}/{file.stem} ({len(taken) + 1})")
    return next(candidate for candidate in candidates if candidate not in taken)


def _print_spared(evaluations: Sequence[Evaluation]) -> None:
    """Print which conditions do not affect the sensors of a model."""
    for name, group in itertools.groupby(evaluations, lambda one: one.model.name):
        of_model = list(group)
        spared = [one.condition for one in of_model if one.spared]
        if spared:
            (missing,) = SENSORS.keys() - of_model[0].model.sensors
            names = ", ".join(dict.fromkeys(f"{condition.suite}/{condition.name}" for condition in spared))
            console().print(
                f"{name} reads no {SENSORS[missing]}: {len(spared)} of {len(of_model) - 1} conditions change "
                f"nothing for it and count as clean ({names})",
                soft_wrap=True,
            )


def _part(evaluations: list[Evaluation], part: str) -> list[Evaluation]:
    """The evaluations of this process: of part i/n, every n-th from the i-th."""
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", part)
    if match is None or int(match[1]) > int(match[2]):
        raise UserError(f"part={part}: must be a share of the work, from 1/4 to 4/4 for example")
    return evaluations[int(match[1]) - 1 :: int(match[2])]


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint under a condition, with the faults' seed and the folder of all results."""

    model: Model
    condition: Condition
    seed: int
    out: Path

    @property
    def spared(self) -> bool:
        """Whether the condition affects none of the model's sensors, so that the result on clean frames counts."""
        return bool(self.condition.affected) and not self.condition.affected & self.model.sensors

    @functools.cached_property
    def config(self) -> DictConfig:
        """The configuration to evaluate."""
        return config_under(self.model.config, self.condition.fault, self.seed)

    @property
    def path(self) -> Path:
        """The cached result, by the digest of the weights and not by their path."""
        return self.out / "results" / self.model.digest[:16] / self.condition.path

    def made_from(self) -> dict[str, Any]:
        """What the result depends on."""
        config: Any = OmegaConf.to_container(self.config, resolve=True)
        data = {key: value for key, value in config["data"].items() if key not in IRRELEVANT}
        groups = ("model", "aqr", "renderer", "modulator", "evaluation", "eval_fault")
        return {
            "checkpoint_sha256": self.model.digest,
            "precision": config["trainer"].get("precision"),
            "data": data,
            **{group: config.get(group) for group in groups},
        }

    def cached(self) -> dict[str, float] | None:
        """The cached metrics, if there are any."""
        return cached_metrics(self.path, self.made_from())

    def evaluate(self, overrides: Sequence[str]) -> None:
        """Evaluate in this process or in one per device, and cache the metrics."""
        try:
            metrics = run_task(evaluate_checkpoint, self.config, self.path.parent, list(overrides))
        except UserError as error:  # the data may lack what a condition needs, such as rings
            if self.condition.name == CLEAN:
                raise
            key = f"conditions.{self.condition.suite}.{self.condition.name}"
            raise UserError(f"{self.condition}: {error}; {key}=null leaves it out") from error
        cache_metrics(self.path, self.made_from(), metrics)

    def row(self, evaluations: Sequence[Evaluation]) -> Row | None:
        """Its row in the tables; ``None`` if there is no result yet."""
        source = self
        if self.spared:
            source = next(one for one in evaluations if one.model == self.model and one.condition.name == CLEAN)
        metrics = source.cached()
        if metrics is None:
            return None
        model, condition = self.model, self.condition
        where = (condition.suite, condition.name, condition.severity)
        return Row(model.name, model.sensors, *where, metrics, self.spared)
