"""The study's runs, means and paired differences, and its cached results."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.outputs import AQROutput
from cmt_aqr.runs.configuration import build
from cmt_aqr.runs.folder import Run
from cmt_aqr.studies.fault_study import (
    CHECKPOINT,
    differences,
    evaluation_configs,
    study,
    study_runs,
    summary_of,
    table_of,
    with_bad,
)
from tests.helpers.composed import CONF, composed
from tests.helpers.ran import from_json

FAULTS = "cmt_aqr.data.faults"
CONDITIONS = {
    "clean": {"_target_": f"{FAULTS}.SomeFrames", "share": 0.0},
    "fog": {
        "_target_": f"{FAULTS}.SomeFrames",
        "share": 1.0,
        "fog": {"_target_": f"{FAULTS}.Fog", "visibility": 40.0},
    },
    "night": {"_target_": f"{FAULTS}.SomeFrames", "share": 1.0, "night": {"_target_": f"{FAULTS}.Night"}},
}
MAP_UNDER = {"clean": 0.5, "fog": 0.3, "night": 0.1}


def make_run(folder: Path, name: str, seed: int, finished: bool = True, steps: int = 5) -> Run:
    """A run's folder with the files that the study reads."""
    config = composed("aqr=none", f"name={name}", f"seed={seed}", "data.root=nowhere")
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    plain["data"] = OmegaConf.to_container(config.data, resolve=True)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {}, "config": plain, "global_step": steps}, folder / CHECKPOINT)
    OmegaConf.save(OmegaConf.create({"name": name, "seed": seed}), folder / "config.yaml")
    for file in ("record.json", *(["metrics.json"] if finished else [])):
        (folder / file).write_text("{}", encoding="utf-8")
    return Run(folder)


def weighing(lidar: list[float], camera: list[float], camera_seen: list[bool]) -> AQROutput:
    """AQR's output of two queries, both on the BEV map."""
    unused = dict.fromkeys(
        ("bev_features", "image_features", "bev_map_raw", "bev_map", "image_map_raw", "image_map", "valid")
    )
    return AQROutput(
        weights=torch.tensor([lidar, camera]).T[None],
        camera_seen=torch.tensor([camera_seen]),
        bev_seen=torch.ones(1, 2, dtype=torch.bool),
        **unused,
    )


def settings(folder: Path, **changes: Any) -> DictConfig:
    values = {"folder": str(folder), "baseline": "plain", "seed": 7, "override": {}, "refresh": False}
    return OmegaConf.create({**values, "conditions": CONDITIONS, **changes})


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[DictConfig]:
    """Configurations that were evaluated; results depend only on condition, name and seed."""
    configs: list[DictConfig] = []

    def measure(config: DictConfig, _: object, watching: list[Any]) -> tuple[None, SimpleNamespace]:
        configs.append(config)
        if config.name == "ours":
            output = vars(weighing([0.5, 0.7], [0.2, 0.6], [True, False]))
            watching[0].on_validation_batch_end(None, None, {"aqr": output})
        condition = next((name for name in ("fog", "night") if name in config.eval_fault), "clean")
        precision = MAP_UNDER[condition] + 0.01 * config.seed + (0.1 if config.name == "ours" else 0.0)
        if config.name == "ours" and config.seed == 2:
            precision += 0.02
        return None, SimpleNamespace(evaluated=(3, {"mAP": precision, "NDS": precision / 2, "mAVE": math.nan}))

    monkeypatch.setattr("cmt_aqr.studies.evaluating.measure", measure)
    return configs


def test_runs_are_found_at_any_depth(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "deep" / "b", "plain", 2), make_run(tmp_path / "a", "plain", 10)]
    make_run(tmp_path / "c", "ours", 1, finished=False)
    finished, unfinished = study_runs(tmp_path)
    assert [run.folder for run in finished] == [run.folder for run in runs]
    assert [run.folder for run in unfinished] == [tmp_path / "c"]
    make_run(tmp_path / "d", "plain", 2)
    with pytest.raises(UserError, match=r"are both plain, seed 2: move one"):
        study_runs(tmp_path)
    with pytest.raises(UserError, match="no finished run"):
        study_runs(tmp_path / "c")


