"""A Slurm on this machine, for the tests that need one."""

import shutil
import subprocess

import pytest

SLURM = [
    "launcher=slurm",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=4",
    "hydra.launcher.timeout_min=2",
    "hydra.launcher.signal_delay_s=60",
]


def has_slurm() -> bool:
    """Whether a Slurm is at work on this machine."""
    return shutil.which("sinfo") is not None and not subprocess.run(["sinfo"], capture_output=True).returncode


needs_slurm = pytest.mark.skipif(not has_slurm(), reason="no Slurm here: sudo bash tests/system/slurm_here.sh")
