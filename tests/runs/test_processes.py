"""Starting, watching and ending the processes of a run."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cmt_aqr.errors import UserError
from cmt_aqr.files import read_record
from cmt_aqr.runs import processes
from cmt_aqr.runs.cluster import outside_environment, starter
from cmt_aqr.runs.processes import Job, Processes, correct_record, processes_to_start
from tests.helpers import process_tasks
from tests.helpers.commands import ROOT


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(processes, "ERROR_SECONDS", 1.0)
    # Looking at what started a process tells Lightning its rank.
    monkeypatch.setattr(rank_zero_only, "rank", getattr(rank_zero_only, "rank", 0))


def run(task: Callable[..., dict[str, float]], folder: Path) -> dict[str, float]:
    config = OmegaConf.create({"offset": 0.5})
    job = Job(f"{task.__module__}.{task.__name__}", config, str(folder), ["a=1"], None, ["train.py"])
    return Processes(job, 2).run()


@pytest.fixture
def children() -> set[psutil.Process]:
    """Processes that other tests left running, loader workers say."""
    return set(psutil.Process().children(recursive=True))


def test_they_meet_and_leave_no_trace(tmp_path: Path, children: set[psutil.Process]) -> None:
    before = dict(os.environ)
    assert run(process_tasks.add_ranks, tmp_path) == {"total": 2.0, "overrides": 1}
    assert dict(os.environ) == before
    assert set(psutil.Process().children(recursive=True)) <= children


def test_an_error_in_one_ends_all_and_is_raised_as_it_was(tmp_path: Path, children: set[psutil.Process]) -> None:
    with pytest.raises(UserError) as raised:
        run(process_tasks.fail_second, tmp_path)
    assert str(raised.value) == "data.root=x: nothing there"
    assert "in process 1:" in raised.value.__notes__[0] and "fail_second" in raised.value.__notes__[0]
    assert set(psutil.Process().children(recursive=True)) <= children


def test_the_killed_one_is_named_and_not_who_missed_it(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(
        json.dumps({"status": "failed", "error": "connection closed", "seed": 3}), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"process 1 of 2 was ended by SIGKILL \(out of memory"):
        run(process_tasks.second_is_killed, tmp_path)
    record = read_record(tmp_path)
    assert record["error"].startswith("process 1 of 2 was ended by SIGKILL") and record["seed"] == 3


def test_only_an_unfinished_record_is_corrected(tmp_path: Path) -> None:
    correct_record(tmp_path, ValueError("none there"))
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "record.json"
    for status, corrected in (("running", True), ("failed", True), ("stopped", False), ("complete", False)):
        path.write_text(json.dumps({"status": status, "error": None}), encoding="utf-8")
        correct_record(tmp_path, RuntimeError("two\nlines"))
        expected = ("failed", "RuntimeError: two lines") if corrected else (status, None)
        assert tuple(read_record(tmp_path).values()) == expected
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def trainer(**settings: object) -> object:
    return OmegaConf.create(
        {"trainer": {"_target_": "pytorch_lightning.Trainer", "accelerator": "cpu", **settings}}
    )


def test_how_many_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def wanted(**settings: object) -> int:
        return processes_to_start(trainer(**settings))  # type: ignore[arg-type]

    assert wanted(devices=1) == 0
    assert wanted(devices=2) == 2
    # One device with ddp: in a process of its own, too, for Lightning would leave its variables behind.
    assert wanted(devices=1, strategy="ddp") == 1
    assert wanted(devices=1, num_nodes=1, strategy="auto") == 0
    with pytest.raises(UserError, match=r"trainer.num_nodes=2: start the command on all machines with torchrun"):
        wanted(devices=2, num_nodes=2)

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for name, value in (("RANK", 1), ("LOCAL_RANK", 1), ("WORLD_SIZE", 2), ("MASTER_PORT", 29500)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert wanted(devices=2) == 0
    with pytest.raises(UserError, match=r"torchrun started 2 processes, but trainer.devices=1 .* makes 1"):
        wanted(devices=1)


def test_srun_counts_with_several_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"JOB_ID": "12345", "JOB_NAME": "train", "PROCID": "1", "LOCALID": "1", "NODELIST": "node[7-8]"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert outside_environment() is None
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("SLURM_NNODES", "2")
    outside = outside_environment()
    assert outside is not None
    found = (outside.global_rank(), outside.world_size(), outside.main_address)
    assert (starter(), *found) == ("srun", 1, 2, "node7")
