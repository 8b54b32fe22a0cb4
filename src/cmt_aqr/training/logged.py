"""Check of the numbers that callbacks monitor."""

import difflib
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from cmt_aqr.errors import UserError
from cmt_aqr.evaluation.official import metric_names
from cmt_aqr.training.losses import loss_names


def check_monitors(callbacks: Mapping[str, Any], config: DictConfig) -> None:
    """Check that the numbers monitored by callbacks are logged.

    Raises:
        UserError: a number is never logged; the message suggests the closest name.
    """
    denoising, signal = config.training.denoising.groups > 0, config.training.criterion.get("signal_weight", 0)
    losses = ("loss", *loss_names(config.model.layers, denoising, bool(signal)))
    numbers = ["NDS", "mAP", *(f"val/{name}" for name in metric_names()), *(f"train/{name}" for name in losses)]
    if config.aqr is not None and "renderer" in config.aqr:
        numbers.append("aqr/max_weight_clamp")
    for name, callback in callbacks.items():
        monitor = getattr(callback, "monitor", None)
        if monitor is None or monitor in numbers:
            continue
        by_lower_case = {number.lower(): number for number in numbers}
        closest = difflib.get_close_matches(str(monitor).lower(), by_lower_case, n=1)
        hint = f"did you mean {by_lower_case[closest[0]]}? " if closest else ""
        raise UserError(
            f"callbacks.{name}.monitor={monitor}: no such number is logged; {hint}There are {', '.join(numbers)}"
        )
