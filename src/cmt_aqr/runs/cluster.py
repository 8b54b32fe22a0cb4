"""Processes that torchrun or srun started, and the run folder that they share."""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_fabric.plugins import ClusterEnvironment

_FOLDER = "cmt_aqr/run_folder"


def outside_environment() -> ClusterEnvironment | None:
    """The environment in which torchrun or srun started this process; ``None`` if neither did.

    Srun's counts only with several tasks: a job with one task starts its own processes.
    """
    # The variables come first, so that a plain command checks its arguments before it loads Lightning.
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from lightning_fabric.plugins.environments import TorchElasticEnvironment

        return TorchElasticEnvironment()
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ:
        from lightning_fabric.plugins.environments import SLURMEnvironment

        return SLURMEnvironment() if SLURMEnvironment.detect() else None
    return None


def starter() -> str:
    """The command behind :func:`outside_environment`, for messages."""
    return "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "srun"


def share_folder(folder: Path) -> None:
    """Send the first process's folder to the others; their own would have other times in their names."""
    _store().set(_FOLDER, str(folder))


def shared_folder() -> Path:
    """Receive the first process's folder; blocks until it is sent."""
    return Path(_store().get(_FOLDER).decode())


@functools.cache  # kept alive: the first process may serve it, and PyTorch's process group uses it, too
def _store() -> Any:
    """The key-value store through which the processes find each other."""
    from torch.distributed import rendezvous

    outside = outside_environment()
    assert outside is not None
    url = f"tcp://{outside.main_address}:{outside.main_port}"
    return next(rendezvous(url, outside.global_rank(), outside.world_size(), timeout=timedelta(minutes=10)))[0]
