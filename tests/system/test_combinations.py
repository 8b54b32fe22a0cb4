"""The table of whole commands: one row a combination of what the README names, each with what it asserts.

Precision, devices, launcher, loader workers, sensors, resuming and overrides on a checkpoint each work alone; the
faults that users met stood between two of them. A new option gets a row here, beside the tests of its own.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt_aqr.files import read_record
from cmt_aqr.runs.checkpoints import read_checkpoint
from tests.helpers.commands import resuming, run_command, run_line, torchrun
from tests.system.test_resume import assert_same, logged

pytestmark = pytest.mark.system

BF16, FP16 = "trainer.precision=bf16-mixed", "trainer.precision=16-mixed"
PAIR = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
WORKERS = ("data.num_workers=1",)
LIDAR, CAMERA, PLAIN = ("model=tiny_lidar",), ("model=tiny_camera",), ("aqr=none",)
STEPS = 4
SHORT = (f"trainer.max_steps={STEPS}", "trainer.log_every_n_steps=1", "callbacks.checkpoint.every_n_steps=1")


def finished(folder: Path, *line: str, script: str = "train") -> Path:
    """Run a command that must end well; its run's folder."""
    done = run_command(folder.parent, script, *line, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def losses(run: Path) -> list[float]:
    return list(logged(run, "train/loss").values())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


def boxes(run: Path) -> dict[str, Any]:
    """The boxes that an evaluation wrote, by frame."""
    return json.loads((run / "results_nusc.json").read_text(encoding="utf-8"))["results"]


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
def float32(trained: tuple[Path, str]) -> Path:
    """A run of the defaults, for others to differ from."""
    return finished(trained[0].parent / "float32", *SHORT)


ACCUMULATED = ("trainer.accumulate_grad_batches=2", "trainer.max_epochs=6")

TRAININGS = [
    (BF16, *WORKERS),
    (FP16, *WORKERS),
    (BF16, *PLAIN, *PAIR),
    (FP16, *PAIR, *WORKERS),
    (BF16, *LIDAR),
    (FP16, *LIDAR, *PAIR),
    (BF16, *CAMERA, *PAIR, *WORKERS),
    (FP16, *CAMERA),
    (FP16, "lr_mult.img_backbone=0", *ACCUMULATED),
    (BF16, "fault=fog_or_night", "clamp_schedule=progressive", "optimizer=constant"),
    (BF16, "model.network.image.checkpointing=true", "model.network.image.norm_eval=true", "optimizer=one_cycle"),
    ("renderer=aggressive", "modulator=aggressive", "lr_mult=aggressive", *PAIR, *WORKERS),
    (
        FP16,
        *PLAIN,
        "model.network.image.checkpointing=true",
        "model.network.image.norm_eval=true",
        *ACCUMULATED,
    ),
]


@pytest.mark.parametrize("row", TRAININGS, ids=" ".join)
def test_steps_are_real_in_every_precision_sensor_set_and_device_count(
    run_folder: Path, float32: Path, row: tuple[str, ...]
) -> None:
    """Every loss finite and its own, every weight finite, and what may learn has learnt."""
    run = finished(run_folder / str(TRAININGS.index(row)), *SHORT, *row)
    record = read_record(run)
    assert (record["status"], record["steps"]) == ("complete", STEPS)
    shown = losses(run)
    assert len(shown) >= STEPS and all(map(math.isfinite, shown))
    assert shown != losses(float32), "the settings changed nothing"
    if row == (BF16, *WORKERS):  # nothing but the precision differs; float16's first steps may be skipped
        assert shown == pytest.approx(losses(float32), rel=0.02)
    after, first = weights(run), read_checkpoint(run / "checkpoints" / "previous.ckpt")["state_dict"]
    assert all(value.isfinite().all() for value in after.values())
    moved = {name.split(".")[1] for name in after if not torch.equal(after[name], first[name])}
    parts = {name.split(".")[1] for name in after if name.startswith("model.")}
    assert moved == parts, "steps in which nothing was learnt"
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8"))["frames"] == 3


@dataclass(frozen=True)
class Launch:
    """A sweep of two runs.

    Attributes:
        launcher: option of the group ``launcher``.
        line: overrides besides.
        package: the plugin it needs.
        extra: of this project, which has the plugin.
    """

    launcher: str
    line: tuple[str, ...]
    package: str = "hydra"
    extra: str = "dev"


LAUNCHES = [
    Launch("local", (BF16, *PAIR)),
    Launch("joblib", (BF16, *WORKERS), "hydra_plugins.hydra_joblib_launcher", "sweeps"),
    Launch("joblib", (*PAIR, *LIDAR, *WORKERS), "hydra_plugins.hydra_joblib_launcher", "sweeps"),
    Launch("slurm_local", (FP16, *CAMERA, *WORKERS), "hydra_plugins.hydra_submitit_launcher", "slurm"),
    Launch("slurm_local", (*PLAIN, *PAIR, *WORKERS), "hydra_plugins.hydra_submitit_launcher", "slurm"),
]


@pytest.mark.parametrize("row", LAUNCHES, ids=lambda row: " ".join((row.launcher, *row.line)))
def test_every_launcher_trains_with_workers_and_processes(run_folder: Path, row: Launch) -> None:
    pytest.importorskip(row.package, reason=f"pip install -e '.[{row.extra}]'")
    name = f"sweep{LAUNCHES.index(row)}"
    line = ["-m", *SHORT, *row.line, f"launcher={row.launcher}", "optimizer.lr=1e-4,2e-4", f"sweep_dir={name}"]
    done = run_command(run_folder, "train", *line)
    assert done.returncode == 0, done.stderr
    runs = [run_folder / name / number for number in ("0", "1")]
    assert [read_record(run)["status"] for run in runs] == ["complete", "complete"]
    first, second = (losses(run) for run in runs)
    assert first[0] == second[0] and first[1:] != second[1:], "the learning rate counts from the second step on"


RESUMED = [
    (BF16, *WORKERS, "clamp_schedule=progressive", "clamp_schedule.milestones={0:2.5,1:1.5}"),
    (FP16, *PAIR),
    (BF16, *LIDAR, "trainer.accumulate_grad_batches=2"),
    (*CAMERA, *PAIR, *WORKERS, "fault=night"),
]


@pytest.mark.parametrize("row", RESUMED, ids=" ".join)
def test_resumed_is_unbroken(run_folder: Path, row: tuple[str, ...]) -> None:
    """From the checkpoint before the last, within an epoch: the end is the same, bit for bit."""
    number = RESUMED.index(row)
    line = ["trainer.max_epochs=2", "callbacks.checkpoint.every_n_steps=1", "trainer.log_every_n_steps=1"]
    whole = finished(run_folder / f"whole{number}", *line, *row)
    middle = whole / "checkpoints" / "previous.ckpt"
    there = read_checkpoint(whole / "checkpoints" / "last.ckpt")
    assert read_checkpoint(middle)["global_step"] < there["global_step"]
    resumed = run_folder / f"resumed{number}"
    done = run_line(run_folder, resuming(middle, resumed))
    assert done.returncode == 0, done.stderr
    here = read_checkpoint(resumed / "checkpoints" / "last.ckpt")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "ClippedMixedPrecision"):
        assert_same(here.get(part), there.get(part), part)
    assert ("scale" in there.get("ClippedMixedPrecision", {})) == (FP16 in row)
    assert (resumed / "metrics.json").read_text(encoding="utf-8") == (whole / "metrics.json").read_text(
        encoding="utf-8"
    )


