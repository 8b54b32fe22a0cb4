"""Checks of settings: one sentence names the parameter, its value and what is allowed.

Constructors name their own parameters; :mod:`cmt_aqr.runs.configuration` puts the configuration's key in front.
"""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from cmt_aqr.errors import SettingError


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raise :class:`SettingError` with parameter, value and what is allowed, unless the condition holds."""
    if not condition:
        shown = str(value).lower() if isinstance(value, bool) else "null" if value is None else value
        raise SettingError(f"{name}={shown}: must be {allowed}")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; a bool is not one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any, low: int = 0, high: float = math.inf) -> bool:
    """Whether a value is a whole number from ``low`` to ``high``; a bool is not one."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 1."""
    return is_whole(value, 1)


def require_whole(name: str, value: Any, low: int = 0, high: int | None = None) -> None:
    """Require a whole number of ``low`` or more, or from ``low`` to ``high``."""
    allowed = f"a whole number of {low} or more" if high is None else f"a whole number from {low} to {high}"
    require(is_whole(value, low, math.inf if high is None else high), name, value, allowed)


def require_count(name: str, value: Any) -> None:
    """Require a whole number of at least 1."""
    require_whole(name, value, 1)


def require_odd(name: str, value: Any) -> None:
    """Require an odd whole number of at least 1, so that a window has a centre."""
    require(is_count(value) and value % 2 == 1, name, value, "an odd whole number of at least 1")


def require_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
) -> float:
    """Require and return a finite number; ``low`` and ``high`` are inclusive, ``above`` and ``below`` are not."""
    bounds = [f"of {low} or more"] if low > -math.inf else [f"above {above}"] if above > -math.inf else []
    if high < math.inf and low > -math.inf:
        bounds = [f"from {low} to {high}"]
    else:
        bounds += [f"at most {high}"] if high < math.inf else [f"below {below}"] if below < math.inf else []
    fits = is_number(value) and low <= value <= high and above < value < below
    require(fits, name, value, " ".join(("a number", " and ".join(bounds))).strip())
    return float(value)


def require_above_zero(name: str, value: Any) -> float:
    """Require a finite number above 0."""
    return require_number(name, value, above=0)


def require_fraction(name: str, value: Any) -> float:
    """Require a number from 0 to 1, both included."""
    return require_number(name, value, 0, 1)


def require_numbers(name: str, values: Any, count: int, low: float = -math.inf) -> tuple[float, ...]:
    """Require ``count`` finite numbers, each of at least ``low``."""
    fits = isinstance(values, Sequence) and len(values) == count
    limit = "" if low == -math.inf else f" of {low} or more"
    fits = fits and all(is_number(value) and value >= low for value in values)
    require(fits, name, values, f"{count} numbers{limit}")
    return tuple(float(value) for value in values)


def require_range(name: str, values: Any, above: float = -math.inf) -> tuple[float, float]:
    """Require [low, high] with low <= high, both above a limit."""
    fits = isinstance(values, Sequence) and len(values) == 2 and all(is_number(value) for value in values)
    limit = "" if above == -math.inf else f", both above {above}"
    require(fits and above < values[0] <= values[1], name, values, f"[low, high] with low <= high{limit}")
    return float(values[0]), float(values[1])


def require_folder(name: str, value: Any) -> None:
    """Require the path of a folder, which need not exist."""
    require(isinstance(value, str | Path) and bool(str(value)), name, value, "the path of a folder")


def require_flag(name: str, value: Any) -> None:
    """Require true or false."""
    require(isinstance(value, bool), name, value, "true or false")


def require_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Require one of several names."""
    require(value in choices, name, value, f"one of {', '.join(choices)}")
