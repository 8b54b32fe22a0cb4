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
    # Lightning's environments set the rank as they are created.
    monkeypatch.setattr(rank_zero_only, "rank", getattr(rank_zero_only, "rank", 0))


def run(task: Callable[..., dict[str, float]], folder: Path) -> dict[str, float]:
    config = OmegaConf.create({"offset": 0.5})
    job = Job(f"{task.__module__}.{task.__name__}", config, str(folder), ["a=1"], None, ["train.py"])
    return Processes(job, 2).run()


@pytest.fixture
def children() -> set[psutil.Process]:
    """Processes that other tests left running, such as loader workers."""
    return set(psutil.Process().children(recursive=True))


def test_processes_meet_and_leave_no_trace(tmp_path: Path, children: set[psutil.Process]) -> None:
    before = dict(os.environ)
    assert run(process_tasks.sum_ranks, tmp_path) == {"total": 2.0, "overrides": 1}
    assert dict(os.environ) == before
    assert set(psutil.Process().children(recursive=True)) <= children


def test_an_error_in_one_ends_all_and_is_raised(tmp_path: Path, children: set[psutil.Process]) -> None:
    with pytest.raises(UserError) as raised:
        run(process_tasks.fail_second, tmp_path)
    assert str(raised.value) == "data.root=x: nothing there"
    assert "in process 1:" in raised.value.__notes__[0] and "fail_second" in raised.value.__notes__[0]
    assert set(psutil.Process().children(recursive=True)) <= children


def test_a_killed_process_is_named_rather_than_one_that_failed_because_of_it(tmp_path: Path) -> None:
    record = {"status": "failed", "error": "connection closed", "seed": 3}
    (tmp_path / "record.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=r"process 1 of 2 was ended by SIGKILL \(out of memory"):
        run(process_tasks.second_is_killed, tmp_path)
    record = read_record(tmp_path)
    assert record["error"].startswith("process 1 of 2 was ended by SIGKILL") and record["seed"] == 3


def test_only_an_unfinished_record_is_corrected(tmp_path: Path) -> None:
    correct_record(tmp_path, ValueError("no record"))
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "record.json"
    for status, corrected in (("running", True), ("failed", True), ("stopped", False), ("complete", False)):
        path.write_text(json.dumps({"status": status, "error": None}), encoding="utf-8")
        correct_record(tmp_path, RuntimeError("two\nlines"))
        expected = ("failed", "RuntimeError: two lines") if corrected else (status, None)
        assert tuple(read_record(tmp_path).values()) == expected


def test_how_many_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(**settings: object) -> int:
        target = {"_target_": "pytorch_lightning.Trainer", "accelerator": "cpu"}
        return processes_to_start(OmegaConf.create({"trainer": {**target, **settings}}))

    assert count(devices=1) == 0
    assert count(devices=2) == 2
    # One device with ddp gets its own process, too, because Lightning would leave its variables behind.
    assert count(devices=1, strategy="ddp") == 1
    assert count(devices=1, num_nodes=1, strategy="auto") == 0
    with pytest.raises(UserError, match=r"trainer.num_nodes=2: start the command on all machines with torchrun"):
        count(devices=2, num_nodes=2)

    variables = {"TORCHELASTIC_RUN_ID": "none", "RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2}
    for name, value in {**variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}.items():
        monkeypatch.setenv(name, str(value))
    assert count(devices=2) == 0
    with pytest.raises(UserError, match=r"torchrun started 2 processes, but trainer.devices=1 .* makes 1"):
        count(devices=1)


def test_srun_counts_only_with_several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"JOB_ID": "12345", "JOB_NAME": "train", "PROCID": "1", "LOCALID": "1", "NODELIST": "node[7-8]"}
    for name, value in {**variables, "NTASKS": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert outside_environment() is None
    for name, value in {"NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    outside = outside_environment()
    assert outside is not None and starter() == "srun"
    assert (outside.global_rank(), outside.world_size(), outside.main_address) == (1, 2, "node7")
