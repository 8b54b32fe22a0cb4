"""The clamp schedule: how high AQR's maps may rise, by epoch."""

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

    Nothing else changes the limit of a renderer once it is built, and no checkpoint holds it: in training, on a
    resume and in an evaluation it follows from the configuration and the epoch alone.

    Args:
        milestones: epoch -> clamp from that epoch on, e.g. ``{0: 2.5, 6: 2.0, 16: 1.5}``. Empty: the
            renderer's own value stays.
        mode: ``step`` holds each value until the next milestone, ``linear`` goes straight to it.

    Raises:
        SettingError: for other epochs than whole numbers that begin at 0 and increase, and values not above 0.
    """

    def __init__(self, milestones: Mapping[int, float] | None = None, mode: str = "step") -> None:
        if not isinstance(milestones or {}, Mapping):
            raise SettingError(f"milestones={milestones}: must be clamps by epoch, as in {{0:2.5,6:2.0}}")
        self.milestones = _checked(milestones or {})
        require_choice("mode", mode, ("step", "linear"))
        self.mode = mode
        self._current: float | None = None

    def value_at(self, epoch: int) -> float | None:
        """The clamp in an epoch, or ``None`` where there are no milestones."""
        if not self.milestones:
            return None
        starts, values = list(self.milestones), list(self.milestones.values())
        if self.mode == "linear":
            return float(np.interp(epoch, starts, values))
        return values[bisect_right(starts, epoch) - 1]

    def unread(self) -> dict[str, str]:
        """Settings that have no effect, and the setting because of which."""
        return {} if self.milestones else {"mode": "milestones=null"}

    def set_for(self, module: pl.LightningModule, epoch: int) -> None:
        """Set the clamp of an epoch; without milestones the renderer's own stays."""
        renderer, value = renderer_of(module), self.value_at(epoch)
        if renderer is not None and value is not None:
            renderer.set_clamp(value)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the epoch's clamp."""
        self.set_for(pl_module, trainer.current_epoch)
        renderer = renderer_of(pl_module)
        if renderer is not None:
            # Kept as a number: reading it from the renderer in every step would synchronise with the device.
            limit = renderer.max_weight_clamp
            self._current = float("inf") if limit is None else limit

    on_train_start = on_train_epoch_start  # a run that is resumed within an epoch starts none

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        """Log the clamp, with the losses of the step."""
        if self._current is not None:
            pl_module.log("aqr/max_weight_clamp", self._current, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """Milestones and mode, to tell on a resume what the run was following."""
        return {"milestones": dict(self.milestones), "mode": self.mode}


def _checked(milestones: Mapping[Any, Any]) -> dict[int, float]:
    """The milestones, if they can be followed. Epochs may be text: so a key added on a command line comes."""
    epochs = [int(epoch) if isinstance(epoch, str) and epoch.isdigit() else epoch for epoch in milestones]
    if not all(map(is_whole, epochs)) or (epochs and epochs[0] != 0) or epochs != sorted(set(epochs)):
        raise SettingError(
            f"milestones={dict(milestones)}: epochs must be whole numbers, begin at 0 and "
            "increase; all of them are given at once, as in {0:2.5,6:2.0}"
        )
    return {
        epoch: require_above_zero(f"milestones[{epoch}]", value)
        for epoch, value in zip(epochs, milestones.values(), strict=True)
    }


def renderer_of(module: pl.LightningModule) -> Renderer | None:
    """The renderer whose clamp is scheduled, or ``None`` where AQR renders nothing."""
    aqr = aqr_of(module)
    return aqr.renderer if isinstance(aqr, AQR) else None
