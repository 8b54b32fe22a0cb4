"""Kill a training run repeatedly, resume it each time, and compare it with an uninterrupted run.

The tiny model is trained on a few frames of the embedded data, on the CPU. Each time, the process is killed with
signal 9 at a random moment and the same command is run again (``ckpt_path=auto``). At the end, weights, optimiser,
schedule, best checkpoint and metrics must equal those of the uninterrupted run bit for bit.

    python scripts/kill_test.py                          30 kills, without worker processes (10 to 20 minutes)
    python scripts/kill_test.py --kills 3 --workers 2    a short one, with two processes that read data
    python scripts/kill_test.py trainer.accumulate_grad_batches=2    any settings of train.py besides

Exit status 0: all the same; 1: something differs, or a run failed.
"""

import argparse
import csv
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from cmt_aqr.files import RECORD
from cmt_aqr.runs.checkpoints import read_checkpoint
from cmt_aqr.runs.console import console

TRAIN = Path(__file__).with_name("train.py")
SMALLEST_MODEL = (
    "model.embed_dims=32",
    "model.layers=1",
    "model.heads=4",
    "model.feedforward=32",
    "model.queries=20",
    "model.image_size=[64,160]",
    "model.grid.voxel_size=[0.8,0.8,0.2]",
    "model.grid.sparse_shape=[41,128,128]",
    "model.network.head.depths=8",
    "model.network.head.rv_hidden=32",
    "model.network.head.task_hidden=16",
    "training.denoising.groups=2",
    "aqr.generator.feedforward_dims=32",
    "aqr.generator.bev_window=3",
    "aqr.generator.image_window=3",
)
"""Overrides for any model built on ``tiny``, with a few thousand parameters besides its image backbone."""

SETTINGS = (
    "trainer=cpu",
    "trainer.max_epochs=8",
    "trainer.check_val_every_n_epoch=3",
    "trainer.log_every_n_steps=1",
    "callbacks.checkpoint.every_n_steps=2",
    "logger=csv",
    "clamp_schedule=progressive",
    "clamp_schedule.milestones={0:2.5,3:2.0,6:1.5}",
    "data.limit_train_frames=6",
    "data.limit_eval_frames=2",
    "data.batch_size=1",
    *SMALLEST_MODEL,
)


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """The command line: options of this script, and settings for train.py."""
    head, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=head, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30, help="how often to kill (30)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read data (0)")
    parser.add_argument("--resume-workers", type=int, help="workers of every second attempt (as --workers)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    parser.add_argument("--folder", type=Path, help="of the runs (a new temporary one)")
    parser.add_argument("settings", nargs="*", help="settings for train.py, e.g. data.root=data/synthetic")
    options = parser.parse_args()
    if options.kills < 1:
        parser.error(f"--kills {options.kills}: must be 1 or more")
    return options, options.settings


class Run:
    """A training run in a folder of its own, with settings for train.py, that may take several attempts."""

    def __init__(self, folder: Path, settings: Sequence[str]) -> None:
        self.folder = folder
        self.settings = settings
        self.log = folder.with_suffix(".log")

    def attempt(self, workers: int, life: float | None) -> float | None:
        """Start the run, or resume it from the newest checkpoint.

        Args:
            workers: processes that read data.
            life: seconds from its first record to the kill; ``None``: no kill.

        Returns:
            Seconds from its first record to the end, including the final evaluation; ``None``: it was killed.
        """
        overrides = [f"data.num_workers={workers}", f"hydra.run.dir={self.folder}", "ckpt_path=auto"]
        since = time.time()
        # One thread: with several, sums may be taken in another order.
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(TRAIN), *SETTINGS, *self.settings, *overrides],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
            )
        try:
            record = self.folder / RECORD
            while process.poll() is None and not (record.is_file() and record.stat().st_mtime > since):
                time.sleep(0.01)
            start = time.monotonic()
            process.wait(timeout=life)
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            printed = self.log.read_text(errors="replace", encoding="utf-8").splitlines()[-15:]
            sys.exit("\n".join([f"error: the run in {self.folder} failed:", *printed]))
        return time.monotonic() - start

    def step(self) -> int:
        """The step of the checkpoint that the next attempt resumes from."""
        last = self.folder / "checkpoints" / "last.ckpt"
        return read_checkpoint(last)["global_step"] if last.is_file() else 0


