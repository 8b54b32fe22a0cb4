"""The console for tables."""

from rich.console import Console

LOG_WIDTH = 120
"""Columns in a file or a pipe."""


def console(stderr: bool = False) -> Console:
    """A console as wide as the terminal, or, in a file or a pipe, as wide as the tables need."""
    plain = Console(stderr=stderr)
    return plain if plain.is_terminal else Console(width=max(LOG_WIDTH, plain.width), stderr=stderr)
