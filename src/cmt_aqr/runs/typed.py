"""Compares values of a configuration with the types that constructors declare, which Python does not enforce."""

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
"""Packages with reliable type annotations."""

_PLAIN: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool, int, type(None))),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a text", (str,)),
    type(None): ("null", (type(None),)),
}
"""By declared type: its name, and the types of values. A bool may be a number: data.cameras refers to a size."""


def mistyped(plain: Any, place: str) -> Iterator[tuple[str, Any, str]]:
    """Values whose type differs from the one that their class declares: key, value, what it must be.

    Args:
        plain: a resolved configuration with ``_target_``; its parts are checked, too.
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
    """The value, or, of a declared mapping, its items that do not fit."""
    mapping = next((kind for kind in _kinds(hint) if _is_a(get_origin(kind), Mapping)), None)
    if mapping is None or not isinstance(value, Mapping):
        yield key, value, _described(hint)
        return
    item_hint = get_args(mapping)[1]
    for name, item in value.items():
        if not _fits(item, item_hint):
            yield f"{key}.{name}", item, _described(item_hint)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a declared type."""
    return get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_a(origin: Any, kind: type) -> bool:
    return isinstance(origin, type) and issubclass(origin, kind)


@functools.cache
def _hints(target: str) -> dict[str, Any]:
    """Declared types of the parameters of a constructor or function; empty if they are unknown."""
    if not target.startswith(_CHECKED):
        return {}
    hints: dict[str, Any] = {}
    try:
        built = hydra.utils.get_object(target)
        for function in _constructors(built) if isinstance(built, type) else [built]:
            hints = {**typing.get_type_hints(function), **hints}
    except (ImportError, NameError):  # no such class; a type that is imported for type checkers only
        return {}
    return hints


def _constructors(built: type) -> Iterator[Any]:
    """The constructors that a class's settings reach: those of its bases, too, if ``**kwargs`` are passed on."""
    for owner in built.__mro__:
        if "__init__" in vars(owner):
            yield owner.__init__  # type: ignore[misc]  # of this very class
            parameters = inspect.signature(owner.__init__).parameters.values()  # type: ignore[misc]
            if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters):
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
        # A mapping without _target_ stays a mapping and does not become a part.
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
