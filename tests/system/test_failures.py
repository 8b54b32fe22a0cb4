"""Failures in the middle of a run: one sentence, and the last good checkpoint stays."""

import resource
import shutil
from pathlib import Path

import psutil
import pytest

from cmt_aqr.data.dataset import FrameSampler
from cmt_aqr.files import read_record
from cmt_aqr.runs.sweep_runs import key_values, runs_of
from tests.helpers.commands import arguments, finished, run_command, start
from tests.helpers.parts import poisoned
from tests.helpers.ran import assert_same, checkpoint_of
from tests.helpers.small_data import datamodule

pytestmark = pytest.mark.system

EVERY_STEP = "callbacks.checkpoint.every_n_steps=1"


def token_of_step(step: int, root: Path, cache: Path) -> str:
    """The sample token of the frame at a step of a run with batch size 1 and seed 0."""
    data = datamodule(root, cache)
    data.setup("fit")
    order = [key.frame for key in FrameSampler(3, 1, training=True, seed=0)]
    return data.dataset("train")[order[step]].token


@pytest.mark.parametrize(
    ("column", "problem"), [(7, "the loss is not finite (loss_cls "), (3, "the matching cost")]
)
def test_a_loss_that_is_not_finite_is_named_and_not_saved(
    column: int, problem: str, run_folder: Path, small_root: Path
) -> None:
    token = token_of_step(2, small_root, run_folder / "cache")
    folder = run_folder / f"poisoned{column}"
    line = ["trainer.max_epochs=3", EVERY_STEP, *poisoned(token, column), f"hydra.run.dir={folder}"]
    done = run_command(run_folder, "train", *line)
    assert done.returncode == 1
    last = folder / "checkpoints" / "last.ckpt"
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith(f"error: step 2: {problem}"), error
    assert ("loss_bbox nan" in error) == (column == 7)
    assert f"on frames {token};" in error and "; the boxes " in error and "optimizer.lr" not in error
    assert error.endswith(f"the last good checkpoint is {last}")
    checkpoint = checkpoint_of(folder)
    assert checkpoint["global_step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    record = read_record(folder)
    assert record["status"] == "failed" and f"error: {record['error']}" == error


@pytest.fixture(scope="module")
def two_steps(run_folder: Path) -> Path:
    """A run of two steps to copy and resume."""
    finished(run_folder, "train", EVERY_STEP, "logger=csv", "trainer.max_steps=2", "hydra.run.dir=two_steps")
    return run_folder / "two_steps"


def resumed(folder: Path) -> list[str]:
    """Overrides that resume a copy of that run."""
    return [EVERY_STEP, "logger=csv", f"hydra.run.dir={folder}", "ckpt_path=auto"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(run_folder: Path, two_steps: Path) -> None:
    """A limit on the size of files stands for a full disk, which only an administrator can make."""
    folder = shutil.copytree(two_steps, run_folder / "limited")
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    process = start(run_folder, arguments("train", *resumed(folder), "trainer.max_steps=4"))
    psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
    _, printed = process.communicate()
    assert process.returncode == 1
    last = folder / "checkpoints" / "last.ckpt"
    error = printed.strip().splitlines()[-1]
    assert error.startswith(f"error: the checkpoint {last} could not be written (File too large)"), error
    assert f"{last}, is intact" in error and last.read_bytes() == before
    assert {path.name for path in last.parent.iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    finished(run_folder, "train", *resumed(folder), "trainer.max_steps=4")
    assert checkpoint_of(folder)["global_step"] == 4


def test_a_sweep_completes_what_can_work_and_names_the_reason_of_each_failure(
    run_folder: Path, small_root: Path
) -> None:
    """Weights that are missing, a loss that is not finite, both, and neither."""
    token = token_of_step(1, small_root, run_folder / "cache")
    folder = run_folder / "troubles"
    line = ["-m", "trainer.max_steps=2", EVERY_STEP, *poisoned(f"no_frame,{token}", column=7)]
    done = run_command(run_folder, "train", *line, "weights=null,nowhere.pth", f"sweep_dir={folder}")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "error: 3 of 4 runs failed" in done.stderr
    summary = " ".join(done.stderr.split())
    for run in runs_of(folder):
        values = key_values(run.overrides)
        if values["weights"] != "null":
            expected = "weights=nowhere.pth: there is no such file"
        elif token in values["+data.train_transforms.poison.token"]:
            expected = "step 1: the loss is not finite (loss_cls "
        else:
            assert run.status == "complete"
            continue
        assert run.error is not None and run.error.startswith(expected) and run.error in summary


def test_a_broken_newest_checkpoint_is_skipped(run_folder: Path, two_steps: Path) -> None:
    folder = shutil.copytree(two_steps, run_folder / "broken")
    last, best, previous = (folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "best", "previous"))
    last.write_bytes(last.read_bytes()[:-1000])
    best.unlink()
    done = finished(run_folder, "train", *resumed(folder), "trainer.max_steps=2")
    assert f"ckpt_path={last}: the file is damaged or truncated" in done.stdout
    assert f"resuming from {previous}" in done.stdout
    assert checkpoint_of(folder)["global_step"] == 2
    assert_same(*(checkpoint_of(run)["state_dict"] for run in (folder, two_steps)))
