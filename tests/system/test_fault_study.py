"""A fault study of two runs, from training to its tables, as commands."""

from pathlib import Path

import pytest
import yaml

from tests.helpers.commands import finished
from tests.helpers.ran import from_json, metrics_of

pytestmark = pytest.mark.system

MINI = ("data.version=v1.0-mini", "data.train_split=mini_train", "data.val_split=mini_val")


def test_two_runs_are_compared_clean_and_with_faults(run_folder: Path) -> None:
    """The study must agree with the runs' own metrics and with an evaluation with a fault."""
    for name, experiment in (("base", "study_aqr_gaussian"), ("aqr", "study_aqr_kernel_mean")):
        line = [f"experiment={experiment}", *MINI, "trainer.max_epochs=1", "seed=1"]
        finished(run_folder, "train", *line, f"hydra.run.dir=study/{name}")
    study, aqr = run_folder / "study", run_folder / "study" / "aqr"
    config = yaml.safe_load((aqr / "config.yaml").read_text(encoding="utf-8"))
    assert config["fault"]["share"] == 0.5 and config["aqr"]["renderer"]["render_method"] == "kernel_mean"
    finished(run_folder, "evaluate", f"ckpt_path={aqr}", "eval_fault=fog", "data.seed=0", "hydra.run.dir=foggy")

    done = finished(run_folder, "fault_study", "folder=study", "baseline=study_aqr_gaussian")
    for part in ("study_aqr_gaussian", "mAP less that of study_aqr_gaussian with the same seed", "bad"):
        assert part in done.stdout
    metrics = {
        condition: from_json(aqr / "faults" / f"{condition}.json")["metrics"]
        for condition in ("clean", "fog", "night")
    }
    for values in metrics.values():
        assert 0 < values["mean LiDAR weight"] < 1 and 0 < values["mean camera weight"] < 1
    assert metrics_of(aqr).items() <= metrics["clean"].items()
    assert metrics_of(run_folder / "foggy").items() <= metrics["fog"].items()
    summary = from_json(study / "fault_study.json")
    assert set(summary["NDS"]["study_aqr_gaussian"]) == {"clean", "fog", "night", "bad"}
    assert summary["NDS"]["study_aqr_kernel_mean"]["fog"]["seeds"]["1"] == metrics["fog"]["NDS"]
    again = finished(run_folder, "fault_study", "folder=study", "baseline=study_aqr_gaussian")
    assert again.stdout == done.stdout
