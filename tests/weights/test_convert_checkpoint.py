"""The command that converts a file."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cmt_aqr.errors import UserError
from cmt_aqr.weights import read_state_dict
from tests.helpers.commands import finished, run_command, script_path

OFFICIAL = {
    "pts_middle_encoder.conv_out.0.weight": torch.randn(4, 3, 1, 1, 2),
    "pts_bbox_head.reference_points.weight": torch.rand(5, 3),
}


def script() -> ModuleType:
    """The script as a module, to call its functions without a process of their own."""
    spec = importlib.util.spec_from_file_location("convert_checkpoint", script_path("convert_checkpoint"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.system
def test_there_and_back(tmp_path: Path) -> None:
    torch.save({"state_dict": OFFICIAL}, tmp_path / "epoch_20.pth")
    finished(tmp_path, "convert_checkpoint", "source=epoch_20.pth", "target=ours.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"epoch_20.pth", "ours.safetensors"}, "no log, no folder"
    assert "head.reference_points" in read_state_dict(tmp_path / "ours.safetensors")
    script().convert_file(tmp_path / "ours.safetensors", tmp_path / "official.pth", None)
    back = read_state_dict(tmp_path / "official.pth")
    assert back.keys() == OFFICIAL.keys()
    assert all(torch.equal(back[name], OFFICIAL[name]) for name in back)


@pytest.mark.system
def test_an_error_is_one_sentence(tmp_path: Path) -> None:
    done = run_command(tmp_path, "convert_checkpoint", "source=nope.pth", "target=x.pth")
    assert done.returncode != 0
    assert done.stderr.strip() == "error: source=nope.pth: there is no such file"
    done = run_command(tmp_path, "convert_checkpoint", "sorce=nope.pth", "target=x.pth")
    assert done.returncode == 1 and "did you mean source" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("target", "to"), [("x.onnx", None), ("x.pth", "theirs")])
def test_what_cannot_be_asked_for(tmp_path: Path, target: str, to: str | None) -> None:
    with pytest.raises(UserError, match=r"^(target|to)=\S+: must be"):
        script().convert_file(tmp_path / "a.pth", tmp_path / target, to)