def test_a_study_prints_and_writes_means_and_paired_differences(
    tmp_path: Path, evaluated: list[DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("plain", "ours"):
        for seed in (1, 2, 3):
            make_run(tmp_path / f"{name}{seed}", name, seed)
    study(settings(tmp_path))
    assert len(evaluated) == 18
    # The faults' noise is the same for all runs, whatever seed they were trained with.
    assert {config.data.seed for config in evaluated} == {7}
    assert {config.seed for config in evaluated} == {1, 2, 3}
    assert {config.eval_fault.share for config in evaluated} == {0.0, 1.0}
    summary = from_json(tmp_path / "fault_study.json")
    plain = summary["mAP"]["plain"]
    assert (plain["clean"]["mean"], plain["clean"]["std"]) == pytest.approx((0.52, 0.01))
    assert plain["bad"]["mean"] == pytest.approx(0.22)
    less = summary["mAP less baseline"]
    assert set(less) == {"ours"}
    assert less["ours"]["fog"]["seeds"] == pytest.approx({"1": 0.1, "2": 0.12, "3": 0.1})
    assert less["ours"]["fog"]["std"] == pytest.approx(0.02 / math.sqrt(3))
    # Only of the variant with AQR, and of queries on the camera's maps.
    assert set(summary["mean LiDAR weight"]) == set(summary["mean camera weight"]) == {"ours"}
    assert summary["mean LiDAR weight"]["ours"]["fog"]["mean"] == pytest.approx(0.6)
    assert summary["mean camera weight"]["ours"]["clean"]["mean"] == pytest.approx(0.2)
    table = pd.read_csv(tmp_path / "fault_study.csv").set_index(["variant", "seed", "condition"])
    assert len(table) == 24 and len(table.xs("bad", level="condition")) == 6
    assert table["mAP"]["ours", 2, "night"] == pytest.approx(0.24) and table["mAVE"].isna().all()
    printed = capsys.readouterr().out
    assert "0.520 ± 0.010" in printed and "+0.107 ± 0.012" in printed and "+0.100  +0.120  +0.100" in printed
    assert "mean camera weight: mean" in printed and "0.200 ± 0.000" in printed
    assert "different numbers of steps" not in printed
    assert printed.index("plain") < printed.index("ours") and "…" not in printed


def test_results_are_cached_until_something_changes(
    tmp_path: Path, evaluated: list[DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", "plain", 1)
    first = study(settings(tmp_path))
    assert len(evaluated) == 3 and "3 of 3" in capsys.readouterr().err
    again = study(settings(tmp_path))
    assert len(evaluated) == 3 and not capsys.readouterr().err
    pd.testing.assert_frame_equal(again, first)
    dense = settings(tmp_path)
    dense.conditions.fog.fog.visibility = 10.0
    study(dense)
    assert [config.eval_fault.fog.visibility for config in evaluated[3:]] == [10.0]
    assert "1 of 1: plain, seed 1, fog" in capsys.readouterr().err
    study(settings(tmp_path, refresh=True))
    assert len(evaluated) == 7
    torch.save({**torch.load(run.folder / CHECKPOINT), "global_step": 6}, run.folder / CHECKPOINT)
    study(settings(tmp_path))
    assert len(evaluated) == 10


def test_reasons_for_a_bad_comparison_are_printed(
    tmp_path: Path, evaluated: list[DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a", "ours", 1, steps=5)
    make_run(tmp_path / "b", "theirs", 1, steps=6)
    make_run(tmp_path / "c", "theirs", 2, finished=False)
    study(settings(tmp_path))
    printed = " ".join(capsys.readouterr().out.split())
    assert "different numbers of steps" in printed and "{'ours, seed 1': 5, 'theirs, seed 1': 6}" in printed
    assert f"left out: {tmp_path / 'c'}" in printed
    assert "no run named baseline=plain" in printed
    assert len(evaluated) == 6


def test_overrides_apply_to_every_run_and_must_fit(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain", 1)
    condition = OmegaConf.create(CONDITIONS["fog"])

    def composed(fault: Any, override: dict[str, Any]) -> DictConfig:
        return evaluation_configs(run, {"fog": fault}, OmegaConf.create(override), 7)["fog"]

    config = composed(condition, {"data": {"root": "/elsewhere"}})
    assert (config.data.root, config.data.val_split) == ("/elsewhere", "mini_val")
    assert config.eval_fault == condition
    with pytest.raises(UserError, match=r"override=.*rot.*does not fit .*config.yaml"):
        composed(condition, {"data": {"rot": "/elsewhere"}})
    with pytest.raises(UserError, match=r"fog\.visibility=-1"):
        composed(OmegaConf.merge(condition, {"fog": {"visibility": -1}}), {})


def results_of(*rows: tuple[str, int, str, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["variant", "seed", "condition", "mAP"]).assign(folder="x")


def test_bad_is_the_mean_of_the_conditions_with_faults() -> None:
    results = results_of(("a", 1, "clean", 0.9), ("a", 1, "fog", 0.2), ("a", 1, "night", 0.4))
    assert with_bad(results).iloc[-1].tolist() == ["a", 1, "bad", pytest.approx(0.3), "x"]
    assert len(with_bad(results[:1])) == 1
    results.loc[2, "mAP"] = math.nan
    assert math.isnan(with_bad(results).iloc[-1]["mAP"]), "an undefined value has no mean"


def test_differences_are_paired_by_seed() -> None:
    results = results_of(
        *(("b", 1, "fog", 0.2), ("a", 2, "fog", 0.5), ("b", 3, "fog", 0.9), ("b", 2, "fog", 0.4)),
        ("a", 1, "fog", 0.1),
    )
    paired = differences(results.set_index(["variant", "condition", "seed"])["mAP"], "a")
    assert paired.to_dict() == {("b", "fog", 1): pytest.approx(0.1), ("b", "fog", 2): pytest.approx(-0.1)}
    table = table_of(summary_of(paired), "title", each=True)
    cells = [list(column.cells) for column in table.columns]
    assert cells == [["b"], ["1, 2"], ["+0.000 ± 0.141\n+0.100  -0.100"]]
    single = table_of(summary_of(paired[:1]), "title")
    assert list(single.columns[2].cells) == ["0.100"], "one seed has no deviation"


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "study").glob("*.yaml")))
def test_every_study_composes_with_the_baseline_of_an_experiment(name: str) -> None:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("fault_study", [f"study={name}", "folder=x"])
    assert len(config.conditions) > 2 and config.conditions.clean.share == 0
    for condition in config.conditions.values():
        assert callable(build(condition))
    experiments = [OmegaConf.load(path) for path in (CONF / "experiment").rglob("*.yaml")]
    assert config.baseline in [experiment.get("name") for experiment in experiments]
