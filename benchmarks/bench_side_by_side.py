"""Time a short training alone and two side by side, with our choice of threads and with PyTorch's.

The rival is PyTorch's default: one thread per core, which spin while they wait. The four situations take turns; a
run that exceeds the limit is stopped and counts as the limit.

    python benchmarks/bench_side_by_side.py                    60 steps of the tiny model (3 to 15 minutes)
    python benchmarks/bench_side_by_side.py --steps 20 --repeats 1
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.table import Table

from cmt_aqr.runs.console import console
from cmt_aqr.runs.threads import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "scripts" / "train.py"


def environment(rival: bool) -> dict[str, str]:
    """This process' environment without thread settings; for the rival with one thread per core."""
    plain = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "CMT_AQR_THREADS")}
    return {**plain, "OMP_NUM_THREADS": str(os.cpu_count())} if rival else plain


def seconds(count: int, rival: bool, overrides: list[str], limit: float) -> float:
    """Wall time of ``count`` trainings that start together, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        running = [
            subprocess.Popen(
                [sys.executable, str(TRAIN), *overrides, f"hydra.run.dir={folder}/{number}"],
                cwd=ROOT,
                env=environment(rival),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in range(count)
        ]
        for process in running:
            try:
                status = process.wait(timeout=max(0.1, limit - (time.perf_counter() - begin)))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                continue
            if status:
                sys.exit(f"error: train.py {' '.join(overrides)} ended with status {status}")
        return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="steps of each training (60)")
    parser.add_argument("--repeats", type=int, default=2, help="repeats of each situation (2)")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds after which a run is stopped (300)")
    parser.add_argument("overrides", nargs="*", help="overrides of train.py")
    options = parser.parse_args()
    overrides = ["data.limit_eval_frames=1", "logger=csv", *options.overrides]
    seconds(1, False, ["trainer.max_steps=1", *overrides], 1200.0)  # draws the data, fills the caches
    overrides.append(f"trainer.max_steps={options.steps}")
    times: dict[tuple[int, bool], list[float]] = {}
    for _ in range(options.repeats):
        for rival in (True, False):
            for count in (1, 2):
                times.setdefault((count, rival), []).append(seconds(count, rival, overrides, options.limit))
    median = {key: statistics.median(values) for key, values in times.items()}
    table = Table("seconds", "our choice", "a spinning thread per core", "ratio")
    for count, name in ((1, "alone"), (2, "two side by side")):
        ours, theirs = median[count, False], median[count, True]
        more = ">" if theirs >= options.limit else ""
        table.add_row(name, f"{ours:.1f}", f"{more}{theirs:.1f}", f"{ours / theirs:.2f}")
    pairs = [median[2, rival] / median[1, rival] for rival in (False, True)]
    table.add_row("two / one", *(f"{value:.2f}" for value in pairs), "")
    console().print(table)


if __name__ == "__main__":
    main()
