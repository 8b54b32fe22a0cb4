"""Keys that an override adds to the configuration, and that nothing reads."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.runs.saved import below, override_keys
from cmt_aqr.runs.tree import at, nodes, unresolved

_READ_WHOLE = ("optimizer", "lr_mult", "training.denoising", "override", "hydra")
"""What is handed on with all its keys, which refuses those that it does not know."""

_BUILT = ("callbacks", "logger", "fault", "eval_fault", "conditions")
"""Groups of parts by name: each that has a class is built."""

_MAPPINGS = ("clamp_schedule.milestones", "data.make", "data.train_transforms", "data.eval_transforms")
"""Null by default, and no part: what is given is the value."""

_TARGET = "_target_"

_REFERENCES = re.compile(r"\$\{(?:[\w.]+:)?([^${}]*)\}")


def refuse_unread(config: DictConfig, config_name: str, overrides: Sequence[str]) -> None:
    """Refuse a key that is new and that nothing reads, the first one; Hydra must be initialised.

    What is read: the settings of what is built from a class, what another key is interpolated from, and groups
    that are handed on whole. Groups are chosen, not read.

    Args:
        config: composed with the overrides, not resolved.
        config_name: of the primary configuration.
        overrides: of the command line, with single values for sweeps; those that begin with ``+`` add keys.
    """
    options = GlobalHydra.instance().config_loader().get_group_options
    added = {override_keys([item])[0] for item in overrides if item.startswith("+")}
    for item in overrides:
        key = override_keys([item])[0]
        chosen = "@" in item.partition("=")[0] or options(key.replace(".", "/"))
        if not item.startswith("+") or chosen or below(key, _READ_WHOLE):
            continue
        _refuse_part_that_is_off(config, item, key, added)
        if _is_read(config, key, added):
            continue
        if item.startswith("++"):  # which may be of a key that is there
            others = hydra.compose(config_name, [other for other in overrides if other != item])
            if at(unresolved(others), key, default=_TARGET) is not _TARGET:
                continue
        known = [name for name, _ in nodes(unresolved(config)) if not below(name, [key])]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        hint = f"; did you mean {near[0]}?" if near else ""
        if "class" in key.rpartition(".")[2]:
            hint = "; the classes are nuScenes' ten, whose metric knows no others"
        raise UserError(f"{item}: nothing reads {key}, so it would change nothing: drop it{hint}")


def _refuse_part_that_is_off(config: DictConfig, item: str, key: str, added: set[str]) -> None:
    """Refuse a setting of a part that is null here: without its class nothing would be built from it."""
    handed_on = _references(config)
    built = False  # whether the part lies in another one that is built
    for place in _places(key)[:-1]:
        part = OmegaConf.select(config, place, throw_on_resolution_failure=False)
        if not isinstance(part, DictConfig) or below(place, _BUILT):
            return
        new = all(any(below(other, [f"{place}.{name}"]) for other in added) for name in map(str, part))
        is_part = place not in _MAPPINGS and (built or place in handed_on)
        if is_part and new and _TARGET not in part:
            raise UserError(
                f"{item}: {place} is null here, so nothing reads its settings: choose one of its options, or give "
                f"its class, too, +{place}.{_TARGET}=..."
            )
        built = built or _TARGET in part


def _places(key: str) -> list[str]:
    """A key and the groups that it stands in, from outside to inside."""
    return list(itertools.accumulate(key.split("."), "{}.{}".format))


def _is_read(config: DictConfig, key: str, added: set[str]) -> bool:
    for place in _places(key):
        node = OmegaConf.select(config, place, throw_on_resolution_failure=False)
        if isinstance(node, DictConfig) and _TARGET in node:
            mine = below(f"{place}.{_TARGET}", [*added]) and not below(place, _BUILT)
            return not mine  # a class where no part is looked for is not built
    return any(below(key, [source]) or below(source, [key]) for source in _references(config))


def _references(config: DictConfig) -> set[str]:
    """Keys that values are interpolated from."""
    written = str(unresolved(config))
    return {part.strip() for found in _REFERENCES.findall(written) for part in found.split(",")} - {""}
