"""Reading and comparing the folders of runs; killing runs at a step."""

import contextlib
import csv
import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cmt_aqr.files import read_record
from cmt_aqr.runs.checkpoints import read_checkpoint
from tests.helpers.commands import arguments, run_line, start, succeeded
from tests.helpers.forked import ROOT, TIMEOUT, Forked
from tests.helpers.requeued_job import REQUEUED


def from_json(path: Path) -> Any:
    """The contents of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def metrics_of(folder: Path) -> dict[str, float]:
    """The metrics of a run or an evaluation."""
    return from_json(folder / "metrics.json")


def checkpoint_of(folder: Path, name: str = "last") -> dict[str, Any]:
    """A checkpoint of a run by its name."""
    return read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")


def logged(folder: Path, key: str) -> dict[int, float]:
    """Logged values of a key by step."""
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        return {int(row["step"]): float(row[key]) for row in csv.DictReader(file) if row.get(key)}


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Both must be equal bit for bit."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for number, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    else:
        assert left == right, where


def assert_same_end(resumed: Path, unbroken: Path, *more: str) -> None:
    """Two runs must end with the same weights, optimiser, schedule, step, metrics and map statistics.

    ``more`` names further parts of the checkpoint.
    """
    checkpoints = [checkpoint_of(run) for run in (resumed, unbroken)]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", *more):
        assert_same(*(checkpoint.get(part) for checkpoint in checkpoints), part)
    assert metrics_of(resumed) == metrics_of(unbroken)
    maps = [folder / "map_statistics.json" for folder in (resumed, unbroken)]
    if maps[1].is_file():
        assert maps[0].read_bytes() == maps[1].read_bytes()


def wait_for_step(run: Path, step: int, process: Forked) -> None:
    """Wait until ``last.ckpt``, which is replaced atomically, is of that step or a later one."""
    last = run / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        assert process.poll() is None, ("the run ended before it could be stopped", process.communicate())
        if last.is_file() and read_checkpoint(last)["global_step"] >= step:
            return
        time.sleep(0.02)
    pytest.fail(f"no step {step} in time")


def killed(folder: Path, line: list[str], run: Path, step: int, total: int) -> int:
    """Start a command and kill it after a step; returns the step of its checkpoint, which is below ``total``."""
    process = start(folder, line)
    try:
        wait_for_step(run, step, process)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    stopped = checkpoint_of(run)["global_step"]
    assert step <= stopped < total
    return stopped


def requeued(folder: Path, overrides: list[str], run: Path, total: int) -> Path:
    """Warn a job of a training after two steps as Slurm does, run the requeued job to its end; returns the run."""
    queue = run.with_suffix(".queue")
    python, *line = arguments("train", *overrides)
    job = [python, str(ROOT / "tests" / "helpers" / "requeued_job.py"), str(queue), *line]
    process = start(folder, job)
    wait_for_step(run, 2, process)
    _warn(process.pid, signal.SIGTERM)  # comes first where a job is preempted
    time.sleep(0.1)
    assert process.poll() is None
    _warn(process.pid, signal.SIGUSR2)
    printed = "".join(process.communicate())
    assert process.returncode == REQUEUED, printed
    assert queue.read_text(encoding="utf-8") == "requeued\n", "only the job itself is requeued, once"
    assert read_record(run)["status"] == "stopped" and "Traceback" not in printed
    assert 2 <= checkpoint_of(run)["global_step"] < total
    succeeded(run_line(folder, [*job, "ckpt_path=auto"]))
    return run


def _warn(job: int, number: signal.Signals) -> None:
    """Send a signal to all processes of a job, loader workers included, as Slurm does."""
    for process in [psutil.Process(job), *psutil.Process(job).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
