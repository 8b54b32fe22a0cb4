"""Prepares a command line for Hydra: order of flags and overrides, and text that Hydra's grammar does not take."""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from cmt_aqr.errors import UserError

_PIECE = re.compile(r"""(?P<quoted>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?P<plain>[^,\[\]{}():="'\n]+)""")
"""A quoted text, or a text up to the next character with a meaning in Hydra's grammar."""

_OUTSIDE_GRAMMAR = re.compile(r"[^\x20-\x7e]|[#!&;<>^`~]")


def read_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split a command line into Hydra's flags and the overrides, in their order and made readable for Hydra.

    With ``--help`` the overrides are dropped: the help is the same for all of them.

    Raises:
        UserError: for a flag that Hydra does not know, or a value that a flag does not take.
    """
    flags = _parse(arguments)
    return flags, [] if flags.help or flags.hydra_help else [readable(item) for item in flags.overrides]


def in_order(arguments: Sequence[str]) -> list[str]:
    """The same command line, overrides first: Hydra refuses overrides on both sides of a flag."""
    flags, overrides = [], list(_parse(arguments).overrides)
    for item in arguments:
        if item in overrides:
            overrides.remove(item)
        else:
            flags.append(item)
    return [*read_arguments(arguments)[1], *flags]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; --hydra-help lists the flags")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(list(arguments))


def readable(override: str) -> str:
    """An override with ``~`` expanded, and quotes around text that can only be text.

    Hydra's grammar takes neither ``~`` nor letters outside ASCII without quotes. Text with brackets, commas or
    ``=`` may mean something else, and stays as it is.
    """
    key, equals, value = override.partition("=")
    return key + equals + _PIECE.sub(_readable_piece, value)


def _readable_piece(match: re.Match[str]) -> str:
    quoted, plain = match["quoted"], match["plain"]
    if quoted is not None:
        return quoted[0] + expand_home(quoted[1:-1]) + quoted[0]
    text = expand_home(plain)
    return quote(text) if _OUTSIDE_GRAMMAR.search(text) else text


def expand_home(path: str) -> str:
    """Expand ``~`` or ``~USER`` at the start of a path; the name of an unknown user stays."""
    return os.path.expanduser(path)  # noqa: PTH111  # a Path would drop a slash at the end, and raise


def quote(text: str) -> str:
    """A text in double quotes, escaped for Hydra's grammar."""
    return '"' + re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + match[2].replace('"', r"\""), text) + '"'


def to_type(override: str) -> str:
    """What to type in a shell so that Hydra reads the value of an override as text."""
    key, _, value = override.partition("=")
    return shlex.quote(f"{key}={quote(value)}")


def use_utf8() -> None:
    """Restart this process in Python's UTF-8 mode where the locale, as ``LC_ALL=C``, is limited to ASCII.

    There, Python can neither print other letters nor open files with them; child processes inherit the mode.
    """
    if sys.getfilesystemencoding() == "ascii":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
