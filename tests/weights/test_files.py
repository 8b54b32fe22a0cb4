"""Files in and out: wrappers, damage, and code that must not run."""

import os
from pathlib import Path

import pytest
import torch

from cmt_aqr.weights import WeightsError, read_state_dict, save_pickled, save_safetensors

STATE = {"lidar.a.weight": torch.arange(6.0).reshape(2, 3), "lidar.a.count": torch.tensor(3)}


class Harmful:
    """Unpickling this makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def assert_is_state(state: dict) -> None:
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "meta": {"epoch": 20, "time": "now"}, "optimizer": {"lr": 0.1}},
        lambda s: {"model": s},
        lambda s: {f"module.{n}": v for n, v in s.items()},
        lambda s: {"state_dict": {f"model.{n}": v for n, v in s.items()}, "epoch": 1},
        lambda s: {"state_dict": {f"module.model.{n}": v for n, v in s.items()}},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".pt"])
def test_wrappers_come_off(tmp_path: Path, wrap: object, suffix: str) -> None:
    torch.save(wrap(STATE), tmp_path / f"w{suffix}")
    assert_is_state(read_state_dict(tmp_path / f"w{suffix}"))


def test_files_from_before_the_zip_format(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_is_state(read_state_dict(tmp_path / "old.pth"))


def test_safetensors_round_trip_also_of_shared_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    path = save_safetensors({"a": base.T, "b": base}, tmp_path / "new" / "w.safetensors", {"naming": "ours"})
    read = read_state_dict(path)
    assert torch.equal(read["a"], base.T)
    assert torch.equal(read["b"], base)
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"], "no temporary file stays"


def test_pickled_round_trip(tmp_path: Path) -> None:
    assert_is_state(read_state_dict(save_pickled(STATE, tmp_path / "w.pth")))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "ran"
    content = {"state_dict": STATE, "extra": Harmful(marker)}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"mkdir.* could run code") as error:
        read_state_dict(tmp_path / "bad.pth")
    assert "\n" not in str(error.value)
    assert not marker.exists()


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    for name, save in (("w.pth", save_pickled), ("w.safetensors", save_safetensors)):
        path = save({"a": torch.randn(1000)}, tmp_path / name)
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(WeightsError, match=rf"{name} is damaged"):
            read_state_dict(path)
        path.write_bytes(b"")
        with pytest.raises(WeightsError, match=rf"{name} is damaged"):
            read_state_dict(path)


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nope\.pth"):
        read_state_dict(tmp_path / "nope.pth")
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"\.onnx"):
        read_state_dict(tmp_path / "w.onnx")


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {}}, {"epoch": 3}, {"state_dict": {"a": 1}}])
def test_files_without_weights(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="state dict"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, ending: str, value: float) -> None:
    state = {"good": torch.zeros(3), "neck.conv.weight": torch.tensor([1.0, value]), "count": torch.tensor(3)}
    path = tmp_path / f"weights{ending}"
    (save_safetensors if ending == ".safetensors" else save_pickled)(state, path)
    with pytest.raises(WeightsError, match=rf"^weights={path}: neck\.conv\.weight"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n  <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b'{"error": 404}', "JSON"),
        (b"", "empty"),
    ],
)
def test_a_file_of_another_kind_is_told(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=what):
        read_state_dict(path)
