"""A trainer that says and writes nothing but what a test asks for."""

from typing import Any

import pytorch_lightning as pl


def quiet_trainer(**settings: Any) -> pl.Trainer:
    """On the CPU, without logger, checkpoints, bar and summary, unless ``settings`` say otherwise."""
    quiet = {"logger": False, "enable_checkpointing": False}
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**{"accelerator": "cpu", **quiet, **settings})
