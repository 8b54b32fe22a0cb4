"""A single run of a sweep, in whichever process it takes place."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cmt_aqr.errors import UserError
from cmt_aqr.files import record_failure
from cmt_aqr.runs.folder import COMPLETE, Run
from cmt_aqr.runs.slurm import begin_job, requeue_refusal

log = logging.getLogger(__name__)


def in_sweep() -> bool:
    """Whether this is a run of a sweep that ends with a summary."""
    hydra = HydraConfig.get()
    callback = hydra.callbacks.get("sweep")
    return hydra.mode == RunMode.MULTIRUN and callback is not None and callback._target_.endswith("SweepCallback")


def run(function: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """A run of a sweep: a complete one is skipped; a failure is recorded, and the other runs go on.

    Returns:
        The result of ``function``, the NDS of a run that was complete, or ``None`` after a failure.
    """
    begin_job()
    folder = Path(HydraConfig.get().runtime.output_dir)
    existing = Run(folder)
    if existing.outcome == COMPLETE:
        log.info("%s is complete: skipped", folder)
        return existing.metrics["NDS"]
    try:
        return function(config)
    except Exception as raised:
        error = requeue_refusal(raised) or raised
        log.error("This run failed: %s", error, exc_info=None if isinstance(error, UserError) else error)
        record_failure(folder, error)
        return None


def run_part(function: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """A part of a command's work, under ``-m``; after a user's mistake the other parts go on.

    Returns:
        The result of ``function``, or the :class:`UserError`, which the sweeper prints.
    """
    begin_job()
    try:
        return function(config)
    except Exception as raised:
        error = requeue_refusal(raised) or raised
        if not isinstance(error, UserError):
            raise
        log.error("This part failed: %s", error)
        return error
