"""The learning curve of a run that is resumed in its folder."""

import csv
from pathlib import Path

import pytest

from cmt_aqr.runs.curves import CurveLogger
from cmt_aqr.training.monitor import is_epoch_open


def rows(folder: Path) -> list[tuple[int, str, str]]:
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        return [(int(row["step"]), row["train/loss"], row.get("val/NDS", "")) for row in csv.DictReader(file)]


def log_four_steps(folder: Path) -> None:
    logger = CurveLogger(str(folder))
    for step in range(4):
        logger.log_metrics({"train/loss": float(step)}, step)
    logger.log_metrics({"val/NDS": 0.5}, 3)


@pytest.mark.parametrize(("due", "kept"), [(False, True), (True, False)])
def test_rows_that_are_logged_again_are_dropped(due: bool, kept: bool, tmp_path: Path) -> None:
    log_four_steps(tmp_path)
    assert len(rows(tmp_path)) == 5, "every row is flushed"
    CurveLogger(str(tmp_path)).resume({"global_step": 4, "evaluation_due": due})
    evaluation = [(3, "", "0.5")] if kept else []
    assert rows(tmp_path) == [(step, f"{step}.0", "") for step in range(4)] + evaluation
    logger = CurveLogger(str(tmp_path))
    logger.resume({"global_step": 2})
    logger.log_metrics({"train/loss": 9.0, "other": 1.0}, 2)
    assert rows(tmp_path) == [(0, "0.0", ""), (1, "1.0", ""), (2, "9.0", "")]


@pytest.mark.parametrize(("looks", "kept"), [(0, True), (3, False)])
def test_the_row_of_an_epoch_stays_if_the_checkpoint_is_from_after_its_end(
    looks: int, kept: bool, tmp_path: Path
) -> None:
    """The monitor logs an epoch at its last step, which the resumed run does not repeat."""
    log_four_steps(tmp_path)
    logger = CurveLogger(str(tmp_path))
    logger.resume({"global_step": 4})
    logger.log_metrics({"aqr/epoch/bev/mean": 0.25, "epoch": 0}, 3)
    state = {"epoch_number": 0, "epoch": {"looks": looks}, "warned": []}
    CurveLogger(str(tmp_path)).resume({"global_step": 4}, is_epoch_open({"callbacks": {"AQRMonitor": state}}))
    with (tmp_path / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        values = [row["aqr/epoch/bev/mean"] for row in csv.DictReader(file)]
    assert list(filter(None, values)) == (["0.25"] if kept else [])
