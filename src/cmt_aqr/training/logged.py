"""The numbers that a run logs, and a check of the callbacks that monitor them."""

import difflib
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from cmt_aqr.errors import UserError
from cmt_aqr.evaluation.official import metric_names
from cmt_aqr.training.losses import loss_names


def logged_numbers(config: DictConfig) -> list[str]:
    """Names of the metrics, losses and settings that callbacks can monitor."""
    evaluated = ["NDS", "mAP", *(f"val/{name}" for name in metric_names())]
    denoising, signal = config.training.denoising.groups > 0, config.training.criterion.get("signal_weight", 0)
    terms = loss_names(config.model.layers, denoising, bool(signal))
    clamp = ["aqr/max_weight_clamp"] if config.aqr is not None and "renderer" in config.aqr else []
    return [*evaluated, "train/loss", *(f"train/{name}" for name in terms), *clamp]


def check_monitors(callbacks: Mapping[str, Any], config: DictConfig) -> None:
    """Check that the numbers monitored by callbacks are logged.

    Raises:
        UserError: a number is never logged; the message suggests the closest name.
    """
    for name, callback in callbacks.items():
        monitor = getattr(callback, "monitor", None)
        if monitor is None or monitor in (known := logged_numbers(config)):
            continue
        spelled = {number.lower(): number for number in known}
        near = difflib.get_close_matches(str(monitor).lower(), spelled, n=1)
        hint = f"did you mean {spelled[near[0]]}? " if near else ""
        raise UserError(
            f"callbacks.{name}.monitor={monitor}: no such number is logged; {hint}There are {', '.join(known)}"
        )
