"""Losses and weights that are not finite are found, and named."""

import math

import pytest
import torch

from cmt_aqr.training.finite import LossGuard, weights_problem


def losses(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_finite_losses_are_no_problem_and_forgotten() -> None:
    guard = LossGuard()
    assert guard.problem() is None
    guard.add(0, ("a",), losses(loss_cls=1.0, loss_bbox=2.0))
    assert len(guard) == 1 and guard.problem() is None and len(guard) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_batch_is_named_with_its_terms_and_frames(bad: float) -> None:
    guard = LossGuard()
    guard.add(3, ("a", "b"), losses(loss_cls=1.0, dn_loss_cls=0.5))
    guard.add(4, ("c", "d"), losses(loss_cls=1.0, loss_bbox=bad))  # other terms: no boxes to noise
    guard.add(5, ("e",), losses(loss_cls=math.nan, dn_loss_cls=0.5))
    assert guard.problem() == f"step 4: the loss is not finite (loss_cls 1, loss_bbox {bad:.4g}) on frames c, d"
    assert guard.problem() is None


def test_weights_are_named() -> None:
    layer = torch.nn.Linear(2, 2)
    assert weights_problem(layer.named_parameters(), 7) is None
    with torch.no_grad():
        layer.bias[0] = math.nan
    assert weights_problem(layer.named_parameters(), 7) == (
        "after step 6: 1 of 2 weights are not finite, bias the first of them"
    )
