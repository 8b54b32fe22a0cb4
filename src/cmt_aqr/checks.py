"""Checks of configuration values: one sentence names the key, the value and what is allowed."""

import math
from collections.abc import Collection
from typing import Any

from cmt_aqr.errors import SettingError


def require(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raise ``SettingError`` naming the configuration key, its value and what is allowed, unless it holds."""
    if not condition:
        shown = "null" if value is None else value
        raise SettingError(f"{key}={shown}: must be {allowed}")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; a bool is not one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def require_above_zero(key: str, value: Any) -> None:
    """Require a finite number above 0."""
    require(is_number(value) and value > 0, key, value, "a number above 0")


def require_fraction(key: str, value: Any) -> None:
    """Require a number from 0 to 1, both included."""
    require(is_number(value) and 0 <= value <= 1, key, value, "a number from 0 to 1")


def require_count(key: str, value: Any) -> None:
    """Require a whole number of at least 1."""
    require(is_count(value), key, value, "a whole number of at least 1")


def require_odd(key: str, value: Any) -> None:
    """Require an odd whole number of at least 1, so that a window has a middle."""
    require(is_count(value) and value % 2 == 1, key, value, "an odd whole number of at least 1")


def require_flag(key: str, value: Any) -> None:
    """Require true or false."""
    require(isinstance(value, bool), key, value, "true or false")


def require_choice(key: str, value: Any, choices: Collection[str]) -> None:
    """Require one of several names."""
    require(value in choices, key, value, f"one of {', '.join(choices)}")
