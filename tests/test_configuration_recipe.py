"""Experiments that name more than is built stop before any data is read."""

from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig

from cmt_aqr.configuration import check_config
from cmt_aqr.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf"


def composed(*overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", list(overrides))


def test_what_is_not_built_is_refused_with_the_way_around() -> None:
    config = composed("experiment=cmt_voxel0100_r50_800x320_cbgs", "data.root=nowhere")
    with pytest.raises(
        UserError, match=r"recipe\.cbgs=true.*add recipe\.cbgs=false recipe\.ground_truth_sampling=false"
    ):
        check_config(config)


def test_an_experiment_that_starts_from_weights_asks_for_them() -> None:
    with pytest.raises(UserError, match="add weights=FILE"):
        check_config(composed("experiment=aqr_from_cmt", "data.root=nowhere"))


def test_evaluation_by_steps_is_allowed() -> None:
    config = composed("trainer.check_val_every_n_epoch=null", "+trainer.val_check_interval=100", "~callbacks")
    with pytest.raises(Exception, match="callbacks"):
        check_config(config)