def differences(left: Any, right: Any, where: str) -> list[str]:
    """Names of values that are not bit for bit equal."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        bits = [(one.dtype, one.shape, one.contiguous().numpy().tobytes()) for one in (left, right)]
        return [] if bits[0] == bits[1] else [where]
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [name for key in left for name in differences(left[key], right[key], f"{where}.{key}")]
    if isinstance(left, list | tuple) and isinstance(right, list | tuple) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return [name for i, (a, b) in pairs for name in differences(a, b, f"{where}[{i}]")]
    return [] if type(left) is type(right) and left == right else [where]


def curve(folder: Path) -> list[tuple[int, str]]:
    """Steps and losses of the learning curve."""
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        return [(int(row["step"]), row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def compare(uninterrupted: Path, killed: Path) -> dict[str, list[str]]:
    """Names of values that differ, by what was compared."""
    result: dict[str, list[str]] = {}
    for name, parts in (
        ("last", ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")),
        ("best", ("state_dict", "optimizer_states", "epoch", "global_step")),
    ):
        folders = (killed, uninterrupted)
        left, right = (read_checkpoint(folder / "checkpoints" / f"{name}.ckpt") for folder in folders)
        for part in parts:
            result[f"{name}.ckpt, {part}"] = differences(left[part], right[part], part)
    for file in ("metrics.json", "metrics.csv"):
        same = (killed / file).read_bytes() == (uninterrupted / file).read_bytes()
        result[file] = [] if same else [file]
    # A row is written after the checkpoint of its step: a kill between the two loses the row, not the step.
    rows, expected = curve(killed), curve(uninterrupted)
    wrong = sorted(set(rows) - set(expected))
    result[f"learning curve ({len(rows)} of {len(expected)} rows)"] = [f"step {step}" for step, _ in wrong]
    return result


def main() -> None:
    """Train, kill, resume, compare."""
    options, settings = arguments()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kill_test_"))
    folder.mkdir(parents=True, exist_ok=True)
    numbers = (options.workers, options.resume_workers)
    workers = itertools.cycle([number for number in numbers if number is not None])
    uninterrupted = Run(folder / "whole", settings)
    console().print(f"Training without a kill, in {uninterrupted.folder}", soft_wrap=True)
    seconds = uninterrupted.attempt(options.workers, None)
    assert seconds is not None
    # On average, an attempt lives long enough to get further than the one before; if a training ends before all
    # kills, another one starts.
    life = 2.0 + 4 * seconds / max(4, options.kills)
    moments = random.Random(options.seed)
    kills: list[tuple[int, int, float]] = []
    results: dict[str, list[str]] = {}
    rounds = 0
    while len(kills) < options.kills:
        rounds += 1
        run = Run(folder / f"killed{rounds}", settings)
        console().print(f"Training and killing, in {run.folder}", soft_wrap=True)
        for number in workers:
            lived = moments.uniform(0, life)
            if run.attempt(number, lived if len(kills) < options.kills else None) is not None:
                break
            kills.append((number, run.step(), lived))
        for part, names in compare(uninterrupted.folder, run.folder).items():
            results[f"{run.folder.name}: {part}"] = names
    report(kills, results, rounds)
    sys.exit(1 if any(results.values()) else 0)


def report(kills: list[tuple[int, int, float]], results: dict[str, list[str]], rounds: int) -> None:
    """Print the kills (loader workers, step of the checkpoint, seconds after the start) and what differs."""
    table = Table("kill", "workers", "step of its checkpoint", "seconds after the start of the run")
    for number, (workers, step, lived) in enumerate(kills, start=1):
        table.add_row(str(number), str(workers), str(step), f"{lived:.2f}")
    console().print(table)
    table = Table("compared", "differs")
    for part, names in results.items():
        table.add_row(
            part, ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "no"
        )
    console().print(table)
    verdict = "DIFFERENT from" if any(results.values()) else "bit for bit the same as"
    times = "once" if rounds == 1 else f"{rounds} times"
    console().print(f"{len(kills)} kills, trained to the end {times}: {verdict} the uninterrupted run")


if __name__ == "__main__":
    main()
