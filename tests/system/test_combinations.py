"""The table of whole commands: one row per combination of options.

Precision, devices, launcher, loader workers, sensors, resuming and overrides on a checkpoint work alone; users met
the faults in combinations of two. A new option gets a row here, beside its own tests.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt_aqr.files import read_record
from cmt_aqr.runs.sweep_runs import runs_of
from tests.helpers.commands import PAIR, finished, resuming, run_command, run_line, succeeded, torchrun
from tests.helpers.ran import assert_same_end, checkpoint_of, from_json, logged, metrics_of

pytestmark = pytest.mark.system

BF16, FP16 = "trainer.precision=bf16-mixed", "trainer.precision=16-mixed"
WORKERS = ("data.num_workers=1",)
LIDAR, CAMERA, PLAIN = ("model=tiny_lidar",), ("model=tiny_camera",), ("aqr=none",)
BIAS = ("aqr=attention_bias", "training.criterion.signal_weight=1", "fault=partial/any")
STEPS = 4
SHORT = (f"trainer.max_steps={STEPS}", "trainer.log_every_n_steps=1", "callbacks.checkpoint.every_n_steps=1")
CLAMPS = ("clamp_schedule=progressive", "clamp_schedule.milestones={0:2.5,1:1.5}")
AGGRESSIVE = ("renderer=aggressive", "modulator=aggressive", "lr_mult=aggressive")
CHECKPOINTED = ("model.network.image.checkpointing=true", "model.network.image.norm_eval=true")


def losses(run: Path) -> list[float]:
    return list(logged(run, "train/loss").values())


def boxes(run: Path) -> dict[str, Any]:
    """The boxes in an evaluation's results file, by frame."""
    return from_json(run / "results_nusc.json")["results"]