OVERRIDES = [
    ("modulator.residual_weight=1.0",),
    ("renderer=aggressive", "renderer.render_method=bilinear"),
    ("aqr=none",),
    ("model.image_size=[96,224]",),
    ("eval_fault=night",),
    (BF16,),
    (FP16, *PAIR),
    ("evaluation.max_detections=5", *WORKERS),
    ("data.sweeps=0", *PAIR, *WORKERS),
]


@pytest.fixture(scope="session")
def plain_boxes(trained: tuple[Path, str]) -> dict[str, Any]:
    """Boxes of the checkpoint without overrides."""
    folder = trained[0].parent / "plain"
    line = [f"ckpt_path={trained[0]}", "write_results=true"]
    return boxes(finished(folder, *line, script="evaluate"))


@pytest.mark.parametrize("row", OVERRIDES, ids=" ".join)
def test_an_override_on_a_checkpoint_changes_the_boxes(
    run_folder: Path, trained: tuple[Path, str], plain_boxes: dict[str, Any], row: tuple[str, ...]
) -> None:
    folder = run_folder / f"evaluated{OVERRIDES.index(row)}"
    line = [f"ckpt_path={trained[0]}", "write_results=true", *row]
    changed = boxes(finished(folder, *line, script="evaluate"))
    assert changed.keys() == plain_boxes.keys() and differ(changed, plain_boxes)


