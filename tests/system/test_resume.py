"""A run that was killed and goes on ends as one that was not."""

import csv
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt_aqr.training.checkpoints import read_checkpoint
from tests.system.commands import arguments, environment, run_command

pytestmark = pytest.mark.system

LONG = [
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=1",
    "callbacks.checkpoint.every_n_steps=1",
    "callbacks.aqr_monitor.every_n_steps=1",
    "+callbacks.learning_rate.log_momentum=true",
    "clamp_schedule=progressive",
    "clamp_schedule.milestones={0:2.5,1:2.0,2:1.5}",
]


def logged(folder: Path, key: str) -> dict[int, float]:
    """Values of a key by step."""
    with (folder / "csv" / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[key]) for row in csv.DictReader(file) if row.get(key)}


def wait_for_step(path: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Until a checkpoint of that step or a later one is there. Replacing it is atomic, so reading is safe."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        if path.is_file() and read_checkpoint(path)["global_step"] >= step:
            return
        time.sleep(0.02)
    pytest.fail(f"no step {step} after two minutes")


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


@pytest.fixture(scope="module")
def unbroken(run_folder: Path) -> Path:
    done = run_command(run_folder, "train", *LONG, "hydra.run.dir=unbroken")
    assert done.returncode == 0, done.stderr
    return run_folder / "unbroken"


# One checkpoint within an epoch, one at an epoch's end: three steps make an epoch.
@pytest.mark.parametrize("step", [4, 6])
def test_killed_and_resumed_is_as_if_nothing_had_happened(run_folder: Path, unbroken: Path, step: int) -> None:
    killed = run_folder / f"killed{step}"
    command = arguments("train", *LONG, f"hydra.run.dir={killed}")
    with (run_folder / "killed.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=run_folder, env=environment(), stdout=log, stderr=log)
        try:
            wait_for_step(killed / "checkpoints" / "last.ckpt", step, process)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL
    last = killed / "checkpoints" / "last.ckpt"
    stopped = read_checkpoint(last)["global_step"]
    assert step <= stopped < 9
    # Its configuration comes with it, so nothing else has to be given.
    resumed = run_folder / f"resumed{step}"
    done = subprocess.run(
        [arguments("train")[0], arguments("train")[1], f"ckpt_path={last}", f"hydra.run.dir={resumed}"],
        cwd=run_folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    for key in ("lr-AdamW/transformer", "lr-AdamW/transformer-momentum", "train/loss", "aqr/max_weight_clamp"):
        whole, rest = logged(unbroken, key), logged(resumed, key)
        assert rest and min(rest) >= stopped, key
        assert rest == {at: value for at, value in whole.items() if at in rest}, key
    assert len(logged(resumed, "train/loss")) == 9 - stopped

    there = read_checkpoint(unbroken / "checkpoints" / "last.ckpt")
    here = read_checkpoint(resumed / "checkpoints" / "last.ckpt")
    assert here["global_step"] == there["global_step"] == 9
    assert float(here["state_dict"]["model.aqr.renderer.clamp_limit"]) == 1.5
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(here[part], there[part], part)
    for name in ("metrics.json", "map_statistics.json"):
        assert (resumed / name).read_text() == (unbroken / name).read_text(), name
