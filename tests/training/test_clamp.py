"""The clamp schedule."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch

from cmt_aqr.training.clamp import ClampSchedule, renderer_of
from tests.helpers.composed import composed
from tests.helpers.small_detector import small_module

PROGRESSIVE = {0: 2.5, 6: 2.0, 16: 1.5}


def at_epoch(epoch: int) -> pl.Trainer:
    return cast(pl.Trainer, SimpleNamespace(current_epoch=epoch))


@pytest.mark.parametrize(
    ("milestones", "message"),
    [
        ({1: 2.0}, "begin at 0"),
        ({0: 2.0, 6: 1.0, 3: 2.0}, "increase"),
        ({0: 2.0, 1.5: 1.0}, r"^milestones=\{0: 2.0, 1.5: 1.0\}: "),
        ({"0": 2.0, "one": 1.0}, "whole numbers"),
        ({0: 2.0, 5: -1.0}, r"^milestones\[5\]=-1.0: "),
        ({0: 0.0}, "above 0"),
        ({0: None}, r"^milestones\[0\]=null: "),
        ({0: "high"}, r"^milestones\[0\]=high: "),
        ({0: math.nan}, "above 0"),
        ({0: math.inf}, "above 0"),
    ],
)
def test_bad_milestones_are_refused(milestones: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClampSchedule(milestones)


def test_a_mapping_on_the_command_line_replaces_all_milestones() -> None:
    schedule = "clamp_schedule=progressive"
    assert composed(schedule).clamp_schedule.milestones == PROGRESSIVE
    replaced = composed(schedule, "clamp_schedule.milestones={0:3.0,4:1.0}").clamp_schedule
    assert replaced.milestones == {0: 3.0, 4: 1.0} and replaced.mode == "step"
    linear = composed(schedule, "clamp_schedule.mode=linear").clamp_schedule
    assert linear.milestones == PROGRESSIVE and linear.mode == "linear"
    added = composed(schedule, "+clamp_schedule.milestones.20=1.0").clamp_schedule
    with pytest.raises(ValueError, match=r"{0:2\.5,6:2\.0}"):
        ClampSchedule(added.milestones)


@pytest.mark.parametrize(
    ("mode", "clamps"),
    [("step", {9: 2.0, 16: 1.5, 5: 2.5, 6: 2.0, 15: 2.0}), ("linear", {3: 2.25, 11: 1.75, 16: 1.5, 30: 1.5})],
)
def test_the_clamp_follows_the_epoch_also_on_resume(mode: str, clamps: dict[int, float]) -> None:
    module = small_module("renderer.max_weight_clamp=9.0")
    schedule, renderer = ClampSchedule(PROGRESSIVE, mode=mode), cast(Any, renderer_of(module))
    for epoch, clamp in clamps.items():
        schedule.on_train_start(at_epoch(epoch), module)
        assert renderer.max_weight_clamp == clamp
        schedule.on_train_epoch_start(at_epoch(epoch + 1), module)
        assert renderer.max_weight_clamp == pytest.approx(schedule.value_at(epoch + 1))


def test_the_clamp_does_not_come_from_weights() -> None:
    module = small_module("renderer.max_weight_clamp=1.75")
    renderer = cast(Any, renderer_of(module))
    module.load_state_dict(module.state_dict() | {"model.aqr.renderer.clamp_limit": torch.tensor(9.0)})
    ClampSchedule().on_train_start(at_epoch(3), module)  # without milestones
    assert renderer.max_weight_clamp == 1.75
    ClampSchedule({0: 2.5, 6: 1.25}).set_for(module, 7)
    assert renderer.max_weight_clamp == 1.25


@pytest.mark.parametrize("aqr", ["none", "attention_bias"])
def test_without_maps_there_is_no_clamp(aqr: str) -> None:
    module = small_module(f"aqr={aqr}", "model.heads=2")
    assert renderer_of(module) is None
    ClampSchedule().on_train_start(at_epoch(0), module)
