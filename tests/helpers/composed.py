"""Composing a configuration as the commands do."""

import copy
import functools
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from cmt_aqr.model.cmt import CMT

CONF = Path(__file__).resolve().parents[2] / "conf"


def composed(*overrides: str, script: str = "train") -> DictConfig:
    """The configuration of a script with overrides."""
    GlobalHydra.instance().clear()
    return copy.deepcopy(_composed(script, overrides))  # composing takes half a second


@functools.cache
def _composed(script: str, overrides: tuple[str, ...]) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(script, list(overrides))


def network(*overrides: str) -> CMT:
    """The detector of a configuration, with fresh weights, in eval mode."""
    return hydra.utils.instantiate(composed(*overrides).model.network).eval()
