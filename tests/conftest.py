"""What holds for all tests."""

import os
import signal

import pytest

# Before PyTorch is imported. Two processes of tests run on as many cores; threads that spin would stall them.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Listen to Ctrl-C where the shell that started the tests in the background has it ignored.

    Ignored signals are inherited, and a run leaves them ignored: tests of what it does on Ctrl-C need it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole commands come first: the many small files at the end then keep all processes busy to the last."""
    items.sort(key=lambda item: "system" not in item.path.parts)
