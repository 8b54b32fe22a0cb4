"""Tasks for the processes of :mod:`tests.runs.test_processes`."""

import os
import signal
import time
from pathlib import Path

import torch
from omegaconf import DictConfig

from cmt_aqr.errors import UserError


def sum_ranks(config: DictConfig, folder: Path, overrides: list[str]) -> dict[str, float]:
    """Form a process group from the environment alone, as Lightning does, and sum the ranks."""
    torch.distributed.init_process_group("gloo")
    total = torch.tensor(float(os.environ["RANK"])) + config.offset
    torch.distributed.all_reduce(total)
    torch.distributed.destroy_process_group()
    return {"total": float(total), "overrides": len(overrides)}


def fail_second(config: DictConfig, folder: Path, overrides: list[str]) -> dict[str, float]:
    """The second process fails while the first waits."""
    if os.environ["RANK"] == "1":
        raise UserError("data.root=x: nothing there")
    time.sleep(600)
    raise AssertionError


def second_is_killed(config: DictConfig, folder: Path, overrides: list[str]) -> dict[str, float]:
    """The second process is killed, as when memory is exhausted, and the first fails because of it."""
    if os.environ["RANK"] == "1":
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1.0)
    raise RuntimeError("connection closed by peer")
