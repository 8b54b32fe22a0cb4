"""What goes wrong in the middle of a run: one sentence, and the last good checkpoint stays."""

import resource
import subprocess
from pathlib import Path

import pytest
import torch

from cmt_aqr.data.dataset import FrameSampler
from cmt_aqr.training.checkpoints import read_checkpoint
from cmt_aqr.training.records import read_record
from tests.small_data import datamodule
from tests.system.commands import ROOT, arguments, environment, run_command

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    ("column", "problem"), [(7, "the loss is not finite (loss_cls "), (3, "the matching cost")]
)
def test_a_loss_that_is_not_finite_is_named_and_not_saved(
    column: int, problem: str, run_folder: Path, small_root: Path
) -> None:
    data = datamodule(small_root, run_folder / "cache")
    data.setup("fit")
    order = [key.frame for key in FrameSampler(3, 1, training=True, seed=0)]
    token = data.dataset("train")[order[2]].token
    folder = run_folder / f"poisoned{column}"
    done = subprocess.run(
        arguments(
            "train",
            "trainer.max_epochs=3",
            "callbacks.checkpoint.every_n_steps=1",
            "+data.train_transforms.poison._target_=tests.system.poison.Poison",
            f"+data.train_transforms.poison.token={token}",
            f"+data.train_transforms.poison.column={column}",
            f"hydra.run.dir={folder}",
        ),
        cwd=run_folder,
        env={**environment(), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = folder / "checkpoints" / "last.ckpt"
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"error: step 2: {problem}"), said
    assert ("loss_bbox nan" in said) == (column == 7) and f"on frames {token};" in said
    assert said.endswith(f"the last good checkpoint is {last}")
    checkpoint = read_checkpoint(last)
    assert checkpoint["global_step"] == 2
    assert all(value.isfinite().all() for name, value in checkpoint["state_dict"].items() if "clamp" not in name)
    record = read_record(folder)
    assert record is not None and record["status"] == "failed" and f"error: {record['error']}" == said


def test_no_room_for_a_checkpoint_leaves_the_one_before(run_folder: Path) -> None:
    """A limit on the size of files stands for a full disk, which takes a mount and so an administrator."""
    folder = run_folder / "full"
    line = ["callbacks.checkpoint.every_n_steps=1", f"hydra.run.dir={folder}", "ckpt_path=auto", "logger=csv"]
    done = run_command(run_folder, "train", *line, "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    last = folder / "checkpoints" / "last.ckpt"
    before = last.read_bytes()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))

    done = subprocess.run(
        arguments("train", *line, "trainer.max_steps=4"),
        cwd=run_folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"error: the checkpoint {last} could not be written (File too large)"), said
    assert f"{last}, is intact" in said
    assert last.read_bytes() == before
    assert {path.name for path in last.parent.iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    done = run_command(run_folder, "train", *line, "trainer.max_steps=4")
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(last)["global_step"] == 4


def test_a_broken_newest_checkpoint_is_skipped(run_folder: Path) -> None:
    folder = run_folder / "broken"
    line = ["callbacks.checkpoint.every_n_steps=1", f"hydra.run.dir={folder}", "ckpt_path=auto", "logger=csv"]
    done = run_command(run_folder, "train", *line, "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    last = folder / "checkpoints" / "last.ckpt"
    whole = torch.load(last, weights_only=True)["state_dict"]
    last.write_bytes(last.read_bytes()[:-1000])
    (folder / "checkpoints" / "best.ckpt").unlink()
    done = run_command(run_folder, "train", *line, "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    assert f"ckpt_path={last}: the file is damaged or truncated" in done.stdout
    assert f"going on from {folder / 'checkpoints' / 'previous.ckpt'}" in done.stdout
    again = read_checkpoint(last)
    assert again["global_step"] == 2
    assert all(torch.equal(again["state_dict"][name], value) for name, value in whole.items())
