"""Where losses and metrics go while a run is going on."""

from __future__ import annotations

import sys

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from cmt_aqr.runs.configuration import build
from cmt_aqr.runs.records import is_rank_zero


def build_loggers(config: DictConfig) -> list[Logger]:
    """The loggers of the ``logger`` group; those that hold runs together get the whole configuration."""
    chosen = [logger for logger in config.logger.values() if logger is not None]
    if not is_rank_zero():
        # They would only wait, but MLFlow's opens its database, which two processes at once may damage.
        return [CSVLogger(".")]  # a logger there must be; this one writes from the first process only
    loggers: list[Logger] = [build(logger) for logger in chosen]
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    for logger in loggers:
        if isinstance(logger, WandbLogger | MLFlowLogger):
            logger.log_hyperparams({str(key): value for key, value in settings.items()})
    return loggers


def finish_loggers(failed: bool) -> None:
    """End what a run left open, by success or failure, so that the next one in this process begins anew."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))
        wandb.teardown()  # waits until its own process has written everything
