"""A job whose time is up is warned, writes a checkpoint, is queued again, and ends as one that nobody stopped."""

import contextlib
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from cmt_aqr.files import read_record
from tests.helpers.commands import PAIR, ROOT, arguments, environment, finished, run_command, run_line, start
from tests.helpers.ran import assert_same_end, checkpoint_of, logged, wait_for_step
from tests.helpers.requeued_job import REQUEUED
from tests.helpers.slurm import SLURM, needs_slurm
from tests.system.test_resume import LONG

pytestmark = pytest.mark.system

JOB = ROOT / "tests" / "helpers" / "requeued_job.py"
GIVEN = {1: [*LONG, "trainer.max_epochs=4"], 2: [*LONG, *PAIR, "trainer.max_epochs=4"]}
"""Overrides for a number of processes."""


@pytest.mark.parametrize(("workers", "devices"), [(2, 1), (1, 2)])
def test_a_warned_job_is_queued_again_and_ends_as_if_it_had_not_been(
    run_folder: Path, workers: int, devices: int
) -> None:
    unbroken = run_folder / f"whole{devices}"
    if not unbroken.exists():
        finished(run_folder, "train", *GIVEN[devices], f"hydra.run.dir={unbroken}")
    run, queue = (run_folder / f"{name}{workers}{devices}" for name in ("warned", "queue"))
    python, *line = arguments("train", *GIVEN[devices], f"data.num_workers={workers}", f"hydra.run.dir={run}")
    job = [python, str(JOB), str(queue), *line]
    process = start(run_folder, job)
    wait_for_step(run, 2, process)
    warn(process.pid, signal.SIGTERM)  # comes first where a job is preempted
    time.sleep(0.1)
    assert process.poll() is None
    warn(process.pid, signal.SIGUSR2)
    told = "".join(process.communicate())
    assert process.returncode == REQUEUED, told
    assert queue.read_text(encoding="utf-8") == "requeued\n", "only the job itself goes back into the queue, once"
    assert read_record(run)["status"] == "stopped" and "Traceback" not in told
    assert 2 <= checkpoint_of(run)["global_step"] < 12

    done = run_line(run_folder, [*job, "ckpt_path=auto"])
    assert done.returncode == 0, done.stderr
    assert logged(run, "train/loss") == logged(unbroken, "train/loss")
    assert_same_end(run, unbroken)


def warn(job: int, number: signal.Signals) -> None:
    """A signal to a job's processes, loader workers included, as Slurm sends it."""
    for one in [psutil.Process(job), *psutil.Process(job).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(number)


@needs_slurm
def test_what_slurm_refuses_is_one_sentence(run_folder: Path) -> None:
    done = run_command(run_folder, "train", "-m", "seed=0,1", *SLURM, "hydra.launcher.partition=none")
    assert done.returncode != 0
    assert "error: launcher=slurm: sbatch refused the jobs" in done.stderr and "Traceback" not in done.stderr


@needs_slurm
def test_on_slurm_runs_longer_than_the_limit_complete_and_the_command_waits(run_folder: Path) -> None:
    long = [*LONG, "trainer.max_epochs=40", "trainer.check_val_every_n_epoch=40"]
    slow = "+callbacks.slow={_target_: tests.helpers.slow.Slow, seconds: 0.4}"
    line = arguments("train", "-m", *long, slow, "data.num_workers=0,1", *SLURM, "sweep_dir=slurm")
    done = subprocess.run(
        line,
        cwd=run_folder,
        env=environment(),
        capture_output=True,
        check=False,
        timeout=850,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sacct" not in done.stdout + done.stderr
    for number in (0, 1):
        run = run_folder / "slurm" / str(number)
        assert read_record(run)["status"] == "complete"
        (log,) = (run_folder / "slurm" / ".submitit").glob(f"*_{number}/*_log.err")
        assert "Caught signal SIGUSR2" in log.read_text(encoding="utf-8")
        whole = f"whole_on_slurm{number}"
        finished(run_folder, "train", *long, f"data.num_workers={number}", f"hydra.run.dir={whole}")
        assert logged(run, "train/loss") == logged(run_folder / whole, "train/loss")
