"""Where tables are printed."""

from rich.console import Console

LOG_WIDTH = 120
"""Columns in a file or a pipe, which have no width of their own."""


def console(stderr: bool = False) -> Console:
    """A console as wide as the terminal; in a file or a pipe, wide enough for every table of ours."""
    plain = Console(stderr=stderr)
    return plain if plain.is_terminal else Console(width=max(LOG_WIDTH, plain.width), stderr=stderr)
