"""What the monitor logs, prints and writes in short fits of a small model, and what it costs between looks."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from cmt_aqr.aqr.statistics import output_statistics
from cmt_aqr.outputs import AQROutput
from cmt_aqr.structures import Batch
from cmt_aqr.training.module import DetectorModule
from cmt_aqr.training.monitor import AQRMonitor
from cmt_aqr.training.observation import AttentionProbe, Summary
from tests.helpers.ran import from_json, logged
from tests.helpers.small_detector import damaged, damaged_frames, small_batch, small_module
from tests.helpers.trainers import quiet_trainer

BIAS = ("aqr=attention_bias", "model.heads=2", "training.criterion.signal_weight=1")
KEYS = {"mean", "std", "min", "max", "max_over_mean", "clamped", "drawn", "relative_change"}


def frames(count: int) -> DataLoader[Batch]:
    batches = [small_batch(3, seed=number, truth_seed=number) for number in range(count)]
    return DataLoader(cast(Any, batches), batch_size=None)


def fit(folder: Path, module: DetectorModule, steps: int, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    loggers = [CSVLogger(folder, "csv", ""), TensorBoardLogger(folder, "tensorboard", "")]
    shown = {"logger": loggers, "log_every_n_steps": 1, "callbacks": list(callbacks)}
    trainer = quiet_trainer(**{"max_epochs": 1, "limit_train_batches": steps, **shown, **settings})
    trainer.fit(module, frames(steps))
    return trainer


def test_a_fit_is_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = small_module()
    before = {name: value.clone() for name, value in module.model.aqr.generator.named_parameters()}  # type: ignore[union-attr]
    monitor = AQRMonitor(tmp_path, every_n_steps=2, histogram_bins=10)
    fit(tmp_path, module, 5, monitor)
    printed = capsys.readouterr().out

    for name in ("bev", "camera"):
        for key in KEYS:
            assert list(logged(tmp_path, f"aqr/{name}/{key}")) == [0, 2, 4]
    gradients = logged(tmp_path, "aqr/generator_gradient")
    assert list(gradients) == [0, 2, 4] and all(value > 0 for value in gradients.values())
    moved = [
        name
        for name, value in module.model.aqr.generator.named_parameters()  # type: ignore[union-attr]
        if not torch.equal(value, before[name])
    ]
    assert len(moved) == len(before)

    # The first step, computed here: same seed, same weights.
    fresh = small_module()
    fresh.on_train_batch_start(small_batch(3), 0)
    seen = output_statistics(AQROutput(**fresh.training_step(small_batch(3), 0)["aqr"]), 0.0)
    for key, value in seen.items():
        assert logged(tmp_path, f"aqr/{key}")[0] == pytest.approx(value.item(), rel=1e-6), key

    written = from_json(tmp_path / "map_statistics.json")
    assert set(written) == {"bev", "camera", "attention"}
    assert 0 < written["attention"]["mean"] < 1
    for name, values in written.items():
        assert set(values) >= KEYS if name != "attention" else set(values) == {"mean", "std", "min", "max"}
        for key, value in values.items():
            looks = logged(tmp_path, f"aqr/{name}/{key}").values()
            one = {"max": max, "min": min}.get(key.split("_")[0], lambda items: sum(items) / len(items))
            assert value == pytest.approx(one(list(looks)), rel=1e-6), (name, key)
            assert logged(tmp_path, f"aqr/epoch/{name}/{key}") == {4: pytest.approx(value)}
    assert "epoch 0 (observations: 3)" in printed
    assert f"{written['camera']['max']:.4g}" in printed and f"{written['bev']['drawn']:.1%}" in printed

    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"histograms": 0}).Reload()
    for sensor in ("lidar", "camera"):
        histograms = events.Histograms(f"aqr/weights/{sensor}")
        assert [event.step for event in histograms] == [0, 2, 4]
        assert 0 < histograms[0].histogram_value.num <= 20
    assert events.Scalars("aqr/camera/max")[0].step == 0


def test_between_looks_the_monitor_does_nothing_to_any_tensor(tmp_path: Path) -> None:
    """No operation on a tensor: nothing to compute and no device to wait for."""

    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.operations += 1
            return func(*args, **(kwargs or {}))

    module, monitor = small_module(), AQRMonitor(tmp_path, every_n_steps=10)
    outputs = module.training_step(small_batch(2), 0)
    outputs["loss"].backward()
    batch = small_batch(2)
    counted = []
    for step in (7, 10):
        at_step = SimpleNamespace(global_step=step, is_global_zero=True, loggers=[], current_epoch=0)
        trainer = cast(pl.Trainer, at_step)
        with Count() as count:
            monitor.on_train_batch_start(trainer, module, batch, 3)
            monitor.on_before_optimizer_step(trainer, module, cast(Any, None))
            at_step.global_step = step + 1
            monitor.on_train_batch_end(trainer, module, outputs, batch, 3)
        counted.append(count.operations > 0)
    assert counted == [False, True]


def test_other_processes_than_the_first_do_not_look(tmp_path: Path) -> None:
    module, monitor = small_module(), AQRMonitor(tmp_path)
    trainer = cast(pl.Trainer, SimpleNamespace(global_step=0, is_global_zero=False, current_epoch=0))
    monitor.on_train_batch_start(trainer, module, small_batch(2), 0)
    monitor.on_train_batch_end(trainer, module, None, small_batch(2), 0)  # reads no output
    assert monitor.state_dict()["epoch"]["looks"] == 0


def test_the_first_step_of_every_epoch_is_looked_at(tmp_path: Path) -> None:
    fit(tmp_path, small_module(), 3, AQRMonitor(tmp_path, every_n_steps=100), max_epochs=3)
    assert list(logged(tmp_path, "aqr/bev/mean")) == [0, 3, 6]
    assert list(logged(tmp_path, "aqr/epoch/bev/mean")) == [2, 5, 8]
    written = from_json(tmp_path / "map_statistics.json")
    assert written["bev"]["mean"] == pytest.approx(logged(tmp_path, "aqr/bev/mean")[6], rel=1e-6)


def test_gradient_accumulation_has_one_look_a_step_with_its_gradient(tmp_path: Path) -> None:
    fit(tmp_path, small_module(), 6, AQRMonitor(tmp_path, every_n_steps=1), accumulate_grad_batches=2)
    assert list(logged(tmp_path, "aqr/bev/mean")) == list(logged(tmp_path, "aqr/generator_gradient")) == [0, 1, 2]


def test_without_aqr_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, small_module("aqr=none"), 2, AQRMonitor(tmp_path, every_n_steps=1))
    assert "aqr/" not in (tmp_path / "csv" / "metrics.csv").read_text(encoding="utf-8")
    assert not (tmp_path / "map_statistics.json").exists()
    assert "AQR" not in capsys.readouterr().out


def test_half_precision(tmp_path: Path) -> None:
    fit(tmp_path, small_module(), 2, AQRMonitor(tmp_path, every_n_steps=1), precision="bf16-mixed")
    written = from_json(tmp_path / "map_statistics.json")
    full = small_module()
    fit(tmp_path / "full", full, 2, AQRMonitor(tmp_path / "full", every_n_steps=1))
    expected = from_json(tmp_path / "full" / "map_statistics.json")
    for name in ("bev", "camera"):
        assert all(math.isfinite(value) for value in written[name].values())
        assert written[name]["mean"] == pytest.approx(expected[name]["mean"], rel=0.05)
        assert written[name]["relative_change"] == pytest.approx(expected[name]["relative_change"], abs=0.02)


def test_a_high_maximum_is_warned_of_once_for_each_map_with_its_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = AQRMonitor(tmp_path, every_n_steps=1, max_over_mean_limit=1.5)
    with caplog.at_level(logging.WARNING, logger="cmt_aqr.training.monitor"):
        fit(tmp_path, small_module(), 3, monitor)
    messages = [record.getMessage() for record in caplog.records if record.name == "cmt_aqr.training.monitor"]
    assert len(messages) == 2
    for name, message in zip(("bev", "camera"), messages, strict=True):
        highest, mean = logged(tmp_path, f"aqr/{name}/max")[0], logged(tmp_path, f"aqr/{name}/mean")[0]
        assert f"AQR's {name} map at step 0: its maximum of {highest:.4g}" in message
        assert f"{highest / mean:.4g} times its mean of {mean:.4g}" in message and "limit=1.5" in message


def test_a_gradient_of_exactly_zero_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a residual weight of 1 the maps change nothing, so nothing comes back to the generator."""
    monitor = AQRMonitor(tmp_path, every_n_steps=1)
    fit(tmp_path, small_module("modulator.residual_weight=1"), 3, monitor)
    assert list(logged(tmp_path, "aqr/generator_gradient").values()) == [0, 0, 0]
    messages = [record.getMessage() for record in caplog.records if record.name == "cmt_aqr.training.monitor"]
    assert len(messages) == 1 and "gradient of exactly 0 at step 0" in messages[0]


