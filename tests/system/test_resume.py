"""Runs that were killed, stopped or requeued, and resumed, end as the run that was left alone."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from cmt_aqr.files import read_record
from tests.helpers.commands import (
    BACKBONE,
    ROOT,
    arguments,
    finished,
    resuming,
    run_anew,
    run_line,
    start,
    succeeded,
)
from tests.helpers.ran import (
    assert_same,
    assert_same_end,
    checkpoint_of,
    killed,
    logged,
    metrics_of,
    requeued,
    wait_for_step,
)

pytestmark = pytest.mark.system

LONG = [
    "trainer.max_epochs=4",  # of three steps
    "trainer.check_val_every_n_epoch=2",
    "trainer.log_every_n_steps=1",
    "callbacks.aqr_monitor.every_n_steps=1",
    "+callbacks.learning_rate.log_momentum=true",
    "clamp_schedule=progressive",
    "clamp_schedule.milestones={0:2.5,1:2.0,2:1.5}",
]
EVERY_STEP = "callbacks.checkpoint.every_n_steps=1"
STEPS = 12


@pytest.fixture(scope="module")
def unbroken(run_folder: Path) -> Path:
    finished(run_folder, "train", *LONG, EVERY_STEP, "hydra.run.dir=unbroken")
    return run_folder / "unbroken"


def assert_same_run(resumed: Path, unbroken: Path) -> None:
    """Two runs must end the same, with the same curves."""
    assert_same_end(resumed, unbroken)
    for key in ("train/loss", "lr-AdamW/transformer", "val/NDS", "aqr/epoch/bev/mean", "aqr/val/bev/mean"):
        assert logged(resumed, key) == logged(unbroken, key) != {}, key


def test_killed_twice_and_resumed_in_new_folders(run_folder: Path, unbroken: Path) -> None:
    """Killed within an epoch and at the end of one; the configuration comes with the checkpoint."""
    runs = [run_folder / f"killed{number}" for number in range(3)]
    killed(run_folder, arguments("train", *LONG, EVERY_STEP, f"hydra.run.dir={runs[0]}"), runs[0], 4, STEPS)
    line = resuming(runs[0] / "checkpoints" / "last.ckpt", runs[1], "data.num_workers=2")
    stopped = killed(run_folder, line, runs[1], 6, STEPS)
    line = resuming(runs[1] / "checkpoints" / "last.ckpt", runs[2], "data.num_workers=0")
    succeeded(run_line(run_folder, line))
    for key in ("lr-AdamW/transformer", "lr-AdamW/transformer-momentum", "train/loss", "aqr/max_weight_clamp"):
        curve = logged(runs[2], key)
        assert curve == {step: value for step, value in logged(unbroken, key).items() if step >= stopped} != {}, (
            key
        )
    assert_same_end(runs[2], unbroken)
    end = checkpoint_of(runs[2])
    assert end["global_step"] == STEPS
    assert not [name for name in end["state_dict"] if "clamp" in name]


def test_a_signal_ends_the_run_after_a_checkpoint(run_folder: Path, unbroken: Path) -> None:
    """SIGINT and SIGTERM reach the whole process group, as from a terminal; the same command resumes."""
    folder = run_folder / "stopped"
    line = [*LONG, "callbacks.checkpoint.every_n_steps=2", f"hydra.run.dir={folder}", "ckpt_path=auto"]
    stopped = 0
    for number, workers in ((signal.SIGINT, 2), (signal.SIGTERM, 0)):
        command = arguments("train", *line, f"data.num_workers={workers}")
        process = start(run_folder, command, new_session=True)
        wait_for_step(folder, stopped + 1, process)
        os.killpg(process.pid, number)
        _, printed = process.communicate()
        assert process.returncode == 128 + number, printed
        assert "Traceback" not in printed and "stopping after this step" in printed
        assert stopped < checkpoint_of(folder)["global_step"] < STEPS
        stopped = checkpoint_of(folder)["global_step"]
        assert printed.strip().splitlines()[-1] == (
            f"{number.name}: stopped with {folder / 'checkpoints' / 'last.ckpt'} of step {stopped}; "
            f"resume with hydra.run.dir={folder} ckpt_path=auto"
        )
        record = read_record(folder)
        assert record["status"] == "stopped" and record["steps"] == stopped
    succeeded(run_line(run_folder, command))
    assert_same_run(folder, unbroken)
    record = read_record(folder)
    assert record["status"] == "complete" and record["steps"] == STEPS


def test_a_requeued_job(run_folder: Path, unbroken: Path) -> None:
    line = [*LONG, EVERY_STEP, "data.num_workers=2", "hydra.run.dir=requeued"]
    assert_same_run(requeued(run_folder, line, run_folder / "requeued", STEPS), unbroken)


def test_a_run_killed_in_an_evaluation_resumes_with_the_evaluation(run_folder: Path, unbroken: Path) -> None:
    """The checkpoint before an evaluation records that the evaluation is due."""
    folder = run_folder / "evaluation_killed"
    line = [*LONG, f"hydra.run.dir={folder}", "ckpt_path=auto"]
    # The first checkpoint is that before the first evaluation.
    assert killed(run_folder, arguments("train", *line), folder, 6, total=7) == 6
    assert checkpoint_of(folder)["evaluation_due"]
    # As if the process had been killed while it wrote.
    (folder / "checkpoints" / "last.ckpt.0.part").write_bytes(b"half")
    finished(run_folder, "train", *line)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert set(logged(unbroken, "val/NDS")) == {5, 11}
    assert_same_run(folder, unbroken)
    assert_same(*(checkpoint_of(run, "best")["state_dict"] for run in (folder, unbroken)))


def test_a_run_killed_in_its_last_evaluation_is_evaluated(trained: tuple[Path, str]) -> None:
    folder = shutil.copytree(trained[0], trained[0].with_name("killed_last"))
    for path in (folder / "checkpoints" / "best.ckpt", folder / "metrics.json"):
        path.unlink()
    finished(folder.parent, "train", "trainer.max_steps=2", f"hydra.run.dir={folder}", "ckpt_path=auto")
    assert metrics_of(folder) == metrics_of(trained[0])
    assert_same(*(checkpoint_of(folder, name)["state_dict"] for name in ("best", "last")))


def test_longer_training_within_an_epoch_is_that_of_a_longer_run(run_folder: Path) -> None:
    """With a constant learning rate; accumulation makes two steps of an epoch's three batches."""
    line = ["optimizer=constant", "optimizer.warmup=0", "trainer.accumulate_grad_batches=2", "logger=csv"]
    line += ["trainer.max_epochs=-1", EVERY_STEP]
    for steps in (3, 6):
        finished(run_folder, "train", *line, f"trainer.max_steps={steps}", f"hydra.run.dir=for{steps}")
    done = finished(run_folder, "train", *line, "trainer.max_steps=6", "hydra.run.dir=for3", "ckpt_path=auto")
    assert "trainer.max_steps" in done.stdout and "Changed since the checkpoint" in done.stdout
    assert_same_end(run_folder / "for3", run_folder / "for6")
    epochs = logged(run_folder / "for6", "aqr/epoch/bev/mean")
    assert set(epochs) == {1, 3, 5} and logged(run_folder / "for3", "aqr/epoch/bev/mean") == epochs


def test_the_kill_test(run_folder: Path) -> None:
    """Its runs start in new interpreters, each with its own hash seed. With this seed the kill is halfway."""
    line = [sys.executable, str(ROOT / "scripts" / "kill_test.py"), "--kills", "1", "--seed", "9"]
    line += ["--workers", "2", "--resume-workers", "0", "--folder", "kills"]
    line += ["data.root=data", "data.cache_dir=cache", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=4"]
    done = succeeded(run_anew(run_folder, [*line, BACKBONE]))
    assert "1 kills" in done.stdout and "bit for bit the same" in done.stdout
