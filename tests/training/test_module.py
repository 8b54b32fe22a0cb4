"""Frozen modules, and shapes that AQR declares."""

import re
from typing import cast

import pytest
from torch import nn

from cmt_aqr.errors import SettingError
from cmt_aqr.training.module import DetectorModule
from cmt_aqr.training.optimization import MODULES, module_of
from cmt_aqr.training.run import check_aqr
from tests.helpers.small_detector import small_module


@pytest.mark.parametrize("frozen", sorted(MODULES))
def test_a_multiplier_of_0_freezes_a_module_and_its_statistics(frozen: str) -> None:
    module = small_module(f"lr_mult.{frozen}=0")
    for name, parameter in module.model.named_parameters():
        assert parameter.requires_grad == (module_of(name) != frozen), name
    for mode in (True, False, True):
        if mode:  # as Lightning's ``sync_batchnorm`` does
            module = cast(DetectorModule, nn.SyncBatchNorm.convert_sync_batchnorm(module))
        module.train(mode)
        for name, part in module.model.named_modules():
            if not list(part.parameters()) or name in ("", "image", "head"):
                continue
            assert part.training == (mode and module_of(f"{name}.") != frozen), name
    groups = module.optimizer_settings.build(module.model, module.multipliers, 1, 10)[0].param_groups
    assert {group["name"] for group in groups} == set(MODULES) - {frozen}


@pytest.mark.parametrize("shape", ["renderer.bev_feature_shape=[3,3]", "renderer.pers_feature_shape=[6,3,3]"])
def test_declared_shapes_are_compared_with_the_features(shape: str) -> None:
    with pytest.raises(SettingError, match=rf"^{re.escape(shape.split('=')[0])}=\[.*3\]: must be \["):
        check_aqr(small_module(shape).model, (64, 160))
    check_aqr(small_module().model, (64, 160))


def test_a_declared_shape_of_an_absent_sensor_is_no_error() -> None:
    check_aqr(small_module("model=tiny_camera", "renderer.bev_feature_shape=[3,3]").model, (64, 160))
