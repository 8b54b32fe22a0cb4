"""Which checkpoint a run resumes from, and which changes are allowed."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.runs.checkpoints import AtomicCheckpointIO
from cmt_aqr.runs.resuming import (
    changes,
    check_callbacks,
    checkpoint_path,
    configuration,
    configuration_to_evaluate,
)
from cmt_aqr.training.optimization import OneCycle
from tests.helpers.composed import composed

ROOT = ["data.root=somewhere", "data.cache_dir=cache", "~callbacks.checkpoint", "~callbacks.aqr_monitor"]
ROOT += ["logger=csv", "~logger.csv"]


def saved(path: Path, config: DictConfig | None = None) -> Path:
    plain = OmegaConf.to_container(config, resolve=True) if config is not None else {}
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "global_step": 1, "config": plain}, path)
    return path


def test_a_file_a_folder_or_the_run_s_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint_path(None, tmp_path) is None
    assert checkpoint_path("some.ckpt", tmp_path) == Path("some.ckpt")
    with caplog.at_level("INFO"):
        assert checkpoint_path("auto", tmp_path) is None
    assert f"none in {tmp_path}, a new run" in caplog.text
    with pytest.raises(UserError, match="no checkpoint in this folder"):
        checkpoint_path(str(tmp_path), tmp_path)
    with pytest.raises(UserError, match=r"add hydra\.run\.dir=outputs/my_run"):
        checkpoint_path("auto", tmp_path, folder_given=False)
    last = saved(tmp_path / "checkpoints" / "last.ckpt")
    assert checkpoint_path("auto", tmp_path) == checkpoint_path(str(tmp_path), Path()) == last


def test_changes_that_keep_the_training_are_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [
        *("trainer.max_epochs=20", "trainer.check_val_every_n_epoch=1", "data.num_workers=7"),
        *("data.root=elsewhere", "evaluation.max_detections=100", "renderer.max_weight_clamp=1.5", "name=other"),
    ]
    last = saved(tmp_path / "last.ckpt", composed(*ROOT))
    merged = configuration(composed(*ROOT, *overrides, f"ckpt_path={last}"), overrides, last)
    printed = capsys.readouterr().out
    for key, value in (item.split("=") for item in overrides):
        assert str(OmegaConf.select(merged, key)) == value
        assert (key in printed) == (key != "name"), "changes of the training are printed"


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.queries=30", "weights and optimiser state"),
        ("aqr=none", "weights and optimiser state"),
        ("optimizer.lr=1e-5", "optimiser's state"),
        ("data.batch_size=3", "number of frames per step"),
        ("trainer.accumulate_grad_batches=2", "number of frames per step"),
        ("data.train_split=mini_val", "training frames"),
        ("data.scene_augmentation=null", "training frames"),
        ("seed=3", "order of the frames"),
        ("training.denoising.groups=3", "the loss"),
        ("trainer.precision=bf16-mixed", "would not be the same"),
    ],
)
def test_changes_of_the_training_are_refused(override: str, reason: str, tmp_path: Path) -> None:
    last = saved(tmp_path / "last.ckpt", composed(*ROOT))
    with pytest.raises(UserError, match=reason) as error:
        configuration(composed(*ROOT, override, f"ckpt_path={last}"), [override], last)
    assert str(error.value).startswith(override.split("=")[0]) and f"weights={last}" in str(error.value)


def test_the_same_command_again_changes_nothing(tmp_path: Path) -> None:
    """A batch job repeats its command, with the experiment and weights that the run started with."""
    line = [*ROOT, "experiment=aqr_aggressive", "optimizer.lr=1e-4", "weights=w.pth", "ckpt_path=auto"]
    first = configuration(composed(*line), line, None)
    assert first.weights == "w.pth" and first.ckpt_path is None
    last = saved(tmp_path / "last.ckpt", first)
    again = configuration(composed(*line), line, last)
    assert again.weights is None and again.ckpt_path == str(last)
    assert changes(OmegaConf.to_container(first, resolve=True), again) == []  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"lr_mult\.aqr_weight_generator: 0\.8 -> 0\.5"):
        configuration(composed(*ROOT, "experiment=aqr_conservative"), ["experiment=aqr_conservative"], last)


def test_a_class_that_old_versions_did_not_name_is_no_change() -> None:
    """Versions before 2026-11-25 built optimiser and multipliers without ``_target_``."""
    config = composed(*ROOT)
    old: Any = OmegaConf.to_container(config, resolve=True)
    for group in ("optimizer", "lr_mult"):
        old[group] = {key: value for key, value in old[group].items() if key not in ("_target_", "_convert_")}
    assert changes(old, config) == []
    old["lr_mult"]["_target_"] = "another"
    assert [change.key for change in changes(old, config)] == ["lr_mult._target_"]


def one_cycle(steps: int, done: int) -> OneCycle:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1, betas=(0.95, 0.99))
    schedule = OneCycle(optimizer, steps, peak=6.0, final=1e-4, warmup=0.4, lowest_beta=0.8)
    for _ in range(done):
        optimizer.step()
        schedule.step()
    return schedule


@pytest.mark.parametrize("steps", [10, 20])
def test_one_cycle_has_the_length_of_the_resumed_run(steps: int) -> None:
    before, resumed, uninterrupted = one_cycle(10, 5), one_cycle(steps, 0), one_cycle(steps, 5)
    resumed.optimizer.load_state_dict(before.optimizer.state_dict())
    resumed.load_state_dict(before.state_dict())
    for key in ("lr", "betas"):
        assert resumed.optimizer.param_groups[0][key] == uninterrupted.optimizer.param_groups[0][key]
    for schedule in (resumed, uninterrupted):
        schedule.optimizer.step()
        schedule.step()
    assert resumed.get_last_lr() == uninterrupted.get_last_lr()


@pytest.mark.parametrize(
    "name", ["StochasticWeightAveraging", "WeightAveraging", "BackboneFinetuning", "LearningRateFinder"]
)
def test_a_callback_that_changes_the_training_is_refused(name: str) -> None:
    settings = {"swa_lrs": 1e-4} if name == "StochasticWeightAveraging" else {}
    callback = getattr(pytorch_lightning.callbacks, name)(**settings)
    with pytest.raises(UserError, match=rf"callbacks\.mine.*{name}.*~callbacks\.mine"):
        check_callbacks({"mine": callback})


def test_an_unknown_callback_causes_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Other(pytorch_lightning.Callback):
        pass

    known = pytorch_lightning.callbacks.EarlyStopping("NDS"), pytorch_lightning.callbacks.LearningRateMonitor()
    check_callbacks({"other": Other(), "stop": known[0], "rate": known[1]})
    (message,) = [record.getMessage() for record in caplog.records]
    assert "callbacks.other" in message and "Other" in message


@pytest.mark.parametrize("override", [None, "renderer=base", "renderer.max_weight_clamp=null"])
def test_an_overridden_clamp_replaces_the_schedule_in_an_evaluation(override: str | None, tmp_path: Path) -> None:
    last = saved(tmp_path / "last.ckpt", composed(*ROOT, "clamp_schedule=progressive"))
    overrides = [override] if override else []
    composition = composed(*overrides, f"ckpt_path='{last}'", script="evaluate")
    config = configuration_to_evaluate(composition, overrides, tmp_path)
    assert (config.clamp_schedule.milestones is None) == bool(override)
