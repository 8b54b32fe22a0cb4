"""Runs as pandas columns: the settings that differ between them, and their results."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cmt_aqr.constants import ERRORS
from cmt_aqr.errors import UserError
from cmt_aqr.runs.folder import SWEEP_KEYS, Run, Value, parse_override

NOT_RECORDED = "not recorded"

SUMMARY = ("mAP", "NDS", *(f"m{name}" for name in ERRORS.values()))
"""The official summary metrics."""

NOT_AN_AXIS = ("name", "ckpt_path", "seed", *SWEEP_KEYS)
"""Settings whose differences are not part of an experiment; results are averaged over seeds."""


@dataclass(frozen=True)
class Comparison:
    """Runs, ranked by a metric."""

    runs: Sequence[Run]
    metric: str

    @functools.cached_property
    def axes(self) -> list[pd.Series]:
        """The overridden settings that differ between runs, in the order of the overrides, without seeds.

        Words that always change together, such as ``renderer`` and ``modulator`` of presets, are one axis.
        """
        keys = dict.fromkeys(parse_override(text)[0] for run in self.runs for text in run.overrides)
        axes: list[pd.Series] = []
        for key in keys:
            axis = make_axis(key, [run.setting(key) for run in self.runs])
            if key in NOT_AN_AXIS or key.startswith(("hydra.", "hydra/")) or len(axis.cat.categories) < 2:
                continue
            twin = next((i for i, other in enumerate(axes) if _change_together(axis, other)), None)
            if twin is None:
                axes.append(axis)
            else:
                axes[twin] = _merged(axes[twin], axis)
        return axes

    @functools.cached_property
    def seeds(self) -> pd.Series:
        """The seed per run, as an axis."""
        return make_axis("seed", [run.setting("seed") if run.seed is None else run.seed for run in self.runs])

    @property
    def axes_and_seed(self) -> list[pd.Series]:
        """The axes, and the seed if it differs."""
        return [*self.axes, self.seeds] if len(self.seeds.cat.categories) > 1 else self.axes

    def axis(self, name: str, option: str) -> pd.Series:
        """The axis called ``name``, or the only one that ends in it (``max_weight_clamp``); or the ``seed``.

        Raises:
            UserError: there is no single such axis; names the option that chose it.
        """
        if name == "seed":
            return self.seeds
        keys = [(axis, key) for axis in self.axes for key in {axis.name, *axis.name.split(" + ")}]
        exact = [axis for axis, key in keys if key == name]
        matches = exact or [axis for axis, key in keys if key.endswith(f".{name}")]
        if len({axis.name for axis in matches}) != 1:
            names = ", ".join(axis.name for axis in self.axes) or "none"
            raise UserError(
                f"{option}={name}: must name exactly one of the settings that differ between runs: {names}"
            )
        return matches[0]

    def numbers(self, key: str) -> pd.Series:
        """A recorded number per run; NaN if it is absent or undefined."""
        return pd.Series([run.numbers.get(key, math.nan) for run in self.runs], name=key, dtype=float)

    @functools.cached_property
    def values(self) -> pd.Series:
        """The metric per run."""
        return self.numbers(self.metric)

    @functools.cached_property
    def order(self) -> list[int]:
        """Indices of the runs, best first."""
        return best_first(self.values)

    @property
    def ranked(self) -> list[Run]:
        """The runs, best first."""
        return [self.runs[i] for i in self.order]


def value_text(value: Value | None) -> str:
    """A value as in Hydra, a float with four digits; ``None`` and NaN are not recorded."""
    if value is None or value != value:
        return NOT_RECORDED
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def make_axis(name: str, values: Sequence[Value | None]) -> pd.Series:
    """A setting per run, as an ordered categorical: numbers ascending, words in the order of the runs."""
    categories = list(dict.fromkeys(value for value in values if value is not None))
    if all(isinstance(value, float | int) for value in categories):
        categories.sort()
    return pd.Series(pd.Categorical(values, categories=categories, ordered=True), name=name)


def is_numeric(axis: pd.Series) -> bool:
    """Whether all recorded values are numbers."""
    return pd.api.types.is_numeric_dtype(axis.cat.categories.dtype)


def short(axis: pd.Series) -> str:
    """The last part of the setting's name, or of each name of settings that change together."""
    return " + ".join(key.rpartition(".")[2] for key in str(axis.name).split(" + "))


def label(axes: Sequence[pd.Series], index: int) -> str:
    """A short text of a run's settings."""
    return ", ".join(f"{short(axis)}={value_text(axis[index])}" for axis in axes)


def _change_together(axis: pd.Series, other: pd.Series) -> bool:
    pairs = set(zip(axis.cat.codes, other.cat.codes, strict=True))
    numeric = is_numeric(axis) or is_numeric(other)
    return not numeric and len(pairs) == axis.nunique(dropna=False) == other.nunique(dropna=False)


def _merged(axis: pd.Series, other: pd.Series) -> pd.Series:
    pairs = [(value_text(a), value_text(b)) for a, b in zip(axis, other, strict=True)]
    names = [a if a == b else f"{a}, {b}" for a, b in pairs]
    return make_axis(f"{axis.name} + {other.name}", [None if name == NOT_RECORDED else name for name in names])


def sign_of(metric: Any) -> int:
    """1 if higher is better, -1 if lower is better."""
    return -1 if metric.partition("/")[0].removeprefix("m") in ERRORS.values() else 1


def best_first(values: pd.Series) -> list[int]:
    """Positions of a metric's values, best first; NaN last, in their order."""
    return list((-sign_of(values.name) * values).sort_values(kind="stable", na_position="last").index)


def spread(values: pd.Series, by: Any, empty: bool = False) -> pd.DataFrame:
    """Mean, sample standard deviation (``std``), ``count`` and, including NaN, ``size`` of each group.

    Args:
        values: numbers.
        by: axes, or names of index levels.
        empty: return all combinations of the axes' categories, in their order, including empty groups; runs whose
            setting is not recorded are left out.
    """
    groups = values.groupby(by, sort=empty, observed=not empty, dropna=empty)
    return groups.agg(["mean", "std", "count", "size"])
