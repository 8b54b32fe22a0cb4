"""Starting the scripts as a user does, with a model of a few thousand parameters beside its image backbone."""

import subprocess
import sys
from pathlib import Path

from scripts.kill_test import SMALLEST_MODEL
from tests.helpers.forked import ROOT, TIMEOUT, Forked, environment

DATA = ["data.root=data", "data.cache_dir=cache", "data.num_workers=0", "data.batch_size=1", "trainer=cpu"]
SMALL = [*DATA, *SMALLEST_MODEL]
PAIR = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
"""Overrides for two processes on CPU cores."""


def script_path(script: str) -> Path:
    """Where a script is, by its name."""
    folder = ROOT / "benchmarks" / "old_aqr" if script == "explain_maps" else ROOT / "scripts"
    return folder / f"{script}.py"


def arguments(script: str, *overrides: str) -> list[str]:
    """The command line of a script; training gets the small model before the overrides."""
    small = SMALL if script == "train" else []
    if "aqr=none" in overrides:
        small = [item for item in small if not item.startswith("aqr.")]
    return [sys.executable, str(script_path(script)), *small, *overrides]


def torchrun(*overrides: str) -> list[str]:
    """The command line of a training that torchrun starts in two processes."""
    python, *script = arguments("train", *overrides)
    return [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *script]


def torchrun_on_one_of_two(port: int, *overrides: str) -> list[str]:
    """The command line of a machine of two, with one process each, that meet at a port of this machine."""
    python, *script = arguments("train", *overrides)
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"]
    return [python, "-m", "torch.distributed.run", *meeting, *script]


def resuming(checkpoint: Path, folder: Path, *overrides: str) -> list[str]:
    """The command line that resumes from a checkpoint, whose configuration comes with it, in a folder."""
    return [*arguments("train")[:2], f"ckpt_path={checkpoint}", f"hydra.run.dir={folder}", *overrides]


def start(folder: Path, line: list[str], new_session: bool = False) -> Forked:
    """Start a script in a folder, as a process that has its libraries already."""
    return Forked(line, folder, new_session)


def run_line(folder: Path, line: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end in a folder; one of a script need not import its libraries."""
    if line[1] == "-m":
        return run_anew(folder, line)
    process = start(folder, line)
    out, err = process.communicate()
    return subprocess.CompletedProcess(line, process.wait(), out, err)


def run_anew(folder: Path, line: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """The same from an interpreter that has only just been started, as a shell does."""
    return subprocess.run(
        line,
        cwd=folder,
        env={**environment(), **variables},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=TIMEOUT,
    )


def run_command(folder: Path, script: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end in a folder."""
    return run_line(folder, arguments(script, *overrides))


def finished(folder: Path, script: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The same, and it must end well."""
    done = run_command(folder, script, *overrides)
    assert done.returncode == 0, done.stderr
    return done
