"""Every parameter has a part in every training step, so DDP needs no search for unused ones."""

import pytest
import torch

from cmt_aqr.training.module import DetectorModule
from tests.helpers.small_detector import small_batch, small_module

OPTIONS = [
    (),
    ("aqr=none",),
    ("training.denoising.groups=0",),
    ("aqr.draw=all",),
    ("aqr.generator.depth=2", "aqr.generator.max_views=null"),
    *[(f"renderer.render_method={name}",) for name in ("bilinear", "direct", "distance_weighted", "kernel_mean")],
    ("renderer.kernel_normalization=peak",),
    ("renderer.clamp_mode=soft",),
    ("renderer.max_weight_clamp=0.05", "renderer.clamp_mode=soft"),
    ("renderer.max_weight_clamp=null",),
    ("renderer.normalize_weights=false",),
    *[(f"modulator.modulation_type={name}",) for name in ("channel_wise", "adaptive")],
    ("modulator.residual_connection=false",),
    ("modulator.normalize_weights=true",),
    *[(f"modulator.activation={name}",) for name in ("sigmoid", "tanh", "relu")],
    ("modulator.learnable_modulation=true",),
    ("modulator.learnable_modulation=true", "modulator.modulation_type=adaptive", "renderer.clamp_mode=soft"),
    ("model=tiny_lidar",),
    ("model=tiny_lidar", "modulator.learnable_modulation=true"),
    ("model=tiny_camera",),
    ("model=tiny_camera", "modulator.learnable_modulation=true"),
    ("model=tiny_lidar", "aqr=none"),
]


def step(module: DetectorModule, *boxes: int) -> None:
    module.zero_grad()
    batch = small_batch(*boxes)
    module.on_train_batch_start(batch, 0)
    module.training_step(batch, 0)["loss"].backward()


def unused(module: DetectorModule) -> list[str]:
    return [name for name, value in module.named_parameters() if value.requires_grad and value.grad is None]


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("overrides", OPTIONS, ids=" ".join)
def test_no_parameter_is_left_out_and_the_generator_learns(overrides: tuple[str, ...]) -> None:
    module = small_module(*overrides)
    assert sum(1 for value in module.parameters() if value.requires_grad) > 50
    step(module, 3, 1)
    assert not unused(module)
    aqr = module.model.aqr
    if aqr is not None:
        gradients = [value.grad for value in aqr.generator.parameters()]
        assert torch.nn.utils.get_total_norm(gradients).item() > 0  # type: ignore[arg-type]
    # A batch with nothing to detect has no denoising queries and no matches.
    step(module, 0, 0)
    assert not unused(module)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_frozen_module_is_no_unused_one() -> None:
    module = small_module("lr_mult.img_backbone=0", "lr_mult.aqr_weight_generator=0")
    step(module, 2)
    assert not unused(module)
    frozen = [name for name, value in module.named_parameters() if not value.requires_grad]
    assert {name.split(".")[1] for name in frozen} == {"image", "aqr"}
