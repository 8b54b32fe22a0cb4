"""Values of the configuration beside the types that constructors declare, which Python does not look at."""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import hydra

_CHECKED = ("cmt_aqr.", "pytorch_lightning.")
"""Packages whose declared types can be relied upon."""

_PLAIN: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool, int, type(None))),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a text", (str,)),
    type(None): ("null", (type(None),)),
}
"""In words, and the types of values, for each declared one; a switch may be a size, as data.cameras are."""


def mistyped(plain: Any, place: str) -> Iterator[tuple[str, Any, str]]:
    """Values that are not of the type which the class that they are for declares: key, value, what it must be.

    Args:
        plain: a configuration, resolved, with ``_target_``; parts of it are looked at, too.
        place: its key.
    """
    if not isinstance(plain, Mapping):
        return
    hints = _hints(str(plain.get("_target_")))
    for name, value in plain.items():
        key = f"{place}.{name}" if place else str(name)
        if name in hints and not _fits(value, hints[name]):
            yield from _misfits(value, hints[name], key)
        yield from mistyped(value, key)


def _misfits(value: Any, hint: Any, key: str) -> Iterator[tuple[str, Any, str]]:
    """The value that does not fit, or, of values by name, those."""
    by_name = next((kind for kind in _kinds(hint) if _is_a(get_origin(kind), Mapping)), None)
    if by_name is None or not isinstance(value, Mapping):
        yield key, value, _described(hint)
        return
    of_each = get_args(by_name)[1]
    for name, item in value.items():
        if not _fits(item, of_each):
            yield f"{key}.{name}", item, _described(of_each)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a declared type."""
    return get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_a(origin: Any, kind: type) -> bool:
    return isinstance(origin, type) and issubclass(origin, kind)


@functools.cache
def _hints(target: str) -> dict[str, Any]:
    """Declared types of a constructor's or function's parameters; none where they cannot be known."""
    if not target.startswith(_CHECKED):
        return {}
    found: dict[str, Any] = {}
    try:
        called = hydra.utils.get_object(target)
        for function in _called(called) if isinstance(called, type) else [called]:
            found = {**typing.get_type_hints(function), **found}
    except (ImportError, NameError):  # no such class; a type that is imported for type checkers only
        return {}
    return found


def _called(built: type) -> Iterator[Any]:
    """The constructors that a class' settings reach: those of its bases, too, where it hands on the rest."""
    for owner in built.__mro__:
        if "__init__" in vars(owner):
            yield owner.__init__  # type: ignore[misc]  # of this very class
            kinds = [parameter.kind for parameter in inspect.signature(owner.__init__).parameters.values()]  # type: ignore[misc]
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                return


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return True
    if len(_kinds(hint)) > 1:
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if hint in _PLAIN:
        return type(value) in _PLAIN[hint][1]
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    if _is_a(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(item, parts[1]) for item in value.values())
    if _is_a(origin, Sequence):
        if origin is tuple and ... not in parts:
            return isinstance(value, list) and len(value) == len(parts) and all(map(_fits, value, parts))
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if isinstance(hint, type) and not issubclass(hint, os.PathLike):
        # Without its _target_ a mapping stays one, and is no part.
        return type(value) not in _PLAIN and (not isinstance(value, Mapping) or issubclass(hint, Mapping | dict))
    return True


def _described(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if len(_kinds(hint)) > 1:
        return " or ".join(dict.fromkeys(map(_described, parts)))
    if origin is typing.Literal:
        return " or ".join(map(str, parts))
    if hint in _PLAIN:
        return _PLAIN[hint][0]
    if _is_a(origin, Mapping):
        return f"values by name, each {_described(parts[1])}"
    if _is_a(origin, Sequence):
        count = f"{len(parts)} values" if origin is tuple and ... not in parts else "values"
        return f"a list of {count}, each {_described(parts[0])}"
    return "a path" if hint is Path else "a part with its _target_"
