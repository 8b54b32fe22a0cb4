"""Checkpoints under all sensor failures of a suite: evaluated condition by condition, kept, put into tables."""

from __future__ import annotations

import functools
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
from cmt_aqr.studies.evaluating import digest, keep_metrics, kept_metrics, measured, told, under_condition
from cmt_aqr.studies.robustness_scores import CLEAN
from cmt_aqr.studies.robustness_tables import Row, report

OWN = (
    *("ckpt_path", "names", "baseline", "seed", "severities", "part", "out", "refresh"),
    *("suite", "conditions", "launcher", "name"),
)
"""Keys of this command, which no checkpoint's configuration gets."""

SENSORS = {"lidar": "LiDAR", "camera": "cameras"}

NOT_OF_THE_RESULT = (
    *("num_workers", "batch_size", "eval_batch_size", "cache_dir", "cache_frames", "train_split"),
    *("train_transforms", "scene_augmentation", "image_augmentation", "limit_train_frames", "make", "_target_"),
)
"""Settings of data that change no number of an evaluation."""


@dataclass(frozen=True)
class Condition:
    """What frames are evaluated under.

    Attributes:
        suite: its name; of the clean condition ``clean``.
        name: of the condition in the suite.
        severity: from 1; 0 where the suite has none.
        fault: a choice of the group ``eval_fault``, written out.
    """

    suite: str
    name: str
    severity: int
    fault: dict[str, Any]

    @property
    def path(self) -> Path:
        """Where its result is, below a checkpoint's folder."""
        level = f"_{self.severity}" if self.severity else ""
        return Path(self.suite) / f"{self.name}{level}.json"

    def __str__(self) -> str:
        level = f", severity {self.severity}" if self.severity else ""
        return CLEAN if self.name == CLEAN else f"{self.suite}/{self.name}{level}"

    @functools.cached_property
    def strikes(self) -> frozenset[str]:
        """The sensors that it touches; none for the clean one."""
        return build(OmegaConf.create(self.fault)).strikes


@dataclass(frozen=True)
class Model:
    """A checkpoint to evaluate.

    Attributes:
        name: in tables.
        config: its configuration with the command's overrides.
        digest: SHA-256 of the file.
    """

    name: str
    config: DictConfig
    digest: str

    @property
    def sensors(self) -> frozenset[str]:
        """Those that it reads."""
        reads = {"camera": self.config.data.cameras, "lidar": self.config.data.lidar}
        return frozenset(sensor for sensor, read in reads.items() if read)


def robustness(config: DictConfig, overrides: Sequence[str]) -> list[Row]:
    """Evaluate every checkpoint under every condition, print the tables and write them.

    Args:
        config: of ``conf/robustness.yaml``.
        overrides: as given on the command line.

    Returns:
        The rows of the tables; of a ``part`` those that are there.
    """
    refused = next((key for key in override_keys(overrides) if below(key, ["eval_fault", "fault"])), None)
    if refused is not None:
        raise UserError(f"{refused}: the conditions of a suite are what is evaluated; choose suite= instead")
    out = Path(config.out)
    check_folder("out", out)
    conditions = conditions_of(config)
    models = models_of(config, overrides)
    names = [model.name for model in models]
    known = f"one of the checkpoints' names, {', '.join(names)}"
    require(config.baseline in (None, *names), "baseline", config.baseline, known)
    _say_what_is_not_struck(models, conditions)
    evaluations = [Evaluation(model, condition, config.seed, out) for model in models for condition in conditions]
    mine = [one for one in _share(evaluations, str(config.part)) if not one.spared]
    for evaluation in mine:
        build_data(evaluation.config, evaluating=True)  # refuses settings that cannot be, before all evaluations
    to_do = [one for one in mine if config.refresh or one.kept() is None]
    if len(to_do) < len(mine):
        before = len(mine) - len(to_do)
        console(stderr=True).print(f"{before} conditions were evaluated before; refresh=true evaluates them again")
    for evaluation in told(to_do, lambda one: f"{one.model.name}, {one.condition}"):
        evaluation.evaluate(overrides)
    rows = [row for evaluation in evaluations if (row := evaluation.row(evaluations)) is not None]
    if len(rows) == len(evaluations):
        report(rows, config.baseline, out)
    else:
        console().print(
            f"part={config.part} is done: {len(rows)} of {len(evaluations)} results are in {out}; the tables are "
            "made by the part that ends last, or by this command without part=",
            soft_wrap=True,
        )
    return rows


