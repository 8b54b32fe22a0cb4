"""Checkpoint files: written whole or not at all, read without executing anything."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import time
import zipfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from lightning_fabric.utilities.types import _PATH
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.trainer.states import TrainerFn

from cmt_aqr.checks import require_above_zero, require_count, require_folder
from cmt_aqr.errors import UserError
from cmt_aqr.file_kinds import is_safetensors, other_file
from cmt_aqr.files import written_at_once
from cmt_aqr.runs.records import is_rank_zero
from cmt_aqr.runs.stopping import Stopped, StopSignals

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
        what = _WEIGHTS_ONLY.format(path=path) if is_safetensors(path) else other_file(path)
        if what is not None:
            raise UserError(f"ckpt_path={path}: {what}")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
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
        raise UserError(f"ckpt_path={path}: {_WEIGHTS_ONLY.format(path=path)}")
    return checkpoint


_WEIGHTS_ONLY = "not a checkpoint of a training run, but of weights alone at most; give weights={path} instead"


def saved_config(path: Path) -> dict[str, Any]:
    """The composed configuration that a checkpoint was trained with.

    Raises:
        UserError: see :func:`read_checkpoint`; also where the checkpoint holds no configuration.
    """
    config = read_checkpoint(path).get("config")
    if not config:
        raise UserError(f"ckpt_path={path}: it holds no configuration, and is {_WEIGHTS_ONLY.format(path=path)}")
    return config


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be read in a run's folder or its ``checkpoints``; ``None``: there is none.

    One that cannot be read is skipped with a warning that names it.

    Raises:
        UserError: where none of those that it holds can be read.
    """
    inside = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    paths = [inside / name for name in (LAST, PREVIOUS, BEST) if (inside / name).is_file()]
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
        try:
            with written_at_once(target) as partial:
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                if target.name == LAST and target.exists():
                    _keep(target, target.with_name(PREVIOUS))
        except (OSError, RuntimeError) as error:
            cause: BaseException | None = error  # torch has a RuntimeError for what the file system refused
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            reason = error if cause is None else cause.strerror
            before = f"the one before it, {target}, is intact; " if target.exists() else ""
            raise UserError(
                f"the checkpoint {target} could not be written ({reason}): {before}make room and resume with "
                "ckpt_path=auto"
            ) from error

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, see :func:`read_checkpoint`."""
        return read_checkpoint(Path(path))


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name, in place of what had it, so that the first can be given to another file."""
    try:
        with written_at_once(name) as link:
            link.hardlink_to(path)
    except OSError:  # a file system without links: for a moment, only the second name exists
        path.replace(name)


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt``, to resume from, the one before it, and ``best.ckpt``, of the best evaluation.

    Lightning's ``ModelCheckpoint`` with ``save_last`` writes ``last.ckpt`` only when the monitored metric
    improved, so that a run would resume from an old epoch; and its best score is forgotten by a resumed run
    that has a folder of its own.

    Checkpoints are written after whole steps only, and always before an evaluation, which a resumed run
    from there makes first: it may take long, and Lightning would skip it.

    Args:
        folder: where the files go.
        monitor: logged metric that decides which evaluation is the best; the higher, the better.
        every_n_epochs: epochs from one ``last.ckpt`` to the next.
        every_n_steps: write ``last.ckpt`` after so many steps, too; ``None``: only at the end of epochs.
        every_n_minutes: the same after so much time since the last one was written.

    Attributes:
        signals: those that end the run or ask for a checkpoint, where somebody listens.
    """

    def __init__(
        self,
        folder: str | Path,
        monitor: str = "val/NDS",
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
    ) -> None:
        require_folder("folder", folder)
        require_count("every_n_epochs", every_n_epochs)
        if every_n_steps is not None:
            require_count("every_n_steps", every_n_steps)
        if every_n_minutes is not None:
            require_above_zero("every_n_minutes", every_n_minutes)
        self.last = Path(folder) / LAST
        self.best = Path(folder) / BEST
        self.monitor = monitor
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.best_score = float("-inf")
        self.signals = StopSignals()
        self._stopping = False
        self._improved = False
        self._evaluation_due = False
        self._epoch_ends = False
        self._step_of_last: int | None = None
        self._time_of_last = time.monotonic()

    def on_train_start(self, *_: Any) -> None:
        """From here on a signal waits for the end of the step."""
        self._time_of_last = time.monotonic()
        self.signals.hold()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write ``last.ckpt`` where it is time to, an evaluation follows, the run ends, or a signal came."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():
            return  # within a step: its gradients are in no checkpoint
        step = trainer.global_step
        in_time = self._steps_passed(trainer) | self._ask(trainer)
        fetcher = trainer.fit_loop._data_fetcher
        if fetcher is not None and loop._should_check_val_fx(fetcher):
            self._evaluation_due = True
            self._save_last(trainer)
            self._evaluation_due = False
            return
        if loop.batch_progress.is_last_batch:
            return  # on_train_epoch_end follows
        if in_time or self._stopping or step == trainer.max_steps:
            self._save_last(trainer)
        if self._stopping:
            self._stop(trainer)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """End the run here if a signal came; during the evaluation one ends it at once."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self.signals.release()
        if self._stopping:  # the signal came to another process
            raise Stopped(signal.SIGTERM)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """See whether this is the best evaluation so far."""
        if trainer.sanity_checking:
            return
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting:
            self.signals.hold()
        score = trainer.callback_metrics.get(self.monitor)
        if score is None or not score > self.best_score:
            return
        self.best_score = float(score)
        if fitting:
            # Written where the epoch ends, from where training can be resumed; an evaluation within an epoch is
            # followed by a batch instead.
            self._improved = True
            if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                self._save_best(trainer)
        elif self._step_of_last == trainer.global_step and trainer.is_global_zero:
            # The evaluation after a fit that ended within an epoch: these are the weights of last.ckpt.
            with written_at_once(self.best) as partial:
                shutil.copyfile(self.last, partial)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write ``best.ckpt`` after the best evaluation, and ``last.ckpt``."""
        self._epoch_ends = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if self._improved:
            self._save_best(trainer)
        if not self._epoch_ends:
            return  # max_steps ended the fit within the epoch, and last.ckpt knows where
        in_time = self._steps_passed(trainer) | self._ask(trainer)
        epochs = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if epochs or in_time or self._stopping:
            self._save_last(trainer)
        self._epoch_ends = False
        if self._stopping:
            self._stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write ``last.ckpt`` if it is not of the last step."""
        if self._step_of_last != trainer.global_step:
            self._save_last(trainer)
        self.signals.release()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See which step ``last.ckpt`` is of, also where nothing is left to train and no training starts."""
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path) == self.last:
            self._step_of_last = checkpoint["global_step"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say that an evaluation comes first when a run resumes from here."""
        checkpoint["evaluation_due"] = self._evaluation_due
        if self._evaluation_due:
            _expect_evaluation(checkpoint["loops"]["fit_loop"])
        elif self._epoch_ends:
            _complete_epoch(checkpoint["loops"]["fit_loop"])

    def state_dict(self) -> dict[str, Any]:
        """The best score, so that a resumed run does not call a worse one the best."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score over."""
        self.best_score = float(state_dict["best_score"])

    def _steps_passed(self, trainer: pl.Trainer) -> bool:
        return self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0

    def _ask(self, trainer: pl.Trainer) -> bool:
        """Whether it is time for a checkpoint, by the clock or because a signal asked; also learn of a stop.

        Clocks and signals differ between processes, and checkpoints are written by all together: asked in one go.
        """
        every = self.every_n_minutes
        due = every is not None and time.monotonic() - self._time_of_last >= 60 * every
        stop = self._stopping or self.signals.received is not None
        asked = 2 if stop else int(due or self.signals.save)
        if trainer.world_size > 1:
            told = torch.tensor(float(asked), device=trainer.strategy.root_device)
            asked = int(trainer.strategy.reduce(told, reduce_op="max"))
        self._stopping = asked == 2
        return asked > 0

    @staticmethod
    def _stop(trainer: pl.Trainer) -> None:
        """Let Lightning end the fit as after a SIGTERM: when what this step logs is written."""
        trainer._signal_connector.received_sigterm = True

    def _save_best(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.best, weights_only=False)
        self._improved = False

    def _save_last(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.last, weights_only=False)
        self._step_of_last = trainer.global_step
        self._time_of_last = time.monotonic()
        self.signals.save = False


