"""Settings of the Trainer, and Lightning's own errors about them."""

import types
from typing import Any

import pytest
from pytorch_lightning.callbacks import ProgressBar

from cmt_aqr.errors import UserError
from cmt_aqr.runs.precision import build_trainer
from cmt_aqr.runs.trainer_settings import check_batch_limits, check_trainer
from cmt_aqr.training.run import build_callbacks
from tests.helpers.composed import composed


@pytest.mark.parametrize(
    "override",
    [
        "max_time=soon",
        "gradient_clip_algorithm=foo",
        "profiler=foo",
        "limit_train_batches=-1",
        "val_check_interval=1.5",
    ],
)
def test_an_error_of_lightning_begins_with_the_key(override: str) -> None:
    with pytest.raises(UserError, match=rf"^trainer[.]{override}: "):
        build_trainer(composed("trainer=cpu", f"+trainer.{override}"))


def test_other_settings_of_lightning_pass() -> None:
    settings = ("max_time=00:00:10:00", "deterministic=warn", "limit_train_batches=3", "limit_val_batches=0.5")
    more = ("profiler=simple", "min_epochs=2", "val_check_interval=0.5", "detect_anomaly=true")
    for items in (settings, more):
        overrides = [f"+trainer.{item}" for item in items]
        check_trainer(composed("trainer.gradient_clip_val=1", "trainer.devices=[0]", *overrides).trainer)


@pytest.mark.parametrize(
    ("split", "settings", "named"),
    [
        ("train", {"limit_train_batches": 0.1}, "trainer.limit_train_batches=0.1: of 4 batches"),
        ("val", {"limit_val_batches": 0.2}, "trainer.limit_val_batches=0.2: of 4 batches"),
        ("train", {"val_check_interval": 100}, "trainer.val_check_interval=100: an epoch has 4 batches"),
        ("train", {"val_check_interval": 3, "limit_train_batches": 2}, "val_check_interval=3: an epoch has 2"),
        ("train", {"val_check_interval": 0.5, "limit_train_batches": 0.25}, None),
        ("train", {"val_check_interval": 100, "check_val_every_n_epoch": None}, None),
        ("train", {"val_check_interval": 1.0, "limit_train_batches": 9}, None),
    ],
)
def test_a_fraction_without_a_batch_is_refused(split: str, settings: dict[str, Any], named: str | None) -> None:
    trainer: Any = types.SimpleNamespace(**{"check_val_every_n_epoch": 1, **settings})
    if named is None:
        check_batch_limits(trainer, split, 4)
        return
    with pytest.raises(UserError, match=named):
        check_batch_limits(trainer, split, 4)


@pytest.mark.parametrize(("overrides", "bars"), [([], 1), (["+trainer.enable_progress_bar=false"], 0)])
def test_the_progress_bar_can_be_disabled(overrides: list[str], bars: int) -> None:
    folders = ("callbacks.checkpoint.folder=run", "callbacks.aqr_monitor.folder=run")
    callbacks = build_callbacks(composed(*folders, *overrides)).values()
    assert sum(isinstance(callback, ProgressBar) for callback in callbacks) == bars
