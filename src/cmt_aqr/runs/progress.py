"""The progress bar."""

import sys

from pytorch_lightning.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar


def progress_bar() -> ProgressBar:
    """A rich bar on a terminal, and plain lines at intervals in a log file."""
    if sys.stdout.isatty():
        return RichProgressBar(leave=False)
    return TQDMProgressBar(refresh_rate=50)
