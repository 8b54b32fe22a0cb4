"""Progress on screen."""

import sys

from pytorch_lightning.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar


def progress_bar() -> ProgressBar:
    """A rich bar on a terminal; in a log file, a plain line now and then."""
    if sys.stdout.isatty():
        return RichProgressBar(leave=False)
    return TQDMProgressBar(refresh_rate=50)
