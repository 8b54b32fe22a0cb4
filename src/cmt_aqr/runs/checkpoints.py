"""Checkpoint files: written atomically, read without executing anything."""

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
from cmt_aqr.files import atomic_write
from cmt_aqr.runs.records import is_rank_zero
from cmt_aqr.runs.stopping import Stopped, StopSignals

log = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
"""A run's newest checkpoint, the one before it, and the one of the best evaluation."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a training run, onto the CPU.

    Raises:
        UserError: the file is missing, damaged, or no checkpoint, or holds anything but plain values and tensors
            (nothing in it is executed).
    """
    if not path.is_file():
        raise UserError(f"ckpt_path={path}: there is no such file")
    try:
        kind = _WEIGHTS_ONLY.format(path=path) if is_safetensors(path) else other_file(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True) if kind is None else None
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
        raise UserError(f"ckpt_path={path}: {kind or _WEIGHTS_ONLY.format(path=path)}")
    return checkpoint


_WEIGHTS_ONLY = "not a checkpoint of a training run, but at most a file of weights; give weights={path} instead"


def saved_config(path: Path) -> dict[str, Any]:
    """The composed configuration that a checkpoint was trained with.

    Raises:
        UserError: as :func:`read_checkpoint`, or the checkpoint holds no configuration.
    """
    config = read_checkpoint(path).get("config")
    if not config:
        raise UserError(f"ckpt_path={path}: it holds no configuration, and is {_WEIGHTS_ONLY.format(path=path)}")
    return config


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest readable checkpoint in a run's folder or its ``checkpoints``; ``None`` if it has none.

    Unreadable ones are skipped with a warning that names them.

    Raises:
        UserError: all of them are unreadable.
    """
    subfolder = folder / "checkpoints"
    place = subfolder if subfolder.is_dir() else folder
    paths = [place / name for name in (LAST, PREVIOUS, BEST) if (place / name).is_file()]
    # Sorting is stable: of two with the same step, last.ckpt comes first.
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
            f"ckpt_path={folder}: no checkpoint there can be read ({names}); delete them to start again"
        )
    return None


def _step_of(path: Path) -> float:
    """The step of a checkpoint, without reading its tensors; infinity for a damaged one, to report it."""
    try:
        return float(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception:  # read_checkpoint reports what is wrong
        return float("inf")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name and renames; reads with ``weights_only=True``; keeps the old last as previous."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Write a checkpoint; a crash leaves the existing file intact."""
        target = Path(path)
        try:
            with atomic_write(target) as partial:
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                if target.name == LAST and target.exists():
                    _keep(target, target.with_name(PREVIOUS))
        except (OSError, RuntimeError) as error:
            cause: BaseException | None = error  # torch wraps errors of the file system in a RuntimeError
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            reason = error if cause is None else cause.strerror
            intact = f"the one before it, {target}, is intact; " if target.exists() else ""
            raise UserError(
                f"the checkpoint {target} could not be written ({reason}): {intact}make room and resume with "
                "ckpt_path=auto"
            ) from error

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, see :func:`read_checkpoint`."""
        return read_checkpoint(Path(path))


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name, atomically, so that another file can take the first one."""
    try:
        with atomic_write(name) as link:
            link.hardlink_to(path)
    except OSError:  # no hard links here: for a moment, only the second name exists
        path.replace(name)


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt``, to resume from, the one before it, and ``best.ckpt``, of the best evaluation.

    Lightning's ``ModelCheckpoint`` with ``save_last`` writes ``last.ckpt`` only when the monitored metric
    improved, so that a run would resume from an old epoch, and loses its best score in another folder.

    Checkpoints are written only after complete optimisation steps, and always before an evaluation. A run resumed
    from such a checkpoint starts with the evaluation, which Lightning would skip.

    Args:
        folder: of the files.
        monitor: logged metric that decides which evaluation is the best; higher is better.
        every_n_epochs: epochs from one ``last.ckpt`` to the next.
        every_n_steps: steps after which ``last.ckpt`` is written, too; ``None``: only at the end of epochs.
        every_n_minutes: minutes since the last ``last.ckpt`` after which another one is written.

    Attributes:
        signals: signals that stop the run or request a checkpoint.
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
        """Defer signals to the end of the step from here on."""
        self._time_of_last = time.monotonic()
        self.signals.hold()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write ``last.ckpt`` if it is due, an evaluation follows, the run ends, or a signal arrived."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():
            return  # within a step: accumulated gradients are in no checkpoint
        is_due = self._is_due(trainer)
        fetcher = trainer.fit_loop._data_fetcher
        if fetcher is not None and loop._should_check_val_fx(fetcher):
            self._evaluation_due = True
            self._save_last(trainer)
            self._evaluation_due = False
            return
        if loop.batch_progress.is_last_batch:
            return  # on_train_epoch_end follows
        if is_due or self._stopping or trainer.global_step == trainer.max_steps:
            self._save_last(trainer)
        if self._stopping:
            self._stop(trainer)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop the run here if a signal arrived; during the evaluation, signals stop it immediately."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self.signals.release()
        if self._stopping:  # another process received the signal
            raise Stopped(signal.SIGTERM)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Note whether this is the best evaluation so far."""
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
            # best.ckpt is written at the end of the epoch, from where training can be resumed; after an evaluation
            # within an epoch, a batch follows instead.
            self._improved = True
            if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                self._save_best(trainer)
        elif self._step_of_last == trainer.global_step and trainer.is_global_zero:
            # Evaluated after a fit that ended within an epoch: the weights are those of last.ckpt.
            with atomic_write(self.best) as partial:
                shutil.copyfile(self.last, partial)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write ``best.ckpt`` after the best evaluation, and ``last.ckpt``."""
        self._epoch_ends = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if self._improved:
            self._save_best(trainer)
        if not self._epoch_ends:
            return  # max_steps ended the fit within the epoch, at the step of last.ckpt
        is_due = self._is_due(trainer) or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if is_due or self._stopping:
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
        """Note the step of ``last.ckpt``, also if no training starts because none is left."""
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path) == self.last:
            self._step_of_last = checkpoint["global_step"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Mark a checkpoint with which a resumed run starts by evaluating."""
        checkpoint["evaluation_due"] = self._evaluation_due
        if self._evaluation_due:
            _expect_evaluation(checkpoint["loops"]["fit_loop"])
        elif self._epoch_ends:
            _complete_epoch(checkpoint["loops"]["fit_loop"])

    def state_dict(self) -> dict[str, Any]:
        """The best score, which a resumed run continues from."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score."""
        self.best_score = float(state_dict["best_score"])

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """Whether a checkpoint is due by steps, by the clock or by a signal; also updates whether the run stops.

        All processes write checkpoints together, but their clocks and signals differ: the largest request counts.
        """
        minutes = self.every_n_minutes
        by_time = minutes is not None and time.monotonic() - self._time_of_last >= 60 * minutes
        stop = self._stopping or self.signals.received is not None
        request = 2 if stop else int(by_time or self.signals.save)
        if trainer.world_size > 1:
            value = torch.tensor(float(request), device=trainer.strategy.root_device)
            request = int(trainer.strategy.reduce(value, reduce_op="max"))
        self._stopping = request == 2
        return request > 0 or (self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0)

    @staticmethod
    def _stop(trainer: pl.Trainer) -> None:
        """Make Lightning end the fit as after a SIGTERM: once the numbers of this step are logged."""
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
    """Change the fit loop's state in a checkpoint so that a resumed run starts with an evaluation.

    At the end of a batch, the state is that of an incomplete batch, and Lightning skips the evaluation. Here the
    batch becomes complete, and an evaluation interrupted in its first batch, so that Lightning restarts it.
    """
    batches = fit_loop["epoch_loop.batch_progress"]
    for count in (batches["total"], batches["current"]):
        count["completed"] = count["processed"]
    evaluation = fit_loop["epoch_loop.val_loop.batch_progress"]
    evaluation["total"].update(ready=1, started=1, processed=0, completed=0)
    evaluation["current"].update(ready=0, started=0, processed=0, completed=0)
    evaluation["is_last_batch"] = False


def _complete_epoch(fit_loop: dict[str, Any]) -> None:
    """Change the fit loop's state in a checkpoint so that a resumed run starts with the next epoch.

    The state at the end of an epoch is that of an incomplete epoch. With ``trainer.max_steps``, Lightning then
    counts one more batch as the old epoch's, and all later epochs one too high.
    """
    for count in fit_loop["epoch_progress"].values():
        count["completed"] = count["processed"]
    batches = fit_loop["epoch_loop.batch_progress"]
    steps = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for part in (batches, fit_loop["epoch_loop.scheduler_progress"], steps["step"], steps["zero_grad"]):
        part["current"] = dict.fromkeys(part["current"], 0)
    batches["is_last_batch"] = False
