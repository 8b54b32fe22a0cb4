"""Training, evaluating and sweeping, as commands."""

import csv
import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

from cmt_aqr.constants import CLASSES
from cmt_aqr.runs.checkpoints import read_checkpoint
from cmt_aqr.weights import convert, naming_of, save_pickled
from tests.helpers.commands import arguments, environment, run_command

pytestmark = pytest.mark.system


def metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_a_run_leaves_what_it_did_in_its_folder(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    metrics = metrics_of(folder)
    expected = {"mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE", *(f"AP/{name}" for name in CLASSES)}
    assert expected <= set(metrics)
    assert f"{metrics['mAP']:.4f}" in printed and f"{metrics['NDS']:.4f}" in printed and "pedestrian" in printed
    for name in ("last", "best"):
        assert read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")["global_step"] == 2
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["queries"] == 20 and config["trainer"]["max_steps"] == 2
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    assert "trainer.max_steps=2" in record["overrides"] and record["versions"]["torch"] == version("torch")
    assert record["status"] == "complete" and record["steps"] == 2 and record["frames_per_second"] > 0
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert {name: float(value) if value else None for name, value in row.items()} == metrics
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert any(row["val/NDS"] and float(row["val/NDS"]) == pytest.approx(metrics["NDS"], abs=1e-6) for row in rows)
    assert list((folder / "tensorboard").glob("events.*"))
    maps = json.loads((folder / "map_statistics.json").read_text(encoding="utf-8"))
    assert set(maps) == {"bev", "camera"} and "AQR's maps before the clamp, epoch 0" in printed
    assert any(row["aqr/generator_gradient"] and float(row["aqr/generator_gradient"]) > 0 for row in rows)


def test_a_run_shows_no_noise_and_cuts_no_table(trained: tuple[Path, str]) -> None:
    _, printed = trained
    for noise in ("litlogger", "LeafSpec", "to estimate", "weights_only", "could not find the monitored key"):
        assert noise not in printed
    assert "…" not in printed
    assert printed.count("`max_steps=2` reached") == 1


def test_evaluating_a_checkpoint_gives_the_run_s_numbers(run_folder: Path, trained: tuple[Path, str]) -> None:
    folder, _ = trained
    again = run_folder / "evaluated"
    done = run_command(
        run_folder, "evaluate", f"ckpt_path={folder / 'checkpoints' / 'last.ckpt'}", f"hydra.run.dir={again}"
    )
    assert done.returncode == 0, done.stderr
    assert metrics_of(again) == metrics_of(folder)
    maps = json.loads((again / "map_statistics.json").read_text(encoding="utf-8"))
    assert 0 < maps["camera"]["mean"] < maps["camera"]["max"]
    assert "AQR's maps before the clamp, evaluation" in done.stdout
    clamped = run_folder / "clamped"
    done = run_command(
        run_folder,
        "evaluate",
        f"ckpt_path={folder / 'checkpoints' / 'last.ckpt'}",
        "renderer.max_weight_clamp=0.05",
        f"hydra.run.dir={clamped}",
    )
    assert done.returncode == 0, done.stderr
    lower = json.loads((clamped / "map_statistics.json").read_text(encoding="utf-8"))
    for name in ("bev", "camera"):
        assert maps[name]["max_after"] == maps[name]["max"] > 0.05 and maps[name]["clamped"] == 0
        assert lower[name]["max_after"] == pytest.approx(0.05) and lower[name]["clamped"] > 0
        assert lower[name]["max"] == maps[name]["max"]


def test_a_sweep_makes_a_folder_for_each_run(run_folder: Path) -> None:
    """And a run that is refused does not stop those after it; the command says so at its end."""
    folder = run_folder / "sweep"
    done = run_command(
        run_folder,
        "train",
        "-m",
        "renderer.max_weight_clamp=1.5,-1.0,2.0",
        "trainer.max_steps=2",
        f"hydra.sweep.dir={folder}",
    )
    assert done.returncode != 0
    assert "renderer.max_weight_clamp=-1.0: must be" in done.stderr
    for number, clamp in ((0, 1.5), (2, 2.0)):
        config = yaml.safe_load((folder / str(number) / "config.yaml").read_text(encoding="utf-8"))
        assert config["renderer"]["max_weight_clamp"] == clamp
        assert set(metrics_of(folder / str(number))) >= {"mAP", "NDS"}
    assert not (folder / "1" / "metrics.json").exists()
    refused = json.loads((folder / "1" / "record.json").read_text(encoding="utf-8"))
    assert refused["status"] == "failed" and "renderer.max_weight_clamp=-1.0: must be" in refused["error"]


def test_one_sensor_is_enough(run_folder: Path) -> None:
    running = {
        name: subprocess.Popen(
            arguments("train", f"model=tiny_{name}", off, "trainer.max_steps=1", f"hydra.run.dir={name}"),
            cwd=run_folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        for name, off in (("lidar", "data.cameras=false"), ("camera", "data.lidar=false"))
    }
    for name, process in running.items():
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
        assert 0 <= metrics_of(run_folder / name)["NDS"] <= 1


def test_a_frozen_backbone_keeps_the_weights_it_was_given(run_folder: Path, trained: tuple[Path, str]) -> None:
    """From a file with official names and without AQR, into a model with AQR: one step changes all but it."""
    state = read_checkpoint(trained[0] / "checkpoints" / "last.ckpt")["state_dict"]
    ours = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    plain = {name: value for name, value in ours.items() if not name.startswith("aqr.")}
    official = convert(plain, "official")
    assert naming_of(official) == "official"
    save_pickled(official, run_folder / "cmt.pth")
    done = run_command(
        run_folder,
        "train",
        "weights=cmt.pth",
        "lr_mult.img_backbone=0",
        "trainer.max_steps=1",
        "hydra.run.dir=from_weights",
    )
    assert done.returncode == 0, done.stderr
    assert "starts fresh" in done.stdout
    after = read_checkpoint(run_folder / "from_weights" / "checkpoints" / "last.ckpt")["state_dict"]
    backbone = [name for name in plain if name.startswith("image.backbone.")]
    assert any(name.endswith("running_mean") for name in backbone)
    for name in backbone:
        assert torch.equal(after[f"model.{name}"], plain[name]), name
    for name in ("decoder", "lidar", "image.neck", "head.task"):
        members = [key for key in plain if key.startswith(f"{name}.")]
        assert any(not torch.equal(after[f"model.{key}"], plain[key]) for key in members), name


def test_two_processes_train_together(run_folder: Path) -> None:
    done = run_command(
        run_folder,
        "train",
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.max_steps=2",
        "hydra.run.dir=ddp",
    )
    assert done.returncode == 0, done.stderr
    metrics = metrics_of(run_folder / "ddp")
    assert metrics["frames"] == 3
    # Plain ddp: a parameter without a part in the first step would end the second.
    assert (
        yaml.safe_load((run_folder / "ddp" / "config.yaml").read_text(encoding="utf-8"))["trainer"]["strategy"]
        == "ddp"
    )
    assert set(json.loads((run_folder / "ddp" / "map_statistics.json").read_text(encoding="utf-8"))) == {
        "bev",
        "camera",
    }
    assert done.stdout.count("AQR's maps before the clamp") == 1
    assert read_checkpoint(run_folder / "ddp" / "checkpoints" / "last.ckpt")["global_step"] == 2
