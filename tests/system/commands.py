"""Starting the scripts as a user does, with a model of a few thousand parameters beside its image backbone."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

DATA = ["data.root=data", "data.cache_dir=cache", "data.num_workers=0", "data.batch_size=1", "trainer=cpu"]
SMALL = [
    *DATA,
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
]
"""Overrides of any model built on ``tiny``."""


def environment() -> dict[str, str]:
    """One thread, so that sums come out the same in every run; the package of this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}


def arguments(script: str, *overrides: str) -> list[str]:
    """The command line of a script; training gets the small model before the overrides."""
    small = SMALL if script == "train" else []
    return [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *small, *overrides]


def run_command(folder: Path, script: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end in a folder."""
    return subprocess.run(
        arguments(script, *overrides),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
