"""What values of a configuration refer to: other keys, and Hydra's own part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cmt_aqr.errors import UserError


@contextlib.contextmanager
def resolvable(config: DictConfig) -> Iterator[None]:
    """Within it, ``${hydra:...}`` refers to this configuration's part of Hydra."""
    outer = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = outer


def resolve(config: DictConfig, part: str) -> None:
    """Resolve a configuration as ``--cfg PART --resolve`` does, for the errors that this may have."""
    with resolvable(config):
        keys = [str(key) for key in config if part == "all" or (key == "hydra") == (part == "hydra")]
        shown = OmegaConf.masked_copy(config, keys)
        if "hydra" in shown:
            OmegaConf.set_readonly(shown.hydra, False)
        OmegaConf.resolve(shown)


def check_references(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse an override that refers to a key that is not there, or to itself."""
    for item in overrides:
        key, _, value = item.partition("=")
        if "${" not in value:
            continue
        try:
            with resolvable(config):
                node = OmegaConf.select(config, key.lstrip("+~").partition("@")[0].replace("/", "."))
                if OmegaConf.is_config(node):
                    OmegaConf.to_container(node, resolve=True)
        except OmegaConfBaseException as error:
            said = str(error).partition("\n")[0]
            raise UserError(
                f"{item}: {said}; refer to another key that is there, as in ${{model.layers}}"
            ) from error
