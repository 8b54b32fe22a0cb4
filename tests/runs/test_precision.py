"""The precision plugin: which gradients are clipped, which steps are skipped, which precisions are refused."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from cmt_aqr.errors import UserError
from cmt_aqr.runs.precision import FIRST_SCALE, ClippedMixedPrecision, build_trainer
from tests.helpers.composed import composed
from tests.helpers.small_detector import small_batch, small_module

SETTINGS = ["logger=csv", "trainer=cpu", "trainer.max_steps=2", "+trainer.enable_progress_bar=false"]


class Line(pl.LightningModule):
    """One weight; the gradient of the loss is the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.gradients: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return (self.weight * batch[0]).sum()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        assert self.weight.grad is not None
        self.gradients.append(self.weight.grad.item())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1, betas=(0.0, 0.9), weight_decay=0.0, fused=True)


def fitted(precision: str, gradients: list[float]) -> tuple[Line, pl.Trainer]:
    config = composed(*SETTINGS, f"trainer.precision={precision}", "trainer.gradient_clip_val=35.0")
    trainer = build_trainer(config, logger=False, enable_checkpointing=False, callbacks=[])
    module = Line()
    batches = torch.utils.data.DataLoader([(torch.tensor([value]),) for value in gradients], batch_size=1)
    trainer.fit(module, batches)
    return module, trainer


def scaler(trainer: pl.Trainer) -> Any:
    assert isinstance(trainer.precision_plugin, ClippedMixedPrecision)
    return trainer.precision_plugin.scaler


@pytest.mark.parametrize("precision", ["32", "bf16", "16-mixed"])
def test_a_fused_step_gets_unscaled_and_clipped_gradients(precision: str) -> None:
    module, trainer = fitted(precision, [100.0, 100.0])
    assert module.gradients == [100.0, 100.0]
    state = trainer.optimizers[0].state[module.weight]
    # Adam's second moment after two gradients of 35: 35 ** 2 (1 - 0.9 ** 2).
    assert state["exp_avg_sq"].item() == pytest.approx(35.0**2 * (1 - 0.9**2), rel=1e-4)
    if precision.startswith("16"):
        assert scaler(trainer).get_scale() == FIRST_SCALE
        assert trainer.precision_plugin.autocast_context_manager().fast_dtype == torch.float16


def test_float16_skips_a_step_whose_gradient_overflows_and_halves_the_scale() -> None:
    module, trainer = fitted("16-mixed", [float("inf"), 1.0])
    assert module.weight.isfinite().all() and module.weight.item() == pytest.approx(-0.1, rel=1e-3)
    assert scaler(trainer).get_scale() == FIRST_SCALE / 2


@pytest.mark.parametrize("precision", ["bf16-true", "half"])
def test_other_precisions_are_refused_by_name(precision: str) -> None:
    with pytest.raises(UserError, match=f"^trainer.precision={precision}: must be one of 32-true, bf16-mixed, 16"):
        build_trainer(composed(*SETTINGS, f"trainer.precision={precision}"))


def test_the_first_gradients_fit_into_float16() -> None:
    """With the first scale; a fresh decoder's queries are alike, and the gradient through their norm is large."""
    module, batch = small_module(), small_batch(3)
    points = module.model.head
    assert module.denoising is not None
    targets = module.denoising(batch, len(points.reference_points), tuple(points.point_range))
    assert targets is not None
    with torch.autocast("cpu", dtype=torch.float16, cache_enabled=False):
        losses = module.criterion(module.model(batch, targets.queries), batch, targets, same_terms=True)
    (FIRST_SCALE * torch.stack(list(losses.values())).sum()).backward()
    gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
    assert gradients and all(gradient.isfinite().all() for gradient in gradients.values())
