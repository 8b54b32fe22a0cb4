"""Loggers of losses and metrics."""

import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from cmt_aqr.runs.configuration import build
from cmt_aqr.runs.records import is_rank_zero


def build_loggers(config: DictConfig) -> list[Logger]:
    """The loggers of the ``logger`` group; those that compare runs get the full configuration."""
    if not is_rank_zero():
        # MLFlow's opens its database, which concurrent processes may damage. Lightning needs some logger; this one
        # writes from the first process only.
        return [CSVLogger(".")]
    loggers: list[Logger] = [build(logger) for logger in config.logger.values() if logger is not None]
    settings: Any = OmegaConf.to_container(config, resolve=True)
    for logger in loggers:
        if isinstance(logger, WandbLogger | MLFlowLogger):
            logger.log_hyperparams(settings)
    return loggers


def finish_loggers(failed: bool) -> None:
    """Close what a run's loggers keep open, so that the next run in this process starts fresh."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))
        wandb.teardown()  # blocks until its service process has written everything
