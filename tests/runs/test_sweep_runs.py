"""Which folder a run has."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.runs.folder import Run
from cmt_aqr.runs.sweep_runs import identity, run_folder, runs_of
from tests.helpers.composed import CONF


def begun(sweep: Path, number: int, *overrides: str) -> Path:
    return sweep / run_folder(str(sweep), number, overrides)


def test_a_run_is_told_by_its_overrides_in_any_order_and_spelling() -> None:
    same = ["a=[1,2]", "b=1e-4", "c='x'"]
    assert identity(same) == identity(["b=0.0001", "c='x'", "a=[1, 2]"])
    assert identity(same) != identity(["a=[1,2]", "b=1e-3", "c='x'"])
    assert identity(["a=1"]) != identity(["+a=1"]) and identity(["a=1", "a=2"]) == identity(["a=2"])


def test_how_runs_are_started_does_not_tell_them_apart() -> None:
    extras = ["sweep=presets", "launcher=joblib", "sweep_dir=x", "ckpt_path=auto"]
    assert identity(["a=1", *extras]) == identity(["a=1"])
    assert identity(["ckpt_path=a.ckpt"]) != identity([])


def test_a_run_finds_its_folder_again_whatever_its_number(tmp_path: Path) -> None:
    first, second = begun(tmp_path, 0, "a=1"), begun(tmp_path, 1, "a=2")
    assert (first.name, second.name) == ("0", "1")
    assert begun(tmp_path, 0, "a=2") == second
    assert begun(tmp_path, 7, "a=1", "launcher=ray") == first


def test_a_new_run_takes_no_folder_of_another(tmp_path: Path) -> None:
    for number in range(3):
        begun(tmp_path, number, f"a={number}")
    assert begun(tmp_path, 0, "a=7").name == "3"
    assert begun(tmp_path, 0, "a=7").name == "3"
    (tmp_path / "4").mkdir()
    assert begun(tmp_path, 1, "a=8").name == "5"
    assert Run(tmp_path / "5").claimed == ("a=8",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3", "4", "5"]


def test_runs_that_begin_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    begun(tmp_path, 0, "a=0")
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda i: begun(tmp_path, 0, f"a={i}"), range(1, 33)))
    assert len(set(folders)) == 32
    runs = runs_of(tmp_path)
    assert [run.name for run in runs] == [str(number) for number in range(33)] and runs[0].claimed == ("a=0",)


def test_the_processes_of_one_run_get_the_same_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: begun(tmp_path, 3, "a=1", "b=2"), range(32)))
    assert set(folders) == {tmp_path / "3"}


def test_a_folder_of_hydra_s_alone_is_known_by_what_hydra_wrote(tmp_path: Path) -> None:
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    OmegaConf.save(["a=1", "b=x"], tmp_path / "0" / ".hydra" / "overrides.yaml")
    assert begun(tmp_path, 4, "b=x", "a=1").name == "0"


def looked_at(folder: Path, *overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", [f"sweep_dir={folder}", "seed=1", *overrides], return_hydra_config=True)


def test_looking_at_a_sweep_s_configuration_makes_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    assert looked_at(folder, "hydra.mode=MULTIRUN").hydra.sweep.subdir == "NUMBER"
    assert looked_at(folder, "hydra.mode=MULTIRUN", "hydra.job.num=3").hydra.sweep.subdir == "3"
    assert not folder.exists()
    begun(folder, 0, "seed=1", f"sweep_dir={folder}")
    assert looked_at(folder, "hydra.job.num=3").hydra.sweep.subdir == "0", "the folder that the run has"


def test_a_run_that_begins_claims_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    config = looked_at(tmp_path, "hydra.mode=MULTIRUN", "hydra.job.num=3")
    HydraConfig.instance().set_config(config)  # as Hydra does before it asks for a run's folder
    assert config.hydra.sweep.subdir == "3"
    assert set(Run(tmp_path / "3").claimed) == {"seed=1", f"sweep_dir={tmp_path}"}
