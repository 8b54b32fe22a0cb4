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
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(
    tmp_path: Path, ending: str, dtype: torch.dtype, value: float
) -> None:
    bad = torch.tensor([1.0, float("nan") if dtype.itemsize == 1 else value]).to(dtype)
    state = {"good": torch.zeros(3), "neck.conv.weight": bad, "count": torch.tensor(3)}
    path = tmp_path / f"weights{ending}"
    (save_safetensors if ending == ".safetensors" else save_pickled)(state, path)
    with pytest.raises(WeightsError, match=rf"^weights={path}: neck\.conv\.weight"):
        read_state_dict(path)
    good = {"neck.conv.weight": torch.ones(2).to(dtype)}
    (save_safetensors if ending == ".safetensors" else save_pickled)(good, path)
    assert read_state_dict(path)["neck.conv.weight"].float().tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.zeros(2, dtype=torch.complex64), "complex"),
        (lambda: torch.full((2,), complex("nan"), dtype=torch.complex128), "complex"),
        (lambda: torch.eye(2).to_sparse(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantised"),
    ],
)
def test_tensors_that_no_weight_can_take(tmp_path: Path, make: Callable[[], torch.Tensor], what: str) -> None:
    torch.save({"a": torch.zeros(2), "b.weight": make()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"w\.pth: b\.weight is {what}"):
        read_state_dict(tmp_path / "w.pth")


def zipped(**files: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return held.getvalue()


def tarred() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("w.pth"))
    return held.getvalue()


def scripted() -> bytes:
    return zipped(**{"archive/data.pkl": b"", "archive/constants.pkl": b"", "archive/version": b"3"})


def arrays() -> bytes:
    held = io.BytesIO()
    np.savez(held, a=np.zeros(3))
    return held.getvalue()


PAGE = "<!DOCTYPE html><html><body>Anmeldung nötig</body></html>"


OTHERS = [
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
    (tarred(), "tar archive.*unpack"),
    (scripted(), "TorchScript"),
    (arrays(), "NumPy"),
    (b"\x80\x02}q", "damaged"),
    (b"\x80\x02" + bytes(range(256)), "damaged"),
    (pickle.dumps({"a": 1}), "damaged, or neither"),
    (bytes(range(256)), "damaged, or neither"),
]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".bin", ""])
@pytest.mark.parametrize(("content", "what"), OTHERS, ids=range(len(OTHERS)))
def test_a_file_of_another_kind_is_told(tmp_path: Path, content: bytes, what: str, ending: str) -> None:
    path = tmp_path / f"weights{ending}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=what) as error:
        read_state_dict(path)
    assert str(error.value).startswith(f"weights={path} is ") and "\n" not in str(error.value)
    assert "run code" not in str(error.value) or what == "TorchScript"


def test_the_content_counts_and_not_the_ending(tmp_path: Path) -> None:
    save_safetensors(STATE, tmp_path / "w.safetensors").rename(tmp_path / "a.pth")
    save_pickled(STATE, tmp_path / "w.pth").rename(tmp_path / "b.safetensors")
    save_pickled(STATE, tmp_path / "w.pth").rename(tmp_path / "c.pth.tar")
    for name in ("a.pth", "b.safetensors", "c.pth.tar"):
        assert_is_state(read_state_dict(tmp_path / name))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    save_pickled(STATE, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"weights={tmp_path} is a folder.*w\.pth"):
        read_state_dict(tmp_path)


def test_a_wrapper_of_another_name_is_told_how_to_take_off(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "network": STATE}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"under 'network': save that entry alone"):
        read_state_dict(tmp_path / "w.pth")
