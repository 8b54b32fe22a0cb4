"""Loggers: the packages that they need, and what they leave in the run's folder."""

import functools
import importlib.util
import sys
from pathlib import Path

import pytest

from cmt_aqr.errors import UserError
from cmt_aqr.runs.configuration import _check_packages
from cmt_aqr.runs.loggers import build_loggers, finish_loggers
from tests.helpers.composed import composed as composed_for

FOLDERS = ("callbacks.checkpoint.folder=none", "callbacks.aqr_monitor.folder=none")
composed = functools.partial(composed_for, *FOLDERS)


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(UserError, match=rf"logger={package}: .* -e '\.\[{package}\]' adds it"):
        _check_packages(composed("logger=many"))


def test_wandb_writes_each_run_into_its_folder_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (pip install -e '.[wandb]')")
    # Two runs in one process, as in a sweep.
    for run in ("0", "1"):
        folder = tmp_path / run
        folder.mkdir()
        config = composed("logger=wandb", "~logger.csv", f"logger.wandb.save_dir={folder}")
        (logger,) = build_loggers(config)
        logger.log_metrics({"train/loss": 1.5}, step=3)
        finish_loggers(failed=False)
        (written,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
        content = written.read_bytes()
        assert b"train/loss" in content and b"max_weight_clamp" in content
    assert "wandb" in sys.modules and sys.modules["wandb"].run is None


def test_mlflow_writes_a_file_into_the_run_folder(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (pip install -e '.[mlflow]')")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    changes = [f"logger.mlflow.tracking_uri={uri}", f"logger.mlflow.artifact_location={tmp_path}/mlflow"]
    (logger,) = build_loggers(composed("logger=mlflow", "~logger.csv", *changes))
    logger.log_metrics({"train/loss": 1.5}, step=3)
    logger.finalize("success")
    client = mlflow.MlflowClient(uri)
    (experiment,) = [found for found in client.search_experiments() if found.name == "cmt-aqr"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == {"train/loss": 1.5}
    assert run.data.params["renderer/max_weight_clamp"] == "2.0"
    assert run.info.status == "FINISHED"
    assert (tmp_path / "mlflow.db").is_file()
