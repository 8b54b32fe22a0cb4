"""Ctrl-C and SIGTERM: a run finishes its step and writes a checkpoint before it ends."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """A signal ended the run; the exit status is 128 and the signal's number, as shells have it."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


class StopSignals:
    """Holds Ctrl-C and SIGTERM back while a training step runs; at other times they end the run at once.

    A second Ctrl-C does not wait. A signal that somebody else handles already (a launcher that puts jobs back
    into a queue) stays theirs. Used as a context, around the whole run.

    Attributes:
        received: the signal that came first, or ``None``.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._held = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                before = signal.getsignal(number)
                if before in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

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

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again = self.received is not None
        self.received = self.received or signum
        if not self._held or (again and signum == signal.SIGINT):
            raise Stopped(signum)
        if not again:
            # Printing could meet itself here.
            what = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
            hint = "; Ctrl-C again stops at once" if signum == signal.SIGINT else ""
            os.write(2, f"\n{what}: stopping after this step{hint}\n".encode())
