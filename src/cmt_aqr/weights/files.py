"""Reading and writing weights. Nothing from a file is ever executed."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cmt_aqr.errors import UserError
from cmt_aqr.files import written_at_once

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
"""Entries under which checkpoints keep their state dict."""

WRAPPER_PREFIXES = ("module.", "model.")
"""What DistributedDataParallel and a LightningModule put before every name."""

PICKLED = (".pth", ".pt", ".ckpt", ".bin")


class WeightsError(UserError):
    """A weights file cannot be used; the message says why and what to do."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, ``.pth``, ``.pt``, ``.bin`` or ``.ckpt``, onto the CPU.

    Wrappers are taken off: an entry ``state_dict`` or ``model``, and ``module.`` or ``model.`` before names.

    Raises:
        FileNotFoundError: where there is no such file.
        WeightsError: where it is damaged, holds anything but plain data and tensors, or no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights={path}: there is no such file")
    if path.suffix in PICKLED:
        _refuse_other_files(path)
    if path.suffix == ".safetensors":
        try:
            content: Any = load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"weights={path} is damaged or no safetensors file ({error})") from error
    elif path.suffix in PICKLED:
        content = _read_pickled(path)
    else:
        raise WeightsError(
            f"weights={path}: unknown ending {path.suffix!r}; known are .safetensors, {', '.join(PICKLED)}"
        )
    state = unwrap(content, str(path))
    require_finite(state, f"weights={path}")
    return state


_NO_WEIGHTS = {
    b"<": "a web page (a download that was answered by a log-in or an error page, say)",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: run git lfs pull",
    b"{": "a text in JSON",
}
"""How files begin that are often saved under the name of weights, and what they are."""


def _refuse_other_files(path: Path) -> None:
    with path.open("rb") as file:
        begin = file.read(256).lstrip()
    if not begin:
        raise WeightsError(f"weights={path} is damaged: it is empty; copy or download it again")
    for start, what in _NO_WEIGHTS.items():
        if begin.startswith(start):
            raise WeightsError(f"weights={path} is {what}; download the weights again")


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights with values that are not finite.

    Args:
        state: tensors by name.
        source: what they were read from, as ``weights=a.pth``, for the message.

    Raises:
        WeightsError: naming the first such parameter.
    """
    bad = [
        name
        for name, value in state.items()
        if value.is_floating_point() and not value.isfinite().all() and not name.endswith("renderer.clamp_limit")
    ]  # that limit is infinite where there is none
    if bad:
        raise WeightsError(
            f"{source}: {bad[0]} ({len(bad)} of {len(state)} tensors) holds values that are not finite"
        )


def _read_pickled(path: Path) -> Any:
    """``torch.load`` that unpickles tensors and plain data only."""
    try:
        # Only torch's zip format can be mapped; files from before PyTorch 1.6 are read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        what = f"{named[1]!r}" if named else "an object of another kind"
        raise WeightsError(
            f"weights={path} asks for {what} to be built, which could run code, so it was not loaded; only "
            "tensors and plain data are accepted (have whoever trusts the file save its state_dict alone)"
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise WeightsError(
            f"weights={path} is damaged or no PyTorch checkpoint ({type(error).__name__}); copy it again"
        ) from error


def unwrap(content: Any, source: str) -> dict[str, Tensor]:
    """Take a state dict out of what checkpoints wrap it in.

    Args:
        content: what a file held.
        source: the file's name, for messages.

    Raises:
        WeightsError: where no state dict is found, or a value in it is no tensor.
    """
    while isinstance(content, Mapping):
        inner = [content[key] for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"weights={source} holds no state dict, but {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"weights={source}: entry {name!r} is no tensor but {type(value).__name__}, so this is no "
                f"state dict; looked for one under {', '.join(WRAPPER_KEYS)}"
            )
    # The clamp's limit, which models once held, is none of the weights.
    weights = {name: value for name, value in content.items() if not name.endswith("renderer.clamp_limit")}
    return _strip_prefixes(weights, source)


def _strip_prefixes(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    while any(name.startswith(WRAPPER_PREFIXES) for name in state):
        stripped = {}
        for name, value in state.items():
            short = name
            for prefix in WRAPPER_PREFIXES:
                short = short.removeprefix(prefix)
            if short in stripped:
                raise WeightsError(
                    f"weights={source} holds {short!r} both with and without the prefix of a wrapper"
                )
            stripped[short] = value
        state = stripped
    return state


def save_safetensors(
    state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a state dict as safetensors, under a temporary name first, so that no half a file is left.

    Args:
        state: what to write; moved to the CPU and made contiguous.
        path: where, ending in ``.safetensors``.
        metadata: words to keep in the file's header.

    Returns:
        The path.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"target={path}: expected a name that ends in .safetensors")
    # Cloned, because safetensors refuses tensors that share memory.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }
    return _write(path, lambda temporary: save_file(tensors, temporary, metadata=dict(metadata or {})))


def save_pickled(state: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write ``{"state_dict": state}`` with ``torch.save``, as the official tools read it; atomically."""
    path = Path(path)
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }
    return _write(path, lambda temporary: torch.save({"state_dict": tensors}, temporary))


def _write(path: Path, write: Any) -> Path:
    with written_at_once(path) as partial:
        write(partial)
    return path
