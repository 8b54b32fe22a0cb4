"""A mistake ends a command with one sentence, before any data are read."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from tests.helpers.commands import PAIR, SMALL, arguments, environment, run_command, script_path

pytestmark = pytest.mark.system

QUIET = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
"""In this process, Hydra's logging would take pytest's handlers away."""


def sentence(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str, *overrides: str) -> str:
    """What a script says on stderr as it exits, run in this process: starting one takes seconds."""
    path = script_path(script)
    spec = importlib.util.spec_from_file_location(f"script_{script}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(path), *QUIET, "hydra.run.dir=refused", *overrides])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stopped:
        module.main()
    # Given a text, sys.exit prints it on stderr and the status is 1.
    said = stopped.value.code
    assert isinstance(said, str) and said.startswith("error: ") and "\n" not in said, said
    return said


STOP = "+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping"

NDS = "+callbacks.stop.monitor=val/NDS"

MISTAKES = [
    (["renderer.render_method=bilinear", "renderer.gaussian_sigma=3"], ["renderer.gaussian_sigma=3", "bilinear"]),
    (["modulator.residual_connection=false", "modulator.residual_weight=0.5"], ["modulator.residual_weight=0.5"]),
    (
        ["renderer.normalize_weights=false", "renderer.max_weight_clamp=2"],
        ["max_weight_clamp=2", "normalize_weights"],
    ),
    (["optimizer=constant", "optimizer.peak=3"], ["optimizer.peak=3", "optimizer.schedule=constant"]),
    (["clamp_schedule.mode=linear"], ["clamp_schedule.mode=linear", "clamp_schedule.milestones"]),
    (["aqr=attention_bias", "renderer.max_weight_clamp=2.0"], ["renderer.max_weight_clamp", "aqr=attention_bias"]),
    (["aqr=attention_bias", "modulator=aggressive"], ["modulator", "aqr=attention_bias"]),
    (["aqr=attention_bias", "clamp_schedule=progressive"], ["clamp_schedule", "aqr=attention_bias"]),
    (["aqr=attention_bias", "aqr.beta=oracle", "aqr.strength=3"], ["aqr.strength=3", "with aqr.beta=oracle"]),
    (["aqr.beta=oracle"], ["aqr.beta=oracle", "aqr=attention_bias"]),
    (["aqr=attention_bias", "aqr.beta=best"], ["aqr.beta=best", "oracle"]),
    (["aqr=attention_bias", "aqr.limit=0"], ["aqr.limit=0", "above 0"]),
    (["aqr=attention_bias", "model=tiny_lidar"], ["aqr=none"]),
    (["aqr=attention_bias", "model=tiny_camera"], ["aqr=none"]),
    (["aqr=attention_bias", "aqr.beta=oracle", "data.damage=false"], ["data.damage=false", "aqr.beta=oracle"]),
    (["aqr=attention_bias", "training.criterion.signal_weight=1", "data.damage=false"], ["data.damage=false"]),
    (["aqr=attention_bias", "aqr.beta=zero", "training.criterion.signal_weight=1"], ["aqr.beta=zero"]),
    (["aqr=none", "training.criterion.signal_weight=1"], ["aqr=none", "signal_weight=1"]),
    (["training.criterion.signal_weight=1"], ["aqr.stop_gradient=true"]),
    (["training.criterion.signal_weight=-1"], ["training.criterion.signal_weight=-1"]),
    # overrides, parts of the sentence: key, value, what is allowed
    (["rendrer=base"], ["rendrer=base", "did you mean renderer"]),
    (["+lr_mult.encoder=0.1"], ["lr_mult.encoder=0.1", "img_backbone"]),
    (["lr_mult.transformer=-1"], ["lr_mult.transformer=-1", "0 (frozen) or more"]),
    (["renderer.render_method=gauss"], ["renderer.render_method=gauss", "gaussian, bilinear"]),
    (
        ["clamp_schedule=progressive", "renderer.max_weight_clamp=2.0"],
        ["renderer.max_weight_clamp=2.0", "contradicts the clamp schedule", "clamp_schedule=constant"],
    ),
    (["clamp_schedule.milestones={0:2.0,3:-1.0}"], ["clamp_schedule.milestones[3]=-1.0", "above 0"]),
    (["aqr=none", "renderer.max_weight_clamp=2"], ["renderer.max_weight_clamp has no effect with aqr=none"]),
    (["aqr=none", "clamp_schedule=progressive"], ["clamp_schedule", "aqr=none has nothing to clamp"]),
    (["ckpt_path=a.ckpt", "weights=b.pth"], ["ckpt_path=a.ckpt and weights=b.pth", "not both"]),
    (["ckpt_path=a.ckpt"], ["ckpt_path=a.ckpt", "there is no such file"]),
    (["weights=b.pth"], ["weights=b.pth", "there is no such file"]),
    (["data.batch_size=two"], ["data.batch_size=two", "whole number"]),
    (["data=nuscenes"], ["data.root", "has no default"]),
    (["data.lidar=false"], ["data.lidar=false", "model=tiny_camera"]),
    (["data.cameras=false"], ["data.cameras=false", "model=tiny_lidar"]),
    (["data.cameras=false", "data.lidar=false"], ["data.cameras=false and lidar=false", "at least one"]),
    (["optimizer.lr=-1"], ["optimizer.lr=-1", "above 0"]),
    (["optimizer.lr=abc"], ["optimizer.lr=abc", "a number"]),
    (["optimizer.lr_for_batch=many"], ["optimizer.lr_for_batch=many", "whole number"]),
    (["+optimizer.betas=[0.9,0.99]"], ["optimizer.betas", "no such setting"]),
    (["lr_mult.transformer=fast"], ["lr_mult.transformer=fast", "number"]),
    (["model.image_size=[64]"], ["model.image_size=[64]", "height and width"]),
    (["logger=null"], ["logger=null", "must be one of csv"]),
    (["callbacks=null"], ["callbacks=null", "must be one of default"]),
    (["+trainer.overfit_batches=1"], ["trainer.overfit_batches=1", "experiment=overfit"]),
    (["+trainer.fast_dev_run=true"], ["trainer.fast_dev_run=True", "trainer.max_steps=2"]),
    (["+trainer.limit_val_batches=0"], ["trainer.limit_val_batches=0", "data.limit_eval_frames"]),
    (["+trainer.limit_train_batches=0"], ["trainer.limit_train_batches=0", "evaluate.py"]),
    (["trainer.num_sanity_val_steps=two"], ["trainer.num_sanity_val_steps=two", "whole number"]),
    (["trainer.gradient_clip_val=abc"], ["trainer.gradient_clip_val=abc", "a number"]),
    (["trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val=-1", "0 or more"]),
    (["+trainer.min_epochs=abc"], ["trainer.min_epochs=abc", "whole number"]),
    (["+trainer.min_epochs=9"], ["trainer.min_epochs=9", "trainer.max_epochs=5"]),
    (["+trainer.detect_anomaly=maybe"], ["trainer.detect_anomaly=maybe", "true or false"]),
    (["trainer.devices=two"], ["trainer.devices=two", "int > 0"]),
    (["trainer.accelerator=tpu"], ["trainer.accelerator=tpu", "auto, cpu, gpu"]),
    (["+trainer.strategy=foo"], ["trainer.strategy=foo", "ddp_spawn"]),
    (["trainer.use_distributed_sampler=true"], ["trainer.use_distributed_sampler=true", "drop it"]),
    (["+trainer.barebones=true"], ["trainer.barebones=True", "not offered"]),
    (["+trainer.logger=false"], ["trainer.logger=False", "logger=<option>"]),
    (["trainer.precision=64-true", *PAIR], ["trainer.precision=64-true", "bf16-mixed"]),
    (["+callbacks.mine._target_=nowhere.Nothing"], ["nowhere.Nothing", "no such class"]),
    (["optimizer.schedule=cosine"], ["optimizer.schedule=cosine", "one_cycle, constant"]),
    (["fault=fog", "fault.fog.visibility=-5"], ["fog.visibility=-5", "above 0"]),
    (["fault.share=0.5"], ["fault.share=0.5", "fault=fog"]),
    (["evaluation.score_threshold=1.5"], ["evaluation.score_threshold=1.5", "0 or more and below 1"]),
    (["trainer.max_epochs=-1"], ["trainer.max_epochs=-1", "must set an end"]),
    (["+trainer.strategy=fsdp"], ["trainer.strategy=fsdp", "choose trainer=ddp"]),
    (["+trainer.sync_batchnorm=true"], ["trainer.sync_batchnorm=true", "not built"]),
    (["trainer.max_steps=few"], ["trainer.max_steps=few", "whole number"]),
    (["data.resampling=class"], ["data.resampling=class", "none, cbgs"]),
    (["data/sampling=cmt", "model=tiny_camera"], ["data.sampling", "data/sampling=none"]),
    (["experiment=aqr_from_cmt"], ["weights=null", "add weights=FILE"]),
    (["renderer.bev_feature_shape=[128,128]"], ["renderer.bev_feature_shape=[128, 128]", "must be [40, 40]"]),
    (["callbacks.checkpoint.folder=null"], ["callbacks.checkpoint.folder=null", "path of a folder"]),
    (["+training.criterion.classes=5"], ["training.criterion.classes=5", "nuScenes' ten"]),
    (["model.network.head.classes=5"], ["model.network.head.classes=5", "nuScenes' ten"]),
    (["+training.denoising.noise=1"], ["training.denoising.noise", "no such setting"]),
    (["+renderer.speed=1"], ["renderer.speed", "no such setting"]),
    (["callbacks.checkpoint.monitor=val/nds"], ["callbacks.checkpoint.monitor=val/nds", "did you mean val/NDS"]),
    (
        [STOP, "+callbacks.stop.monitor=loss"],
        ["callbacks.stop.monitor=loss", "train/loss", "AP/car", "d0.loss_cls"],
    ),
    ([STOP], ["callbacks.stop", "EarlyStopping needs monitor", "callbacks.stop.monitor="]),
    ([STOP, NDS, "+callbacks.stop.mode=up"], ["callbacks.stop", "EarlyStopping", "up"]),
    ([STOP, NDS, "+callbacks.stop.wait=3"], ["callbacks.stop.wait", "no such setting"]),
    (["+callbacks.stop={monitor: val/NDS}"], ["callbacks.stop", "nothing reads"]),
    (["callbacks.checkpoint.every_n_epochs=abc"], ["callbacks.checkpoint.every_n_epochs=abc", "whole number"]),
    (["callbacks.checkpoint.every_n_steps=1.5"], ["callbacks.checkpoint.every_n_steps=1.5", "whole number"]),
    (["callbacks.checkpoint.every_n_minutes=abc"], ["callbacks.checkpoint.every_n_minutes=abc", "number above 0"]),
    (["callbacks.learning_rate.logging_interval=never"], ["callbacks.learning_rate", "logging_interval"]),
    (["clamp_schedule.milestones=abc"], ["clamp_schedule.milestones=abc", "by epoch"]),
    (["+callbacks.norm._target_=torch.nn.Identity"], ["callbacks.norm", "no callback"]),
]


@pytest.mark.parametrize(("overrides", "parts"), MISTAKES, ids=[" ".join(case[0]) for case in MISTAKES])
def test_a_mistake_is_explained_in_one_sentence(
    overrides: list[str], parts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There are no data, so a command that came as far as reading would complain of those instead."""
    nowhere = [] if "data=nuscenes" in overrides else ["data=nuscenes", "data.root=/nowhere"]
    if overrides[0].startswith("experiment="):
        nowhere = ["data.root=/nowhere"]  # the experiment chooses the data
    said = sentence(monkeypatch, tmp_path, "train", *nowhere, *overrides)
    for part in parts:
        assert part in said


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.root=/nowhere", "data.root=/nowhere is not a folder"),
        ("data.val_split=validation", "split validation is unknown"),
        ("data.version=v1.0-tiny", "data.version=v1.0-tiny has no folder"),
    ],
)
def test_missing_data_are_named(
    override: str, part: str, monkeypatch: pytest.MonkeyPatch, run_folder: Path, tmp_path: Path
) -> None:
    small = [item for item in SMALL if not item.startswith(("data.root", "data.cache_dir"))]
    data = ["data=nuscenes", f"data.root={run_folder / 'data'}", "data.version=v1.0-mini"]
    splits = ["data.train_split=mini_train", "data.val_split=mini_val"]
    said = sentence(monkeypatch, tmp_path, "train", *small, *data, *splits, override)
    assert part in said