def test_a_frozen_generator_has_no_gradient_to_warn_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, small_module("lr_mult.aqr_weight_generator=0"), 2, AQRMonitor(tmp_path, every_n_steps=1))
    assert logged(tmp_path, "aqr/bev/mean") and not logged(tmp_path, "aqr/generator_gradient")
    assert not [record for record in caplog.records if record.name == "cmt_aqr.training.monitor"]


def test_a_run_that_goes_on_counts_and_warns_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    first, second = AQRMonitor(tmp_path), AQRMonitor(tmp_path)
    first._epoch.add({"bev/mean": 1.0, "bev/max": 5.0})
    first._warned.add("bev")
    state = first.state_dict()
    second.load_state_dict(torch.load(saved(tmp_path, state), weights_only=True))
    second._epoch.add({"bev/mean": 2.0, "bev/max": 3.0})
    assert second._epoch.numbers == {"bev/mean": 1.5, "bev/max": 5.0} and second._epoch.looks == 2
    assert second._warned == {"bev"}
    assert first._epoch.numbers == {"bev/mean": 1.0, "bev/max": 5.0}


def test_an_epoch_that_was_finished_but_not_closed_when_the_checkpoint_was_written(tmp_path: Path) -> None:
    looked = {"looks": 1, "counts": {"bev/mean": 1}, "numbers": {"bev/mean": 1.0}}
    state = {"epoch_number": 3, "epoch": looked, "warned": []}
    trainer = SimpleNamespace(global_step=12, is_global_zero=True, loggers=[], current_epoch=3)

    ended = AQRMonitor(tmp_path)  # nothing is left to train: it is the last epoch
    ended.load_state_dict(state)
    ended.on_train_end(cast(pl.Trainer, trainer), small_module())
    assert from_json(tmp_path / "map_statistics.json") == {"bev": {"mean": 1.0}}

    going_on = AQRMonitor(tmp_path)  # the next epoch does not count it
    going_on.load_state_dict(state)
    trainer.current_epoch = 4
    going_on.on_train_batch_start(cast(pl.Trainer, trainer), small_module(), small_batch(1), 0)
    assert going_on._epoch.looks == 0 and going_on.state_dict()["epoch_number"] == 4