def test_devices_and_workers_change_no_box(
    run_folder: Path, trained: tuple[Path, str], plain_boxes: dict[str, Any]
) -> None:
    line = [f"ckpt_path={trained[0]}", "write_results=true", *PAIR, *WORKERS]
    assert not differ(boxes(finished(run_folder / "same", *line, script="evaluate")), plain_boxes)


def test_a_sweep_of_evaluations_in_parallel_with_workers(run_folder: Path, trained: tuple[Path, str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install -e '.[sweeps]'")
    line = ["-m", f"ckpt_path={trained[0]}", "write_results=true", "launcher=joblib", *WORKERS]
    done = run_command(run_folder, "evaluate", *line, "modulator.residual_weight=0.5,1.0", "sweep_dir=residuals")
    assert done.returncode == 0, done.stderr
    half, whole = (boxes(run_folder / "residuals" / number) for number in ("0", "1"))
    assert differ(half, whole)


@pytest.mark.parametrize("row", [(BF16, *LIDAR), (FP16, *WORKERS)], ids=" ".join)
def test_torchrun_trains_in_mixed_precision(run_folder: Path, row: tuple[str, ...]) -> None:
    run = run_folder / f"torchrun_{row[0].partition('=')[2]}"
    done = run_line(run_folder, torchrun(*SHORT, *PAIR, *row, f"hydra.run.dir={run}"))
    assert done.returncode == 0, done.stderr
    assert len(losses(run)) == STEPS and all(map(math.isfinite, losses(run)))


REFUSED = [
    ("train", ("trainer.precision=bf16-true",), "trainer.precision=bf16-true"),
    ("train", ("trainer.precision=64-true", *PAIR), "trainer.precision=64-true"),
    ("train", ("trainer=gpu",), "gpu"),
    ("train", (BF16, "ckpt_path={trained}"), "trainer.precision"),
    ("evaluate", ("ckpt_path={trained}", "model.embed_dims=64"), "model.embed_dims"),
    ("evaluate", ("ckpt_path={trained}", "optimizer.lr=1e-3"), "optimizer.lr"),
    ("evaluate", ("ckpt_path={trained}", "fault=fog"), "fault"),
]


@pytest.mark.parametrize(("script", "row", "named"), REFUSED, ids=lambda value: str(value))
def test_what_cannot_work_is_refused_in_a_sentence(
    run_folder: Path, trained: tuple[Path, str], script: str, row: tuple[str, ...], named: str
) -> None:
    if row == ("trainer=gpu",) and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    line = [item.format(trained=trained[0]) for item in row]
    done = run_command(run_folder, script, *line, "hydra.run.dir=refused")
    assert done.returncode == 1
    (said,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert named in said and "Traceback" not in done.stderr
