"""Lightning's Trainer in the precisions that the model computes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig, open_dict
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from torch.optim import Optimizer

from cmt_aqr.runs.configuration import build
from cmt_aqr.runs.trainer_settings import precision_named

FIRST_SCALE = 512.0
"""Of the loss with float16: the constant that CMT trained with at first. It doubles after 2,000 good steps.

PyTorch's 65,536 makes the first steps' gradients infinite, which are then skipped: of a short run nearly all.
"""


class ClippedMixedPrecision(MixedPrecision):
    """Mixed precision in which a fused optimiser's gradients can be clipped, with float16 on a CPU, too.

    Lightning refuses to clip beside a fused optimiser, because that can take the loss' scale out of the
    gradients itself, too late for clipping. It does so only where nobody has done it before
    (``torch.amp.GradScaler.step``), so here it is done right after the backward pass.
    """

    def optimizer_step(  # type: ignore[override]  # as Lightning's own
        self, optimizer: Optimizer, model: LightningModule, closure: Callable[[], Any], **arguments: Any
    ) -> Any:
        """A step on gradients without the loss' scale; float16 skips it where one of them is not finite."""

        def unscaled() -> Any:
            result = closure()
            fused = getattr(optimizer, "_step_supports_amp_scaling", False)  # Lightning leaves the scale to these
            if self.scaler is not None and result is not None and fused:
                self.scaler.unscale_(optimizer)
            return result

        return super().optimizer_step(optimizer, model=model, closure=unscaled, **arguments)

    def clip_gradients(self, optimizer: Optimizer, *arguments: Any, **named: Any) -> None:
        """Clip gradients, which have no scale any more, whatever the optimiser."""
        Precision.clip_gradients(self, optimizer, *arguments, **named)


def build_trainer(config: DictConfig, *, plugins: list[Any] | None = None, **arguments: Any) -> Trainer:
    """The Trainer of a configuration's ``trainer`` group.

    Args:
        config: the whole configuration.
        plugins: of Lightning, besides the one for the precision.
        **arguments: of the Trainer, besides those of the configuration.
    """
    precision = precision_named(config.trainer.get("precision", "32-true"))
    settings = config.trainer.copy()
    plugins = list(plugins or ())
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # as Lightning, which would requeue jobs by itself
    if precision == "32-true":
        return build(settings, plugins=plugins, **arguments)
    with open_dict(settings):
        del settings["precision"]  # Lightning takes a name or a plugin; of float16 on a CPU it would make bfloat16
    device = device_type(str(settings.get("accelerator", "auto")))
    scaler = torch.amp.GradScaler(device, init_scale=FIRST_SCALE) if precision == "16-mixed" else None
    mixed = ClippedMixedPrecision(precision, device, scaler)  # type: ignore[arg-type]
    return build(settings, plugins=[mixed, *plugins], **arguments)


def device_type(accelerator: str) -> str:
    """PyTorch's name of the devices that a ``trainer.accelerator`` of Lightning means on this machine."""
    if accelerator in ("auto", "gpu"):
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return accelerator
