"""A command line before Hydra reads it: flags and overrides, and text that Hydra's grammar has no place for."""

from __future__ import annotations

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
"""A quoted text, or a text up to the next character that means something to Hydra."""

_UNKNOWN_TO_HYDRA = re.compile(r"[^\x20-\x7e]|[#!&;<>^`~]")


def read_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's flags, and the overrides among them in their order, made readable for Hydra; none with ``--help``.

    A flag that Hydra does not know, and a value that a flag does not take, is a :class:`UserError`.
    """
    flags = _parse(arguments)
    helps = flags.help or flags.hydra_help  # the same whatever is overridden
    return flags, [] if helps else [readable(item) for item in flags.overrides]


def in_order(arguments: Sequence[str]) -> list[str]:
    """The same command line with the overrides first: Hydra refuses overrides on both sides of a flag."""
    flags, left = [], list(_parse(arguments).overrides)
    for item in arguments:
        if item in left:
            left.remove(item)
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
    """An override with ``~`` written out, and quotes around text that can only be text.

    Hydra's grammar takes neither ``~`` nor letters outside ASCII without quotes. What has brackets, commas or
    ``=`` in it may mean something else than its text, and stays as it is.
    """
    key, equals, value = override.partition("=")
    return key + equals + _PIECE.sub(_readable_piece, value)


def _readable_piece(match: re.Match[str]) -> str:
    quoted, plain = match["quoted"], match["plain"]
    if quoted is not None:
        return quoted[0] + home_written_out(quoted[1:-1]) + quoted[0]
    text = home_written_out(plain)
    return quote(text) if _UNKNOWN_TO_HYDRA.search(text) else text


def home_written_out(path: str) -> str:
    """A path with the folder that ``~`` or ``~USER`` in front stands for; one of no such user stays."""
    return os.path.expanduser(path)  # noqa: PTH111  # a Path would drop a slash at the end, and raise


def quote(text: str) -> str:
    """A text in double quotes, as Hydra's grammar reads it."""
    return '"' + re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + found[2].replace('"', r"\""), text) + '"'


def to_type(override: str) -> str:
    """What to type in a shell so that the value of an override is read as text."""
    key, _, value = override.partition("=")
    return shlex.quote(f"{key}={quote(value)}")


def use_utf8() -> None:
    """Start this process anew in Python's UTF-8 mode where the locale, as ``LC_ALL=C``, knows ASCII alone.

    There, Python can neither name a file with another letter nor print one; and what it starts inherits the mode.
    """
    if sys.getfilesystemencoding() == "ascii":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
