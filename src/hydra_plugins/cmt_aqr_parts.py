"""``-m`` of a command that distributes its work, which is no sweep of trainings."""

import sys
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from omegaconf import OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.runs.console import console


class PartsSweeper(BasicSweeper):
    """Hydra's own sweeper; a user's mistake in a part is one sentence, with any launcher."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run all parts.

        Raises:
            SystemExit: after the last one, with the errors of failed parts.
        """
        try:
            batches = super().sweep(arguments)
        except SystemExit as ended:
            if ended.code == 1:  # the launcher has logged which one
                print("error: a part ended without a result; the same command resumes it", file=sys.stderr)
            raise
        results = [job.return_value for batch in batches for job in batch]
        failed = dict.fromkeys(str(result) for result in results if isinstance(result, UserError))
        if failed:
            raise SystemExit("\n".join(f"error: {sentence}" for sentence in failed))
        self._print_places(len(results))
        return batches

    def _print_places(self, parts: int) -> None:
        """Print where the results are, if the parts printed into files."""
        assert self.config is not None  # set by Hydra
        logs = OmegaConf.select(self.config, "hydra.launcher.submitit_folder")
        if logs is None:
            return
        console().print(
            f"{parts} parts are done: results, and tables when all are complete, are in {self.config.out}; the "
            f"output of the parts is in {Path(logs).parent}",
            soft_wrap=True,
        )