def test_a_missing_table_is_named(monkeypatch: pytest.MonkeyPatch, run_folder: Path, tmp_path: Path) -> None:
    tables = tmp_path / "data" / "v1.0-mini"
    tables.mkdir(parents=True)
    for path in (run_folder / "data" / "v1.0-mini").iterdir():
        if path.name != "sample_data.json":
            (tables / path.name).symlink_to(path)
    (tmp_path / "data" / "samples").symlink_to(run_folder / "data" / "samples")
    said = sentence(monkeypatch, tmp_path, "train", *SMALL)
    assert "sample_data.json" in said


def test_evaluation_needs_a_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "ckpt_path is missing" in sentence(monkeypatch, tmp_path, "evaluate")
    assert "no such file" in sentence(monkeypatch, tmp_path, "evaluate", "ckpt_path=none.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    assert "holds no configuration" in sentence(monkeypatch, tmp_path, "evaluate", "ckpt_path=bare.ckpt")


@pytest.mark.parametrize(
    ("script", "line", "named"),
    [
        ("train", ["trainer.precision=bf16-mixed"], "trainer.precision"),
        ("evaluate", ["model.embed_dims=64"], "model.embed_dims"),
        ("evaluate", ["optimizer.lr=1e-3"], "optimizer.lr"),
    ],
)
def test_what_does_not_go_with_a_checkpoint_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    trained: tuple[Path, str],
    script: str,
    line: list[str],
    named: str,
) -> None:
    assert named in sentence(monkeypatch, tmp_path, script, f"ckpt_path={trained[0]}", *line)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, run_folder: Path) -> None:
    assert "gpu" in sentence(monkeypatch, run_folder, "train", *SMALL, "trainer=gpu")


