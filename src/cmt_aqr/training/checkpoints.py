"""Checkpoint files: written whole or not at all, read without executing anything."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from cmt_aqr.errors import UserError
from cmt_aqr.training.records import is_rank_zero

log = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
"""The newest checkpoint of a run, the one before it, and that of the best evaluation."""


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
    except PermissionError as error:
        raise UserError(f"ckpt_path={path}: no permission to read the file") from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"ckpt_path={path}: the file is damaged or truncated; take an older checkpoint, or name the folder to "
            "have the newest readable one"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"ckpt_path={path}: not a checkpoint of a training run; weights= takes files of weights")
    return checkpoint


def saved_config(path: Path) -> dict[str, Any]:
    """The composed configuration that a checkpoint was trained with.

    Raises:
        UserError: see :func:`read_checkpoint`; also where the checkpoint holds no configuration.
    """
    config = read_checkpoint(path).get("config")
    if not config:
        raise UserError(f"ckpt_path={path}: the checkpoint holds no configuration")
    return config


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run that can be read.

    One that cannot be read is skipped with a warning that names it.

    Args:
        folder: of a run, or its ``checkpoints``.

    Returns:
        ``None`` where the folder holds no checkpoint.

    Raises:
        UserError: where none of those that it holds can be read.
    """
    inside = folder / "checkpoints"
    paths = [
        path
        for name in (LAST, PREVIOUS, BEST)
        if (path := (inside if inside.is_dir() else folder) / name).is_file()
    ]
    # Sorting is stable: of the same step, last.ckpt comes first.
    for path in sorted(paths, key=_step_of, reverse=True):
        try:
            read_checkpoint(path)
        except UserError as error:
            if is_rank_zero():
                log.warning("%s; skipped in favour of an older one", error)
        else:
            return path
    if paths:
        names = ", ".join(path.name for path in paths)
        raise UserError(
            f"ckpt_path={folder}: no checkpoint there can be read ({names}); delete them to start anew"
        )
    return None


def _step_of(path: Path) -> float:
    """The step of a checkpoint without reading its tensors; infinity for a broken one, which is met first."""
    try:
        return float(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception:  # whatever is wrong with it, read_checkpoint says
        return float("inf")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name in the same folder, then renames; reads with ``weights_only=True``.

    The ``last.ckpt`` that is replaced stays as ``previous.ckpt``.
    """

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
            if target.name == LAST and target.exists():
                _keep(target, target.with_name(PREVIOUS))
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, see :func:`read_checkpoint`."""
        return read_checkpoint(Path(path))


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name, in place of what had it, so that the first can be given to another file."""
    link = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    try:
        link.hardlink_to(path)
    except OSError:  # a file system without links: for a moment, only the second name exists
        path.replace(name)
    else:
        link.replace(name)


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt``, to go on from, and ``best.ckpt``, of the best evaluation.

    Lightning's ``ModelCheckpoint`` with ``save_last`` writes ``last.ckpt`` only when the monitored metric
    improved, so that a run would go on from an old epoch; and its best score is forgotten by a resumed run
    that has a folder of its own.

    Args:
        folder: where the two files go.
        monitor: logged metric that decides which evaluation is the best; the higher, the better.
        every_n_epochs: epochs from one ``last.ckpt`` to the next.
        every_n_steps: write ``last.ckpt`` after so many steps, too; ``None``: only at the end of epochs.

    Raises:
        ValueError: for intervals below 1.
    """

    def __init__(
        self,
        folder: str | Path,
        monitor: str = "val/NDS",
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                raise ValueError(f"callbacks.checkpoint.{name}={value}: must be a whole number of 1 or more")
        self.last = Path(folder) / LAST
        self.best = Path(folder) / BEST
        self.monitor = monitor
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.best_score = float("-inf")
        self._improved = False
        self._step_of_last: int | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write ``last.ckpt`` every ``every_n_steps``; gradient accumulation has batches without a step."""
        step = trainer.global_step
        if self.every_n_steps is not None and step % self.every_n_steps == 0 and step != self._step_of_last:
            self._save_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See whether this is the best evaluation so far."""
        score = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or score is None or not score > self.best_score:
            return
        self.best_score = float(score)
        if trainer.state.fn == TrainerFn.FITTING:
            # Written where the epoch ends, from where training can go on; an evaluation within an epoch is
            # followed by a batch instead.
            self._improved = True
            if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                self._save_best(trainer)
        elif self._step_of_last == trainer.global_step and trainer.is_global_zero:
            # The evaluation after a fit that ended within an epoch: these are the weights of last.ckpt.
            temporary = self.best.with_name(f".{self.best.name}.{os.getpid()}.tmp")
            shutil.copyfile(self.last, temporary)
            temporary.replace(self.best)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``best.ckpt`` after the best evaluation, and ``last.ckpt``."""
        if self._improved:
            self._save_best(trainer)
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._save_last(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``last.ckpt`` if it is not of the last step."""
        if self._step_of_last != trainer.global_step:
            self._save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The best score, so that a resumed run does not call a worse one the best."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score over."""
        self.best_score = float(state_dict["best_score"])

    def _save_best(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.best, weights_only=False)
        self._improved = False

    def _save_last(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.last, weights_only=False)
        self._step_of_last = trainer.global_step
