"""A mistake ends a command with one sentence before any data are read."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from tests.helpers.commands import SMALL, run_command, script_path
from tests.helpers.small_data import linked_copy

pytestmark = pytest.mark.system

QUIET = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
"""In this process, Hydra's logging would remove pytest's handlers."""


def sentence(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str, *overrides: str) -> str:
    """The error with which a script exits, run in this process: starting another takes seconds."""
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
    error = stopped.value.code  # sys.exit prints a text on stderr, and the status is 1
    assert isinstance(error, str) and error.startswith("error: ") and "\n" not in error, error
    return error


STOP = "+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping"

MISTAKES = [
    (["data=nuscenes"], ["data.root", "has no default"]),
    (["trainer.devices=two"], ["trainer.devices=two", "int > 0"]),
    (["+trainer.strategy=foo"], ["trainer.strategy=foo", "ddp_spawn"]),
    (["renderer.bev_feature_shape=[128,128]"], ["renderer.bev_feature_shape=[128, 128]", "must be [40, 40]"]),
    (["callbacks.checkpoint.monitor=val/nds"], ["callbacks.checkpoint.monitor=val/nds", "did you mean val/NDS"]),
    (
        [STOP, "+callbacks.stop.monitor=loss"],
        ["callbacks.stop.monitor=loss", "train/loss", "AP/car", "d0.loss_cls"],
    ),
    (["optimizer.lr=-1"], ["optimizer.lr=-1", "above 0"]),
]
"""Overrides and parts of the sentence: mistakes that only the whole command finds, and one other."""


@pytest.mark.parametrize(("overrides", "parts"), MISTAKES, ids=[" ".join(case[0]) for case in MISTAKES])
def test_a_mistake_is_explained_in_one_sentence(
    overrides: list[str], parts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A command that reads data would report instead that there are none."""
    nowhere = [] if "data=nuscenes" in overrides else ["data=nuscenes", "data.root=/nowhere"]
    error = sentence(monkeypatch, tmp_path, "train", *nowhere, *overrides)
    assert all(part in error for part in parts), error


def test_missing_data_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = sentence(monkeypatch, tmp_path, "train", *SMALL, "data=nuscenes", "data.root=/nowhere")
    assert "data.root=/nowhere is not a folder" in error


def test_a_missing_table_is_named(monkeypatch: pytest.MonkeyPatch, run_folder: Path, tmp_path: Path) -> None:
    root = linked_copy(run_folder / "data", tmp_path / "data")
    (root / "v1.0-mini" / "sample_data.json").unlink()
    assert "sample_data.json" in sentence(monkeypatch, tmp_path, "train", *SMALL)


def test_evaluation_needs_a_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "ckpt_path is missing" in sentence(monkeypatch, tmp_path, "evaluate")
    assert "no such file" in sentence(monkeypatch, tmp_path, "evaluate", "ckpt_path=none.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    assert "holds no configuration" in sentence(monkeypatch, tmp_path, "evaluate", "ckpt_path=bare.ckpt")


@pytest.mark.parametrize(
    ("script", "override", "key"),
    [
        ("train", "trainer.precision=bf16-mixed", "trainer.precision"),
        ("evaluate", "model.embed_dims=64", "model.embed_dims"),
        ("evaluate", "optimizer.lr=1e-3", "optimizer.lr"),
    ],
)
def test_what_does_not_go_with_a_checkpoint_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    trained: tuple[Path, str],
    script: str,
    override: str,
    key: str,
) -> None:
    assert key in sentence(monkeypatch, tmp_path, script, f"ckpt_path={trained[0]}", override)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device_is_named(monkeypatch: pytest.MonkeyPatch, run_folder: Path) -> None:
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
    error = sentence(monkeypatch, tmp_path, "train", *SMALL, "data=synthetic", f"{key}=evil.ckpt")
    assert f"{key}=evil.ckpt" in error and "not loaded" in error
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_that_is_truncated_or_of_another_model_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: tuple[Path, str]
) -> None:
    last = trained[0] / "checkpoints" / "last.ckpt"
    (tmp_path / "half.ckpt").write_bytes(last.read_bytes()[:100_000])
    for script in ("train", "evaluate"):
        error = sentence(monkeypatch, tmp_path, script, "ckpt_path=half.ckpt")
        assert "ckpt_path=half.ckpt: the file is damaged" in error
    error = sentence(monkeypatch, tmp_path, "train", f"ckpt_path={last}", "model.queries=30")
    assert error.startswith("error: model.queries: 20 -> 30: ") and f"weights={last}" in error
    # Weights that do not fit the configuration in the same file.
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["state_dict"]["model.head.reference_points"] = torch.zeros(30, 3)
    torch.save(checkpoint, tmp_path / "other.ckpt")
    data = f"data.root={trained[0].parent / 'data'}"
    error = sentence(monkeypatch, tmp_path, "train", "ckpt_path=other.ckpt", data)
    assert "ckpt_path=other.ckpt: it holds another model" in error and "reference_points" in error


def test_in_a_process_of_its_own_it_is_one_line_on_stderr_and_status_1(run_folder: Path) -> None:
    for mistake in ("renderer.max_wieght_clamp=2", "renderer.max_weight_clamp=-2", "ckpt_path=auto"):
        done = run_command(run_folder, "train", mistake, "data.root=nowhere")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"error: {mistake}") and done.stderr.count("\n") == 1
    assert "hydra.run.dir=" in done.stderr
    assert not (run_folder / "nowhere").exists()


def test_help_is_a_command_too(run_folder: Path) -> None:
    done = run_command(run_folder, "train", "--help")
    assert (done.returncode, done.stderr) == (0, "") and "renderer: aggressive" in done.stdout
