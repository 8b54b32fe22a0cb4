import os
from pathlib import Path

import pytest
import torch

from cmt_aqr.errors import UserError
from cmt_aqr.training.checkpoints import AtomicCheckpointIO, read_checkpoint


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    io.save_checkpoint({"state_dict": {"w": torch.arange(3)}, "epoch": 2}, tmp_path / "last.ckpt")
    read = io.load_checkpoint(tmp_path / "last.ckpt")
    assert read["epoch"] == 2 and read["state_dict"]["w"].tolist() == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    io.save_checkpoint({"state_dict": {}, "epoch": 1}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match="pickle"):
        io.save_checkpoint({"state_dict": {}, "bad": lambda: None}, tmp_path / "last.ckpt")
    assert io.load_checkpoint(tmp_path / "last.ckpt")["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_code_in_a_file_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "payload": Bomb()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="it was not loaded"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "exploded").exists()


def test_missing_truncated_and_foreign_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_checkpoint(tmp_path / "none.ckpt")
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, tmp_path / "whole.ckpt")
    data = (tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(tmp_path / "half.ckpt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="not a checkpoint of a training run"):
        read_checkpoint(tmp_path / "weights.pth")
