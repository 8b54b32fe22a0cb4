"""Ctrl-C, SIGTERM and a batch system's warning: a run finishes its step and saves a checkpoint before it stops."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that stop a run; a batch system sends one of the last two before a job's time is up."""

_DEFAULT_HANDLERS = (signal.SIG_DFL, signal.default_int_handler)


class Stopped(SystemExit):
    """A signal stopped the run; the exit status is 128 + the signal's number, as in shells."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


def is_handled(number: int) -> bool:
    """Whether a signal is ignored, or has another handler than Python's."""
    return signal.getsignal(number) not in _DEFAULT_HANDLERS


class StopSignals:
    """A context around a run that defers signals during a training step; at other times they stop it immediately.

    A second Ctrl-C always stops it immediately. If a signal has another handler, the run stops, or for SIGTERM
    writes a checkpoint and continues, and the handler is called: submitit's requeues the Slurm job at SIGUSR2, and
    ignores SIGTERM, which may precede it.

    Attributes:
        received: the first signal, or ``None``.
        save: whether a checkpoint is requested, after which the run continues.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.save = False
        self._deferred = False
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                before = signal.getsignal(number)
                if callable(before) or before == signal.SIG_DFL:
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        stopped = kind is not None and issubclass(kind, SystemExit)
        if stopped and self.received is not None and self._was_handled(self.received):
            self._before[signal.Signals(self.received)](self.received, None)

    def hold(self) -> None:
        """Defer signals to :meth:`release`, or to a caller that checks :attr:`received`."""
        # Lightning replaces handlers when a fit starts; its handler for SIGTERM communicates with the other
        # processes, which can collide with the communication of a training step.
        for number in self._before:
            signal.signal(number, self._handle)
        self._deferred = True

    def release(self) -> None:
        """Let signals stop the run immediately from here on.

        Raises:
            Stopped: a signal was deferred.
        """
        self._deferred = False
        if self.received is not None:
            raise Stopped(self.received)

    def _was_handled(self, signum: int) -> bool:
        return self._before.get(signal.Signals(signum), signal.SIG_DFL) not in _DEFAULT_HANDLERS

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader worker that was just forked
        if signum == signal.SIGTERM and self._was_handled(signum):
            self.save = True
            self._before[signal.SIGTERM](signum, frame)
            return
        is_first = self.received is None
        self.received = self.received or signum
        if not self._deferred or (not is_first and signum == signal.SIGINT):
            raise Stopped(signum)
        if is_first:
            # print is not re-entrant in a signal handler.
            name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
            hint = "; Ctrl-C again stops immediately" if signum == signal.SIGINT else ""
            os.write(2, f"\n{name}: stopping after this step{hint}\n".encode())
