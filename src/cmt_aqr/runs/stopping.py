"""Ctrl-C, SIGTERM and a batch system's warning: a run finishes its step and writes a checkpoint before it ends."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What ends a run. The last two are what a batch system is asked to send before a job's time is up."""

_PLAIN = (signal.SIG_DFL, signal.default_int_handler)


class Stopped(SystemExit):
    """A signal ended the run; the exit status is 128 and the signal's number, as shells have it."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


def is_others(number: int) -> bool:
    """Whether somebody else decided already what this process does at a signal."""
    return signal.getsignal(number) not in _PLAIN


class StopSignals:
    """Holds signals that end a run back while a training step runs; at other times they end it at once.

    A second Ctrl-C does not wait. Where somebody else handles a signal already, the run stops, or for SIGTERM just
    writes a checkpoint, and the other's handler follows: submitit's puts the job back into Slurm's queue at
    SIGUSR2, and lets SIGTERM, which may precede it, pass. Used as a context, around the whole run.

    Attributes:
        received: the signal that came first, or ``None``.
        save: a checkpoint is asked for, after which the run continues.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.save = False
        self._held = False
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
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
        if stopped and self.received is not None and self._is_others(self.received):
            self._before[signal.Signals(self.received)](self.received, None)

    def hold(self) -> None:
        """From here on a signal waits for :meth:`release` or for somebody who asks :attr:`received`."""
        # Lightning wraps handlers when a fit starts; its own for SIGTERM speaks to the other processes from
        # within the handler, which can meet a training step that does so, too.
        for number in self._before:
            signal.signal(number, self._handle)
        self._held = True

    def release(self) -> None:
        """From here on a signal ends the run at once.

        Raises:
            Stopped: a signal waited.
        """
        self._held = False
        if self.received is not None:
            raise Stopped(self.received)

    def _is_others(self, signum: int) -> bool:
        return self._before.get(signal.Signals(signum), signal.SIG_DFL) not in _PLAIN

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader worker, forked a moment ago
        if signum == signal.SIGTERM and self._is_others(signum):
            self.save = True
            self._before[signal.SIGTERM](signum, frame)
            return
        again = self.received is not None
        self.received = self.received or signum
        if not self._held or (again and signum == signal.SIGINT):
            raise Stopped(signum)
        if not again:
            # print is not re-entrant in a signal handler.
            what = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
            hint = "; Ctrl-C again stops at once" if signum == signal.SIGINT else ""
            os.write(2, f"\n{what}: stopping after this step{hint}\n".encode())
