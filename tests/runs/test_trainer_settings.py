"""What the Trainer is given, and Lightning's own sentences about it."""

import types
from typing import Any

import pytest
from pytorch_lightning.callbacks import ProgressBar

from cmt_aqr.errors import UserError
from cmt_aqr.runs.precision import build_trainer
from cmt_aqr.runs.trainer_settings import check_shares, check_trainer
from cmt_aqr.training.run import build_callbacks
from tests.helpers.composed import composed


@pytest.mark.parametrize(
    "override",
    [
        "+trainer.max_time=soon",
        "+trainer.gradient_clip_algorithm=foo",
        "+trainer.profiler=foo",
        "+trainer.limit_train_batches=-1",
        "+trainer.val_check_interval=1.5",
    ],
)
def test_a_refusal_of_lightning_begins_with_the_key(override: str) -> None:
    with pytest.raises(UserError, match=rf"^{override[1:].replace('.', '[.]')}: "):
        build_trainer(composed("trainer=cpu", override))


def test_what_lightning_offers_besides_passes() -> None:
    settings = ("max_time=00:00:10:00", "deterministic=warn", "limit_train_batches=3", "limit_val_batches=0.5")
    more = ("profiler=simple", "devices=[0]", "min_epochs=2", "val_check_interval=0.5", "detect_anomaly=true")
    check_trainer(composed("trainer.gradient_clip_val=1", *(f"+trainer.{item}" for item in settings)).trainer)
    others = [f"{'' if item.startswith('devices') else '+'}trainer.{item}" for item in more]
    check_trainer(composed(*others).trainer)


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
def test_a_share_of_no_batch_is_refused(split: str, settings: dict[str, Any], named: str | None) -> None:
    trainer: Any = types.SimpleNamespace(**{"check_val_every_n_epoch": 1, **settings})
    if named is None:
        check_shares(trainer, split, 4)
        return
    with pytest.raises(UserError, match=named):
        check_shares(trainer, split, 4)


def test_no_progress_bar_means_none() -> None:
    def bars(*overrides: str) -> int:
        return sum(isinstance(built, ProgressBar) for built in build_callbacks(composed(*overrides)).values())

    folder = "callbacks.checkpoint.folder=run", "callbacks.aqr_monitor.folder=run"
    assert bars(*folder) == 1
    assert bars(*folder, "+trainer.enable_progress_bar=false") == 0
