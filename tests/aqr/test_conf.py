"""The configuration groups compose, instantiate, and override."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from cmt_aqr.aqr import AQR, Modulator, Renderer, WeightGenerator, WindowReader
from cmt_aqr.errors import UserError
from cmt_aqr.runs.configuration import build

CONF = Path(__file__).resolve().parents[2] / "conf"

Compose = Callable[..., DictConfig]

ROOT = """
defaults:
  - renderer: recommended
  - modulator: recommended
  - aqr: default
  - _self_
hydra:
  searchpath:
    - file://{conf}
model:
  embed_dims: 64
"""


@pytest.fixture
def composed(tmp_path: Path) -> Compose:
    (tmp_path / "root.yaml").write_text(ROOT.format(conf=CONF), encoding="utf-8")

    def of(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return compose("root", list(overrides))

    return of


def test_default_builds_an_aqr_of_the_models_size(composed: Compose) -> None:
    aqr = instantiate(composed().aqr)
    assert isinstance(aqr, AQR)
    assert aqr.generator.embed_dims == 64
    assert (aqr.renderer.max_weight_clamp, aqr.modulator.residual_weight) == (2.0, 0.65)


@pytest.mark.parametrize(
    ("preset", "clamp", "residual"),
    [("conservative", 1.5, 0.7), ("recommended", 2.0, 0.65), ("aggressive", 2.5, 0.5)],
)
def test_presets(composed: Compose, preset: str, clamp: float, residual: float) -> None:
    aqr = instantiate(composed(f"renderer={preset}", f"modulator={preset}").aqr)
    assert (aqr.renderer.max_weight_clamp, aqr.modulator.residual_weight) == (clamp, residual)


def test_every_field_is_in_the_configuration_with_its_default(composed: Compose) -> None:
    config = composed()
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
            if parameter.default is not parameter.empty and name != "embed_dims":
                assert node[name] == parameter.default, name


def test_values_from_the_command_line(composed: Compose) -> None:
    aqr = instantiate(
        composed(
            "renderer.max_weight_clamp=null",
            "renderer.render_method=kernel_mean",
            "renderer.pers_feature_shape=[6,20,50]",
            "modulator.residual_weight=1",
            "aqr.generator.bev_window=7",
            "aqr.draw=all",
        ).aqr
    )
    assert aqr.renderer.max_weight_clamp is None
    assert aqr.renderer.render_method == "kernel_mean"
    assert aqr.renderer.pers_feature_shape == (6, 20, 50)
    assert (aqr.modulator.residual_weight, aqr.generator.bev_window, aqr.draw) == (1.0, 7, "all")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("renderer.max_weight_clamp=-1", "renderer.max_weight_clamp=-1: must be above 0, or null"),
        ("modulator.residual_weight=1.5", "modulator.residual_weight=1.5: must be a number from 0 to 1"),
        ("aqr.generator.image_window=14", "aqr.generator.image_window=14: must be an odd whole number"),
        ("renderer.bev_feature_shape=[128]", "renderer.bev_feature_shape=[128]: must be 2 whole numbers"),
    ],
)
def test_the_key_in_the_sentence_is_the_one_to_type(composed: Compose, override: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        build(composed(override).aqr)
    assert str(error.value).startswith(sentence)
