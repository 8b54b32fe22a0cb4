"""Running with several devices: one process each, started, watched and ended by the command.

Lightning would start the others by calling the command once more. Within a sweep (``-m``) such a call is a sweep
again, and the environment variables of the first run mislead the second. Here the command's own process takes no
part in the training: it starts every process with an explicit job and the environment that ``torchrun`` would give
it, waits, and hands their result or error back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from cmt_aqr.errors import UserError
from cmt_aqr.files import read_record, record_failure
from cmt_aqr.runs.cluster import outside_environment, starter
from cmt_aqr.runs.loggers import finish_loggers
from cmt_aqr.runs.precision import build_trainer
from cmt_aqr.runs.stopping import ENDING, Stopped, is_others
from cmt_aqr.runs.tree import unresolved

Metrics = dict[str, float]
Task = Callable[[DictConfig, Path, list[str]], Metrics]

POLL_SECONDS = 0.1
ERROR_SECONDS = 5.0
"""How long the others may take to end by themselves after one has failed."""
STOP_SECONDS = 300.0
"""How long all may take after Ctrl-C or SIGTERM: a checkpoint may have to be written."""


@dataclass(frozen=True)
class Job:
    """What a process is told to do: a task, by its dotted name, and its arguments.

    Attributes:
        hydra: Hydra's own configuration, for ``${hydra:...}``; ``None`` outside of Hydra.
        arguments: ``sys.argv`` of the command, for the record.
        sigterm_saves: SIGTERM does not end the run, because the command's process lets it pass.
    """

    task: str
    config: DictConfig
    folder: str
    overrides: list[str]
    hydra: DictConfig | None
    arguments: list[str]
    sigterm_saves: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a process sends when it is done: metrics, an error, or neither where it was left early; and when."""

    metrics: Metrics | None
    error: BaseException | None
    time: float
    """In seconds; the first error is the cause of the others."""


def run_task(task: Task, config: DictConfig, folder: Path, overrides: list[str]) -> Metrics:
    """Run a task in this process, or in one process for each device if the trainer asks for several.

    Args:
        task: :func:`cmt_aqr.training.run.train` or ``evaluate``.
        config: composed and checked.
        folder: the run's folder, shared by all processes.
        overrides: as given on the command line.

    Raises:
        UserError: the trainer's devices do not fit the processes that torchrun or srun started, or one was killed.
    """
    processes = processes_to_start(config)
    if processes == 0:
        return run_here(task, config, folder, overrides)
    hydra: Any = HydraConfig.instance().cfg
    job = Job(
        task=f"{task.__module__}.{task.__qualname__}",
        config=config,
        folder=str(folder),
        overrides=overrides,
        # Without its schema's classes: those of a launcher's plugin may be loaded twice.
        hydra=None if hydra is None else OmegaConf.create(unresolved(hydra)),
        arguments=sys.argv,
        sigterm_saves=is_others(signal.SIGTERM),
    )
    return Processes(job, processes).run()


def run_here(task: Task, config: DictConfig, folder: Path, overrides: list[str]) -> Metrics:
    """Run a task in this process, and end its loggers."""
    failed = True
    try:
        metrics = task(config, folder, overrides)
        failed = False
        return metrics
    finally:
        finish_loggers(failed)


def processes_to_start(config: DictConfig) -> int:
    """How many processes the trainer needs; 0 where this one is enough or has been started as one of them.

    Raises:
        UserError: several machines without torchrun or srun, or another number of processes than they started.
    """
    environment = outside_environment()
    plain = config.trainer.get("strategy", "auto") == "auto" and config.trainer.get("devices") in (1, "1")
    if plain and environment is None:
        return 0
    devices = logging.getLogger("pytorch_lightning.utilities.rank_zero")  # whose lines the processes print, too
    level = devices.level
    devices.setLevel(logging.ERROR)
    try:
        trainer = build_trainer(config, logger=False, enable_checkpointing=False)
    finally:
        devices.setLevel(level)
    wanted = trainer.num_devices * trainer.num_nodes
    if environment is not None:
        if environment.world_size() != wanted:
            raise UserError(
                f"{starter()} started {environment.world_size()} processes, but trainer.devices="
                f"{config.trainer.get('devices')} with {trainer.num_nodes} machines makes {wanted}: give "
                "trainer=ddp, trainer.devices=<processes per machine> and +trainer.num_nodes=<machines>"
            )
        return 0
    if not isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        return 0
    if trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}: start the command on all machines with torchrun or srun"
        )
    return trainer.num_devices


class Processes:
    """The processes of one run, on this machine.

    Each has a connection to this process. It receives its job there, and its end tells it that this process is
    gone, however that happened: it then ends itself. Each is the head of a process group, so that its loader
    workers can be ended with it, and so that Ctrl-C in a terminal reaches only this process.
    """

    def __init__(self, job: Job, count: int) -> None:
        self.job = job
        self.count = count
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        self._outcomes: dict[int, Outcome] = {}
        self._signal: int | None = None

    def run(self) -> Metrics:
        """Start all, wait for all; the result of the first, or the first error."""
        # Served from here, on a port that the system chooses, so that no other run can take it in between.
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        with self._forwarding_signals():
            try:
                for rank in range(self.count):
                    self._start(rank, store.port)
                self._wait()
            finally:
                self._end_all()
        try:
            return self._result()
        except Exception as error:
            # What the first process wrote may be what the end of another did to it, or nothing at all.
            correct_record(Path(self.job.folder), error)
            raise

    def _start(self, rank: int, port: int) -> None:
        here, there = Pipe(duplex=True)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cmt_aqr.runs.worker", str(there.fileno())],
            env=os.environ | self._as_torchrun(rank, port),
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else subprocess.DEVNULL,
            process_group=0,
        )
        there.close()
        self._processes.append(process)
        self._connections.append(here)
        with contextlib.suppress(BrokenPipeError):  # it ended at once: seen in _wait
            here.send(self.job)

    def _as_torchrun(self, rank: int, port: int) -> dict[str, str]:
        """What ``torchrun`` sets in the environment on one machine, with the store at a port of this one."""
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "NODE_RANK": "0",
            "WORLD_SIZE": str(self.count),
            "LOCAL_WORLD_SIZE": str(self.count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "cmt_aqr",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }

    def _wait(self) -> None:
        """Until all have ended, or one has failed and the others had time to end, too."""
        deadline = float("inf")
        while any(process.poll() is None for process in self._processes) and time.monotonic() < deadline:
            stopping = self._signal is not None and self._processes[0].returncode is None
            if stopping:
                deadline = min(deadline, time.monotonic() + STOP_SECONDS)
            elif self._signal is not None or self._errors() or any(one.poll() for one in self._processes):
                deadline = min(deadline, time.monotonic() + ERROR_SECONDS)
            time.sleep(POLL_SECONDS)
            self._collect()
        self._collect()

    def _collect(self) -> None:
        for rank, connection in enumerate(self._connections):
            with contextlib.suppress(EOFError, OSError):
                while rank not in self._outcomes and connection.poll():
                    self._outcomes[rank] = connection.recv()

    def _end_all(self) -> None:
        self._killed_by_us = {rank for rank, process in enumerate(self._processes) if process.poll() is None}
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for connection in self._connections:
            connection.close()

    def _errors(self) -> list[Outcome]:
        """Those that failed, the first one first."""
        failed = [outcome for outcome in self._outcomes.values() if outcome.error is not None]
        return sorted(failed, key=lambda outcome: outcome.time)

    def _result(self) -> Metrics:
        for rank, process in enumerate(self._processes):
            died = process.returncode < 0 and rank not in self._killed_by_us and rank not in self._outcomes
            if died and self._signal is None:
                raise UserError(
                    f"process {rank} of {self.count} was ended by {signal.Signals(-process.returncode).name} (out "
                    f"of memory, if nobody sent it), and the others with it; the run's folder is {self.job.folder}"
                )
        for failed in self._errors():
            first = failed.error
            assert first is not None
            if self._signal is not None and isinstance(first, SystemExit) and is_others(self._signal):
                signal.raise_signal(self._signal)
            raise first
        if self._signal is not None:
            signal.raise_signal(self._signal)
            raise Stopped(self._signal)
        outcome = self._outcomes.get(0)
        if outcome is None or outcome.metrics is None:
            codes = ", ".join(str(process.returncode) for process in self._processes)
            raise UserError(
                f"the processes ended without a result (exit codes {codes}); their messages stand above, the "
                f"run's folder is {self.job.folder}"
            )
        return outcome.metrics

    @contextlib.contextmanager
    def _forwarding_signals(self) -> Iterator[None]:
        """Hand signals that end a run on to the first process, which tells the others; a second Ctrl-C ends all.

        Only the first gets it, because the processes must stop at the same step.
        """

        def forward(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and self._signal is not None:
                raise KeyboardInterrupt
            if self._processes and self._processes[0].poll() is None:
                self._processes[0].send_signal(number)
            if number == signal.SIGTERM and self.job.sigterm_saves:
                pass_on = before[signal.SIGTERM]
                if callable(pass_on):
                    pass_on(number, frame)
                return
            self._signal = self._signal or number

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in ENDING}
        for number in before:
            signal.signal(number, forward)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def correct_record(folder: Path, error: Exception) -> None:
    """Write why a run failed into its record, which its first process may not have been able to finish."""
    if read_record(folder).get("status") in ("running", "failed"):
        record_failure(folder, error)
