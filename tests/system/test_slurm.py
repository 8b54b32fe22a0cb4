"""On a real Slurm: ``sudo bash tests/system/slurm_here.sh`` starts one of one node."""

import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from cmt_aqr.files import read_record
from tests.helpers.commands import arguments, finished, run_anew, run_command, succeeded
from tests.helpers.ran import logged
from tests.system.test_resume import EVERY_STEP, LONG
from tests.system.test_robustness import without

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode != 0,
        reason="no Slurm here: sudo bash tests/system/slurm_here.sh",
    ),
]

SLURM = [
    "launcher=slurm",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=4",
    "hydra.launcher.timeout_min=2",
    "hydra.launcher.signal_delay_s=60",
]


def test_what_slurm_refuses_is_one_sentence(run_folder: Path) -> None:
    done = run_command(run_folder, "train", "-m", "seed=0,1", *SLURM, "hydra.launcher.partition=none")
    assert done.returncode != 0
    assert "error: launcher=slurm: sbatch refused the jobs" in done.stderr and "Traceback" not in done.stderr


def test_runs_longer_than_the_time_limit_complete_and_the_command_waits(run_folder: Path) -> None:
    long = [*LONG, EVERY_STEP, "trainer.max_epochs=40", "trainer.check_val_every_n_epoch=40"]
    slow = "+callbacks.slow={_target_: tests.helpers.parts.Slow, seconds: 0.4}"
    line = arguments("train", "-m", *long, slow, "data.num_workers=0,1", *SLURM, "sweep_dir=slurm")
    done = succeeded(run_anew(run_folder, line, timeout=850))
    assert "sacct" not in done.stdout + done.stderr
    for number in (0, 1):
        run = run_folder / "slurm" / str(number)
        assert read_record(run)["status"] == "complete"
        (log,) = (run_folder / "slurm" / ".submitit").glob(f"*_{number}/*_log.err")
        assert "Caught signal SIGUSR2" in log.read_text(encoding="utf-8")
        unbroken = f"unbroken{number}"
        finished(run_folder, "train", *long, f"data.num_workers={number}", f"hydra.run.dir={unbroken}")
        assert logged(run, "train/loss") == logged(run_folder / unbroken, "train/loss")


def test_parts_of_a_suite_are_jobs_that_share_a_folder(run_folder: Path, trained: tuple[Path, str]) -> None:
    suite = [f"ckpt_path={trained[0]}", "suite=mome", "out=suite", *without("object_failure", "view_drop")]
    jobs = ["-m", "part=1/2,2/2", *SLURM, "hydra.launcher.timeout_min=10"]
    done = succeeded(run_anew(run_folder, arguments("robustness", *suite, *jobs)))
    assert "2 parts are done" in done.stdout
    table = pd.read_csv(run_folder / "suite" / "mome.csv")
    assert sorted(table.condition) == ["clean", "fov60", "lidar_drop"]
    assert (run_folder / "suite" / "robustness.html").exists()
