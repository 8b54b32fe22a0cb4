"""What the LightningModule freezes, and clamps when a run is resumed."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from cmt_aqr.runs.configuration import build
from cmt_aqr.training.clamp import ClampSchedule, renderer_of
from cmt_aqr.training.module import DetectorModule
from cmt_aqr.training.optimization import MODULES, module_of
from tests.helpers.commands import SMALL
from tests.helpers.composed import composed


def detector(*overrides: str) -> DetectorModule:
    small = [item for item in SMALL if "aqr=none" not in overrides or not item.startswith("aqr.")]
    config = composed(*small, *overrides)
    return DetectorModule(
        build(config.model.network), cast(Any, None), None, build(config.optimizer), build(config.lr_mult)
    )


@pytest.mark.parametrize("frozen", sorted(MODULES))
def test_a_multiplier_of_0_freezes_one_module_and_its_statistics(frozen: str) -> None:
    module = detector(f"lr_mult.{frozen}=0")
    for name, parameter in module.model.named_parameters():
        assert parameter.requires_grad == (module_of(name) != frozen), name
    for mode in (True, False, True):
        if mode:  # as Lightning's ``sync_batchnorm`` exchanges norms
            module = cast(DetectorModule, nn.SyncBatchNorm.convert_sync_batchnorm(module))
        module.train(mode)
        for name, part in module.model.named_modules():
            if not list(part.parameters()) or name in ("", "image", "head"):
                continue
            assert part.training == (mode and module_of(f"{name}.") != frozen), name
    groups = module.optimizer_settings.build(module.model, module.multipliers, 1, 10)[0].param_groups
    assert {group["name"] for group in groups} == set(MODULES) - {frozen}


def at_epoch(epoch: int) -> pl.Trainer:
    return cast(pl.Trainer, SimpleNamespace(current_epoch=epoch))


LINE = ((3, 2.25), (11, 1.75), (16, 1.5), (30, 1.5))
STAGES = ((9, 2.0), (16, 1.5), (5, 2.5), (6, 2.0), (15, 2.0))


@pytest.mark.parametrize(("mode", "expected"), [("step", STAGES), ("linear", LINE)])
def test_a_run_that_goes_on_has_the_clamp_of_its_epoch(mode: str, expected: tuple) -> None:
    module = detector("renderer.max_weight_clamp=9.0")
    schedule = ClampSchedule({0: 2.5, 6: 2.0, 16: 1.5}, mode=mode)
    for epoch, clamp in expected:
        schedule.on_train_start(at_epoch(epoch), module)
        assert renderer_of(module).max_weight_clamp == clamp
        schedule.on_train_epoch_start(at_epoch(epoch + 1), module)
        assert renderer_of(module).max_weight_clamp == pytest.approx(schedule.value_at(epoch + 1))


def test_without_milestones_the_configured_clamp_holds() -> None:
    module = detector("renderer.max_weight_clamp=1.75")
    ClampSchedule().on_train_start(at_epoch(3), module)
    assert renderer_of(module).max_weight_clamp == 1.75


def test_the_clamp_follows_from_the_epoch_and_not_from_what_is_loaded() -> None:
    source, target = detector(), detector()
    renderer_of(source).set_clamp(1.5)
    target.load_state_dict(source.state_dict() | {"model.aqr.renderer.clamp_limit": torch.tensor(9.0)})
    assert renderer_of(target).max_weight_clamp == 2.0
    ClampSchedule({0: 2.5, 6: 1.25}).set_for(target, 7)
    assert renderer_of(target).max_weight_clamp == 1.25


def test_without_aqr_there_is_nothing_to_clamp() -> None:
    module = detector("aqr=none")
    assert renderer_of(module) is None
    ClampSchedule().on_train_start(at_epoch(0), module)
    assert renderer_of(detector("aqr=attention_bias")) is None
