"""Reading and writing weights. Nothing from a file is ever executed."""

import pickle
import re
import zipfile
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cmt_aqr.errors import UserError
from cmt_aqr.file_kinds import is_safetensors, other_file
from cmt_aqr.files import atomic_write

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints keep their state dict."""

_WRAPPER_PREFIXES = re.compile(r"^((module|model)\.)+")
"""What DistributedDataParallel and LightningModule prepend to every name."""

_CLAMP = "renderer.clamp_limit"
"""Suffix of the clamp's limit, a buffer of older checkpoints that is not a weight."""

_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


class WeightsError(UserError):
    """A weights file cannot be used; the message says why and what to do."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors or ``torch.save`` file, whatever its suffix, onto the CPU.

    Wrappers are removed: keys such as ``state_dict``, and the prefixes ``module.`` and ``model.`` of names.

    Raises:
        FileNotFoundError: the file does not exist.
        WeightsError: it is damaged, contains anything but plain data and tensors, or no usable weights.
    """
    path = Path(path)
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir() if file.suffix in _SUFFIXES)
        example = f" in it, such as {names[0]}" if names else ""
        raise WeightsError(f"weights={path} is a folder: name a weights file{example}")
    if not path.is_file():
        raise FileNotFoundError(f"weights={path}: there is no such file")
    kind = other_file(path)
    if kind is not None:
        raise WeightsError(f"weights={path} is {kind}")
    state = unwrap(_read(path), str(path))
    require_finite(state, f"weights={path}")
    return state


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not dense real tensors with finite values.

    Args:
        state: tensors by name.
        source: where they come from, such as ``weights=a.pth``, for the message.

    Raises:
        WeightsError: naming the first such parameter.
    """
    bad = []
    for name, value in state.items():
        kind = _unusable_kind(value)
        if kind is not None:
            raise WeightsError(
                f"{source}: {name} is {kind}, and no weight of these models is; save it as float32, for example"
            )
        # isfinite does not support 8-bit floats. The clamp's limit is infinite if there is none.
        numbers = value.float() if value.is_floating_point() and value.element_size() == 1 else value
        if not numbers.isfinite().all() and not name.endswith(_CLAMP):
            bad.append(name)
    if bad:
        raise WeightsError(
            f"{source}: {bad[0]} ({len(bad)} of {len(state)} tensors) contains values that are not finite; use "
            "weights from before the training diverged, or copy the file again"
        )


def _unusable_kind(value: Tensor) -> str | None:
    """What makes a tensor impossible to copy into a weight, if anything."""
    kinds = {
        "a tensor without values": value.is_meta,
        "complex": value.is_complex(),
        "quantised": value.is_quantized,
        "sparse": value.layout is not torch.strided,
        str(value.dtype): str(value.dtype).startswith("torch.float4"),  # two values per byte
    }
    return next((kind for kind, applies in kinds.items() if applies), None)


def _read(path: Path) -> Any:
    """The content of a file of tensors and plain data."""
    try:
        if is_safetensors(path):
            return load_file(path)
        if path.suffix == ".safetensors":  # given the path, torch.load would trust the suffix
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        # Only torch's zip format can be memory-mapped; files from before PyTorch 1.6 are read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except SafetensorError as error:
        raise WeightsError(
            f"weights={path} is damaged: safetensors with {error}; download or copy it again"
        ) from error
    except Exception as error:  # a damaged file can make the reader raise anything
        blocked = re.search(r"(?:GLOBAL|global:?|class) ([a-zA-Z_][\w.]*\.\w+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and blocked:
            raise WeightsError(
                f"weights={path} refers to {blocked[1]!r}, which could run code, so it was not loaded; only "
                "tensors and plain data are accepted (have someone who trusts the file save its state_dict alone)"
            ) from error
        raise WeightsError(
            f"weights={path} is damaged, or neither of torch.save nor of safetensors ({type(error).__name__}); "
            "download or copy it again, or save its tensors by name with torch.save"
        ) from error


def unwrap(content: Any, source: str) -> dict[str, Tensor]:
    """Extract the state dict from what checkpoints wrap it in.

    Args:
        content: of a file.
        source: name of the file, for messages.

    Raises:
        WeightsError: there is no state dict, or one of its values is not a tensor.
    """
    while isinstance(content, Mapping):
        wrapped = next((content[key] for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)), None)
        if wrapped is None:
            break
        content = wrapped
    advice = "save tensors by name, with torch.save(model.state_dict(), ...)"
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(
            f"weights={source} contains no state dict, but {type(content).__name__} of length "
            f"{len(content) if isinstance(content, Sized) else 1}: {advice}"
        )
    for name, value in content.items():
        if not isinstance(name, str):
            raise WeightsError(f"weights={source}: entry {name!r} has no name, so this is no state dict; {advice}")
        if not isinstance(value, Tensor):
            held = [
                key
                for key, entry in content.items()
                if isinstance(entry, Mapping) and any(isinstance(inner, Tensor) for inner in entry.values())
            ]
            if held:
                advice = f"the tensors seem to be under {held[0]!r}: save that entry alone, with torch.save"
            raise WeightsError(
                f"weights={source}: entry {name!r} is not a tensor but {type(value).__name__}, so this is no "
                f"state dict, and none is under {', '.join(WRAPPER_KEYS)}; {advice}"
            )
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        short = _WRAPPER_PREFIXES.sub("", name)
        if short in state:
            raise WeightsError(f"weights={source} contains {short!r} both with and without a wrapper's prefix")
        if not name.endswith(_CLAMP):
            state[short] = value
    return state


def save_safetensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a state dict as safetensors, atomically, with metadata in the file's header."""
    with atomic_write(path) as partial:
        save_file(_copied(state), partial, metadata=dict(metadata or {}))
    return path


def save_pickled(state: Mapping[str, Tensor], path: Path) -> Path:
    """Write ``{"state_dict": state}`` with ``torch.save``, as the official tools read it, atomically."""
    with atomic_write(path) as partial:
        torch.save({"state_dict": _copied(state)}, partial)
    return path


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU: safetensors refuses tensors that share memory."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }
