"""The clamp schedule: the limit of AQR's maps by epoch."""

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl

from cmt_aqr.aqr import AQR, Renderer
from cmt_aqr.checks import is_whole, require_above_zero, require_choice
from cmt_aqr.errors import SettingError
from cmt_aqr.training.module import aqr_of


class ClampSchedule(pl.Callback):
    """Sets ``renderer.max_weight_clamp`` by epoch, and logs it.

    Nothing else changes the limit of a renderer, and no checkpoint holds it: in training, on resume and in
    evaluation it follows from the configuration and the epoch alone.

    Args:
        milestones: clamp from an epoch on, by epoch, e.g. ``{0: 2.5, 6: 2.0, 16: 1.5}``. Without milestones the
            renderer keeps its own value.
        mode: ``step`` holds each value until the next milestone, ``linear`` interpolates.

    Raises:
        SettingError: epochs are not whole numbers that start at 0 and increase, or a value is not above 0.
    """

    def __init__(self, milestones: Mapping[int, float] | None = None, mode: str = "step") -> None:
        if not isinstance(milestones or {}, Mapping):
            raise SettingError(f"milestones={milestones}: must be clamps by epoch, as in {{0:2.5,6:2.0}}")
        self.milestones = _checked(milestones or {})
        require_choice("mode", mode, ("step", "linear"))
        self.mode = mode
        self._current: float | None = None

    def value_at(self, epoch: int) -> float | None:
        """The clamp in an epoch; ``None`` without milestones."""
        if not self.milestones:
            return None
        starts, values = list(self.milestones), list(self.milestones.values())
        if self.mode == "linear":
            return float(np.interp(epoch, starts, values))
        return values[bisect_right(starts, epoch) - 1]

    def unread(self) -> dict[str, str]:
        """Settings without effect, each with the setting that disables it."""
        return {} if self.milestones else {"mode": "milestones=null"}

    def set_for(self, module: pl.LightningModule, epoch: int) -> None:
        """Set the clamp of an epoch, if there are milestones."""
        renderer, value = renderer_of(module), self.value_at(epoch)
        if renderer is not None and value is not None:
            renderer.set_clamp(value)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the epoch's clamp."""
        self.set_for(pl_module, trainer.current_epoch)
        renderer = renderer_of(pl_module)
        if renderer is not None:
            # Cached, because reading the limit from the renderer synchronises with the device.
            limit = renderer.max_weight_clamp
            self._current = float("inf") if limit is None else limit

    on_train_start = on_train_epoch_start  # a run resumed within an epoch does not start that epoch

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        """Log the clamp with the losses of the step."""
        if self._current is not None:
            pl_module.log("aqr/max_weight_clamp", self._current, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """Milestones and mode, for comparison on resume."""
        return {"milestones": dict(self.milestones), "mode": self.mode}


def _checked(milestones: Mapping[Any, Any]) -> dict[int, float]:
    """Validate milestones; epochs may be strings, as keys added on the command line are."""
    epochs = [int(epoch) if isinstance(epoch, str) and epoch.isdigit() else epoch for epoch in milestones]
    if not all(map(is_whole, epochs)) or (epochs and epochs[0] != 0) or epochs != sorted(set(epochs)):
        raise SettingError(
            f"milestones={dict(milestones)}: epochs must be whole numbers, begin at 0 and "
            "increase; set all of them together, as in {0:2.5,6:2.0}"
        )
    return {
        epoch: require_above_zero(f"milestones[{epoch}]", value)
        for epoch, value in zip(epochs, milestones.values(), strict=True)
    }


def renderer_of(module: pl.LightningModule) -> Renderer | None:
    """The module's renderer; ``None`` without AQR's maps."""
    aqr = aqr_of(module)
    return aqr.renderer if isinstance(aqr, AQR) else None