def _expect_evaluation(fit_loop: dict[str, Any]) -> None:
    """Change the state of the fit loop in a checkpoint, so that resuming begins with an evaluation.

    Written at the end of a batch, it says that the batch is being completed; Lightning then takes an evaluation
    that was due for done. As it is changed here, the batch is complete and an evaluation has begun its first
    batch, so Lightning goes back and makes it from the start.
    """
    batches = fit_loop["epoch_loop.batch_progress"]
    for count in (batches["total"], batches["current"]):
        count["completed"] = count["processed"]
    evaluation = fit_loop["epoch_loop.val_loop.batch_progress"]
    evaluation["total"].update(ready=1, started=1, processed=0, completed=0)
    evaluation["current"].update(ready=0, started=0, processed=0, completed=0)
    evaluation["is_last_batch"] = False


def _complete_epoch(fit_loop: dict[str, Any]) -> None:
    """Change the state of the fit loop in a checkpoint, so that resuming begins with the next epoch.

    Written where an epoch ends, it says that it is being completed. With ``trainer.max_steps`` Lightning then
    takes one more batch as the old epoch's, and counts all later epochs one too high.
    """
    for count in fit_loop["epoch_progress"].values():
        count["completed"] = count["processed"]
    batches = fit_loop["epoch_loop.batch_progress"]
    steps = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for part in (batches, fit_loop["epoch_loop.scheduler_progress"], steps["step"], steps["zero_grad"]):
        part["current"] = dict.fromkeys(part["current"], 0)
    batches["is_last_batch"] = False
