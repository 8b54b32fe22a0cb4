"""Reading and writing weights. Nothing from a file is ever executed."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cmt_aqr.errors import UserError
from cmt_aqr.file_kinds import is_safetensors, other_file
from cmt_aqr.files import written_at_once

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
"""Entries under which checkpoints keep their state dict."""

WRAPPER_PREFIXES = ("module.", "model.")
"""What DistributedDataParallel and a LightningModule put before every name."""


class WeightsError(UserError):
    """A weights file cannot be used; the message says why and what to do."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a file of safetensors or of ``torch.save``, whatever its ending, onto the CPU.

    Wrappers are taken off: an entry ``state_dict`` or ``model``, and ``module.`` or ``model.`` before names.

    Raises:
        FileNotFoundError: where there is no such file.
        WeightsError: where it is damaged, holds anything but plain data and tensors, or no weights.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"weights={path} is a folder: name a file of weights{_in_it(path)}")
    if not path.is_file():
        raise FileNotFoundError(f"weights={path}: there is no such file")
    what = other_file(path)
    if what is not None:
        raise WeightsError(f"weights={path} is {what}")
    content = _read_safetensors(path) if is_safetensors(path) else _read_pickled(path)
    state = unwrap(content, str(path))
    require_finite(state, f"weights={path}")
    return state


def _in_it(folder: Path) -> str:
    """Files in a folder that look like weights, for a message."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in _ENDINGS)
    return f" in it, as {names[0]}" if names else ""


_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are no real numbers in full, or not finite.

    Args:
        state: tensors by name.
        source: what they were read from, as ``weights=a.pth``, for the message.

    Raises:
        WeightsError: naming the first such parameter.
    """
    for name, value in state.items():
        kind = _no_real_numbers(value)
        if kind is not None:
            raise WeightsError(
                f"{source}: {name} is {kind}, and no weight of these models is: save it as float32, say"
            )
    # That limit is infinite where there is none.
    bad = [
        name for name, value in state.items() if not (_is_finite(value) or name.endswith("renderer.clamp_limit"))
    ]
    if bad:
        raise WeightsError(
            f"{source}: {bad[0]} ({len(bad)} of {len(state)} tensors) holds values that are not finite: take "
            "weights of before the training diverged, or copy the file again"
        )


def _no_real_numbers(value: Tensor) -> str | None:
    """What a tensor is whose values cannot be copied to a weight as they are."""
    if value.is_meta:
        return "a tensor without values"
    if value.is_complex():
        return "complex"
    if value.is_quantized:
        return "quantised"
    if value.layout is not torch.strided:
        return "sparse"
    if str(value.dtype).startswith("torch.float4"):  # two in a byte
        return str(value.dtype)
    return None


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point():
        return True
    # isfinite does not know the types of eight bits.
    return bool((value.float() if value.element_size() == 1 else value).isfinite().all())


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(
            f"weights={path} is damaged: safetensors with {error}; download or copy it again"
        ) from error


def _read_pickled(path: Path) -> Any:
    """``torch.load`` that unpickles tensors and plain data only."""
    try:
        if path.suffix == ".safetensors":  # torch would go by the name
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        # Only torch's zip format can be mapped; files from before PyTorch 1.6 are read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file can end the reader in any error
        asked = re.search(r"(?:GLOBAL|global:?|class) ([a-zA-Z_][\w.]*\.\w+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and asked:
            raise WeightsError(
                f"weights={path} asks for {asked[1]!r} to be built, which could run code, so it was not loaded; "
                "only tensors and plain data are accepted (have whoever trusts the file save its state_dict alone)"
            ) from error
        raise WeightsError(
            f"weights={path} is damaged, or neither of torch.save nor of safetensors ({type(error).__name__}); "
            "download or copy it again, or save its tensors by name with torch.save"
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
        raise WeightsError(
            f"weights={source} holds no state dict, but {type(content).__name__} of length "
            f"{len(content) if isinstance(content, Sized) else 1}: save tensors by name, with "
            "torch.save(model.state_dict(), ...)"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"weights={source}: entry {name!r} is no tensor but {type(value).__name__}, so this is no "
                f"state dict, and none is under {', '.join(WRAPPER_KEYS)}; {_where_it_is(content)}"
            )
    # The clamp's limit, which models once held, is none of the weights.
    weights = {name: value for name, value in content.items() if not name.endswith("renderer.clamp_limit")}
    return _strip_prefixes(weights, source)


def _where_it_is(content: Mapping[Any, Any]) -> str:
    """What to do about a checkpoint whose state dict is wrapped otherwise."""
    held = [
        key
        for key, value in content.items()
        if isinstance(value, Mapping) and any(isinstance(entry, Tensor) for entry in value.values())
    ]
    if held:
        return f"the tensors seem to be under {held[0]!r}: save that entry alone, with torch.save"
    return "save tensors by name, with torch.save(model.state_dict(), ...)"


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
    return _write(path, state, lambda tensors, to: save_file(tensors, to, metadata=dict(metadata or {})))


def save_pickled(state: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write ``{"state_dict": state}`` with ``torch.save``, as the official tools read it; atomically."""
    return _write(Path(path), state, lambda tensors, to: torch.save({"state_dict": tensors}, to))


def _write(path: Path, state: Mapping[str, Tensor], write: Callable[[dict[str, Tensor], Path], None]) -> Path:
    # Cloned, because safetensors refuses tensors that share memory.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }
    with written_at_once(path) as partial:
        write(tensors, partial)
    return path
