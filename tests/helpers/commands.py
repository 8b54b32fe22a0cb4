"""Starting the scripts as a user does, with a model of a few thousand parameters beside its image backbone."""

import os
import subprocess
import sys
from pathlib import Path

from scripts.kill_test import SMALLEST_MODEL

ROOT = Path(__file__).resolve().parents[2]

DATA = ["data.root=data", "data.cache_dir=cache", "data.num_workers=0", "data.batch_size=1", "trainer=cpu"]
SMALL = [*DATA, *SMALLEST_MODEL]


def environment() -> dict[str, str]:
    """One thread, so that sums come out the same in every run; the package of this checkout, and its tests'."""
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}


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


def resuming(checkpoint: Path, folder: Path) -> list[str]:
    """The command line that resumes from a checkpoint, whose configuration comes with it, in a folder."""
    python, script, *_ = arguments("train")
    return [python, script, f"ckpt_path={checkpoint}", f"hydra.run.dir={folder}"]


def run_line(folder: Path, line: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end in a folder."""
    return subprocess.run(
        line, cwd=folder, env=environment(), capture_output=True, encoding="utf-8", check=False, timeout=300
    )


def run_command(folder: Path, script: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end in a folder."""
    return run_line(folder, arguments(script, *overrides))
