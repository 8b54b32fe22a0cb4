"""The configuration groups compose, instantiate, and override."""

import inspect

import pytest

from cmt_aqr.aqr import AQR, Modulator, Renderer, WeightGenerator, WindowReader
from cmt_aqr.errors import UserError
from cmt_aqr.runs.configuration import build
from tests.helpers.composed import composed


@pytest.mark.parametrize(
    ("presets", "clamp", "residual"),
    [
        ([], 2.0, 0.65),
        (["renderer=conservative", "modulator=conservative"], 1.5, 0.7),
        (["renderer=recommended", "modulator=recommended"], 2.0, 0.65),
        (["renderer=aggressive", "modulator=aggressive"], 2.5, 0.5),
    ],
)
def test_presets(presets: list[str], clamp: float, residual: float) -> None:
    aqr = build(composed(*presets, "model.embed_dims=48").aqr)
    assert isinstance(aqr, AQR) and aqr.generator.embed_dims == 48
    assert (aqr.renderer.max_weight_clamp, aqr.modulator.residual_weight) == (clamp, residual)


def test_every_field_is_in_the_configuration_with_its_default() -> None:
    config = composed("aqr=default", "renderer=base", "modulator=base", "model=cmt_r50")
    for node, parts in (
        (config.renderer, [Renderer]),
        (config.modulator, [Modulator]),
        (config.aqr, [AQR]),
        (config.aqr.generator, [WindowReader, WeightGenerator]),
    ):
        parameters = {
            name: parameter
            for part in parts
            for name, parameter in inspect.signature(part).parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD
        }
        assert set(node) == {"_target_", *parameters}
        for name, parameter in parameters.items():
            if parameter.default is not parameter.empty:
                assert node[name] == parameter.default, name


def test_values_from_the_command_line() -> None:
    renderer = ("max_weight_clamp=null", "render_method=kernel_mean", "pers_feature_shape=[6,20,50]")
    others = ("modulator.residual_weight=1", "aqr.generator.bev_window=7", "aqr.draw=all")
    aqr = build(composed(*(f"renderer.{value}" for value in renderer), *others).aqr)
    assert aqr.renderer.max_weight_clamp is None
    assert aqr.renderer.render_method == "kernel_mean"
    assert aqr.renderer.pers_feature_shape == (6, 20, 50)
    assert (aqr.modulator.residual_weight, aqr.generator.bev_window, aqr.draw) == (1.0, 7, "all")


@pytest.mark.parametrize(
    "override",
    [
        "renderer.max_weight_clamp=-1",
        "modulator.residual_weight=1.5",
        "aqr.generator.image_window=14",
        "renderer.bev_feature_shape=[128]",
    ],
)
def test_the_key_in_the_sentence_is_the_one_to_type(override: str) -> None:
    with pytest.raises(UserError) as error:
        build(composed(override).aqr)
    assert str(error.value).startswith(f"{override}: must be ")
