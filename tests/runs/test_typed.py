"""Values and the types that constructors declare."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.runs.configuration import build, build_data
from cmt_aqr.runs.typed import mistyped
from cmt_aqr.training.run import build_module
from tests.helpers.composed import composed
from tests.helpers.small_detector import PLAIN

STOP = "+callbacks.stop={_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:val/NDS,patience:abc}"


@pytest.mark.parametrize(
    ("overrides", "part", "message"),
    [
        (["model.heads=abc"], "model.network.decoder", "model.heads=abc: must be a whole number"),
        (["model.grid.voxel_size=0.1"], "model.network.head.grid", "model.grid.voxel_size=0.1: must be a list"),
        (["model.network.image.norm_eval=abc"], "model.network.image", "norm_eval=abc: must be true or false"),
        (["aqr=attention_bias", "aqr.per_layer_and_head=3"], "aqr", "aqr.per_layer_and_head=3: must be a list"),
        (["aqr=attention_bias", "aqr.generator=null"], "aqr", "aqr.generator=null: must be a part"),
        ([STOP], "callbacks.stop", "callbacks.stop.patience=abc: must be a whole number"),
    ],
)
def test_a_value_of_another_type_is_refused(overrides: list[str], part: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        build(OmegaConf.select(composed(*overrides), part))
    assert message in str(refused.value)


def test_factors_for_other_layers_and_heads_are_refused_before_data_are_read() -> None:
    def built(shape: str) -> Any:
        aqr = ["aqr=attention_bias", "aqr.generator.feedforward_dims=32", f"aqr.per_layer_and_head={shape}"]
        config = composed(*aqr[:1], *PLAIN, *aqr[1:])
        return build_module(config, build_data(config), 1)

    built("[1,4]")
    with pytest.raises(UserError, match=r"^aqr.per_layer_and_head=\[7, 4\]: must be \[1, 4\]"):
        built("[7,4]")


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=cmt_aqr_voxel0100_r50_800x320_cbgs", "data.root=/data", "weights=w.pth"],
        ["experiment=lab", "fault=partial/any", "eval_fault=mome/fov60"],
        ["aqr=attention_bias", "model=tiny", "fault=fog_or_night", "logger=[csv,tensorboard]"],
    ],
)
def test_the_values_in_conf_fit(overrides: list[str]) -> None:
    config = composed(*overrides)
    OmegaConf.update(config, "callbacks.checkpoint.folder", "folder", force_add=True)
    config.callbacks.aqr_monitor.folder = "folder"
    for logger in config.logger.values():
        logger.save_dir = "folder"
    assert list(mistyped(OmegaConf.to_container(config, resolve=True), "")) == []
