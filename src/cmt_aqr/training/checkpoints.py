"""Checkpoint files: written whole or not at all, read without executing anything."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from cmt_aqr.errors import UserError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a training run, onto the CPU.

    Raises:
        UserError: for a file that is missing, truncated, not a checkpoint, or holds anything but plain
            values and tensors (nothing in it is executed).
    """
    if not path.is_file():
        raise UserError(f"ckpt_path={path}: there is no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"ckpt_path={path}: the file is damaged, or holds Python objects beside tensors and plain values; "
            "it was not loaded"
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"ckpt_path={path}: the file is damaged or truncated; take an older checkpoint") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"ckpt_path={path}: not a checkpoint of a training run; weights= takes files of weights")
    return checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name in the same folder, then renames; reads with ``weights_only=True``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Write a checkpoint; a crash on the way leaves the file of that name as it was."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, see :func:`read_checkpoint`."""
        return read_checkpoint(Path(path))
