"""What all commands share."""

import os
import warnings
from pathlib import Path

import pytest
from lightning_fabric.plugins.environments import SLURMEnvironment
from omegaconf import OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cmt_aqr.errors import UserError
from cmt_aqr.runs.command import check_paths, hide_noise, join_first_process


@pytest.mark.parametrize("job", [None, "1234"])
def test_srun_is_mentioned_only_in_slurm_jobs(
    job: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Lightning warns on every machine with Slurm that srun is not used."""
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hide_noise()
        SLURMEnvironment.detect()
    assert ["srun" in str(warning.message) for warning in caught] == ([] if job is None else [True])


def test_paths_are_strings_with_the_home_folder_expanded() -> None:
    config = OmegaConf.create({"weights": ["~/x.pth"], "out": None, "data": {"root": 2024}, "name": "~/kept"})
    check_paths(config)
    home = str(Path.home())
    assert config == {"weights": [f"{home}/x.pth"], "out": None, "data": {"root": "2024"}, "name": "~/kept"}
    check_paths(OmegaConf.create({"target": "???"}))


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}, True, 1.5, ""])
def test_a_value_that_is_no_path_is_refused(value: object) -> None:
    for key in ("target", "data.cache_dir"):
        config = OmegaConf.create({})
        OmegaConf.update(config, key, value)
        with pytest.raises(UserError, match=f"{key}=.*must be a path"):
            check_paths(config)


def test_only_some_commands_take_a_list_of_paths() -> None:
    config = OmegaConf.create({"ckpt_path": ["a", "~/b"], "data": {"root": "x"}})
    with pytest.raises(UserError, match="ckpt_path="):
        check_paths(config)
    check_paths(config, ["ckpt_path"])
    assert config.ckpt_path == ["a", str(Path("~/b").expanduser())]


@pytest.mark.parametrize("sweep", ["-m", "sweep=presets"])
def test_a_sweep_is_not_started_by_torchrun(sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(rank_zero_only, "rank", getattr(rank_zero_only, "rank", 0))
    with pytest.raises(UserError, match=f"{sweep} does not go with torchrun"):
        join_first_process(["train.py", sweep])