def saved(folder: Path, state: Any) -> Path:
    torch.save(state, folder / "state.ckpt")
    return folder / "state.ckpt"


def test_a_number_that_is_not_finite_stays_out_of_the_epoch() -> None:
    summary = Summary()
    for value in (1.0, math.inf, math.nan, 2.0):
        summary.add({"generator_gradient": value, "bev/mean": 1.0})
    assert summary.numbers == {"generator_gradient": 1.5, "bev/mean": 1.0} and summary.looks == 4


class NoMetric:
    """Takes detections, and gives numbers that do not matter here."""

    def update(self, *_: Any) -> None: ...

    def reset(self) -> None: ...

    def compute(self) -> dict[str, float]:
        return {"NDS": 0.5, "mAP": 0.5}


def test_maps_of_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = small_module(metric=NoMetric())
    logger, monitor = CSVLogger(tmp_path, "csv", ""), AQRMonitor(tmp_path, every_n_steps=2)
    trainer = quiet_trainer(logger=logger, callbacks=[monitor])
    trainer.validate(module, frames(3), verbose=False)
    written = from_json(tmp_path / "map_statistics.json")
    assert "evaluation (observations: 2)" in capsys.readouterr().out
    module.eval()
    drawn = []
    for number in (0, 2):
        with torch.no_grad():
            drawn.append(module.model(small_batch(3, seed=number)).aqr.maps()["camera"][0])
    assert written["camera"]["max"] == pytest.approx(max(one.max().item() for one in drawn), rel=1e-5)
    assert written["camera"]["mean"] == pytest.approx(sum(one.mean().item() for one in drawn) / 2, rel=1e-5)
    assert list(logged(tmp_path, "aqr/val/camera/mean").values()) == [pytest.approx(written["camera"]["mean"])]


