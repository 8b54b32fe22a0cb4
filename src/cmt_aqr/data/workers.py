"""Data loaders whose workers stop only when the main process does, and report errors in one sentence."""

import atexit
import functools
import multiprocessing
import os
import re
import signal
import sys
import weakref
from collections.abc import Iterable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from cmt_aqr.data.errors import DataError

Item = TypeVar("Item")

_START = "fork" if sys.platform == "linux" else "spawn"
"""Start method of workers, whatever the default of the process, which libraries such as joblib change."""

_workers: weakref.WeakSet[BaseProcess] = weakref.WeakSet()
"""Workers of the loaders of this process."""


def _prepare_worker(_worker: int) -> None:
    """Use one thread, and ignore signals that ask to stop: the main process decides."""
    # Ctrl-C and a cluster's signals reach all processes, but the main one may need this worker to finish its step.
    # Inherited handlers are not for workers: that of submitit puts the job back into the queue.
    for number in signal.valid_signals():
        if number in (signal.SIGINT, signal.SIGTERM) or callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _end_workers(parent: int) -> None:
    """Kill the remaining workers: at exit, Python sends SIGTERM, which they ignore, and waits for them forever."""
    if os.getpid() != parent:
        return  # a forked copy; the workers are not its children
    for process in _workers:
        if process.is_alive():
            process.kill()


@functools.cache
def _end_workers_with(process: int) -> None:
    """Register :func:`_end_workers`, once per process."""
    atexit.register(_end_workers, process)


class WorkerLoader(DataLoader[Item]):
    """A ``DataLoader`` whose workers ignore signals and report errors as sentences, with PyTorch's arguments."""

    def __init__(self, dataset: Dataset[Any], sampler: Iterable[Any], num_workers: int, **settings: Any) -> None:
        super().__init__(
            dataset,
            sampler=sampler,
            num_workers=num_workers,
            worker_init_fn=_prepare_worker if num_workers else None,
            multiprocessing_context=_START if num_workers else None,
            **settings,
        )

    def loaded(self) -> Iterator[Item]:
        """Iterate as PyTorch's loader does; nothing is read before the first ``next``.

        Raises:
            DataError: raised by the data set, with its own message even from a worker.
        """
        before = set(multiprocessing.active_children())
        try:
            items = super().__iter__()
            _workers.update(set(multiprocessing.active_children()) - before)
            _end_workers_with(os.getpid())
            yield from items
        except DataError as error:
            if not self.num_workers:
                raise
            # Drop all references to the iterator, the traceback's included: else its end waits 10 s per worker.
            del items
            # PyTorch puts the worker's traceback into the text of the error; the message is at its end.
            messages = re.findall(r"^[\w.]*\bDataError: (.*)", str(error), flags=re.MULTILINE)
            raise DataError(messages[-1].strip() if messages else str(error)) from error.with_traceback(None)
