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
from cmt_aqr.files import written_at_once

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
"""Entries under which checkpoints keep their state dict."""

_WRAPPER_PREFIXES = re.compile(r"^((module|model)\.)+")
"""What DistributedDataParallel and a LightningModule put before every name."""

_CLAMP = "renderer.clamp_limit"
"""The end of the name of the clamp's limit, which models once held and which is none of the weights."""

_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


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
        held = sorted(held.name for held in path.iterdir() if held.suffix in _ENDINGS)
        example = f" in it, as {held[0]}" if held else ""
        raise WeightsError(f"weights={path} is a folder: name a file of weights{example}")
    if not path.is_file():
        raise FileNotFoundError(f"weights={path}: there is no such file")
    what = other_file(path)
    if what is not None:
        raise WeightsError(f"weights={path} is {what}")
    state = unwrap(_read(path), str(path))
    require_finite(state, f"weights={path}")
    return state


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are no real numbers in full, or not finite.

    Args:
        state: tensors by name.
        source: what they were read from, as ``weights=a.pth``, for the message.

    Raises:
        WeightsError: naming the first such parameter.
    """
    bad = []
    for name, value in state.items():
        kind = _no_real_numbers(value)
        if kind is not None:
            raise WeightsError(
                f"{source}: {name} is {kind}, and no weight of these models is: save it as float32, say"
            )
        # isfinite does not know the types of eight bits. The clamp's limit is infinite where there is none.
        numbers = value.float() if value.is_floating_point() and value.element_size() == 1 else value
        if not numbers.isfinite().all() and not name.endswith(_CLAMP):
            bad.append(name)
    if bad:
        raise WeightsError(
            f"{source}: {bad[0]} ({len(bad)} of {len(state)} tensors) holds values that are not finite: take "
            "weights of before the training diverged, or copy the file again"
        )


def _no_real_numbers(value: Tensor) -> str | None:
    """What a tensor is whose values cannot be copied to a weight as they are."""
    kinds = {
        "a tensor without values": value.is_meta,
        "complex": value.is_complex(),
        "quantised": value.is_quantized,
        "sparse": value.layout is not torch.strided,
        str(value.dtype): str(value.dtype).startswith("torch.float4"),  # two in a byte
    }
    return next((kind for kind, is_it in kinds.items() if is_it), None)


def _read(path: Path) -> Any:
    """What a file holds, of tensors and plain data only."""
    try:
        if is_safetensors(path):
            return load_file(path)
        if path.suffix == ".safetensors":  # torch would go by the name
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        # Only torch's zip format can be mapped; files from before PyTorch 1.6 are read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except SafetensorError as error:
        raise WeightsError(
            f"weights={path} is damaged: safetensors with {error}; download or copy it again"
        ) from error
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
            held = [key for key, entry in content.items() if isinstance(entry, Mapping) and _has_tensors(entry)]
            advice = "save tensors by name, with torch.save(model.state_dict(), ...)"
            if held:
                advice = f"the tensors seem to be under {held[0]!r}: save that entry alone, with torch.save"
            raise WeightsError(
                f"weights={source}: entry {name!r} is no tensor but {type(value).__name__}, so this is no "
                f"state dict, and none is under {', '.join(WRAPPER_KEYS)}; {advice}"
            )
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        short = _WRAPPER_PREFIXES.sub("", name)
        if short in state:
            raise WeightsError(f"weights={source} holds {short!r} both with and without the prefix of a wrapper")
        if not name.endswith(_CLAMP):
            state[short] = value
    return state


def _has_tensors(entry: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in entry.values())


def save_safetensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a state dict as safetensors, at once or not at all, with words to keep in the file's header."""
    with written_at_once(path) as partial:
        save_file(_copied(state), partial, metadata=dict(metadata or {}))
    return path


def save_pickled(state: Mapping[str, Tensor], path: Path) -> Path:
    """Write ``{"state_dict": state}`` with ``torch.save``, as the official tools read it, at once."""
    with written_at_once(path) as partial:
        torch.save({"state_dict": _copied(state)}, partial)
    return path


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, side by side in memory, and each in its own: safetensors refuses tensors that share memory."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }
