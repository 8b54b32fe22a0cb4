"""Runs on several devices: one process per device, started, watched and ended by the command.

Lightning would start the others by calling the command again. Within a sweep (``-m``) such a call is a sweep
again, and environment variables of one run mislead the next. Here the command's process takes no part in the
training: it starts every process with an explicit job and the environment of ``torchrun``, waits, and returns
their result or raises their error.
"""

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
from cmt_aqr.runs.stopping import ENDING, Stopped, is_handled
from cmt_aqr.runs.tree import unresolved

Metrics = dict[str, float]
Task = Callable[[DictConfig, Path, list[str]], Metrics]

POLL_SECONDS = 0.1
ERROR_SECONDS = 5.0
"""Time for the others to end after one has failed."""
STOP_SECONDS = 300.0
"""Time for all to end after Ctrl-C or SIGTERM, in which they may write a checkpoint."""


@dataclass(frozen=True)
class Job:
    """The task of a process, by its dotted name, and the task's arguments.

    Attributes:
        hydra: Hydra's configuration, for ``${hydra:...}``; ``None`` outside of Hydra.
        arguments: ``sys.argv`` of the command, for the record.
        sigterm_saves: SIGTERM requests a checkpoint instead of ending the run.
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
    """The result of a process: metrics, an error, or neither if it stopped early.

    Attributes:
        time: of the end, in seconds; the first error is the cause of the others.
    """

    metrics: Metrics | None
    error: BaseException | None
    time: float


def run_task(task: Task, config: DictConfig, folder: Path, overrides: list[str]) -> Metrics:
    """Run a task in this process, or in one process per device if the trainer uses several.

    Args:
        task: :func:`cmt_aqr.training.run.train` or ``evaluate``.
        config: composed and checked.
        folder: the run's folder, shared by all processes.
        overrides: as typed on the command line.

    Raises:
        UserError: the trainer's devices do not match the processes of torchrun or srun, or a process was killed.
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
        # Without the classes of its schema, which a launcher's plugin may define twice.
        hydra=None if hydra is None else OmegaConf.create(unresolved(hydra)),
        arguments=sys.argv,
        sigterm_saves=is_handled(signal.SIGTERM),
    )
    return Processes(job, processes).run()


def run_here(task: Task, config: DictConfig, folder: Path, overrides: list[str]) -> Metrics:
    """Run a task in this process, and close its loggers."""
    failed = True
    try:
        metrics = task(config, folder, overrides)
        failed = False
        return metrics
    finally:
        finish_loggers(failed)


def processes_to_start(config: DictConfig) -> int:
    """The number of processes to start for the trainer; 0 if this one is enough or is one of them.

    Raises:
        UserError: several machines without torchrun or srun, or a number of processes that differs from theirs.
    """
    environment = outside_environment()
    plain = config.trainer.get("strategy", "auto") == "auto" and config.trainer.get("devices") in (1, "1")
    if plain and environment is None:
        return 0
    lightning = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = lightning.level
    lightning.setLevel(logging.ERROR)  # the processes log the devices, too
    try:
        trainer = build_trainer(config, logger=False, enable_checkpointing=False)
    finally:
        lightning.setLevel(level)
    required = trainer.num_devices * trainer.num_nodes
    if environment is not None:
        if environment.world_size() != required:
            raise UserError(
                f"{starter()} started {environment.world_size()} processes, but trainer.devices="
                f"{config.trainer.get('devices')} with {trainer.num_nodes} machines makes {required}: give "
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
    """The processes of one run on this machine.

    Each receives its job over a connection to this process, and ends when the connection closes, which happens
    however this process ends. Each leads a process group, so that its loader workers end with it, and Ctrl-C in
    a terminal reaches only this process.
    """

    def __init__(self, job: Job, count: int) -> None:
        self.job = job
        self.count = count
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        self._outcomes: dict[int, Outcome] = {}
        self._signal: int | None = None

    def run(self) -> Metrics:
        """Start all and wait for all; returns the first one's metrics, or raises the first error."""
        # Served from here, on a port that the system chooses, so that no other run can take it meanwhile.
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
            # The first process may have recorded a consequence of this error, or nothing at all.
            correct_record(Path(self.job.folder), error)
            raise

    def _start(self, rank: int, port: int) -> None:
        ours, theirs = Pipe(duplex=True)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cmt_aqr.runs.worker", str(theirs.fileno())],
            env=os.environ | self._as_torchrun(rank, port),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else subprocess.DEVNULL,
            process_group=0,
        )
        theirs.close()
        self._processes.append(process)
        self._connections.append(ours)
        with contextlib.suppress(BrokenPipeError):  # it has ended already: _wait handles it
            ours.send(self.job)

    def _as_torchrun(self, rank: int, port: int) -> dict[str, str]:
        """The environment variables of ``torchrun`` on one machine."""
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
        """Return when all have ended, or one has failed and the time for the others to end is over."""
        deadline = float("inf")
        while any(process.poll() is None for process in self._processes) and time.monotonic() < deadline:
            failed = self._first_error() is not None or any(process.poll() for process in self._processes)
            if self._signal is not None and self._processes[0].returncode is None:
                deadline = min(deadline, time.monotonic() + STOP_SECONDS)
            elif self._signal is not None or failed:
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

    def _first_error(self) -> BaseException | None:
        failed = [outcome for outcome in self._outcomes.values() if outcome.error is not None]
        return min(failed, key=lambda outcome: outcome.time).error if failed else None

    def _result(self) -> Metrics:
        for rank, process in enumerate(self._processes):
            died = process.returncode < 0 and rank not in self._killed_by_us and rank not in self._outcomes
            if died and self._signal is None:
                raise UserError(
                    f"process {rank} of {self.count} was ended by {signal.Signals(-process.returncode).name} (out "
                    f"of memory, if nobody sent it), and the others with it; the run's folder is {self.job.folder}"
                )
        if (error := self._first_error()) is not None:
            if self._signal is not None and isinstance(error, SystemExit) and is_handled(self._signal):
                signal.raise_signal(self._signal)
            raise error
        if self._signal is not None:
            signal.raise_signal(self._signal)
            raise Stopped(self._signal)
        outcome = self._outcomes.get(0)
        if outcome is None or outcome.metrics is None:
            codes = ", ".join(str(process.returncode) for process in self._processes)
            raise UserError(
                f"the processes ended without a result (exit codes {codes}); their messages are above, the "
                f"run's folder is {self.job.folder}"
            )
        return outcome.metrics

    @contextlib.contextmanager
    def _forwarding_signals(self) -> Iterator[None]:
        """Forward signals that stop a run to the first process; a second Ctrl-C ends all.

        The first process informs the others, because all must stop at the same step.
        """

        def forward(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and self._signal is not None:
                raise KeyboardInterrupt
            if self._processes and self._processes[0].poll() is None:
                self._processes[0].send_signal(number)
            if number == signal.SIGTERM and self.job.sigterm_saves:
                handler = before[signal.SIGTERM]
                if callable(handler):
                    handler(number, frame)
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
    """Record why a run failed, in a record that says running or failed; other or missing ones stay."""
    if read_record(folder).get("status") in ("running", "failed"):
        record_failure(folder, error)
