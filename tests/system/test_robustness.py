"""A suite over two checkpoints, as commands: shared out, killed, gone on with, and its page."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.commands import arguments, run_command, run_line

pytestmark = pytest.mark.system


def test_two_checkpoints_under_a_suite(run_folder: Path) -> None:
    for name, model in (("fused", []), ("lidar", ["model=tiny_lidar"])):
        done = run_command(run_folder, "train", "aqr=none", *model, "trainer.max_steps=2", f"hydra.run.dir={name}")
        assert done.returncode == 0, done.stderr
    given = ["ckpt_path=[fused,lidar]", "suite=mome", "out=out", "conditions.mome.occlusion=null"]
    line = [*arguments("robustness", *given), "-m", "part=1/2,2/2"]
    done = run_line(run_folder, line)
    assert done.returncode == 0, done.stderr
    again = run_command(run_folder, "robustness", *given)
    assert again.returncode == 0 and "Written to" in again.stdout
    assert "lidar reads no cameras: 1 of 5 conditions" in again.stdout and " of 11" not in again.stderr
    table = pd.read_csv(run_folder / "out" / "mome.csv")
    assert len(table) == 12 and "58.3" in (run_folder / "out" / "robustness.html").read_text(encoding="utf-8")

    # The same as evaluate.py says, in one process and in two.
    kept = {
        json.loads(path.read_text(encoding="utf-8"))["metrics"]["NDS"]: path
        for path in (run_folder / "out").rglob("fov60.json")
    }
    done = run_command(
        run_folder, "evaluate", "ckpt_path=fused", "eval_fault=mome/fov60", "data.seed=0", "hydra.run.dir=one"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((run_folder / "one" / "metrics.json").read_text(encoding="utf-8"))["NDS"] in kept
    both = [*given, "out=two", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    done = run_command(run_folder, "robustness", *both)
    assert done.returncode == 0, done.stderr
    # Untrained scores are all but equal, and a batch of another size rounds otherwise.
    pd.testing.assert_frame_equal(pd.read_csv(run_folder / "two" / "mome.csv"), table, rtol=0.02)


def test_a_sheet_of_a_frame_needs_no_checkpoint(run_folder: Path) -> None:
    data = ["data.root=data", "data.cache_dir=cache"]
    done = run_command(run_folder, "visualize", "suite=mome", "frames=1", "out=sheet", "dpi=40", *data)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (run_folder / "sheet").iterdir()] == ["mini_val_0001_mome.png"]
