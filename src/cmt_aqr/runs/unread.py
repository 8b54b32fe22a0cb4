"""Refuses keys that an override adds to the configuration and that nothing reads."""

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

_PASSED_ON = ("optimizer", "lr_mult", "training.denoising", "override", "hydra")
"""Groups that are passed on with all their keys; the reader refuses unknown ones."""

_COLLECTIONS = ("callbacks", "logger", "fault", "eval_fault", "conditions")
"""Groups of parts by name; every part with a class is built."""

_MAPPINGS = ("clamp_schedule.milestones", "data.make", "data.train_transforms", "data.eval_transforms")
"""Keys whose value is a mapping, or null by default; they are no parts."""

_TARGET = "_target_"

_REFERENCES = re.compile(r"\$\{(?:[\w.]+:)?([^${}]*)\}")


def refuse_unread(config: DictConfig, config_name: str, overrides: Sequence[str]) -> None:
    """Refuse the first new key that nothing reads; Hydra must be initialised.

    Read are the settings of a part that is built from a class, keys that other values are interpolated from, and
    groups that are passed on. Groups are chosen, not read.

    Args:
        config: composed with the overrides, not resolved.
        config_name: name of the primary configuration.
        overrides: of the command line, with single values for sweeps; those that begin with ``+`` add keys.
    """
    additions = {override_keys([item])[0]: item for item in overrides if item.startswith("+")}
    if not additions:
        return
    options = GlobalHydra.instance().config_loader().get_group_options
    plain = unresolved(config)
    sources = {name.strip() for names in _REFERENCES.findall(str(plain)) for name in names.split(",")} - {""}
    for key, item in additions.items():
        is_group = "@" in item.partition("=")[0] or options(key.replace(".", "/"))
        if is_group or below(key, _PASSED_ON) or _is_read(config, key, additions, sources):
            continue
        if item.startswith("++"):  # the key may exist without it
            others = hydra.compose(config_name, [other for other in overrides if other != item])
            if at(unresolved(others), key, default=_TARGET) is not _TARGET:
                continue
        keys = [name for name, _ in nodes(plain) if not below(name, [key])]
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
        hint = f"; did you mean {near[0]}?" if near else ""
        if "class" in key.rpartition(".")[2]:
            hint = "; the classes are nuScenes' ten, whose metric has no others"
        raise UserError(f"{item}: nothing reads {key}, so it would change nothing: drop it{hint}")


def _is_read(config: DictConfig, key: str, additions: dict[str, str], sources: set[str]) -> bool:
    """Whether a key belongs to a part that is built, or other values are interpolated from it.

    Raises:
        UserError: the key is a setting of a part that is null: without a class nothing is built from it.
    """
    in_built_part = None
    for place in itertools.accumulate(key.split("."), "{}.{}".format):  # from outside to inside
        part = OmegaConf.select(config, place, throw_on_resolution_failure=False)
        if not isinstance(part, DictConfig):
            break
        collected = below(place, _COLLECTIONS)
        if _TARGET in part:
            if in_built_part is None:  # a class in a place that no part is expected in is not built
                in_built_part = collected or not below(f"{place}.{_TARGET}", list(additions))
        elif place != key and not collected and place not in _MAPPINGS:
            is_part = in_built_part is not None or place in sources
            added = {
                name.removeprefix(f"{place}.").partition(".")[0] for name in additions if below(name, [place])
            }
            if is_part and added.issuperset(map(str, part)):
                raise UserError(
                    f"{additions[key]}: {place} is null here, so nothing reads its settings: choose one of its "
                    f"options, or give its class, too, +{place}.{_TARGET}=..."
                )
    if in_built_part is not None:
        return in_built_part
    return any(below(key, [source]) or below(source, [key]) for source in sources)
