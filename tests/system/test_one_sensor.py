"""Whole commands on data of one sensor, with a model of that sensor."""

from pathlib import Path

import pytest

from tests.data.test_one_sensor import without
from tests.helpers.commands import finished
from tests.helpers.ran import metrics_of

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    ("model", "off", "absent"),
    [("tiny_camera", "data.lidar=false", "LIDAR"), ("tiny_lidar", "data.cameras=false", "CAM")],
)
def test_a_run_needs_one_sensor(model: str, off: str, absent: str, small_root: Path, tmp_path: Path) -> None:
    without(small_root, tmp_path / "data", absent, records=True)
    finished(tmp_path, "train", f"model={model}", off, "trainer.max_steps=1", "hydra.run.dir=run")
    finished(tmp_path, "evaluate", "ckpt_path=run", "hydra.run.dir=again")
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "again")