@pytest.mark.parametrize(("form", "of"), [(("aqr.stop_gradient=true",), "weights"), (BIAS, "beta")])
def test_an_evaluation_finds_damage_over_all_its_batches(
    form: tuple[str, ...], of: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = small_module(*form, metric=NoMetric()).eval()
    if of == "beta":
        torch.nn.init.normal_(cast(Any, module.model.aqr).beta_head.weight)
    monitor = AQRMonitor(tmp_path, every_n_steps=3)
    trainer = quiet_trainer(logger=CSVLogger(tmp_path, "csv", ""), callbacks=[monitor])
    trainer.validate(module, damaged_frames(3), verbose=False)
    said, broken = [], []
    for batch in damaged_frames(3):
        with torch.no_grad():
            output = cast(Any, module.model(batch).aqr)
        sees = torch.ones_like(output.lidar_lost, dtype=torch.bool) if of == "beta" else output.bev_seen
        said.append((output.beta if of == "beta" else output.weights)[..., 0][sees])
        broken.append(output.lidar_lost[sees] > 0.5)
    high, low = torch.cat(said)[~torch.cat(broken)], torch.cat(said)[torch.cat(broken)]
    expected = (high[:, None] > low).float().mean().item()  # pairs in order; there are no ties
    assert list(logged(tmp_path, f"aqr/val/{of}/auc_lidar").values()) == [pytest.approx(expected, abs=1e-6)]
    assert f"{expected:.4g}" in capsys.readouterr().out


def test_an_evaluation_within_training_is_logged_beside_it(tmp_path: Path) -> None:
    module = small_module(metric=NoMetric())
    logger, monitor = CSVLogger(tmp_path, "csv", ""), AQRMonitor(tmp_path, every_n_steps=1)
    trainer = quiet_trainer(max_epochs=1, logger=logger, callbacks=[monitor], num_sanity_val_steps=1)
    trainer.fit(module, frames(2), frames(1))
    assert list(logged(tmp_path, "aqr/val/bev/mean")) == [1]
    written = from_json(tmp_path / "map_statistics.json")
    assert written["bev"]["mean"] == pytest.approx(logged(tmp_path, "aqr/epoch/bev/mean")[1], rel=1e-6)
    assert written["bev"]["mean"] != pytest.approx(logged(tmp_path, "aqr/val/bev/mean")[1], rel=1e-6)


def test_a_fit_of_a_bias_is_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, monitor = small_module(*BIAS), AQRMonitor(tmp_path, every_n_steps=1, histogram_bins=10)
    torch.nn.init.normal_(cast(Any, module.model.aqr).beta_head.weight, std=0.1)
    loggers = [CSVLogger(tmp_path, "csv", ""), TensorBoardLogger(tmp_path, "tensorboard", "")]
    trainer = quiet_trainer(max_epochs=1, logger=loggers, callbacks=[monitor], log_every_n_steps=1)
    trainer.fit(module, damaged_frames(2))
    written, printed = from_json(tmp_path / "map_statistics.json"), capsys.readouterr().out
    states = {"lidar_broken", "whole"}  # the cameras lost a quarter
    assert set(written) == {"beta", "attention"}
    assert set(written["beta"]) == {"mean", "std", "min", "max", "auc_lidar", *states}
    assert set(written["attention"]) == {"mean", "std", "min", "max", *states}
    for name, values in written.items():
        for key, value in values.items():
            looks = list(logged(tmp_path, f"aqr/{name}/{key}").values())
            one = {"max": max, "min": min}.get(key, lambda items: sum(items) / len(items))
            assert len(looks) == 2 and value == pytest.approx(one(looks), rel=1e-5), (name, key)
    assert all(value > 0 for value in logged(tmp_path, "aqr/generator_gradient").values())
    assert "AQR's beta, epoch 0" in printed and f"{written['beta']['auc_lidar']:.4g}" in printed
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"histograms": 0}).Reload()
    counts = {
        name: [event.histogram_value.num for event in events.Histograms(f"aqr/beta/histogram/{name}")]
        for name in ("all", *states)
    }
    assert min(counts["all"]) > 20  # denoising queries, too
    assert counts["all"] == [sum(pair) for pair in zip(*(counts[name] for name in states), strict=True)]


@pytest.mark.parametrize("form", [(), BIAS])
def test_looking_at_the_attention(form: tuple[str, ...]) -> None:
    """The share is that of an explicit softmax, is taken once, and the model's answer stays as it is."""
    module, batch = small_module(*form).eval(), damaged(small_batch(2))
    attention = module.model.decoder.layers[-1].cross_attention
    given: list[Any] = []
    with torch.no_grad():
        if form:
            torch.nn.init.normal_(cast(Any, module.model.aqr).beta_head.weight)
        plain = module.model(batch).matching.codes
        keeping = attention.register_forward_pre_hook(
            lambda _, tokens, named: given.append((*tokens, named["bias"])), with_kwargs=True
        )
        watch = AttentionProbe(module.model)
        looked = module.model(batch).matching.codes
        keeping.remove()
        assert torch.equal(plain, looked) and not attention._forward_pre_hooks
        query, key, _, bias = given[0]
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        q, k = (
            (tokens @ weight.T + shift).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for tokens, weight, shift in zip((query, key), weights, biases, strict=False)
        )
        logits = q @ k.mT / q.shape[-1] ** 0.5
        if form:
            logits = logits + (bias.beta @ bias.groups.mT)[:, None]
        rows, columns = module.model.head.grid.bev_shape
        expected = logits.softmax(dim=-1)[..., : rows * columns].sum(dim=-1).mean(dim=1)
    assert watch.share is not None and len(expected.unique()) > 1
    torch.testing.assert_close(watch.share, expected, rtol=0, atol=1e-5)


def test_attention_on_one_sensor_has_no_share() -> None:
    module = small_module("model=tiny_lidar").eval()
    watch = AttentionProbe(module.model)
    with torch.no_grad():
        module.model(small_batch(1, cameras=False))
    assert watch.share is None
