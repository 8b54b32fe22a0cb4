"""Settings for all tests."""

import os
import signal

import pytest

# Before PyTorch is imported: two test processes share the cores, and spinning threads would stall each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Handle Ctrl-C where a shell started the tests in the background, with SIGINT ignored.

    Ignored signals are inherited, and runs keep them ignored; tests send SIGINT to runs.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run whole commands first: the many small files at the end then keep all processes busy to the last."""
    items.sort(key=lambda item: "system" not in item.path.parts)
