"""Every parameter gets a gradient in every step, so DDP needs no search for unused ones."""

import pytest
import torch

from cmt_aqr.training.module import DetectorModule
from tests.helpers.small_detector import small_batch, small_module

RENDER, TYPE, ACT = "renderer.render_method=", "modulator.modulation_type=", "modulator.activation="
LEARNT = "modulator.learnable_modulation=true"
OPTIONS = [
    (),
    ("aqr=none",),
    ("training.denoising.groups=0", f"{RENDER}bilinear"),
    ("aqr.draw=all", f"{RENDER}direct", "renderer.max_weight_clamp=null"),
    ("aqr.generator.depth=2", "aqr.generator.max_views=null", f"{RENDER}distance_weighted"),
    (f"{RENDER}kernel_mean", f"{ACT}sigmoid"),
    ("renderer.kernel_normalization=peak", f"{TYPE}channel_wise", f"{ACT}tanh"),
    ("renderer.max_weight_clamp=0.05", "renderer.clamp_mode=soft", f"{ACT}relu"),
    ("renderer.normalize_weights=false", "modulator.normalize_weights=true"),
    ("modulator.residual_connection=false",),
    (LEARNT,),
    (LEARNT, f"{TYPE}adaptive", "renderer.clamp_mode=soft"),
    ("model=tiny_lidar",),
    ("model=tiny_lidar", "aqr=none"),
    ("model=tiny_lidar", LEARNT),
    ("model=tiny_camera", f"{TYPE}adaptive"),
    ("model=tiny_camera", LEARNT),
]
"""Each option of each group, and single sensors."""


def step(module: DetectorModule, *boxes: int) -> None:
    module.zero_grad()
    batch = small_batch(*boxes)
    module.on_train_batch_start(batch, 0)
    module.training_step(batch, 0)["loss"].backward()


def unused(module: DetectorModule) -> list[str]:
    return [name for name, value in module.named_parameters() if value.requires_grad and value.grad is None]


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("overrides", OPTIONS, ids=" ".join)
def test_all_parameters_and_the_generator_learn(overrides: tuple[str, ...]) -> None:
    module = small_module(*overrides)
    assert sum(1 for value in module.parameters() if value.requires_grad) > 50
    step(module, 3, 1)
    assert not unused(module)
    aqr = module.model.aqr
    if aqr is not None:
        gradients = [value.grad for value in aqr.generator.parameters()]
        assert torch.nn.utils.get_total_norm(gradients).item() > 0  # type: ignore[arg-type]
    # A batch without boxes has no denoising queries and no matches.
    step(module, 0, 0)
    assert not unused(module)
