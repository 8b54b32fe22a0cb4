"""What the runs of a folder have in common, what was varied between them, and how to run one again."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from cmt_aqr.errors import UserError
from cmt_aqr.studies.reports.runs import Run

Value = float | int | bool | str | None
"""A setting's value; lists and mappings as their text."""

NOT_RECORDED = "not recorded"

NOT_AN_AXIS = ("name", "ckpt_path", "seed")
"""Settings that may differ between runs and are no experiment: over seeds is averaged."""

OF_THE_SWEEP = ("sweep", "launcher", "sweep_dir")
"""Settings that say how many runs are started and where; the command for one run has none of them."""


STATUS_TEXT = {"running": "unfinished"}
"""How a recorded status reads; a run that was killed has no time to record anything but that it runs."""


@dataclass(frozen=True)
class Axis:
    """A setting that differs between runs."""

    keys: tuple[str, ...]
    """The setting; several where they always change together, as ``renderer`` and ``modulator`` of presets."""
    values: tuple[Value, ...]
    """Its value in each run, in the runs' order; :data:`NOT_RECORDED` where it is not known."""

    @property
    def name(self) -> str:
        """Full name, for people and for ``x=`` and ``y=``."""
        return " + ".join(self.keys)

    @property
    def short(self) -> str:
        """The last part of the name."""
        return " + ".join(key.rpartition(".")[2] for key in self.keys)

    @property
    def numeric(self) -> bool:
        """Whether all known values are numbers."""
        return all(is_number(value) for value in self.known)

    @property
    def known(self) -> list[Value]:
        """Distinct values: numbers ascending, else in the order of the runs."""
        known = list(dict.fromkeys(value for value in self.values if value != NOT_RECORDED))
        return sorted(known) if all(map(is_number, known)) else known  # type: ignore[type-var]


def is_number(value: Value) -> bool:
    """Whether a value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def value_text(value: Value) -> str:
    """A value as Hydra writes it, a float with four digits."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@functools.lru_cache(maxsize=10_000)
def parse_override(text: str) -> tuple[str, Value]:
    """Key and value of an override; text that Hydra cannot read is a key by itself."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return text, ""
    return override.key_or_group, "deleted" if override.is_delete() else _plain(override.value())


def _plain(value: Any) -> Value:
    """Numbers, words and null as they are; all else as Hydra writes it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    text = getattr(value, "text", None)  # a quoted string
    return text if isinstance(text, str) else str(value)


def setting(run: Run, key: str) -> Value:
    """A setting of a run: from its overrides, else its groups, else its configuration."""
    for text in reversed(run.overrides):
        name, value = parse_override(text)
        if name == key:
            return value
    if key in run.choices:
        return _plain(run.choices[key])
    node: Any = run.config
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return NOT_RECORDED
        node = node[part]
    return NOT_RECORDED if isinstance(node, dict) else _plain(node)


def find_axes(runs: Sequence[Run]) -> list[Axis]:
    """The overridden settings that differ between runs, in the order of the overrides, without seeds.

    Groups and words that always change together are one axis.
    """
    keys = list(dict.fromkeys(parse_override(text)[0] for run in runs for text in run.overrides))
    axes: list[Axis] = []
    for key in keys:
        if key in (*NOT_AN_AXIS, *OF_THE_SWEEP) or key.startswith(("hydra.", "hydra/")):
            continue
        axis = Axis((key,), tuple(setting(run, key) for run in runs))
        if len(axis.known) < 2:
            continue
        twin = next((i for i, other in enumerate(axes) if _change_together(axis, other)), None)
        if twin is None:
            axes.append(axis)
        else:
            axes[twin] = _merged(axes[twin], axis)
    return axes


def _change_together(axis: Axis, other: Axis) -> bool:
    pairs = set(zip(axis.values, other.values, strict=True))
    numeric = axis.numeric or other.numeric
    return not numeric and len(pairs) == len(set(axis.values)) == len(set(other.values))


def _merged(axis: Axis, other: Axis) -> Axis:
    values = [
        a if a == b else f"{value_text(a)}, {value_text(b)}"
        for a, b in zip(axis.values, other.values, strict=True)
    ]
    return Axis((*axis.keys, *other.keys), tuple(values))


def choose_axis(axes: Sequence[Axis], runs: Sequence[Run], name: str, asked_by: str) -> Axis:
    """The axis of a name, which may be its end (``max_weight_clamp``), or ``seed``.

    Raises:
        UserError: none or several are called so.
    """
    if name == "seed":
        return seed_axis(runs)
    found = [axis for axis in axes if name in (axis.name, *axis.keys)]
    found = found or [axis for axis in axes if any(key.endswith(f".{name}") for key in axis.keys)]
    if len(found) != 1:
        names = ", ".join(axis.name for axis in axes) or "none"
        raise UserError(f"{asked_by}={name}: that names no single setting that differs; these do: {names}")
    return found[0]


def seed_axis(runs: Sequence[Run]) -> Axis:
    """The seed of each run."""
    return Axis(("seed",), tuple(setting(run, "seed") if run.seed is None else run.seed for run in runs))


def common_overrides(runs: Sequence[Run]) -> list[str]:
    """The overrides that all runs have."""
    return [text for text in runs[0].overrides if all(text in run.overrides for run in runs)]


def reproducing_command(run: Run) -> str:
    """The command line that runs a run again, by itself, quoted for a POSIX shell."""
    own = [text for text in run.overrides if parse_override(text)[0] not in OF_THE_SWEEP]
    return " ".join(["python", f"scripts/{run.script}", *map(shlex.quote, own)])


def label(axes: Sequence[Axis], index: int) -> str:
    """The swept settings of one run, in short."""
    return ", ".join(f"{axis.short}={value_text(axis.values[index])}" for axis in axes)


def status_text(run: Run) -> str:
    """How the run ended, as far as is recorded."""
    return NOT_RECORDED if run.status is None else STATUS_TEXT.get(run.status, run.status)