def test_a_study_needs_finished_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "folder is missing" in sentence(monkeypatch, tmp_path, "fault_study")
    assert "folder=.: it holds no finished run" in sentence(monkeypatch, tmp_path, "fault_study", "folder=.")
    assert "conditions.rain" in sentence(monkeypatch, tmp_path, "fault_study", "folder=.", "conditions.rain=1")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("key", ["ckpt_path", "weights"])
def test_code_in_a_file_does_not_run(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(1)}, "payload": Bomb()}, tmp_path / "evil.ckpt")
    (tmp_path / "data").mkdir()
    said = sentence(monkeypatch, tmp_path, "train", *SMALL, "data=synthetic", f"{key}=evil.ckpt")
    assert f"{key}=evil.ckpt" in said and ("not loaded" in said)
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_that_is_truncated_or_another_model_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: tuple[Path, str]
) -> None:
    last = trained[0] / "checkpoints" / "last.ckpt"
    (tmp_path / "half.ckpt").write_bytes(last.read_bytes()[:100_000])
    for script in ("train", "evaluate"):
        said = sentence(monkeypatch, tmp_path, script, "ckpt_path=half.ckpt")
        assert "ckpt_path=half.ckpt: the file is damaged" in said
    said = sentence(monkeypatch, tmp_path, "train", f"ckpt_path={last}", "model.queries=30")
    assert said.startswith("error: model.queries: 20 -> 30: ") and f"weights={last}" in said
    # The same key in the file, of another size: weights that are not what the configuration in it says.
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["state_dict"]["model.head.reference_points"] = torch.zeros(30, 3)
    torch.save(checkpoint, tmp_path / "other.ckpt")
    data = [f"data.root={trained[0].parent / 'data'}"]
    said = sentence(monkeypatch, tmp_path, "train", "ckpt_path=other.ckpt", *data)
    assert "ckpt_path=other.ckpt: it holds another model" in said and "reference_points" in said


