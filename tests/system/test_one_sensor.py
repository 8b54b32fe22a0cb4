"""Whole commands on data of one sensor, with a model that reads just that."""

from pathlib import Path

import pytest

from cmt_aqr.evaluation.table import read_metrics
from tests.data.test_one_sensor import without
from tests.helpers.commands import run_command

pytestmark = pytest.mark.system


@pytest.mark.parametrize(("model", "absent"), [("tiny_camera", "LIDAR"), ("tiny_lidar", "CAM")])
def test_a_run_needs_one_sensor(model: str, absent: str, small_root: Path, tmp_path: Path) -> None:
    without(small_root, tmp_path / "data", absent, records=True)
    done = run_command(tmp_path, "train", f"model={model}", "trainer.max_steps=1", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    done = run_command(tmp_path, "evaluate", "ckpt_path=run", "hydra.run.dir=again")
    assert done.returncode == 0, done.stderr
    first, again = (read_metrics(tmp_path / run / "metrics.json") for run in ("run", "again"))
    assert first["frames"] == again["frames"] == 3
