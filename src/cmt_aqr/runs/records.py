"""A run's record: configuration, versions, machine, duration and how it ended."""

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

    As a callback it counts steps, frames and training time without evaluations, and writes the record after every
    epoch, so that the progress of a killed run is known. The counts are part of checkpoints, and a resumed run
    continues them; work after the last checkpoint of a killed run is lost and does not count.
    """

    def __init__(self, folder: Path, config: DictConfig, overrides: list[str]) -> None:
        self.path = folder / RECORD
        self._start = time.monotonic()
        self._training_since: float | None = None
        self._counts: dict[str, Any] = {"steps": 0, "epochs": 0, "frames": 0}
        self._counts |= {"training_seconds": 0.0, "seconds": 0.0}
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
        """Write the current record with changes, atomically."""
        self._values |= changes
        if not is_rank_zero():
            return
        counts = self.state_dict()
        frames, training = counts["frames"], counts["training_seconds"]
        measured = {
            "wall_time_s": round(counts["seconds"], 3),
            "steps": counts["steps"],
            "epochs": counts["epochs"],
            # Over all processes; None before the first step.
            "frames_per_second": round(frames / training, 4) if frames and training > 0 else None,
            **peak_memory(),
        }
        write_json(self.path, self._values | measured)

    def on_train_start(self, *_: Any) -> None:
        """Start counting time."""
        self._training_since = time.monotonic()

    def on_train_end(self, *_: Any) -> None:
        """Stop counting time, also at an error, and during an evaluation, which is not training."""
        self._counts["training_seconds"] = self.state_dict()["training_seconds"]
        self._training_since = None

    on_exception = on_validation_start = on_train_end  # type: ignore[assignment]  # their arguments are ignored

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count a batch, assuming the same size on the other processes."""
        self._counts["steps"] = trainer.global_step
        if isinstance(batch, Batch):
            self._counts["frames"] += batch.size * trainer.world_size

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Resume counting time, within a fit."""
        if trainer.state.fn == "fit":
            self._training_since = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Record the progress."""
        self._counts["epochs"] = trainer.current_epoch + 1
        self.write()

    @property
    def state_key(self) -> str:
        """Key of the counts in checkpoints."""
        return "RunMeter"

    def state_dict(self) -> dict[str, Any]:
        """The counts so far, including earlier parts of the run."""
        now = time.monotonic()
        training = 0.0 if self._training_since is None else now - self._training_since
        return self._counts | {
            "training_seconds": self._counts["training_seconds"] + training,
            "seconds": self._counts["seconds"] + now - self._start,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of the run that this one resumes."""
        self._counts = dict(state_dict)


@contextlib.contextmanager
def recorded(folder: Path, config: DictConfig, overrides: list[str]) -> Iterator[RunRecord]:
    """Record a run, however it ends: an exception is ``failed``, Ctrl-C and ``SystemExit`` are ``stopped``."""
    record = RunRecord(folder, config, overrides)
    try:
        yield record
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        try:
            record.write(**({"status": "stopped"} if stopped else {"status": "failed", "error": sentence(error)}))
        except OSError as failure:  # perhaps the reason why the run failed
            log.warning("%s could not be written (%s)", record.path, failure.strerror)
        raise
    record.write(status="complete")


def record_refusal(folder: Path, config: DictConfig, overrides: list[str], error: Exception) -> None:
    """Record a run that was refused before it started, unless the folder holds an earlier record."""
    if not (folder / RECORD).is_file():
        RunRecord(folder, config, overrides).write(status="failed", error=sentence(error))


def is_rank_zero() -> bool:
    """Whether this process writes the run's files; Lightning knows the rank before it starts processes."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def machine() -> dict[str, Any]:
    """Processor, cores, memory in bytes and GPUs; no host name."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text(encoding="utf-8") if info.is_file() else "")
    return {
        "cpu": models[0].strip() if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def peak_memory() -> dict[str, int | None]:
    """Peak main memory (resident set) of this process, and of the GPU if one was used, in bytes."""
    # ru_maxrss is in KiB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return {
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_gpu_memory_bytes": gpu or None,
    }


def _git(*arguments: str) -> str | None:
    """Output of git in the code's folder; ``None`` if the code is no git checkout or git is not installed."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