def differ(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether boxes differ by more than rounding errors."""
    numbers = [
        [
            value
            for token in sorted(frames)
            for box in frames[token]
            for value in (*box["translation"], *box["rotation"])
        ]
        for frames in (left, right)
    ]
    return numbers[0] != pytest.approx(numbers[1], rel=0, abs=1e-4)


@pytest.fixture(scope="session")
def float32(trained: tuple[Path, str]) -> list[float]:
    """The losses of a run with the default settings, from which others must differ."""
    folder = trained[0].parent
    finished(folder, "train", *SHORT, "hydra.run.dir=float32")
    return losses(folder / "float32")


def assert_real_steps(run: Path, others: list[float]) -> None:
    """All losses and weights must be finite, losses must differ from the others, and every part must learn."""
    record = read_record(run)
    assert (record["status"], record["steps"]) == ("complete", STEPS)
    curve = losses(run)
    assert len(curve) >= STEPS and all(map(math.isfinite, curve))
    assert curve != others, "the settings changed nothing"
    last, previous = (checkpoint_of(run, name)["state_dict"] for name in ("last", "previous"))
    assert all(value.isfinite().all() for value in last.values())
    changed = {name.split(".")[1] for name in last if not torch.equal(last[name], previous[name])}
    assert changed == {name.split(".")[1] for name in last if name.startswith("model.")}
    assert metrics_of(run)["frames"] == 3


TRAININGS = [
    (BF16, *WORKERS),
    (BF16, *BIAS, *CHECKPOINTED, "optimizer=one_cycle"),
    (BF16, *WORKERS, "fault=fog_or_night", "optimizer=constant", *CLAMPS),
    (BF16, *LIDAR, "trainer.accumulate_grad_batches=2", "trainer.max_epochs=2"),
    (FP16, *PLAIN, "lr_mult.img_backbone=0", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=6"),
    (FP16, *BIAS, "aqr.groups=views", "aqr.health=true", *CHECKPOINTED, *PAIR),
    (*CAMERA, *PAIR, *WORKERS, "fault=night", *AGGRESSIVE),
]


@pytest.mark.parametrize("row", TRAININGS, ids=" ".join)
def test_steps_are_real_and_a_resumed_run_ends_as_the_unbroken_one(
    run_folder: Path, float32: list[float], row: tuple[str, ...]
) -> None:
    """Resumed from the second newest checkpoint, within an epoch."""
    unbroken, resumed = (run_folder / f"{name}{TRAININGS.index(row)}" for name in ("unbroken", "resumed"))
    finished(run_folder, "train", *SHORT, *row, f"hydra.run.dir={unbroken}")
    assert_real_steps(unbroken, float32)
    if row == (BF16, *WORKERS):  # only the precision differs
        assert losses(unbroken)[0] == pytest.approx(float32[0], rel=0.01)
    succeeded(run_line(run_folder, resuming(unbroken / "checkpoints" / "previous.ckpt", resumed)))
    assert 0 < len(losses(resumed)) < len(losses(unbroken))
    assert_same_end(resumed, unbroken, "ClippedMixedPrecision")
    assert ("scale" in checkpoint_of(unbroken).get("ClippedMixedPrecision", {})) == (FP16 in row)


def test_torchrun_trains_in_mixed_precision(run_folder: Path, float32: list[float]) -> None:
    options = ["--standalone", "--nproc-per-node=2"]
    line = torchrun(options, *SHORT, *PAIR, FP16, *LIDAR, *WORKERS, "hydra.run.dir=torchrun")
    succeeded(run_line(run_folder, line))
    assert_real_steps(run_folder / "torchrun", float32)


LAUNCHERS = [
    ("joblib", "1e-4,2e-4", (BF16, *LIDAR, *PAIR, *WORKERS), "hydra_joblib_launcher", "sweeps"),
    ("slurm_local", "1e-4", (FP16, *CAMERA, *PAIR, *WORKERS), "hydra_submitit_launcher", "slurm"),
]
"""Launcher, learning rates, further overrides, plugin, and the extra of this project that installs the plugin.

The sweeps of test_ddp.py and test_sweeps.py use ``launcher=local``.
"""


@pytest.mark.parametrize(("launcher", "rates", "row", "plugin", "extra"), LAUNCHERS, ids=lambda value: str(value))
def test_every_launcher_trains_with_workers_and_processes(
    run_folder: Path,
    float32: list[float],
    launcher: str,
    rates: str,
    row: tuple[str, ...],
    plugin: str,
    extra: str,
) -> None:
    """In a relative folder; the last run of the sweep fails."""
    pytest.importorskip(f"hydra_plugins.{plugin}", reason=f"pip install -e '.[{extra}]'")
    line = ["-m", *SHORT, *row, f"launcher={launcher}", f"optimizer.lr={rates},-1", f"sweep_dir={launcher}"]
    done = run_command(run_folder, "train", *line)
    *runs, failed = runs_of(run_folder / launcher)
    assert done.returncode == 1
    assert f"1 of {len(runs) + 1} runs failed ({len(runs)}: optimizer.lr=-1: must be" in done.stderr
    assert failed.outcome == "failed" and {run.outcome for run in runs} == {"complete"}
    assert (run_folder / launcher / "summary.csv").is_file()
    for run in runs:
        assert_real_steps(run.folder, float32)
    curves = [losses(run.folder) for run in runs]
    assert len({curve[0] for curve in curves}) == 1, "the learning rate does not matter in the first step"
    assert len({tuple(curve[1:]) for curve in curves}) == len(rates.split(","))


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
    """The boxes of the checkpoint without overrides."""
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


def test_a_sweep_of_evaluations_in_parallel_with_workers(run_folder: Path, trained: tuple[Path, str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install -e '.[sweeps]'")
    line = ["-m", f"ckpt_path={trained[0]}", "write_results=true", "launcher=joblib", *WORKERS]
    finished(run_folder, "evaluate", *line, "modulator.residual_weight=0.5,1.0", "sweep_dir=residuals")
    assert differ(*(boxes(run_folder / "residuals" / number) for number in ("0", "1")))
