"""Processes that torchrun, srun or the user started: who they are, and the one folder they share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_fabric.plugins import ClusterEnvironment


@dataclass(frozen=True)
class Outside:
    """What started this process as one of several.

    Attributes:
        name: of the launcher, for messages.
        rank: of this process among all.
        world_size: number of processes.
        address: host of the first process.
        port: where the processes find each other there.
    """

    name: str
    rank: int
    world_size: int
    address: str
    port: int


def outside_environment() -> Outside | None:
    """What started this process as one of several; ``None`` where it was started alone.

    Srun's environment counts only if it started several tasks: a job with one task starts its own processes.
    """
    variables = os.environ
    # Asked first, so that a plain command does not load Lightning before it knows that its arguments are fine.
    if "TORCHELASTIC_RUN_ID" in variables:
        from lightning_fabric.plugins.environments import TorchElasticEnvironment

        return _read("torchrun", TorchElasticEnvironment())
    if int(variables.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in variables:
        from lightning_fabric.plugins.environments import SLURMEnvironment

        if SLURMEnvironment.detect():
            return _read("srun", SLURMEnvironment())
    return None


def _read(name: str, environment: ClusterEnvironment) -> Outside:
    return Outside(
        name=name,
        rank=environment.global_rank(),
        world_size=environment.world_size(),
        address=environment.main_address,
        port=environment.main_port,
    )


_FOLDER = "cmt_aqr/run_folder"
_stores: list[Any] = []
"""Kept, because the first process may be the one that serves it, and PyTorch's process group uses it, too."""


def share_folder(outside: Outside, folder: Path) -> None:
    """Tell the other processes which folder the first one made; theirs would have other times in their names."""
    _store(outside).set(_FOLDER, str(folder))


def shared_folder(outside: Outside) -> Path:
    """The first process' folder; waits until it is known."""
    return Path(_store(outside).get(_FOLDER).decode())


def _store(outside: Outside) -> Any:
    """The key-value store at which the processes find each other."""
    from torch.distributed import rendezvous

    if not _stores:
        url = f"tcp://{outside.address}:{outside.port}"
        meeting = rendezvous(url, outside.rank, outside.world_size, timeout=timedelta(minutes=10))
        _stores.append(next(iter(meeting))[0])
    return _stores[0]
