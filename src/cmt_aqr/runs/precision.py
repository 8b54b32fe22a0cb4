"""Lightning's Trainer with the supported precisions."""

from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig, open_dict
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from torch.optim import Optimizer

from cmt_aqr.runs.configuration import build
from cmt_aqr.runs.trainer_settings import canonical_precision

FIRST_SCALE = 512.0
"""Initial loss scale with float16, CMT's former constant; it doubles after 2,000 finite steps.

With PyTorch's 65,536 the first gradients are infinite and their steps are skipped, in a short run nearly all.
"""


class ClippedMixedPrecision(MixedPrecision):
    """Mixed precision with gradient clipping for fused optimisers, and with float16 on a CPU, too.

    Lightning refuses to clip for a fused optimiser, which unscales gradients itself, too late for clipping. The
    optimiser does so only if they are still scaled (``torch.amp.GradScaler.step``), so they are unscaled here,
    right after the backward pass.
    """

    def optimizer_step(  # type: ignore[override]  # as Lightning's
        self, optimizer: Optimizer, model: LightningModule, closure: Callable[[], Any], **arguments: Any
    ) -> Any:
        """Take a step with unscaled gradients; float16 skips it if one of them is not finite."""

        def unscaled() -> Any:
            result = closure()
            fused = getattr(optimizer, "_step_supports_amp_scaling", False)  # Lightning unscales for the others
            if self.scaler is not None and result is not None and fused:
                self.scaler.unscale_(optimizer)
            return result

        return super().optimizer_step(optimizer, model=model, closure=unscaled, **arguments)

    def clip_gradients(self, optimizer: Optimizer, *arguments: Any, **named: Any) -> None:
        """Clip the unscaled gradients, with any optimiser."""
        Precision.clip_gradients(self, optimizer, *arguments, **named)


def build_trainer(config: DictConfig, *, plugins: list[Any] | None = None, **arguments: Any) -> Trainer:
    """The Trainer of a full configuration's ``trainer`` group, with additional plugins and arguments."""
    precision = canonical_precision(config.trainer.get("precision", "32-true"))
    settings = config.trainer.copy()
    plugins = list(plugins or ())
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # Lightning's own would requeue jobs itself
    if precision == "32-true":
        return build(settings, plugins=plugins, **arguments)
    with open_dict(settings):
        # A name excludes the plugin, and Lightning would turn float16 on a CPU into bfloat16.
        del settings["precision"]
    device = device_type(str(settings.get("accelerator", "auto")))
    scaler = torch.amp.GradScaler(device, init_scale=FIRST_SCALE) if precision == "16-mixed" else None
    mixed = ClippedMixedPrecision(precision, device, scaler)  # type: ignore[arg-type]
    return build(settings, plugins=[mixed, *plugins], **arguments)


def device_type(accelerator: str) -> str:
    """PyTorch's device type for a ``trainer.accelerator`` on this machine."""
    if accelerator in ("auto", "gpu"):
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return accelerator
