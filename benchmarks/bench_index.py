"""Time the index of nuScenes, made from the tables and taken from the cache, against the devkit's load.

    python benchmarks/bench_index.py ROOT [--version v1.0-trainval] [--splits train val]

ROOT is a data root; of it only the tables are read (and the maps, by the devkit). The rival is
``NuScenes(version, dataroot)``, which is what the index would otherwise be made from; it is only the first half of
that way. Each runs in a process of its own: CPU seconds, the most memory it took and what it still holds
afterwards, both beyond what there was after the imports. Objects of the devkit are then let go of, as the index
lets go of its tables.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nuscenes import NuScenes

from cmt_aqr.data.ground_truth import load_ground_truth
from cmt_aqr.data.index import load_index
from cmt_aqr.data.tables import close_tables


def main() -> None:
    """Run each way once and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="the last one's ground truth, too")
    given = parser.parse_args()
    root = given.root.resolve()
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)

        def ours() -> None:
            for split in given.splits:
                load_index(root, given.version, split, cache)
            load_ground_truth(root, given.version, given.splits[-1], cache)
            close_tables()

        def theirs() -> None:
            NuScenes(given.version, str(root), verbose=False)

        rival = measured(theirs)
        show("devkit's load", rival, rival)
        show("index, cold", measured(ours), rival)
        show("index, from the cache", measured(ours), rival)


def show(name: str, found: tuple[float, float, float], rival: tuple[float, float, float]) -> None:
    """Print one way beside the rival."""
    seconds, peak, left = found
    ratio = f"{rival[0] / seconds:.1f} times as fast" if found is not rival else "the rival"
    print(f"{name:22} {seconds:8.3f} CPU s, at most {peak:6.0f} MB, {left:6.0f} MB afterwards: {ratio}")


def measured(function: Callable[[], Any]) -> tuple[float, float, float]:
    """CPU seconds of a function in a process of its own, its peak memory and what is left of it, MB."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        before = memory()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from now on
        start = time.process_time()
        function()
        seconds = time.process_time() - start
        gc.collect()
        sender.send((seconds, memory("VmHWM") - before, memory() - before))

    process = context.Process(target=work)
    process.start()
    sender.close()
    answer: tuple[float, float, float] = receiver.recv()
    process.join()
    return answer


def memory(field: str = "VmRSS") -> float:
    """Memory of this process in MB, by a field of Linux' /proc/self/status."""
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    )
    return int(status[field].split()[0]) / 1024


if __name__ == "__main__":
    main()
