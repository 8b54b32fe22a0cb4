"""What a command left in its run's folder, and whether two runs are the same; commands that are killed."""

import csv
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt_aqr.runs.checkpoints import read_checkpoint
from tests.helpers.commands import start
from tests.helpers.forked import TIMEOUT, Forked


def from_json(path: Path) -> Any:
    """What a JSON file holds; it must be there."""
    return json.loads(path.read_text(encoding="utf-8"))


def metrics_of(folder: Path) -> dict[str, float]:
    """The metrics that a run or an evaluation wrote."""
    return from_json(folder / "metrics.json")


def checkpoint_of(folder: Path, name: str = "last") -> dict[str, Any]:
    """A checkpoint of a run."""
    return read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")


def logged(folder: Path, key: str) -> dict[int, float]:
    """Values of a key by step."""
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        return {int(row["step"]): float(row[key]) for row in csv.DictReader(file) if row.get(key)}


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Equal bit for bit."""
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
    """Weights, optimiser, schedule, position, metrics and maps; ``more`` parts of the checkpoint besides."""
    here, there = checkpoint_of(resumed), checkpoint_of(unbroken)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", *more):
        assert_same(here.get(part), there.get(part), part)
    assert metrics_of(resumed) == metrics_of(unbroken)
    maps = [folder / "map_statistics.json" for folder in (resumed, unbroken)]
    if maps[1].is_file():
        assert maps[0].read_bytes() == maps[1].read_bytes()


def wait_for_step(run: Path, step: int, process: Forked) -> None:
    """Until a run's checkpoint of that step or a later one is there: it is replaced at once, as a whole."""
    last = run / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        assert process.poll() is None, ("the run ended before it could be stopped", process.communicate())
        if last.is_file() and read_checkpoint(last)["global_step"] >= step:
            return
        time.sleep(0.02)
    pytest.fail(f"no step {step} in time")


def killed(folder: Path, line: Sequence[str], run: Path, step: int, total: int) -> int:
    """Start a command, kill it after a step, and give the step of the checkpoint that it left, below ``total``."""
    process = start(folder, list(line))
    try:
        wait_for_step(run, step, process)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    stopped = checkpoint_of(run)["global_step"]
    assert step <= stopped < total
    return stopped
