"""Commands as forks of a process that has imported the libraries, which takes most of the time of a short command.

Each is a process with its own command line, folder, environment, signals and exit status. Run as a script, this
file is the server process that forks.
"""

import atexit
import functools
import gc
import importlib
import itertools
import logging
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

PRELOADED = (
    "cmt_aqr.training.run",
    "cmt_aqr.runs.resuming",
    "pytorch_lightning.loggers",
    "torch.utils.tensorboard",
    "cmt_aqr.studies.report",
)

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 600.0
"""Seconds that a command may take on a busy machine."""


def environment() -> dict[str, str]:
    """The environment of commands: this checkout's packages, and one thread, for reproducible sums."""
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}


class Forked:
    """A running command with the interface of :class:`subprocess.Popen`.

    Args:
        line: Python, a script and its arguments.
        folder: working directory.
        new_session: whether it leads a new process group, as a shell's job does.
    """

    returncode: int | None = None

    def __init__(self, line: list[str], folder: Path, new_session: bool = False) -> None:
        self.line = line
        self._server = _server()
        self._printed = self._server.files()
        order = {"arguments": line[1:], "folder": str(folder), "environment": environment()}
        self.pid = self._server.start({**order, "printed": self._printed, "new_session": new_session})

    def poll(self) -> int | None:
        """The exit status; ``None`` while it runs."""
        self.returncode = self._server.status(self.pid)
        return self.returncode

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait for the exit status; kill the command after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(self.line, timeout)
            time.sleep(0.01)
        return status

    def communicate(self, timeout: float = TIMEOUT) -> tuple[str, str]:
        """Wait for the end; return stdout and stderr."""
        self.wait(timeout)
        out, err = (Path(path).read_text(encoding="utf-8") for path in self._printed)
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal if the command is running."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Server:
    """The tests' end of the connection to the server process."""

    def __init__(self) -> None:
        self._connection, server_end = Pipe(duplex=True)
        self._statuses: dict[int, int] = {}
        self._folder = tempfile.TemporaryDirectory()
        self._numbers = itertools.count()
        self._process = subprocess.Popen(
            [sys.executable, "-X", "utf8", __file__, str(server_end.fileno())],
            env=environment(),
            pass_fds=[server_end.fileno()],
            stdin=subprocess.DEVNULL,
        )
        server_end.close()

    def files(self) -> list[str]:
        """Two new files, for a command's stdout and stderr."""
        number = next(self._numbers)
        return [f"{self._folder.name}/{number}.{stream}" for stream in ("out", "err")]

    def start(self, order: dict[str, Any]) -> int:
        self._connection.send(order)
        while True:
            pid, status = self._connection.recv()
            if status is None:
                self._statuses.pop(pid, None)  # of an earlier process with this number
                return pid
            self._statuses[pid] = status

    def status(self, pid: int) -> int | None:
        while self._connection.poll():
            ended, self._statuses[ended] = self._connection.recv()
        return self._statuses.get(pid)

    def end(self) -> None:
        self._connection.close()
        self._process.wait()
        self._folder.cleanup()


@functools.cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.end)
    return server


def serve(connection: Connection) -> dict[str, Any]:
    """Fork for each order and report each exit status; returns in the forked processes only, with their order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the tests and the commands
    running: list[int] = []
    while True:
        if connection.poll(0.01):
            try:
                order = connection.recv()
            except EOFError:
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                connection.close()
                return order
            running.append(pid)
            connection.send((pid, None))
        for pid in tuple(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                connection.send((pid, os.waitstatus_to_exitcode(status)))


def become(order: dict[str, Any]) -> str:
    """Set this process up as a shell would have started it; returns its script."""
    if order["new_session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in enumerate(order["printed"], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv[:] = order["arguments"]
    sys.orig_argv[:] = [sys.executable, *sys.argv]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    return sys.argv[0]


if __name__ == "__main__":
    # Without a root handler Lightning adds one to its logger; in a command Hydra has set up logging first.
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    for name in PRELOADED:
        importlib.import_module(name)
    logging.root.removeHandler(handler)
    gc.freeze()
    runpy.run_path(become(serve(Connection(int(sys.argv[1])))), run_name="__main__")
