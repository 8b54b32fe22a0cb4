"""A suite over two checkpoints, as commands: shared out, killed, resumed, and its page."""

from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.commands import PAIR, arguments, finished, run_anew
from tests.helpers.ran import from_json, metrics_of
from tests.helpers.slurm import SLURM, needs_slurm

pytestmark = pytest.mark.system


def without(*conditions: str) -> list[str]:
    """Overrides that leave conditions out."""
    return [f"conditions.mome.{name}=null" for name in ("occlusion", "beams4_horizon", *conditions)]


def test_two_checkpoints_under_a_suite(run_folder: Path) -> None:
    for name, model in (("fused", []), ("lidar", ["model=tiny_lidar"])):
        finished(run_folder, "train", "aqr=none", *model, "trainer.max_steps=2", f"hydra.run.dir={name}")
    given = ["ckpt_path=[fused,lidar]", "suite=mome", "out=out", *without()]
    finished(run_folder, "robustness", *given, "-m", "part=1/2,2/2")
    again = finished(run_folder, "robustness", *given)
    assert "Written to" in again.stdout
    assert "lidar reads no cameras: 1 of 4 conditions" in again.stdout and " of 9" not in again.stderr
    table = pd.read_csv(run_folder / "out" / "mome.csv")
    assert len(table) == 10 and "58.3" in (run_folder / "out" / "robustness.html").read_text(encoding="utf-8")

    # The same as evaluate.py says, in one process and in two.
    kept = {from_json(path)["metrics"]["NDS"] for path in (run_folder / "out").rglob("fov60.json")}
    fault = ["eval_fault=mome/fov60", "data.seed=0", "hydra.run.dir=one"]
    finished(run_folder, "evaluate", "ckpt_path=fused", *fault)
    assert metrics_of(run_folder / "one")["NDS"] in kept
    one = without("lidar_drop", "object_failure", "view_drop")  # each condition starts two processes anew
    finished(run_folder, "robustness", "ckpt_path=fused", "suite=mome", *one, "out=two", *PAIR)
    two = pd.read_csv(run_folder / "two" / "mome.csv")
    index, numbers = ["model", "condition"], ["NDS", "mAP", "RA"]
    assert len(two) == 2
    # Untrained scores are all but equal, and a batch of another size rounds otherwise.
    expected = two[index].merge(table)[numbers]
    pd.testing.assert_frame_equal(two[numbers], expected, rtol=0.02)


@needs_slurm
def test_parts_are_slurm_jobs_that_share_a_folder(run_folder: Path) -> None:
    finished(run_folder, "train", "aqr=none", "trainer.max_steps=2", "hydra.run.dir=for_slurm")
    given = ["ckpt_path=for_slurm", "suite=mome", "out=by_slurm", *without("object_failure", "view_drop")]
    slurm = ["-m", "part=1/2,2/2", *SLURM, "hydra.launcher.timeout_min=10"]
    done = run_anew(run_folder, arguments("robustness", *given, *slurm))
    assert done.returncode == 0 and "2 parts are done" in done.stdout, done.stdout + done.stderr
    table = pd.read_csv(run_folder / "by_slurm" / "mome.csv")
    assert sorted(table.condition) == ["clean", "fov60", "lidar_drop"]
    assert (run_folder / "by_slurm" / "robustness.html").exists()


def test_a_sheet_of_a_frame_needs_no_checkpoint(run_folder: Path) -> None:
    data = ["data.root=data", "data.cache_dir=cache"]
    finished(run_folder, "visualize", "suite=mome", "frames=1", "out=sheet", "dpi=40", *data)
    assert [path.name for path in (run_folder / "sheet").iterdir()] == ["mini_val_0001_mome.png"]
