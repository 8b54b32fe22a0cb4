"""``-m`` of a command that shares out its work, which is no sweep of trainings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from omegaconf import OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.runs.console import console


class PartsSweeper(BasicSweeper):
    """Hydra's own sweeper; a mistake of the user's, met in a part by whatever launcher, is one sentence."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run all parts.

        Raises:
            SystemExit: after the last one, with what went wrong in those that failed.
        """
        try:
            batches = super().sweep(arguments)
        except SystemExit as ended:
            if ended.code == 1:  # the launcher has said which
                print("error: a part ended without a result; the same command resumes it", file=sys.stderr)
            raise
        results = [job.return_value for batch in batches for job in batch]
        failed = dict.fromkeys(str(result) for result in results if isinstance(result, UserError))
        if failed:
            raise SystemExit("\n".join(f"error: {sentence}" for sentence in failed))
        self._tell_where(len(results))
        return batches

    def _tell_where(self, parts: int) -> None:
        """Say where the work is, if the parts printed into files and not here."""
        assert self.config is not None  # Hydra has set this up
        logs = OmegaConf.select(self.config, "hydra.launcher.submitit_folder")
        if logs is None:
            return
        console().print(
            f"{parts} parts are done: results, and tables once there are all, are in {self.config.out}; what the "
            f"parts printed is in {Path(logs).parent}",
            soft_wrap=True,
        )
