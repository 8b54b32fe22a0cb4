"""The full recipe at small scale, resampling and pasting until the fade: killed, resumed, in two processes."""

from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.commands import BACKBONE, PAIR, SMALL, arguments, finished
from tests.helpers.ran import assert_same_end, killed, logged
from tests.system.test_refusals import sentence

pytestmark = pytest.mark.system

# 30 entries make 6 steps per epoch; objects are pasted in the first epoch.
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


def test_killed_before_and_after_the_fade_it_ends_as_the_unbroken_run(run_folder: Path, unbroken: Path) -> None:
    folder = run_folder / "killed"
    line = [*RECIPE, f"hydra.run.dir={folder}", "ckpt_path=auto"]
    for step, workers in ((3, 2), (6, 0)):
        killed(run_folder, arguments("train", *line, f"data.num_workers={workers}"), folder, step, STEPS)
    done = finished(run_folder, "train", *line, "data.num_workers=2")
    assert "Cutting objects" not in done.stderr
    assert (done.stdout + done.stderr).count(FADE) == 1
    assert_same_end(folder, unbroken)
    assert logged(folder, "train/loss") == logged(unbroken, "train/loss")


def test_another_fade_is_another_training(
    monkeypatch: pytest.MonkeyPatch, run_folder: Path, unbroken: Path
) -> None:
    line = [*SMALL, BACKBONE, *RECIPE, "data.sampling.until_epoch=2", f"ckpt_path={unbroken}"]
    assert "data.sampling.until_epoch: 1 -> 2" in sentence(monkeypatch, run_folder, "train", *line)


def test_two_processes(run_folder: Path) -> None:
    line = [*RECIPE, "data.batch_size=3", *PAIR, "data.cache_dir=new_cache", "hydra.run.dir=two"]
    done = finished(run_folder, "train", *line)
    assert done.stderr.count("Cutting objects") == 1  # one process makes the database
    assert (done.stdout + done.stderr).count(FADE) == 1
    assert len(logged(run_folder / "two", "train/loss")) == 2 * 30 // 6


def test_the_database_by_hand_and_a_contact_sheet(monkeypatch: pytest.MonkeyPatch, run_folder: Path) -> None:
    line = ["data.root=data", "data.cache_dir=cache2", "data.num_workers=0", "data.sampling.database=objects"]
    done = finished(run_folder, "make_database", *line)
    assert "pedestrian" in done.stdout
    assert (run_folder / "objects" / "database.json").is_file()
    line += ["data/sampling=cmt", "data.sampling.goals.car=40"]
    done = finished(run_folder, "show_frames", *line, "out=sheet", "count=2", "dpi=40")
    assert "Cutting objects" not in done.stderr
    with Image.open(run_folder / "sheet" / "frames.png") as picture:
        assert picture.size[0] == 17 * 40
    assert "count=0" in sentence(monkeypatch, run_folder, "show_frames", *line, "count=0")
