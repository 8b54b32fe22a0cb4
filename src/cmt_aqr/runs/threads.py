"""How many threads a process computes with on a CPU, so that runs beside each other do not stall each other.

OpenMP's threads spin while they wait for each other. As soon as there are more of them than cores (a second run,
a loader's worker), those that spin keep the others from working, and a step takes many times as long. Sleeping
instead (``OMP_WAIT_POLICY=PASSIVE``) costs little where the work between two waits is large; where it is small,
one thread alone is about as fast as two. ``benchmarks/bench_side_by_side.py`` measures both.
"""

from __future__ import annotations

import os
from math import prod

SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables by which a user, torchrun or a launcher decides."""

_DECIDED_HERE = "CMT_AQR_THREADS"

SMALL_WORK = 512 * 512
"""Columns of voxels of a grid whose maps are so small that threads wait more than they work."""


def sleep_while_waiting() -> None:
    """Let OpenMP's threads sleep while they wait; to be called before PyTorch is imported.

    Does nothing where the environment says how to wait, or with how many threads.
    """
    if not any(name in os.environ for name in SETTINGS):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ[_DECIDED_HERE] = "1"


def threads_for(sparse_shape: tuple[int, ...], processes: int) -> int | None:
    """Threads for one of the processes of a run on this machine; ``None`` where the environment decides.

    Args:
        sparse_shape: voxels of the model's grid along z, y, x.
        processes: that this machine's cores are shared by.
    """
    # A launcher of ours may have set the number since, for the process that it started.
    if _DECIDED_HERE not in os.environ or "OMP_NUM_THREADS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // processes)
    return max(1, share // 2) if prod(sparse_shape[1:]) <= SMALL_WORK else share
