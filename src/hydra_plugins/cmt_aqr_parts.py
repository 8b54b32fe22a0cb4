"""``-m`` of a command that shares out its work, which is no sweep of trainings."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from cmt_aqr.errors import UserError


class PartsSweeper(BasicSweeper):
    """Hydra's own sweeper; a mistake of the user's, met in a part by whatever launcher, is one sentence."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run all parts.

        Raises:
            SystemExit: with that sentence.
        """
        try:
            return super().sweep(arguments)
        except UserError as error:
            raise SystemExit(f"error: {error}") from error