def conditions_of(config: DictConfig) -> list[Condition]:
    """The clean condition, and those of the chosen suites in their order, each severity one.

    Raises:
        UserError: severities of a suite that has none or is not chosen, or one that there is not.
    """
    severities = {} if config.severities is None else config.severities
    suites = config.conditions if OmegaConf.is_dict(config.conditions) else {}
    for key in ("conditions", *(f"conditions.{suite}" for suite in suites), "severities"):
        node = OmegaConf.select(config, key)
        named = OmegaConf.is_dict(node) or (key == "severities" and node is None)
        require(named, key, node, f"values by name; ~{key} leaves it out")
    unknown = [name for name in severities if name not in suites]
    if unknown:
        raise UserError(f"severities.{unknown[0]}: this suite is not chosen; there are {', '.join(suites)}")
    found = [Condition(CLEAN, CLEAN, 0, {"_target_": "cmt_aqr.data.faults.SomeFrames", "share": 0.0})]
    for suite, members in suites.items():
        levels = severities.get(suite)
        listed = levels is None or (OmegaConf.is_list(levels) and len(levels) > 0)
        require(listed, f"severities.{suite}", levels, f"a list, as in severities.{suite}=[1,3]")
        for name, fault in members.items():
            if fault is None:
                continue  # conditions.mome.occlusion=null leaves it out
            if levels is not None and "severity" not in fault:
                raise UserError(f"severities.{suite}: {suite}/{name} has no severities; drop it")
            found += [_condition(str(suite), str(name), fault, level) for level in levels or [0]]
    return found


def _condition(suite: str, name: str, fault: DictConfig, severity: int) -> Condition:
    fault = fault.copy()
    if severity != 0:
        fault.severity = severity
    written_out: Any = OmegaConf.to_container(fault, resolve=True)
    condition = Condition(suite, name, severity, written_out)
    try:
        strikes = condition.strikes
    except UserError as error:
        raise UserError(f"conditions.{suite}.{name}: {error}") from error
    if not strikes:
        raise UserError(f"conditions.{suite}.{name}: has no fault; drop it with conditions.{suite}.{name}=null")
    return condition


def models_of(config: DictConfig, overrides: Sequence[str]) -> list[Model]:
    """The checkpoints, with their configurations and names.

    Raises:
        UserError: none is given, names that do not fit, or a checkpoint that cannot be evaluated.
    """
    given = config.ckpt_path
    if not given:
        raise UserError(
            "ckpt_path is missing: name a checkpoint or the folder of a run, or several, as in "
            "'ckpt_path=[outputs/fused,outputs/lidar_only]'"
        )
    paths = [str(path) for path in given] if OmegaConf.is_list(given) else [str(given)]
    names = config.names if config.names is None or OmegaConf.is_list(config.names) else [config.names]
    fit = names is None or len(names) == len(set(names)) == len(paths)
    require(fit, "names", names, f"one name for each of the {len(paths)} checkpoints, all different")
    models: list[Model] = []
    for number, path in enumerate(paths):
        file = checkpoint_path(path, Path(), folder_given=False)
        if file is None or not file.is_file():
            raise UserError(f"ckpt_path={path}: there is no such file")
        composed = config.copy()
        composed.ckpt_path = str(file)
        merged = configuration_to_evaluate(composed, without(overrides, OWN), Path())
        name = str(names[number]) if names is not None else _name_of(file, [model.name for model in models])
        models.append(Model(name, merged, digest(file)))
    return models


