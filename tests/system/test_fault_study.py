"""A fault study of two runs, from training to its tables, as commands."""

import json
from pathlib import Path

import pytest
import yaml

from tests.helpers.commands import run_command

pytestmark = pytest.mark.system


def test_two_runs_are_compared_clean_and_with_faults(run_folder: Path) -> None:
    """Training with faults, one evaluation with a fault, and the study, which agrees with both."""
    for name, experiment in (("base", "study_aqr_gaussian"), ("aqr", "study_aqr_kernel_mean")):
        done = run_command(
            run_folder,
            "train",
            f"experiment={experiment}",
            "data.version=v1.0-mini",
            "data.train_split=mini_train",
            "data.val_split=mini_val",
            "trainer.max_epochs=1",
            "seed=1",
            f"hydra.run.dir=study/{name}",
        )
        assert done.returncode == 0, done.stderr
    config = yaml.safe_load((run_folder / "study" / "aqr" / "config.yaml").read_text(encoding="utf-8"))
    assert config["fault"]["share"] == 0.5 and config["aqr"]["renderer"]["render_method"] == "kernel_mean"
    checkpoint = run_folder / "study" / "aqr" / "checkpoints" / "last.ckpt"
    done = run_command(
        run_folder, "evaluate", f"ckpt_path={checkpoint}", "eval_fault=fog", "data.seed=0", "hydra.run.dir=foggy"
    )
    assert done.returncode == 0, done.stderr

    done = run_command(run_folder, "fault_study", "folder=study", "baseline=study_aqr_gaussian")
    assert done.returncode == 0, done.stderr
    for part in ("study_aqr_gaussian", "mAP less that of study_aqr_gaussian with the same seed", "bad"):
        assert part in done.stdout
    kept = {
        condition: json.loads(
            (run_folder / "study" / "aqr" / "faults" / f"{condition}.json").read_text(encoding="utf-8")
        )["metrics"]
        for condition in ("clean", "fog", "night")
    }
    for metrics in kept.values():
        assert 0 < metrics.pop("mean LiDAR weight") < 1 and 0 < metrics.pop("mean camera weight") < 1
    assert kept["clean"] == json.loads((run_folder / "study" / "aqr" / "metrics.json").read_text(encoding="utf-8"))
    assert kept["fog"] == json.loads((run_folder / "foggy" / "metrics.json").read_text(encoding="utf-8"))
    summary = json.loads((run_folder / "study" / "fault_study.json").read_text(encoding="utf-8"))
    assert set(summary["NDS"]["study_aqr_gaussian"]) == {"clean", "fog", "night", "bad"}
    assert summary["NDS"]["study_aqr_kernel_mean"]["fog"]["seeds"]["1"] == kept["fog"]["NDS"]
    again = run_command(run_folder, "fault_study", "folder=study", "baseline=study_aqr_gaussian")
    assert again.stdout == done.stdout
