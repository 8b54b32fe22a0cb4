"""What goes wrong in the middle of a run: one sentence, and the last good checkpoint stays."""

import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from cmt_aqr.data.dataset import FrameSampler
from cmt_aqr.files import read_record
from cmt_aqr.runs.checkpoints import read_checkpoint
from cmt_aqr.runs.sweep_runs import key_values, runs_of
from tests.helpers.commands import arguments, environment, run_command
from tests.helpers.poison import poisoned
from tests.helpers.small_data import datamodule

pytestmark = pytest.mark.system


def token_of_step(step: int, root: Path, cache: Path) -> str:
    """The frame that a run of batch 1 and seed 0 takes at a step."""
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
    done = run_command(
        run_folder,
        "train",
        "trainer.max_epochs=3",
        "callbacks.checkpoint.every_n_steps=1",
        *poisoned(token, column),
        f"hydra.run.dir={folder}",
    )
    assert done.returncode == 1
    last = folder / "checkpoints" / "last.ckpt"
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"error: step 2: {problem}"), said
    assert ("loss_bbox nan" in said) == (column == 7) and f"on frames {token};" in said and "; the boxes " in said
    assert "optimizer.lr" not in said
    assert said.endswith(f"the last good checkpoint is {last}")
    checkpoint = read_checkpoint(last)
    assert checkpoint["global_step"] == 2
    assert all(value.isfinite().all() for name, value in checkpoint["state_dict"].items() if "clamp" not in name)
    record = read_record(folder)
    assert record["status"] == "failed" and f"error: {record['error']}" == said


def after_two_steps(run_folder: Path, folder: Path) -> tuple[list[str], Path]:
    """Train two steps in ``folder``; the overrides to go on with, but for the number of steps, and last.ckpt."""
    line = ["callbacks.checkpoint.every_n_steps=1", f"hydra.run.dir={folder}", "ckpt_path=auto", "logger=csv"]
    done = run_command(run_folder, "train", *line, "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    return line, folder / "checkpoints" / "last.ckpt"


def assert_no_room(done: subprocess.CompletedProcess[str], last: Path, before: bytes, reason: str) -> None:
    """One sentence with the reason, and the checkpoint as it was."""
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"error: the checkpoint {last} could not be written ({reason}"), said
    assert f"{last}, is intact" in said
    assert last.read_bytes() == before


def test_no_room_for_a_checkpoint_leaves_the_one_before(run_folder: Path) -> None:
    """A limit on the size of files stands for a full disk, which takes a mount and so an administrator."""
    folder = run_folder / "full"
    line, last = after_two_steps(run_folder, folder)
    before = last.read_bytes()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))

    done = subprocess.run(
        arguments("train", *line, "trainer.max_steps=4"),
        cwd=run_folder,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
        preexec_fn=limit,
    )
    assert_no_room(done, last, before, "File too large)")
    assert {path.name for path in last.parent.iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    done = run_command(run_folder, "train", *line, "trainer.max_steps=4")
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(last)["global_step"] == 4


def test_a_full_disk_leaves_the_checkpoint_before(run_folder: Path, tmp_path: Path) -> None:
    """On a small file system of its own, where the system lets this test mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs takes an administrator")
    try:
        folder = disk / "run"
        line, last = after_two_steps(run_folder, folder)
        before = last.read_bytes()
        # Half a checkpoint of room is left.
        filling = shutil.disk_usage(disk).free - len(before) // 2
        with (disk / "filling").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, filling)

        done = run_command(run_folder, "train", *line, "trainer.max_steps=4")
        assert_no_room(done, last, before, "No space left")

        (disk / "filling").unlink()
        done = run_command(run_folder, "train", *line, "trainer.max_steps=4")
        assert done.returncode == 0, done.stderr
        assert read_checkpoint(last)["global_step"] == 4
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_sweep_with_runs_that_cannot_work_ends_with_the_others(run_folder: Path, small_root: Path) -> None:
    """A clamp of -1, a missing file, a loss that is not finite, and one run without any of them."""
    token = token_of_step(1, small_root, run_folder / "cache")
    folder = run_folder / "troubles"
    done = run_command(
        run_folder,
        "train",
        "-m",
        "trainer.max_steps=2",
        "callbacks.checkpoint.every_n_steps=1",
        *poisoned(f"no_frame,{token}", column=7),
        "renderer.max_weight_clamp=2.0,-1.0",
        "weights=null,nowhere.pth",
        f"sweep_dir={folder}",
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    runs = runs_of(folder)
    assert len(runs) == 8
    reasons = {}
    for run in runs:
        values = key_values(run.overrides)
        clamp, weights = values["renderer.max_weight_clamp"], values["weights"]
        reasons[clamp, weights, token in values["+data.train_transforms.poison.token"]] = run.error
    finished = ("2.0", "null", False)
    assert reasons.pop(finished) is None
    nan = reasons.pop(("2.0", "null", True))
    assert nan is not None and nan.startswith("step 1: the loss is not finite (loss_cls ") and token in nan
    for (clamp, _, _), reason in reasons.items():
        clamped = "renderer.max_weight_clamp=-1.0: must be above 0"
        assert reason is not None and reason.startswith(
            ("weights=nowhere.pth: there is no such file", clamped) if clamp == "-1.0" else "weights=nowhere.pth"
        )
    assert {run.status for run in runs} == {"complete", "failed"}
    assert "error: 7 of 8 runs failed" in done.stderr
    # One line about each, with its reason, under the table.
    for reason in (nan, *reasons.values()):
        assert reason in " ".join(done.stderr.split()), reason


def test_a_broken_newest_checkpoint_is_skipped(run_folder: Path) -> None:
    folder = run_folder / "broken"
    line, last = after_two_steps(run_folder, folder)
    whole = torch.load(last, weights_only=True)["state_dict"]
    last.write_bytes(last.read_bytes()[:-1000])
    (folder / "checkpoints" / "best.ckpt").unlink()
    done = run_command(run_folder, "train", *line, "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    assert f"ckpt_path={last}: the file is damaged or truncated" in done.stdout
    assert f"resuming from {folder / 'checkpoints' / 'previous.ckpt'}" in done.stdout
    again = read_checkpoint(last)
    assert again["global_step"] == 2
    assert all(torch.equal(again["state_dict"][name], value) for name, value in whole.items())
