"""Files in and out: wrappers, damage, and code that must not run."""

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cmt_aqr.weights import WeightsError, read_state_dict, save_pickled, save_safetensors

STATE = {"lidar.a.weight": torch.arange(6.0).reshape(2, 3), "lidar.a.count": torch.tensor(3)}
SAVE = {".pth": save_pickled, ".safetensors": save_safetensors}


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
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_are_removed(tmp_path: Path, wrap: Callable[[dict], dict], zipped: bool) -> None:
    """Also in files from before PyTorch's zip format."""
    torch.save(wrap(STATE), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert_is_state(read_state_dict(tmp_path / "w.pth"))


def test_safetensors_round_trip_of_shared_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    path = save_safetensors({"a": base.T, "b": base}, tmp_path / "new" / "w.safetensors", {"naming": "ours"})
    read = read_state_dict(path)
    assert torch.equal(read["a"], base.T)
    assert torch.equal(read["b"], base)
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"], "no temporary file stays"


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "ran"
    content = {"state_dict": STATE, "extra": Harmful(marker)}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"mkdir.* could run code") as error:
        read_state_dict(tmp_path / "bad.pth")
    assert "\n" not in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", SAVE)
@pytest.mark.parametrize("size", [0, 1500])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, size: int) -> None:
    path = SAVE[suffix]({"a": torch.randn(1000)}, tmp_path / f"w{suffix}")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(WeightsError, match=rf"w{suffix} is damaged"):
        read_state_dict(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nope\.pth"):
        read_state_dict(tmp_path / "nope.pth")
    save_pickled(STATE, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"weights={tmp_path} is a folder.*w\.pth"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "state dict"),
        ({}, "state dict"),
        ({"state_dict": {}}, "state dict"),
        ({"epoch": 3}, "state dict"),
        ({"state_dict": {"a": 1}}, "state dict"),
        ({"epoch": 3, "network": STATE}, "under 'network': save that entry alone"),
    ],
)
def test_files_without_a_state_dict(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", SAVE)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(
    tmp_path: Path, suffix: str, dtype: torch.dtype, value: float
) -> None:
    bad = torch.tensor([1.0, float("nan") if dtype.itemsize == 1 else value]).to(dtype)
    state = {"good": torch.zeros(3), "neck.conv.weight": bad, "count": torch.tensor(3)}
    path = SAVE[suffix](state, tmp_path / f"weights{suffix}")
    with pytest.raises(WeightsError, match=rf"^weights={path}: neck\.conv\.weight"):
        read_state_dict(path)
    SAVE[suffix]({"neck.conv.weight": torch.ones(2).to(dtype)}, path)
    assert read_state_dict(path)["neck.conv.weight"].float().tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.zeros(2, dtype=torch.complex64), "complex"),
        (lambda: torch.full((2,), complex("nan"), dtype=torch.complex128), "complex"),
        (lambda: torch.eye(2).to_sparse(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantised"),
    ],
)
def test_tensors_that_cannot_be_weights(tmp_path: Path, make: Callable[[], torch.Tensor], kind: str) -> None:
    torch.save({"a": torch.zeros(2), "b.weight": make()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"w\.pth: b\.weight is {kind}"):
        read_state_dict(tmp_path / "w.pth")


def content_of(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def zipped(**files: bytes) -> bytes:
    def write(buffer: io.BytesIO) -> None:
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)

    return content_of(write)


def tar(buffer: io.BytesIO) -> None:
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("w.pth"))


SCRIPTED = {"archive/data.pkl": b"", "archive/constants.pkl": b"", "archive/version": b"3"}
PAGE = "<!DOCTYPE html><html><body>Anmeldung nötig</body></html>"
OTHER_FILES = [
    (PAGE.encode(), "web page"),
    (f"\r\n  {PAGE}".encode(), "web page"),
    (PAGE.encode("utf-8-sig"), "web page"),
    (PAGE.encode("utf-16"), "web page"),
    (b"\xfe\xff" + PAGE.encode("utf-16-be"), "web page"),
    (PAGE.replace("nötig", "ö" * 5000).encode(), "web page"),
    (PAGE.encode("latin-1"), "web page"),
    (PAGE.encode("utf-16-le"), "web page"),
    (PAGE.encode("utf-16-be"), "web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS.*git lfs pull$"),
    (b'{"error": 404}', "JSON"),
    (b"Not Found", 'text that begins with "Not Found"'),
    ("Zugriff verweigert: später".encode(), "text that begins with"),
    (b"", "empty"),
    (b"\n\n", "empty"),
    (gzip.compress(b"weights"), "gzip.*unpack"),
    (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG"),
    (b"%PDF-1.7\n", "PDF"),
    (zipped(readme=b"hello"), "zip archive.*unpack"),
    (content_of(tar), "tar archive.*unpack"),
    (zipped(**SCRIPTED), "TorchScript"),
    (content_of(lambda buffer: np.savez(buffer, a=np.zeros(3))), "NumPy"),
    (b"\x80\x02}q", "damaged"),
    (b"\x80\x02" + bytes(range(256)), "damaged"),
    (pickle.dumps({"a": 1}), "damaged, or neither"),
    (bytes(range(256)), "damaged, or neither"),
]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [*SAVE, ""])
@pytest.mark.parametrize(("content", "kind"), OTHER_FILES, ids=range(len(OTHER_FILES)))
def test_the_kind_of_another_file_is_named(tmp_path: Path, content: bytes, kind: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=kind) as error:
        read_state_dict(path)
    assert str(error.value).startswith(f"weights={path} is ") and "\n" not in str(error.value)
    assert "run code" not in str(error.value) or kind == "TorchScript"


def test_the_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    save_safetensors(STATE, tmp_path / "w.safetensors").rename(tmp_path / "a.pth")
    save_pickled(STATE, tmp_path / "w.pth").rename(tmp_path / "b.safetensors")
    save_pickled(STATE, tmp_path / "w.pth").rename(tmp_path / "c.pth.tar")
    for name in ("a.pth", "b.safetensors", "c.pth.tar"):
        assert_is_state(read_state_dict(tmp_path / name))
