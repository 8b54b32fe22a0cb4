"""Loaders whose processes leave it to the main one when to stop, and whose errors arrive as sentences."""

from __future__ import annotations

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
"""How workers are started, whatever the process' default is, which other libraries (joblib's loky) change."""

_workers: weakref.WeakSet[BaseProcess] = weakref.WeakSet()
"""Workers of this process' loaders."""


def _prepare_worker(_worker: int) -> None:
    """Workers share the cores, one thread each, and leave it to the main process when to stop."""
    # A terminal's Ctrl-C and a cluster's signals reach all processes; the step being finished may need this one
    # still, and a handler that was inherited (submitit's puts the job back into the queue) is not for it.
    for number in signal.valid_signals():
        if number in (signal.SIGINT, signal.SIGTERM) or callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _end_workers(parent: int) -> None:
    """End what is left of the workers: at its own end Python sends them SIGTERM and waits, for ever if ignored."""
    if os.getpid() != parent:
        return  # a copy of that process, whose children they are not
    for process in _workers:
        if process.is_alive():
            process.kill()


@functools.cache
def _end_workers_with(process: int) -> None:
    """Once for each process."""
    atexit.register(_end_workers, process)


class WorkerLoader(DataLoader[Item]):
    """A data loader with workers as above.

    Args:
        dataset: by key.
        sampler: keys, in order.
        num_workers: processes that read; 0 reads in this one.
        **settings: of ``torch.utils.data.DataLoader``.
    """

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
        """What PyTorch's loader gives; nothing is read before the first ``next``.

        Raises:
            DataError: of the data set, with its own sentence wherever it was raised.
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
            # Workers that a traceback keeps until garbage is collected cannot be told to end: it takes 10 s each.
            del items
            # A worker's error arrives with the worker's traceback in its text: the sentence is its end.
            told = re.findall(r"^[\w.]*\bDataError: (.*)", str(error), flags=re.MULTILINE)
            raise DataError(told[-1].strip() if told else str(error)) from error.with_traceback(None)
