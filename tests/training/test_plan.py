"""The plan that a run prints before it starts."""

import logging
from pathlib import Path

import pytest

from cmt_aqr.training.plan import RunPlan
from tests.helpers.small_data import datamodule
from tests.helpers.small_detector import small_module
from tests.helpers.trainers import quiet_trainer


def test_the_plan_of_a_run(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = datamodule(small_root, tmp_path, resampling="cbgs", batch_size=1, image_size=(64, 160))
    data.prepare_data()
    module = small_module("optimizer.lr=2e-4", "optimizer.lr_for_batch=4", "optimizer.peak=6")
    module.metric = None
    trainer = quiet_trainer(max_steps=9, limit_val_batches=0, callbacks=[RunPlan(steps=2)])
    with caplog.at_level(logging.INFO):
        trainer.fit(module, datamodule=data)
    printed = " ".join(capsys.readouterr().out.split())
    frames = int(trainer.num_training_batches)
    for part in (
        f"{frames:,}, drawn by cbgs from {len(data.dataset('train'))}",
        "9 of 1 frames",
        "5e-05 (0.0002 for 4 frames), up to 0.0003 at step",
        "GB of checkpoints",
    ):
        assert part in printed, part
    (message,) = [record.getMessage() for record in caplog.records if "hours left" in record.getMessage()]
    assert ": 2 steps of" in message
