"""Checkpoint files: atomic writes, readable errors, the newest one, and when they are written."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from cmt_aqr.errors import UserError
from cmt_aqr.runs.checkpoints import (
    AtomicCheckpointIO,
    Checkpoints,
    newest_checkpoint,
    read_checkpoint,
    saved_config,
)
from cmt_aqr.weights import save_safetensors
from tests.helpers.trainers import quiet_trainer


def test_a_file_of_weights_is_refused_with_the_key_for_it(tmp_path: Path) -> None:
    state = {"head.weight": torch.zeros(2)}
    save_safetensors(state, tmp_path / "a.safetensors").rename(tmp_path / "a.ckpt")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"state_dict": state, "meta": {"epoch": 20}}, tmp_path / "c.pth")
    (tmp_path / "d.ckpt").write_text("<html>", encoding="utf-8")
    for name in ("a.ckpt", "b.pth", "c.pth", "d.ckpt"):
        path = tmp_path / name
        part = "web page" if name == "d.ckpt" else f"weights={path}"
        with pytest.raises(UserError, match=rf"^ckpt_path={path}: .*{part}"):
            saved_config(path)


class Scored(pl.LightningModule):
    """Logs the given scores, one per evaluation."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.scores = list(scores)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.log("val/NDS", self.scores.pop(0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, scores: list[float], ckpt: Path | None = None, **settings: Any) -> list[int]:
    """Steps of last.ckpt and best.ckpt after a run with three steps per epoch."""
    checkpoints = Checkpoints(folder)
    trainer = quiet_trainer(callbacks=[checkpoints], enable_checkpointing=True, num_sanity_val_steps=0, **settings)
    loader = torch.utils.data.DataLoader(torch.ones(3, 1))
    module = Scored(scores)
    trainer.fit(module, loader, loader, ckpt_path=ckpt, weights_only=True)
    if module.scores:
        trainer.validate(module, loader, verbose=False)
    return [read_checkpoint(path)["global_step"] for path in (checkpoints.last, checkpoints.best)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("scores", "settings", "steps"),
    [
        ([0.1, 0.3, 0.2], {"max_epochs": 3}, [9, 6]),
        # a fit that ends within an epoch
        ([0.1, 0.2], {"max_steps": 5, "max_epochs": -1}, [5, 5]),
        ([0.2, 0.1], {"max_steps": 5, "max_epochs": -1}, [5, 3]),
    ],
)
def test_last_is_of_the_last_step_and_best_of_the_best_evaluation(
    scores: list[float], settings: dict[str, int], steps: list[int], tmp_path: Path
) -> None:
    assert fit(tmp_path, scores, **settings) == steps


@pytest.mark.filterwarnings("ignore")
def test_a_run_resumed_in_another_folder_keeps_the_best_score(tmp_path: Path) -> None:
    fit(tmp_path / "a", [0.3, 0.1], max_epochs=2)
    last = tmp_path / "a" / "last.ckpt"
    assert fit(tmp_path / "b", [0.2, 0.4], last, max_epochs=4) == [12, 12]
    with pytest.raises(UserError, match=r"best\.ckpt: there is no such file"):
        fit(tmp_path / "c", [0.2, 0.25], last, max_epochs=4)


def save(path: Path, step: int) -> Path:
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.rand(1000)}, "global_step": step}, path)
    return path


@pytest.mark.parametrize("links", [True, False])
def test_the_newest_and_the_one_before_are_kept(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    for step in (1, 2, 3):
        save(tmp_path / "last.ckpt", step)
    steps = {path.name: read_checkpoint(path)["global_step"] for path in tmp_path.iterdir()}
    assert steps == {"last.ckpt": 3, "previous.ckpt": 2}


def test_the_newest_is_found_by_its_step(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert newest_checkpoint(tmp_path / "nothing") is None and newest_checkpoint(tmp_path) is None
    steps = (("previous", 2, "previous"), ("last", 4, "last"), ("best", 4, "last"), ("best", 6, "best"))
    for name, step, newest in steps:
        save(folder / f"{name}.ckpt", step)
        assert newest_checkpoint(tmp_path) == newest_checkpoint(folder) == folder / f"{newest}.ckpt"


def test_unreadable_ones_are_skipped_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("last", "previous"):
        save(tmp_path / f"{name}.ckpt", 1)
    (tmp_path / "last.ckpt").write_bytes(b"garbage" * 1000)
    assert newest_checkpoint(tmp_path) == tmp_path / "previous.ckpt"
    assert str(tmp_path / "last.ckpt") in caplog.text and "skipped" in caplog.text
    (tmp_path / "previous.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"can be read \(last\.ckpt, previous\.ckpt\)"):
        newest_checkpoint(tmp_path)
