"""Learning curves in a CSV file, which a run resumed in its folder continues."""

import csv
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cmt_aqr.files import write_table

EPOCH = "aqr/epoch"
"""Prefix of an epoch's numbers, which are logged in the row of its last step."""


class CurveLogger(CSVLogger):
    """Lightning's ``CSVLogger``, which keeps the existing rows of a run resumed in its folder."""

    def __init__(
        self, save_dir: str, name: str = "csv", version: str = "", flush_logs_every_n_steps: int = 1
    ) -> None:
        super().__init__(save_dir, name, version, flush_logs_every_n_steps=flush_logs_every_n_steps)

    @rank_zero_only
    def resume(self, checkpoint: dict[str, Any], epoch_open: bool = False) -> None:
        """Keep the rows up to a checkpoint and append to them; the resumed run writes the later ones again.

        Args:
            checkpoint: that the run resumes from.
            epoch_open: whether the resumed run logs the numbers of the checkpoint's epoch.
        """
        Path(self.log_dir).mkdir(parents=True, exist_ok=True)
        self._experiment = _ContinuedWriter(self.log_dir, checkpoint, epoch_open)


class _ContinuedWriter(ExperimentWriter):
    """Starts with the rows of the existing file."""

    def __init__(self, log_dir: str, checkpoint: dict[str, Any], epoch_open: bool) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if not _is_written_again(row, checkpoint, epoch_open)]
            self.metrics_keys = sorted(reader.fieldnames or [])
        write_table(path, rows, self.metrics_keys)

    def _check_log_dir_exists(self) -> None:
        """Do nothing: Lightning's would delete the file."""


def _is_written_again(row: dict[str, str], checkpoint: dict[str, Any], epoch_open: bool) -> bool:
    """Whether the resumed run writes this row."""
    last = checkpoint["global_step"] - 1
    if int(row["step"]) != last:
        return int(row["step"]) > last
    filled = {key for key, value in row.items() if value}
    if any(key.startswith(("val/", "aqr/val/")) for key in filled):
        return bool(checkpoint.get("evaluation_due", False))
    return epoch_open and any(key.startswith(f"{EPOCH}/") for key in filled)
