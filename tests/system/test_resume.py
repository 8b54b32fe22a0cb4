"""A run that was killed and goes on ends as one that was not."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt_aqr.files import read_record
from cmt_aqr.runs.checkpoints import read_checkpoint
from tests.helpers.commands import ROOT, arguments, environment, run_command

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
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8") as file:
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
@pytest.mark.parametrize(("step", "workers"), [(4, 2), (6, 0)])
def test_killed_and_resumed_is_as_if_nothing_had_happened(
    run_folder: Path, unbroken: Path, step: int, workers: int
) -> None:
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
        [*arguments("train")[:2], f"ckpt_path={last}", f"hydra.run.dir={resumed}", f"data.num_workers={workers}"],
        cwd=run_folder,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr

    for key in ("lr-AdamW/transformer", "lr-AdamW/transformer-momentum", "train/loss", "aqr/max_weight_clamp"):
        whole, rest = logged(unbroken, key), logged(resumed, key)
        assert rest and min(rest) >= stopped, key
        assert rest == {at: value for at, value in whole.items() if at in rest}, key
    assert len(logged(resumed, "train/loss")) == 9 - stopped

    assert_same_end(resumed, unbroken)
    here = read_checkpoint(resumed / "checkpoints" / "last.ckpt")
    assert here["global_step"] == 9
    assert not [name for name in here["state_dict"] if "clamp" in name]


def assert_same_end(resumed: Path, unbroken: Path) -> None:
    """Weights, optimiser, schedule and metrics."""
    there, here = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (unbroken, resumed))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_same(here[part], there[part], part)
    for name in ("metrics.json", "map_statistics.json"):
        assert (resumed / name).read_text(encoding="utf-8") == (unbroken / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 0)])
def test_a_signal_ends_the_run_after_a_checkpoint(
    run_folder: Path, unbroken: Path, number: signal.Signals, workers: int
) -> None:
    """Sent to the whole group of processes, as a terminal and Slurm do; the same command goes on."""
    folder = run_folder / f"stopped_by_{number.name}"
    # No checkpoint but for the one at which the signal is sent, and that which it causes.
    settings = [item for item in LONG if "checkpoint.every_n_steps" not in item]
    command = arguments(
        "train",
        *settings,
        "callbacks.checkpoint.every_n_steps=2",
        f"data.num_workers={workers}",
        f"hydra.run.dir={folder}",
        "ckpt_path=auto",
    )

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=run_folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )

    process = start()
    wait_for_step(folder / "checkpoints" / "last.ckpt", 2, process)
    os.killpg(process.pid, number)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 128 + number, complaint
    assert "Traceback" not in complaint and "stopping after this step" in complaint
    last = folder / "checkpoints" / "last.ckpt"
    stopped = read_checkpoint(last)["global_step"]
    assert 2 <= stopped < 9
    line = complaint.strip().splitlines()[-1]
    assert line == (
        f"{number.name}: stopped with {last} of step {stopped}; resume with hydra.run.dir={folder} ckpt_path=auto"
    )
    record = read_record(folder)
    assert record["status"] == "stopped" and record["steps"] == stopped

    process = start()
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    assert_same_end(folder, unbroken)
    for key in ("train/loss", "lr-AdamW/transformer", "val/NDS", "aqr/epoch/bev/mean", "aqr/val/bev/mean"):
        assert logged(folder, key) == logged(unbroken, key), key
    record = read_record(folder)
    assert record["status"] == "complete" and record["steps"] == 9


def test_ctrl_c_in_an_evaluation_goes_on_with_the_evaluation(run_folder: Path) -> None:
    """Killed there, too: the checkpoint before it says that it is due."""
    line = ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "logger=csv"]
    done = run_command(run_folder, "train", *line, "hydra.run.dir=evaluations")
    assert done.returncode == 0, done.stderr
    folder = run_folder / "evaluations_killed"
    command = arguments("train", *line, f"hydra.run.dir={folder}", "ckpt_path=auto")
    with (run_folder / "evaluations.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=run_folder, env=environment(), stdout=log, stderr=log)
        last = folder / "checkpoints" / "last.ckpt"
        # The first checkpoint of all is that before the first evaluation.
        wait_for_step(last, 3, process)
        process.kill()
        process.wait()
    checkpoint = read_checkpoint(last)
    assert checkpoint["evaluation_due"] and checkpoint["global_step"] == 3
    # As if it had been killed while it wrote.
    last.with_name("last.ckpt.0.part").write_bytes(b"half")
    done = run_command(run_folder, "train", *line, f"hydra.run.dir={folder}", "ckpt_path=auto")
    assert done.returncode == 0, done.stderr
    assert_same_end(folder, run_folder / "evaluations")
    whole = logged(run_folder / "evaluations", "val/NDS")
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert set(whole) == {2, 5} and logged(folder, "val/NDS") == whole
    for key in ("aqr/epoch/bev/mean", "aqr/val/bev/mean"):
        assert logged(folder, key) == logged(run_folder / "evaluations", key) != {}, key
    bests = [
        read_checkpoint(run_folder / name / "checkpoints" / "best.ckpt") for name in ("evaluations", folder.name)
    ]
    assert_same(bests[0]["state_dict"], bests[1]["state_dict"])


def test_a_run_that_was_killed_in_its_last_evaluation_ends_with_its_best_checkpoint(run_folder: Path) -> None:
    """Nothing is left to train then, only to evaluate."""
    folder = run_folder / "killed_last"
    line = ["trainer.max_steps=2", "logger=csv", f"hydra.run.dir={folder}", "ckpt_path=auto"]
    done = run_command(run_folder, "train", *line)
    assert done.returncode == 0, done.stderr
    best = folder / "checkpoints" / "best.ckpt"
    for path in (best, folder / "metrics.json"):
        path.unlink()
    done = run_command(run_folder, "train", *line)
    assert done.returncode == 0, done.stderr
    assert (folder / "metrics.json").is_file()
    assert_same(read_checkpoint(best)["state_dict"], read_checkpoint(best.with_name("last.ckpt"))["state_dict"])


def test_longer_training_within_an_epoch_is_that_of_a_longer_run(run_folder: Path) -> None:
    """With a rate that does not depend on the length; accumulation makes two steps of an epoch's three batches."""
    line = ["optimizer=constant", "optimizer.warmup=0", "trainer.accumulate_grad_batches=2", "logger=csv"]
    line += ["trainer.max_epochs=-1", "callbacks.checkpoint.every_n_steps=1"]
    for steps in (3, 6):
        done = run_command(run_folder, "train", *line, f"trainer.max_steps={steps}", f"hydra.run.dir=for{steps}")
        assert done.returncode == 0, done.stderr
    done = run_command(run_folder, "train", *line, "trainer.max_steps=6", "hydra.run.dir=for3", "ckpt_path=auto")
    assert done.returncode == 0, done.stderr
    assert "trainer.max_steps" in done.stdout and "Changed since the checkpoint" in done.stdout
    assert_same_end(run_folder / "for3", run_folder / "for6")
    epochs = logged(run_folder / "for6", "aqr/epoch/bev/mean")
    assert set(epochs) == {1, 3, 5} and logged(run_folder / "for3", "aqr/epoch/bev/mean") == epochs


def test_killed_again_and_again(run_folder: Path) -> None:
    """A short form of what the script is for."""
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts" / "kill_test.py"),
            *("--kills", "2", "--workers", "2", "--resume-workers", "0", "--folder", "kills"),
            *("data.root=data", "data.cache_dir=cache", "trainer.accumulate_grad_batches=2"),
        ],
        cwd=run_folder,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills" in done.stdout and "bit for bit the same" in done.stdout
