"""A mistake ends a command with one sentence, before any data are read."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from tests.system.commands import ROOT, SMALL, arguments, environment, run_command

pytestmark = pytest.mark.system

QUIET = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
"""In this process, Hydra's logging would take pytest's handlers away."""


def sentence(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str, *overrides: str) -> str:
    """What a script says on stderr as it exits, run in this process: starting one takes seconds."""
    path = ROOT / "scripts" / f"{script}.py"
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


MISTAKES = [
    # overrides, parts of the sentence: key, value, what is allowed
    (["renderer.max_wieght_clamp=2"], ["renderer.max_wieght_clamp=2", "did you mean renderer.max_weight_clamp"]),
    (["renderer=foo"], ["renderer=foo", "aggressive, base, conservative, recommended"]),
    (["rendrer=base"], ["rendrer=base", "did you mean renderer"]),
    (["lr_mult.img_bakbone=0.1"], ["lr_mult.img_bakbone=0.1", "did you mean lr_mult.img_backbone"]),
    (["+lr_mult.encoder=0.1"], ["lr_mult.encoder=0.1", "img_backbone"]),
    (["lr_mult.transformer=-1"], ["lr_mult.transformer=-1", "0 (frozen) or more"]),
    (["renderer.max_weight_clamp=-1"], ["renderer.max_weight_clamp=-1", "above 0"]),
    (["modulator.residual_weight=1.5"], ["modulator.residual_weight=1.5", "from 0 to 1"]),
    (["renderer.render_method=gauss"], ["renderer.render_method=gauss", "gaussian, bilinear"]),
    (["aqr.generator.bev_window=4"], ["aqr.generator.bev_window=4", "odd"]),
    (["aqr.draw=some"], ["aqr.draw=some", "matching, all"]),
    (
        ["clamp_schedule=progressive", "renderer.max_weight_clamp=2.0"],
        ["renderer.max_weight_clamp=2.0", "contradicts the clamp schedule", "clamp_schedule=constant"],
    ),
    (["clamp_schedule.milestones={0:2.0,3:-1.0}"], ["clamp_schedule.milestones[3]=-1.0", "above 0"]),
    (["clamp_schedule.milestones={2:2.0}"], ["clamp_schedule.milestones", "begin at 0"]),
    (["aqr=none", "renderer.max_weight_clamp=2"], ["renderer.max_weight_clamp has no effect with aqr=none"]),
    (["aqr=none", "clamp_schedule=progressive"], ["clamp_schedule", "aqr=none has nothing to clamp"]),
    (["ckpt_path=a.ckpt", "weights=b.pth"], ["ckpt_path=a.ckpt and weights=b.pth", "not both"]),
    (["ckpt_path=a.ckpt"], ["ckpt_path=a.ckpt", "there is no such file"]),
    (["weights=b.pth"], ["weights=b.pth", "there is no such file"]),
    (["data.batch_size=0"], ["data.batch_size=0", "1 or more"]),
    (["data.batch_size=two"], ["data.batch_size=two", "whole number"]),
    (["data=nuscenes"], ["data.root", "has no default"]),
    (["data.cameras=false", "data.lidar=false"], ["data.cameras=false and data.lidar=false", "at least one"]),
    (["optimizer.lr=-1"], ["optimizer.lr=-1", "above 0"]),
    (["optimizer.schedule=cosine"], ["optimizer.schedule=cosine", "one_cycle or constant"]),
    (["evaluation.score_threshold=1.5"], ["evaluation.score_threshold=1.5", "0 or more and below 1"]),
    (["trainer.max_epochs=-1"], ["trainer.max_epochs=-1", "must set an end"]),
    (["+trainer.strategy=fsdp"], ["trainer.strategy=fsdp", "choose trainer=ddp"]),
    (["+trainer.sync_batchnorm=true"], ["trainer.sync_batchnorm=true", "not built"]),
    (["trainer.max_steps=few"], ["trainer.max_steps=few", "whole number"]),
    (
        ["experiment=cmt_voxel0100_r50_800x320_cbgs"],
        ["recipe.cbgs=true", "add recipe.cbgs=false recipe.ground_truth_sampling=false"],
    ),
    (["experiment=aqr_from_cmt"], ["weights=null", "add weights=FILE"]),
    (["callbacks.checkpoint.every_n_steps=0"], ["callbacks.checkpoint.every_n_steps=0", "1 or more"]),
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
        ("evaluate", ["ckpt_path=", "data: nuscenes, synthetic", "metrics.json"]),
    ],
)
def test_help_teaches_and_fits_on_a_screen(script: str, taught: list[str], run_folder: Path) -> None:
    done = subprocess.run(
        [*arguments(script)[:2], "--help"],
        cwd=run_folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    for part in taught:
        assert part in done.stdout
    # Hydra lists the options of a group on one line, however many; the terminal wraps those of experiment.
    lines = [line for line in done.stdout.splitlines() if not line.startswith("experiment:")]
    assert len(lines) < 60 and max(map(len, lines)) < 121
    assert "_target_" not in done.stdout
