"""Command lines of the scripts with a small model, and running them."""

import subprocess
import sys
from pathlib import Path

from scripts.kill_test import SMALLEST_MODEL
from tests.helpers.forked import ROOT, TIMEOUT, Forked, environment

DATA = ["data.root=data", "data.cache_dir=cache", "data.num_workers=0", "data.batch_size=1", "trainer=cpu"]
SMALL = [*DATA, *SMALLEST_MODEL]
BACKBONE = "model.network.image.backbone=test_resnet"
"""A backbone of 0.4 million parameters, whose checkpoints are soon written."""
PAIR = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
"""Overrides for two processes on the CPU."""

Completed = subprocess.CompletedProcess[str]


def script_path(script: str) -> Path:
    """The path of a script, by its name."""
    folder = ROOT / "benchmarks" / "old_aqr" if script == "explain_maps" else ROOT / "scripts"
    return folder / f"{script}.py"


def arguments(script: str, *overrides: str) -> list[str]:
    """The command line of a script; training gets the small model before the overrides."""
    off = [("aqr=none", "aqr."), ("model=tiny_lidar", "model.network.image.")]
    unread = tuple(prefix for choice, prefix in off if choice in overrides)
    small = [item for item in (*SMALL, BACKBONE) if not item.startswith(unread)] if script == "train" else []
    return [sys.executable, str(script_path(script)), *small, *overrides]


def torchrun(options: list[str], *overrides: str) -> list[str]:
    """The command line of a training that torchrun starts, with options of torchrun."""
    python, *script = arguments("train", *overrides)
    return [python, "-m", "torch.distributed.run", *options, *script]


def resuming(checkpoint: Path, folder: Path, *overrides: str) -> list[str]:
    """The command line that resumes from a checkpoint, with the configuration in it, in a folder."""
    return [*arguments("train")[:2], f"ckpt_path={checkpoint}", f"hydra.run.dir={folder}", *overrides]


def start(folder: Path, line: list[str], new_session: bool = False) -> Forked:
    """Start a script in a folder, as a fork of a process that has imported its libraries."""
    return Forked(line, folder, new_session)


def run_line(folder: Path, line: list[str]) -> Completed:
    """Run a command line to its end in a folder; a script is forked, a module (``-m``) is not."""
    if line[1] == "-m":
        return run_anew(folder, line)
    process = start(folder, line)
    out, err = process.communicate()
    return subprocess.CompletedProcess(line, process.wait(), out, err)


def run_anew(folder: Path, line: list[str], timeout: float = TIMEOUT) -> Completed:
    """Run a command line to its end in a folder with a new interpreter, as a shell does."""
    return subprocess.run(
        line,
        cwd=folder,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=timeout,
    )


def run_command(folder: Path, script: str, *overrides: str) -> Completed:
    """Run a script to its end in a folder."""
    return run_line(folder, arguments(script, *overrides))


def succeeded(done: Completed) -> Completed:
    """A finished command, whose exit status must be 0."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def finished(folder: Path, script: str, *overrides: str) -> Completed:
    """Run a script to its end in a folder; its exit status must be 0."""
    return succeeded(run_command(folder, script, *overrides))
