"""A callback that makes a run last."""

import time
from typing import Any

from pytorch_lightning import Callback


class Slow(Callback):
    """Waits after each step.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *_: Any) -> None:
        """Wait."""
        time.sleep(self.seconds)
