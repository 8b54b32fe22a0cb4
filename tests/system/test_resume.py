"""A run that was killed and goes on ends as one that was not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cmt_aqr.files import read_record
from tests.helpers.commands import ROOT, arguments, environment, finished, resuming, run_line, start
from tests.helpers.ran import assert_same, assert_same_end, checkpoint_of, killed, logged, wait_for_step

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


@pytest.fixture(scope="module")
def unbroken(run_folder: Path) -> Path:
    finished(run_folder, "train", *LONG, "hydra.run.dir=unbroken")
    return run_folder / "unbroken"


# One checkpoint within an epoch, one at an epoch's end: three steps make an epoch.
@pytest.mark.parametrize(("step", "workers"), [(4, 2), (6, 0)])
def test_killed_and_resumed_is_as_if_nothing_had_happened(
    run_folder: Path, unbroken: Path, step: int, workers: int
) -> None:
    run, resumed = run_folder / f"killed{step}", run_folder / f"resumed{step}"
    stopped = killed(run_folder, arguments("train", *LONG, f"hydra.run.dir={run}"), run, step, total=9)
    # Its configuration comes with it, so nothing else has to be given.
    line = resuming(run / "checkpoints" / "last.ckpt", resumed, f"data.num_workers={workers}")
    done = run_line(run_folder, line)
    assert done.returncode == 0, done.stderr
    for key in ("lr-AdamW/transformer", "lr-AdamW/transformer-momentum", "train/loss", "aqr/max_weight_clamp"):
        whole, rest = logged(unbroken, key), logged(resumed, key)
        assert rest and min(rest) >= stopped, key
        assert rest == {at: value for at, value in whole.items() if at in rest}, key
    assert len(logged(resumed, "train/loss")) == 9 - stopped
    assert_same_end(resumed, unbroken)
    here = checkpoint_of(resumed)
    assert here["global_step"] == 9
    assert not [name for name in here["state_dict"] if "clamp" in name]


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 0)])
def test_a_signal_ends_the_run_after_a_checkpoint(
    run_folder: Path, unbroken: Path, number: signal.Signals, workers: int
) -> None:
    """Sent to the whole group of processes, as a terminal and Slurm do; the same command goes on."""
    folder = run_folder / f"stopped_by_{number.name}"
    # No checkpoint but for the one at which the signal is sent, and that which it causes.
    settings = [item for item in LONG if "checkpoint.every_n_steps" not in item]
    settings += ["callbacks.checkpoint.every_n_steps=2", f"data.num_workers={workers}"]
    command = arguments("train", *settings, f"hydra.run.dir={folder}", "ckpt_path=auto")
    process = start(run_folder, command, new_session=True)
    wait_for_step(folder, 2, process)
    os.killpg(process.pid, number)
    _, complaint = process.communicate()
    assert process.returncode == 128 + number, complaint
    assert "Traceback" not in complaint and "stopping after this step" in complaint
    stopped = checkpoint_of(folder)["global_step"]
    assert 2 <= stopped < 9
    last = folder / "checkpoints" / "last.ckpt"
    assert complaint.strip().splitlines()[-1] == (
        f"{number.name}: stopped with {last} of step {stopped}; resume with hydra.run.dir={folder} ckpt_path=auto"
    )
    record = read_record(folder)
    assert record["status"] == "stopped" and record["steps"] == stopped

    done = run_line(run_folder, command)
    assert done.returncode == 0, done.stderr
    assert_same_end(folder, unbroken)
    for key in ("train/loss", "lr-AdamW/transformer", "val/NDS", "aqr/epoch/bev/mean", "aqr/val/bev/mean"):
        assert logged(folder, key) == logged(unbroken, key), key
    record = read_record(folder)
    assert record["status"] == "complete" and record["steps"] == 9


def test_ctrl_c_in_an_evaluation_goes_on_with_the_evaluation(run_folder: Path) -> None:
    """Killed there, too: the checkpoint before it says that it is due."""
    line = ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "logger=csv"]
    finished(run_folder, "train", *line, "hydra.run.dir=evaluations")
    whole, folder = run_folder / "evaluations", run_folder / "evaluations_killed"
    line += [f"hydra.run.dir={folder}", "ckpt_path=auto"]
    # The first checkpoint of all is that before the first evaluation.
    assert killed(run_folder, arguments("train", *line), folder, 3, total=4) == 3
    assert checkpoint_of(folder)["evaluation_due"]
    # As if it had been killed while it wrote.
    (folder / "checkpoints" / "last.ckpt.0.part").write_bytes(b"half")
    finished(run_folder, "train", *line)
    assert_same_end(folder, whole)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert set(logged(whole, "val/NDS")) == {2, 5}
    for key in ("val/NDS", "aqr/epoch/bev/mean", "aqr/val/bev/mean"):
        assert logged(folder, key) == logged(whole, key) != {}, key
    assert_same(*(checkpoint_of(run, "best")["state_dict"] for run in (folder, whole)))


def test_a_run_that_was_killed_in_its_last_evaluation_ends_with_its_best_checkpoint(run_folder: Path) -> None:
    """Nothing is left to train then, only to evaluate."""
    folder = run_folder / "killed_last"
    line = ["trainer.max_steps=2", "logger=csv", f"hydra.run.dir={folder}", "ckpt_path=auto"]
    finished(run_folder, "train", *line)
    for path in (folder / "checkpoints" / "best.ckpt", folder / "metrics.json"):
        path.unlink()
    finished(run_folder, "train", *line)
    assert (folder / "metrics.json").is_file()
    assert_same(*(checkpoint_of(folder, name)["state_dict"] for name in ("best", "last")))


def test_longer_training_within_an_epoch_is_that_of_a_longer_run(run_folder: Path) -> None:
    """With a rate that does not depend on the length; accumulation makes two steps of an epoch's three batches."""
    line = ["optimizer=constant", "optimizer.warmup=0", "trainer.accumulate_grad_batches=2", "logger=csv"]
    line += ["trainer.max_epochs=-1", "callbacks.checkpoint.every_n_steps=1"]
    for steps in (3, 6):
        finished(run_folder, "train", *line, f"trainer.max_steps={steps}", f"hydra.run.dir=for{steps}")
    done = finished(run_folder, "train", *line, "trainer.max_steps=6", "hydra.run.dir=for3", "ckpt_path=auto")
    assert "trainer.max_steps" in done.stdout and "Changed since the checkpoint" in done.stdout
    assert_same_end(run_folder / "for3", run_folder / "for6")
    epochs = logged(run_folder / "for6", "aqr/epoch/bev/mean")
    assert set(epochs) == {1, 3, 5} and logged(run_folder / "for3", "aqr/epoch/bev/mean") == epochs


def test_killed_again_and_again(run_folder: Path) -> None:
    """A short form of what the script is for; its runs are started anew, each with its own hashes and imports."""
    line = [sys.executable, str(ROOT / "scripts" / "kill_test.py")]
    line += ["--kills", "1", "--workers", "2", "--resume-workers", "0", "--folder", "kills"]
    line += ["data.root=data", "data.cache_dir=cache", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=5"]
    done = subprocess.run(
        line, cwd=run_folder, env=environment(), capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kills" in done.stdout and "bit for bit the same" in done.stdout
