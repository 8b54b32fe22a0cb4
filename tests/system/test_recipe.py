"""The whole recipe at small scale: resampling, pasting until the fade; killed and resumed; in two processes."""

from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.commands import PAIR, arguments, finished, run_command
from tests.helpers.ran import assert_same_end, killed, logged

pytestmark = pytest.mark.system

# 30 entries make 6 steps an epoch; the first epoch pastes.
RECIPE = [
    "data.resampling=cbgs",
    "data/sampling=cmt",
    "data.sampling.until_epoch=1",
    "data.sampling.goals.car=40",
    "data.sampling.goals.bus=20",
    "data.replace_empty_frames=true",
    "data.train_transforms.mask_modality={_target_: cmt_aqr.data.masking.MaskModality}",
    "data.batch_size=5",
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=2",
    "callbacks.checkpoint.every_n_steps=1",
    "logger=csv",
]
STEPS = 12
FADE = "no objects are pasted"


@pytest.fixture(scope="module")
def unbroken(run_folder: Path) -> Path:
    done = finished(run_folder, "train", *RECIPE, "hydra.run.dir=unbroken")
    assert "Cutting objects out of frames" in done.stderr
    assert (done.stdout + done.stderr).count(FADE) == 1
    assert len(logged(run_folder / "unbroken", "train/loss")) == STEPS
    return run_folder / "unbroken"


# Before the fade, within an epoch; at the fade.
@pytest.mark.parametrize(("step", "workers"), [(3, (2, 0)), (6, (0, 2))])
def test_killed_and_resumed_is_as_if_nothing_had_happened(
    run_folder: Path, unbroken: Path, step: int, workers: tuple[int, int]
) -> None:
    folder = run_folder / f"killed{step}"
    line = [*RECIPE, f"hydra.run.dir={folder}", "ckpt_path=auto"]
    killed(run_folder, arguments("train", *line, f"data.num_workers={workers[0]}"), folder, step, STEPS)
    done = finished(run_folder, "train", *line, f"data.num_workers={workers[1]}")
    assert "Cutting objects" not in done.stderr
    assert (done.stdout + done.stderr).count(FADE) == 1
    assert_same_end(folder, unbroken)
    assert logged(folder, "train/loss") == logged(unbroken, "train/loss")


def test_another_fade_is_another_training(run_folder: Path, unbroken: Path) -> None:
    done = run_command(run_folder, "train", *RECIPE, "data.sampling.until_epoch=2", f"ckpt_path={unbroken}")
    assert done.returncode == 1
    assert "data.sampling.until_epoch: 1 -> 2" in done.stderr


def test_two_processes(run_folder: Path) -> None:
    line = [*RECIPE, "data.batch_size=3", *PAIR, "data.cache_dir=new_cache", "hydra.run.dir=two"]
    done = finished(run_folder, "train", *line)
    assert done.stderr.count("Cutting objects") == 1  # one process made the database
    assert (done.stdout + done.stderr).count(FADE) == 1
    assert len(logged(run_folder / "two", "train/loss")) == 2 * 30 // 6


def test_the_database_by_hand_and_a_contact_sheet(run_folder: Path) -> None:
    line = ["data.root=data", "data.cache_dir=cache2", "data.num_workers=0", "data.sampling.database=objects"]
    done = finished(run_folder, "make_database", *line)
    assert "pedestrian" in done.stdout
    assert (run_folder / "objects" / "database.json").is_file()
    line += ["data/sampling=cmt", "data.sampling.goals.car=40"]
    done = finished(run_folder, "show_frames", *line, "out=sheet", "count=2", "dpi=40")
    assert "Cutting objects" not in done.stderr
    with Image.open(run_folder / "sheet" / "frames.png") as picture:
        assert picture.size[0] == 17 * 40
    done = run_command(run_folder, "show_frames", *line, "count=0")
    assert (done.returncode, done.stderr.strip().count("\n")) == (1, 0)
    assert "count=0" in done.stderr
