"""Training and evaluating, as commands; the first ones in new interpreters, as a shell starts them."""

import csv
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

from cmt_aqr.constants import CLASSES
from cmt_aqr.files import read_record
from cmt_aqr.weights import convert, naming_of, save_pickled
from tests.helpers.commands import arguments, finished, run_anew, succeeded
from tests.helpers.ran import checkpoint_of, from_json, metrics_of

pytestmark = pytest.mark.system


def test_a_run_s_folder_holds_its_results(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    metrics = metrics_of(folder)
    expected = {"mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE", *(f"AP/{name}" for name in CLASSES)}
    assert expected <= set(metrics)
    assert f"{metrics['mAP']:.4f}" in printed and f"{metrics['NDS']:.4f}" in printed and "pedestrian" in printed
    for name in ("last", "best"):
        assert checkpoint_of(folder, name)["global_step"] == 2
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["queries"] == 20 and config["trainer"]["max_steps"] == 2
    record = read_record(folder)
    assert "trainer.max_steps=2" in record["overrides"] and record["versions"]["torch"] == version("torch")
    assert record["status"] == "complete" and record["steps"] == 2 and record["frames_per_second"] > 0
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert {name: float(value) if value else None for name, value in row.items()} == metrics
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert any(row["val/NDS"] and float(row["val/NDS"]) == pytest.approx(metrics["NDS"], abs=1e-6) for row in rows)
    assert list((folder / "tensorboard").glob("events.*"))
    maps = from_json(folder / "map_statistics.json")
    assert set(maps) == {"bev", "camera", "attention"} and "AQR's maps before the clamp, epoch 0" in printed
    assert any(row["aqr/generator_gradient"] and float(row["aqr/generator_gradient"]) > 0 for row in rows)


def test_a_run_prints_no_noise_and_truncates_no_table(trained: tuple[Path, str]) -> None:
    _, printed = trained
    for noise in ("litlogger", "LeafSpec", "to estimate", "weights_only", "could not find the monitored key"):
        assert noise not in printed
    assert "…" not in printed
    assert printed.count("`max_steps=2` reached") == 1


def test_evaluating_a_checkpoint_gives_the_run_s_numbers(run_folder: Path, trained: tuple[Path, str]) -> None:
    folder, again, clamped = trained[0], run_folder / "evaluated", run_folder / "clamped"
    line = [f"ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"]
    done = succeeded(run_anew(run_folder, arguments("evaluate", *line, f"hydra.run.dir={again}")))
    assert metrics_of(again) == metrics_of(folder)
    maps = from_json(again / "map_statistics.json")
    assert 0 < maps["camera"]["mean"] < maps["camera"]["max"]
    assert "AQR's maps before the clamp, evaluation" in done.stdout
    finished(run_folder, "evaluate", *line, "renderer.max_weight_clamp=0.05", f"hydra.run.dir={clamped}")
    lower = from_json(clamped / "map_statistics.json")
    for name in ("bev", "camera"):
        assert maps[name]["max_after"] == maps[name]["max"] > 0.05 and maps[name]["clamped"] == 0
        assert lower[name]["max_after"] == pytest.approx(0.05) and lower[name]["clamped"] > 0
        assert lower[name]["max"] == maps[name]["max"]


def test_a_frozen_backbone_keeps_the_loaded_weights(run_folder: Path, trained: tuple[Path, str]) -> None:
    """A file with official names and without AQR, in a model with AQR: a step changes all but the backbone."""
    state = checkpoint_of(trained[0])["state_dict"]
    ours = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    plain = {name: value for name, value in ours.items() if not name.startswith("aqr.")}
    official = convert(plain, "official")
    assert naming_of(official) == "official"
    save_pickled(official, run_folder / "cmt.pth")
    line = ["weights=cmt.pth", "lr_mult.img_backbone=0", "trainer.max_steps=1", "hydra.run.dir=from_weights"]
    done = finished(run_folder, "train", *line)
    assert "starts fresh" in done.stdout
    after = checkpoint_of(run_folder / "from_weights")["state_dict"]
    backbone = [name for name in plain if name.startswith("image.backbone.")]
    assert any(name.endswith("running_mean") for name in backbone)
    for name in backbone:
        assert torch.equal(after[f"model.{name}"], plain[name]), name
    for name in ("decoder", "lidar", "image.neck", "head.task"):
        members = [key for key in plain if key.startswith(f"{name}.")]
        assert any(not torch.equal(after[f"model.{key}"], plain[key]) for key in members), name
