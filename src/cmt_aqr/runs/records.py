"""What a run leaves about itself: configuration, versions, machine, how long it took and how it ended."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cmt_aqr.errors import sentence
from cmt_aqr.files import RECORD, write_json
from cmt_aqr.structures import Batch

log = logging.getLogger(__name__)

PACKAGES = (
    *("torch", "pytorch-lightning", "torchmetrics", "hydra-core"),
    *("timm", "nuscenes-devkit", "numpy", "scipy"),
)


class RunRecord(pl.Callback):
    """``record.json`` in a run's folder, from ``running`` to ``complete``, ``failed`` or ``stopped``.

    Only process zero writes. The composed configuration is kept as ``config.yaml``.

    As a callback it counts steps, frames and time in training, and is written after every epoch, so that a killed
    run tells how far it came; its counts travel in checkpoints, so a resumed run adds up. Time in training is that
    between the start and the end of epochs, without evaluation. Time after the last checkpoint of a run that was
    killed is not counted, and neither are its frames: that work was lost.
    """

    def __init__(self, folder: Path, config: DictConfig, overrides: list[str]) -> None:
        self.path = folder / RECORD
        self._begin = time.monotonic()
        self._steps = 0
        self._epochs = 0
        self._frames = 0
        self._earlier_seconds = 0.0
        self._training_seconds = 0.0
        self._since: float | None = None
        self._values: dict[str, Any] = {
            "status": "running",
            "error": None,
            "command": sys.argv,
            "overrides": overrides,
            "seed": config.seed,
            "git_commit": _git("rev-parse", "HEAD"),
            "git_dirty": bool(_git("status", "--porcelain")),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "machine": machine(),
            "versions": {package: version(package) for package in PACKAGES},
        }
        if is_rank_zero():
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(config, folder / "config.yaml", resolve=True)
        self.write()

    def write(self, **changes: Any) -> None:
        """Write the record as it is now, with changes; at once or not at all."""
        self._values |= changes
        if not is_rank_zero():
            return
        training = self._seconds()
        measured = {
            "wall_time_s": round(self._earlier_seconds + time.monotonic() - self._begin, 3),
            "steps": self._steps,
            "epochs": self._epochs,
            # Of all processes; None before the first.
            "frames_per_second": round(self._frames / training, 4) if self._frames and training > 0 else None,
            **peak_memory(),
        }
        write_json(self.path, self._values | measured)

    def _seconds(self) -> float:
        """In training, up to now."""
        return self._training_seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def on_train_start(self, *_: Any) -> None:
        """Begin to count."""
        self._since = time.monotonic()

    def on_train_end(self, *_: Any) -> None:
        """Stop counting, also at an error, and while an evaluation lasts, which is not training."""
        self._training_seconds, self._since = self._seconds(), None

    on_exception = on_validation_start = on_train_end  # type: ignore[assignment]  # whatever their arguments

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count a batch, taken to be as large on the other processes."""
        self._steps = trainer.global_step
        if isinstance(batch, Batch):
            self._frames += batch.size * trainer.world_size

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Go on counting, within a fit."""
        if trainer.state.fn == "fit":
            self._since = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write how far the run came."""
        self._epochs = trainer.current_epoch + 1
        self.write()

    @property
    def state_key(self) -> str:
        """What the counts go by in checkpoints."""
        return "RunMeter"

    def state_dict(self) -> dict[str, Any]:
        """The counts up to here, those of earlier parts of the run included."""
        return {
            "steps": self._steps,
            "epochs": self._epochs,
            "frames": self._frames,
            "training_seconds": self._seconds(),
            "seconds": self._earlier_seconds + time.monotonic() - self._begin,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add to the counts of the run that this one resumes."""
        self._steps = int(state_dict["steps"])
        self._epochs = int(state_dict["epochs"])
        self._frames = int(state_dict["frames"])
        self._training_seconds = float(state_dict["training_seconds"])
        self._earlier_seconds = float(state_dict["seconds"])


@contextlib.contextmanager
def recorded(folder: Path, config: DictConfig, overrides: list[str]) -> Iterator[RunRecord]:
    """Keep a record of what happens inside, however it ends.

    An exception is ``failed``; Ctrl-C and what ends a process on a signal (``SystemExit``) are ``stopped``.
    """
    record = RunRecord(folder, config, overrides)
    try:
        yield record
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        try:
            record.write(**({"status": "stopped"} if stopped else {"status": "failed", "error": sentence(error)}))
        except OSError as trouble:  # which may be why the run failed
            log.warning("%s could not be written (%s)", record.path, trouble.strerror)
        raise
    record.write(status="complete")


def record_refusal(folder: Path, config: DictConfig, overrides: list[str], error: Exception) -> None:
    """Record a run that was refused before it began, unless the folder holds the record of an earlier one."""
    if not (folder / RECORD).is_file():
        RunRecord(folder, config, overrides).write(status="failed", error=sentence(error))


def is_rank_zero() -> bool:
    """Whether this process writes the run's files; Lightning knows the rank before it starts processes."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def machine() -> dict[str, Any]:
    """Processor, cores, memory in bytes and GPUs; no name of the host."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text(encoding="utf-8") if info.is_file() else "")
    return {
        "cpu": models[0].strip() if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def peak_memory() -> dict[str, int | None]:
    """Highest use so far: of this process' main memory (resident set), and of the GPU where one was used."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return {
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_gpu_memory_bytes": gpu or None,
    }


def _git(*arguments: str) -> str | None:
    """Output of git in the code's folder; ``None`` where the code is no git checkout or git is missing."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
