"""How many threads a process computes with on a CPU, so that runs beside each other do not stall each other.

OpenMP's threads spin while they wait for each other. As soon as there are more of them than cores (a second run,
a loader's worker), those that spin keep the others from working, and a step takes many times as long. Sleeping
at once costs nearly half again where the work between two waits is small. A short spin before the sleep has the
better of both: alone within a tenth of spinning, two runs in less than twice the time of one.
``benchmarks/bench_side_by_side.py`` measures it.
"""

from __future__ import annotations

import os
from math import prod

SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables by which a user, torchrun or a launcher decides."""

_DECIDED_HERE = "CMT_AQR_THREADS"

SPINS = 800
"""Turns of libgomp's waiting loop before a thread sleeps. On two cores, 60 steps of the tiny model take alone
38 s with 100 turns, 30 s with 800, 28 s with endless ones; two beside each other 43 s, 51 s and over 280 s."""

SMALL_WORK = 512 * 512
"""Columns of voxels of a grid whose maps are so small that threads wait more than they work."""


def sleep_while_waiting() -> None:
    """Let OpenMP's threads sleep when they have waited a little; to be called before PyTorch is imported.

    Does nothing where the environment says how to wait, or with how many threads.
    """
    if not any(name in os.environ for name in SETTINGS):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # of other OpenMPs than libgomp
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
        os.environ[_DECIDED_HERE] = "1"


def threads_for(sparse_shape: tuple[int, ...], processes: int) -> int | None:
    """Threads for one of some processes of a run on this machine; ``None`` where the environment decides.

    ``sparse_shape`` are the voxels of the model's grid along z, y, x.
    """
    # A launcher of ours may have set the number since, for the process that it started.
    if _DECIDED_HERE not in os.environ or "OMP_NUM_THREADS" in os.environ:
        return None
    share = max(1, cores() // processes)
    # Of many cores, small work keeps no more than half busy.
    return max(min(share, 2), share // 2) if prod(sparse_shape[1:]) <= SMALL_WORK else share


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