def _name_of(file: Path, taken: Sequence[str]) -> str:
    """The run's folder, or the file where two would have the same."""
    folder = file.absolute().parent
    name = folder.parent.name if folder.name == "checkpoints" else folder.name
    candidates = (name, f"{name}/{file.stem}", f"{name}/{file.stem} ({len(taken) + 1})")
    return next(candidate for candidate in candidates if candidate not in taken)


def _say_what_is_not_struck(models: Sequence[Model], conditions: Sequence[Condition]) -> None:
    for model in models:
        missing = [word for sensor, word in SENSORS.items() if sensor not in model.sensors]
        spared = [one for one in conditions if one.strikes and not one.strikes & model.sensors]
        if spared:
            names = ", ".join(dict.fromkeys(f"{one.suite}/{one.name}" for one in spared))
            console().print(
                f"{model.name} reads no {missing[0]}: {len(spared)} of {len(conditions) - 1} conditions "
                f"change nothing for it and count as clean ({names})",
                soft_wrap=True,
            )


def _share(evaluations: list[Evaluation], part: str) -> list[Evaluation]:
    """Those that this process is to see to: every so manyth."""
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", part)
    if found is None or int(found[1]) > int(found[2]):
        raise UserError(f"part={part}: must be a share of the work, as in 1/4 to 4/4")
    return evaluations[int(found[1]) - 1 :: int(found[2])]


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint under a condition, with the failures' seed and the folder of all results."""

    model: Model
    condition: Condition
    seed: int
    out: Path

    @property
    def spared(self) -> bool:
        """Whether the condition touches none of the model's sensors: the result is that of clean frames."""
        return bool(self.condition.strikes) and not self.condition.strikes & self.model.sensors

    @functools.cached_property
    def config(self) -> DictConfig:
        """The configuration to evaluate."""
        return under_condition(self.model.config, self.condition.fault, self.seed)

    @property
    def path(self) -> Path:
        """Where the result is kept: told by the weights, whatever their file is called."""
        return self.out / "results" / self.model.digest[:16] / self.condition.path

    def stamp(self) -> dict[str, Any]:
        """What the result depends on."""
        plain: Any = OmegaConf.to_container(self.config, resolve=True)
        data = {key: value for key, value in plain["data"].items() if key not in NOT_OF_THE_RESULT}
        groups = ("model", "aqr", "renderer", "modulator", "evaluation", "eval_fault")
        return {
            "checkpoint_sha256": self.model.digest,
            "precision": plain["trainer"].get("precision"),
            "data": data,
            **{group: plain.get(group) for group in groups},
        }

    def kept(self) -> dict[str, float] | None:
        """The metrics of an earlier call, if it evaluated the same."""
        return kept_metrics(self.path, self.stamp())

    def evaluate(self, overrides: Sequence[str]) -> None:
        """Evaluate in this process or in one for each device, and keep the metrics."""
        try:
            metrics = run_task(measured, self.config, self.path.parent, list(overrides))
        except UserError as error:  # data without rings or annotations, which some conditions need
            if self.condition.name == CLEAN:
                raise
            left_out = f"conditions.{self.condition.suite}.{self.condition.name}=null"
            raise UserError(f"{self.condition}: {error}; {left_out} leaves it out") from error
        keep_metrics(self.path, self.stamp(), metrics)

    def row(self, evaluations: Sequence[Evaluation]) -> Row | None:
        """What the tables say of it; ``None`` where it is not evaluated yet."""
        of = self
        if self.spared:
            of = next(one for one in evaluations if one.model == self.model and one.condition.name == CLEAN)
        metrics = of.kept()
        if metrics is None:
            return None
        model, condition = self.model, self.condition
        where = (condition.suite, condition.name, condition.severity)
        return Row(model.name, model.sensors, *where, metrics, self.spared)
