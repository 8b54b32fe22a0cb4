"""A suite for two checkpoints, as commands: in parts, resumed, with its page; and its contact sheet."""

from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.commands import PAIR, finished
from tests.helpers.ran import from_json, metrics_of

pytestmark = pytest.mark.system


def without(*conditions: str) -> list[str]:
    """Overrides that leave conditions out."""
    return [f"conditions.mome.{name}=null" for name in ("occlusion", "beams4_horizon", *conditions)]


def test_two_checkpoints_under_a_suite(run_folder: Path, trained: tuple[Path, str]) -> None:
    (run_folder / "fused").symlink_to(trained[0])
    finished(run_folder, "train", "aqr=none", "model=tiny_lidar", "trainer.max_steps=1", "hydra.run.dir=lidar")
    suite = ["ckpt_path=[fused,lidar]", "suite=mome", "out=out", *without()]
    finished(run_folder, "robustness", *suite, "-m", "part=1/2,2/2")
    again = finished(run_folder, "robustness", *suite)
    assert "Written to" in again.stdout
    assert "lidar reads no cameras: 1 of 4 conditions" in again.stdout and " of 9" not in again.stderr
    table = pd.read_csv(run_folder / "out" / "mome.csv")
    assert len(table) == 10 and "58.3" in (run_folder / "out" / "robustness.html").read_text(encoding="utf-8")

    # evaluate.py gives the same numbers, in one process and in two.
    scores = {from_json(path)["metrics"]["NDS"] for path in (run_folder / "out").rglob("fov60.json")}
    fault = ["eval_fault=mome/fov60", "data.seed=0", "hydra.run.dir=one"]
    finished(run_folder, "evaluate", "ckpt_path=fused", *fault)
    assert metrics_of(run_folder / "one")["NDS"] in scores
    one = without("lidar_drop", "object_failure", "view_drop")  # each condition starts two processes
    finished(run_folder, "robustness", "ckpt_path=fused", "suite=mome", *one, "out=two", *PAIR)
    two = pd.read_csv(run_folder / "two" / "mome.csv")
    index, numbers = ["model", "condition"], ["NDS", "mAP", "RA"]
    assert sorted(two.condition) == ["clean", "fov60"]
    # Untrained scores are nearly equal, and the size of the batch changes rounding errors.
    expected = two[index].merge(table)[numbers]
    pd.testing.assert_frame_equal(two[numbers], expected, rtol=0.02)


def test_a_contact_sheet_needs_no_checkpoint(run_folder: Path) -> None:
    data = ["data.root=data", "data.cache_dir=cache"]
    finished(run_folder, "visualize", "suite=mome", "frames=1", "out=sheet", "dpi=40", *data)
    assert [path.name for path in (run_folder / "sheet").iterdir()] == ["mini_val_0001_mome.png"]
