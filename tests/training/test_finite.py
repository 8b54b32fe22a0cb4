"""Losses, inputs and weights that are not finite."""

import math

import pytest
import torch

from cmt_aqr.training.finite import LossGuard, finite_inputs, weights_problem, why_not_finite
from tests.helpers.small_detector import small_batch


def losses(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_batch_is_named_with_its_terms_and_frames(bad: float) -> None:
    guard = LossGuard()
    assert guard.problem() is None
    guard.add(3, ("a", "b"), losses(loss_cls=1.0, dn_loss_cls=0.5), {})
    guard.add(4, ("c", "d"), losses(loss_cls=1.0, loss_bbox=bad), {})  # other terms
    guard.add(5, ("e",), losses(loss_cls=math.nan, dn_loss_cls=0.5), {})
    assert guard.problem() == f"step 4: the loss is not finite (loss_cls 1, loss_bbox {bad:.4g}) on frames c, d"
    assert len(guard) == 0 and guard.problem() is None


def test_weights_are_named() -> None:
    layer = torch.nn.Linear(2, 2)
    assert weights_problem(layer.named_parameters(), 7) is None
    with torch.no_grad():
        layer.bias[0] = math.nan
    assert weights_problem(layer.named_parameters(), 7) == (
        "after step 6: 1 of 2 weights are not finite, the first is bias"
    )


@pytest.mark.parametrize("part", ["points", "images", "lidar2img", "boxes"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_inputs_are_blamed_before_weights(part: str, bad: float) -> None:
    batch = small_batch(2, 2)
    getattr(batch, part)[-1] = bad
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0] = math.nan
    problem = why_not_finite(batch, layer.named_parameters())
    assert f"the {part} of frame frame1" in problem and "lr" not in problem
    guard = LossGuard()
    guard.add(0, ("a", "b"), losses(loss_cls=1.0), finite_inputs(small_batch(2, 2)))
    guard.add(1, ("a", "b"), losses(loss_cls=math.nan), finite_inputs(batch))
    problem = str(guard.problem())
    assert problem.startswith("step 1: ") and f"the {part} " in problem


def test_weights_are_blamed_before_the_learning_rate() -> None:
    norm = torch.nn.BatchNorm1d(2)
    weights = {**norm.state_dict(), "renderer.clamp_limit": torch.tensor(math.inf)}
    assert "optimizer.lr" in why_not_finite(small_batch(2, 2), weights.items())
    weights["running_var"][0] = math.nan
    problem = why_not_finite(small_batch(2, 2), weights.items())
    assert "running_var" in problem and "lr" not in problem
    guard = LossGuard()
    guard.add(0, ("a",), losses(loss_cls=math.nan), finite_inputs(small_batch(2, 2)))
    assert "before the model" not in str(guard.problem())