def test_auto_needs_the_run_s_folder(run_folder: Path) -> None:
    done = run_command(run_folder, "train", "ckpt_path=auto", "hydra.output_subdir=null")
    assert done.returncode == 1
    assert "ckpt_path=auto: looks in the run's folder" in done.stderr and "hydra.run.dir=" in done.stderr


def test_in_a_process_of_its_own_it_is_one_line_on_stderr_and_status_1(run_folder: Path) -> None:
    for override in ("renderer.max_wieght_clamp=2", "renderer.max_weight_clamp=-2"):
        done = run_command(run_folder, "train", override, "hydra.run.dir=refused", "data.root=nowhere")
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith(f"error: {override}") and done.stderr.count("\n") == 1
    assert not (run_folder / "nowhere").exists()


@pytest.mark.parametrize(
    ("script", "taught"),
    [
        ("train", ["renderer: aggressive", "model: ", "-m renderer.max_weight_clamp=", "outputs/", "ckpt_path="]),
        ("evaluate", ["ckpt_path=", "data: lab, nuscenes, synthetic", "metrics.json"]),
        ("visualize", ["ckpt_path=", "frames=[0,5]", "_cameras.png"]),
        ("explain_maps", ["finding=pile_up", "finding=background", "data.root=FOLDER"]),
    ],
)
def test_help_teaches_and_fits_on_a_screen(script: str, taught: list[str], run_folder: Path) -> None:
    done = subprocess.run(
        [*arguments(script)[:2], "--help"],
        cwd=run_folder,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    for part in taught:
        assert part in done.stdout
    # Hydra lists the options of a group on one line, however many; the terminal wraps the longest.
    long = ("experiment:", "fault/", "eval_fault/")
    lines = [line for line in done.stdout.splitlines() if not line.startswith(long)]
    assert len(lines) < 60 and max(map(len, lines)) < 121
    assert "_target_" not in done.stdout
