"""Which folder a run of a sweep gets."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.runs.folder import Run
from cmt_aqr.runs.sweep_runs import identity, run_folder, runs_of
from tests.helpers.composed import CONF


def claimed(sweep: Path, number: int, *overrides: str) -> Path:
    return sweep / run_folder(str(sweep), number, overrides)


def test_overrides_in_any_order_and_spelling_identify_a_run() -> None:
    overrides = ["a=[1,2]", "b=1e-4", "c='x'"]
    assert identity(overrides) == identity(["b=0.0001", "c='x'", "a=[1, 2]"])
    assert identity(overrides) != identity(["a=[1,2]", "b=1e-3", "c='x'"])
    assert identity(["a=1"]) != identity(["+a=1"]) and identity(["a=1", "a=2"]) == identity(["a=2"])
    start = ["sweep=presets", "launcher=joblib", "sweep_dir=x", "ckpt_path=auto"]
    assert identity(["a=1", *start]) == identity(["a=1"])
    assert identity(["ckpt_path=a.ckpt"]) != identity([])


def test_a_run_finds_its_folder_again_under_any_number(tmp_path: Path) -> None:
    first, second = claimed(tmp_path, 0, "a=1"), claimed(tmp_path, 1, "a=2")
    assert (first.name, second.name) == ("0", "1")
    assert claimed(tmp_path, 0, "a=2") == second
    assert claimed(tmp_path, 7, "a=1", "launcher=ray") == first


def test_a_new_run_takes_no_folder_of_another(tmp_path: Path) -> None:
    for number in range(3):
        claimed(tmp_path, number, f"a={number}")
    assert claimed(tmp_path, 0, "a=7").name == "3"
    assert claimed(tmp_path, 0, "a=7").name == "3"
    (tmp_path / "4").mkdir()
    assert claimed(tmp_path, 1, "a=8").name == "5"
    assert Run(tmp_path / "5").claimed == ("a=8",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3", "4", "5"]


def test_concurrent_runs_get_different_folders_and_processes_of_one_run_the_same(tmp_path: Path) -> None:
    claimed(tmp_path, 0, "a=0")
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda i: claimed(tmp_path, 0, f"a={i}"), range(1, 33)))
        assert len(set(folders)) == 32
        runs = runs_of(tmp_path)
        assert [run.name for run in runs] == [str(number) for number in range(33)]
        assert runs[0].claimed == ("a=0",)
        folders = list(pool.map(lambda _: claimed(tmp_path, 3, "a=1", "b=2"), range(32)))
    assert set(folders) == {tmp_path / "33"}


def test_a_folder_that_only_hydra_wrote_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    OmegaConf.save(["a=1", "b=x"], tmp_path / "0" / ".hydra" / "overrides.yaml")
    assert claimed(tmp_path, 4, "b=x", "a=1").name == "0"


def sweep_config(folder: Path, *overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", [f"sweep_dir={folder}", "seed=1", *overrides], return_hydra_config=True)


def test_only_a_run_that_starts_claims_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    folder = tmp_path / "sweep"
    assert sweep_config(folder, "hydra.mode=MULTIRUN").hydra.sweep.subdir == "NUMBER"
    config = sweep_config(folder, "hydra.mode=MULTIRUN", "hydra.job.num=3")
    assert config.hydra.sweep.subdir == "3" and not folder.exists()
    HydraConfig.instance().set_config(config)  # as Hydra does before it resolves a run's folder
    assert config.hydra.sweep.subdir == "3"
    assert set(Run(folder / "3").claimed) == {"seed=1", f"sweep_dir={folder}"}
    HydraConfig.instance().cfg = None
    assert sweep_config(folder, "hydra.job.num=0").hydra.sweep.subdir == "3", "its existing folder"
