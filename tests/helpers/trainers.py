"""A trainer without output."""

from typing import Any

import pytorch_lightning as pl


def quiet_trainer(**settings: Any) -> pl.Trainer:
    """A trainer on the CPU without logger, checkpoints, progress bar and summary; ``settings`` take precedence."""
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(**{"accelerator": "cpu", **dict.fromkeys(off, False), **settings})
