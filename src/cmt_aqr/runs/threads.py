"""The number of CPU threads of a process, and how they wait, so that concurrent runs do not stall each other.

OpenMP's threads spin while they wait for each other. With more threads than cores (a second run, a loader
worker), spinning threads keep the others from working, and a step takes many times as long. Without any spinning,
a run with little work between two waits takes nearly half as long again. A short spin before sleeping is a
compromise: a single run takes at most a tenth longer than with spinning, and two runs less than twice the time of
one.
``benchmarks/bench_side_by_side.py`` measures it.
"""

import os
from math import prod

SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables by which a user, torchrun or a launcher sets threads and waiting."""

_SET_HERE = "CMT_AQR_THREADS"

SPINS = 800
"""Turns of libgomp's waiting loop before a thread sleeps. On two cores, 60 steps of the tiny model take 38 s with
100 turns, 30 s with 800 and 28 s without a limit; two concurrent runs take 43 s, 51 s and over 280 s."""

SMALL_WORK = 512 * 512
"""Columns of voxels up to which threads wait more than they work."""


def sleep_while_waiting() -> None:
    """Make OpenMP's threads sleep after a short spin, unless the environment sets threads or waiting.

    Call it before PyTorch is imported.
    """
    if not any(name in os.environ for name in SETTINGS):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for other OpenMP libraries than libgomp
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
        os.environ[_SET_HERE] = "1"


def threads_for(sparse_shape: tuple[int, ...], processes: int) -> int | None:
    """Threads per process of a run on this machine; ``None`` if the environment sets them.

    Args:
        sparse_shape: voxels of the model's grid along z, y, x.
        processes: of the run on this machine.
    """
    # A launcher may have set the number since, for a process that it started.
    if _SET_HERE not in os.environ or "OMP_NUM_THREADS" in os.environ:
        return None
    share = max(1, cores() // processes)
    # Small work keeps at most half of many cores busy.
    return max(min(share, 2), share // 2) if prod(sparse_shape[1:]) <= SMALL_WORK else share


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
