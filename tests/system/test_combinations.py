"""The table of whole commands: one row a combination of what the README names, each with what it asserts.

Precision, devices, launcher, loader workers, sensors, resuming and overrides on a checkpoint each work alone; the
faults that users met stood between two of them. A new option gets a row here, beside the tests of its own.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt_aqr.files import read_record
from cmt_aqr.runs.sweep_runs import runs_of
from tests.helpers.commands import PAIR, finished, resuming, run_command, run_line, torchrun
from tests.helpers.ran import assert_same_end, checkpoint_of, from_json, logged, metrics_of

pytestmark = pytest.mark.system

BF16, FP16 = "trainer.precision=bf16-mixed", "trainer.precision=16-mixed"
WORKERS = ("data.num_workers=1",)
LIDAR, CAMERA, PLAIN = ("model=tiny_lidar",), ("model=tiny_camera",), ("aqr=none",)
BIAS = ("aqr=attention_bias", "training.criterion.signal_weight=1", "fault=partial/any")
STEPS = 4
SHORT = (f"trainer.max_steps={STEPS}", "trainer.log_every_n_steps=1", "callbacks.checkpoint.every_n_steps=1")
CLAMPS = ("clamp_schedule=progressive", "clamp_schedule.milestones={0:2.5,1:1.5}")
ACCUMULATED = ("trainer.accumulate_grad_batches=2", "trainer.max_epochs=6")
CHECKPOINTED = ("model.network.image.checkpointing=true", "model.network.image.norm_eval=true")


def losses(run: Path) -> list[float]:
    return list(logged(run, "train/loss").values())


def boxes(run: Path) -> dict[str, Any]:
    """The boxes that an evaluation wrote, by frame."""
    return from_json(run / "results_nusc.json")["results"]


def differ(some: dict[str, Any], others: dict[str, Any]) -> bool:
    """Whether boxes differ by more than rounding, which other processes and memory may change."""
    if [len(frame) for frame in some.values()] != [len(frame) for frame in others.values()]:
        return True
    left, right = (
        torch.tensor(
            [
                (box["detection_score"], *box["translation"], *box["size"], *box["velocity"])
                for token in sorted(found)
                for box in found[token]
            ],
            dtype=torch.float64,
        )
        for found in (some, others)
    )
    return not torch.allclose(left, right, rtol=0, atol=1e-4)


@pytest.fixture(scope="session")
def float32(trained: tuple[Path, str]) -> list[float]:
    """Losses of a run of the defaults, for others to differ from."""
    folder = trained[0].parent
    finished(folder, "train", *SHORT, "hydra.run.dir=float32")
    return losses(folder / "float32")


def assert_real_steps(run: Path, others: list[float]) -> None:
    """Every loss finite and its own, every weight finite, and what may learn has learnt."""
    record = read_record(run)
    assert (record["status"], record["steps"]) == ("complete", STEPS)
    shown = losses(run)
    assert len(shown) >= STEPS and all(map(math.isfinite, shown))
    assert shown != others, "the settings changed nothing"
    after, first = (checkpoint_of(run, name)["state_dict"] for name in ("last", "previous"))
    assert all(value.isfinite().all() for value in after.values())
    moved = {name.split(".")[1] for name in after if not torch.equal(after[name], first[name])}
    assert moved == {name.split(".")[1] for name in after if name.startswith("model.")}, "nothing was learnt"
    assert metrics_of(run)["frames"] == 3


TRAININGS = [
    (BF16, *WORKERS),
    (FP16, *CAMERA),
    (FP16, "lr_mult.img_backbone=0", *ACCUMULATED),
    (BF16, *CHECKPOINTED, "optimizer=one_cycle"),
    (FP16, *PLAIN, *CHECKPOINTED, *ACCUMULATED),
    ("renderer=aggressive", "modulator=aggressive", "lr_mult=aggressive", *PAIR, *WORKERS),
    (FP16, *BIAS, "aqr.groups=views", "aqr.health=true", *PAIR),
]


@pytest.mark.parametrize("row", TRAININGS, ids=" ".join)
def test_steps_are_real_in_every_precision_sensor_set_and_device_count(
    run_folder: Path, float32: list[float], row: tuple[str, ...]
) -> None:
    run = run_folder / str(TRAININGS.index(row))
    finished(run_folder, "train", *SHORT, *row, f"hydra.run.dir={run}")
    assert_real_steps(run, float32)
    if row == (BF16, *WORKERS):  # nothing but the precision differs; float16's first steps may be skipped
        assert losses(run) == pytest.approx(float32, rel=0.02)


def test_torchrun_trains_in_mixed_precision(run_folder: Path, float32: list[float]) -> None:
    done = run_line(run_folder, torchrun(*SHORT, *PAIR, FP16, *LIDAR, *WORKERS, "hydra.run.dir=torchrun"))
    assert done.returncode == 0, done.stderr
    assert_real_steps(run_folder / "torchrun", float32)


LAUNCHES = [
    ("local", (BF16, *PLAIN, *PAIR), "hydra", "dev"),
    ("joblib", (BF16, *LIDAR, *PAIR, *WORKERS), "hydra_plugins.hydra_joblib_launcher", "sweeps"),
    ("slurm_local", (FP16, *CAMERA, *PAIR, *WORKERS), "hydra_plugins.hydra_submitit_launcher", "slurm"),
]
"""Launchers, overrides besides, the plugin that they need, and the extra of this project that has it."""


@pytest.mark.parametrize(("launcher", "row", "package", "extra"), LAUNCHES, ids=lambda value: str(value))
def test_every_launcher_trains_with_workers_and_processes(
    run_folder: Path, float32: list[float], launcher: str, row: tuple[str, ...], package: str, extra: str
) -> None:
    """Two runs, and one that cannot work, in a relative folder, wherever they take place."""
    pytest.importorskip(package, reason=f"pip install -e '.[{extra}]'")
    line = ["-m", *SHORT, *row, f"launcher={launcher}", "optimizer.lr=1e-4,2e-4,-1", f"sweep_dir={launcher}"]
    done = run_command(run_folder, "train", *line)
    assert done.returncode == 1 and "1 of 3 runs failed (2: optimizer.lr=-1: must be" in done.stderr
    runs = runs_of(run_folder / launcher)
    assert [run.outcome for run in runs] == ["complete", "complete", "failed"]
    assert (run_folder / launcher / "summary.csv").is_file()
    for run in runs[:2]:
        assert_real_steps(run.folder, float32)
    first, second = (losses(run.folder) for run in runs[:2])
    assert first[0] == second[0] and first[1:] != second[1:], "the learning rate counts from the second step on"


RESUMED = [
    (BF16, *WORKERS, "fault=fog_or_night", "optimizer=constant", *CLAMPS),
    (FP16, *PAIR),
    (BF16, *LIDAR, "trainer.accumulate_grad_batches=2", "trainer.max_epochs=2"),
    (*CAMERA, *PAIR, *WORKERS, "fault=night"),
    (BF16, *BIAS, *WORKERS),
]


@pytest.mark.parametrize("row", RESUMED, ids=" ".join)
def test_resumed_is_unbroken(run_folder: Path, float32: list[float], row: tuple[str, ...]) -> None:
    """From the checkpoint before the last, within an epoch: the end is the same, bit for bit."""
    whole, resumed = (run_folder / f"{name}{RESUMED.index(row)}" for name in ("whole", "resumed"))
    finished(run_folder, "train", *SHORT, *row, f"hydra.run.dir={whole}")
    assert_real_steps(whole, float32)
    done = run_line(run_folder, resuming(whole / "checkpoints" / "previous.ckpt", resumed))
    assert done.returncode == 0, done.stderr
    assert 0 < len(losses(resumed)) < len(losses(whole))
    assert_same_end(resumed, whole, "ClippedMixedPrecision")
    assert ("scale" in checkpoint_of(whole).get("ClippedMixedPrecision", {})) == (FP16 in row)


OVERRIDES = [
    ("renderer=aggressive", "renderer.render_method=bilinear"),
    ("aqr=none",),
    ("model.image_size=[96,224]",),
    ("eval_fault=night",),
    (FP16, *PAIR),
    ("evaluation.max_detections=5", "data.sweeps=0", *WORKERS),
]


@pytest.fixture(scope="session")
def plain_boxes(trained: tuple[Path, str]) -> dict[str, Any]:
    """Boxes of the checkpoint without overrides."""
    finished(trained[0].parent, "evaluate", "ckpt_path=trained", "write_results=true", "hydra.run.dir=plain")
    return boxes(trained[0].parent / "plain")


@pytest.mark.parametrize("row", OVERRIDES, ids=" ".join)
def test_an_override_on_a_checkpoint_changes_the_boxes(
    run_folder: Path, trained: tuple[Path, str], plain_boxes: dict[str, Any], row: tuple[str, ...]
) -> None:
    folder = run_folder / f"evaluated{OVERRIDES.index(row)}"
    line = [f"ckpt_path={trained[0]}", "write_results=true", *row, f"hydra.run.dir={folder}"]
    finished(run_folder, "evaluate", *line)
    changed = boxes(folder)
    assert changed.keys() == plain_boxes.keys() and differ(changed, plain_boxes)


def test_devices_and_workers_change_no_box(
    run_folder: Path, trained: tuple[Path, str], plain_boxes: dict[str, Any]
) -> None:
    line = [f"ckpt_path={trained[0]}", "write_results=true", *PAIR, *WORKERS, "hydra.run.dir=same"]
    finished(run_folder, "evaluate", *line)
    assert not differ(boxes(run_folder / "same"), plain_boxes)


def test_a_sweep_of_evaluations_in_parallel_with_workers(run_folder: Path, trained: tuple[Path, str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install -e '.[sweeps]'")
    line = ["-m", f"ckpt_path={trained[0]}", "write_results=true", "launcher=joblib", *WORKERS]
    finished(run_folder, "evaluate", *line, "modulator.residual_weight=0.5,1.0", "sweep_dir=residuals")
    half, whole = (boxes(run_folder / "residuals" / number) for number in ("0", "1"))
    assert differ(half, whole)
