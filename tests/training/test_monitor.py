"""What the monitor logs, prints and writes in short fits, and that it costs nothing between observations."""

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
from cmt_aqr.training.observation import AttentionProbe
from tests.helpers.ran import from_json, logged
from tests.helpers.small_detector import damaged, damaged_frames, small_batch, small_module
from tests.helpers.trainers import quiet_trainer

BIAS = ("aqr=attention_bias", "model.heads=2", "training.criterion.signal_weight=1")
KEYS = {"mean", "std", "min", "max", "max_over_mean", "clamped", "drawn", "relative_change"}


def frames(count: int) -> DataLoader[Batch]:
    batches = [small_batch(3, seed=number, truth_seed=number) for number in range(count)]
    return DataLoader(cast(Any, batches), batch_size=None)


def fit(
    folder: Path, module: DetectorModule, data: int | DataLoader[Batch], *callbacks: pl.Callback, **settings: Any
) -> None:
    loggers = [CSVLogger(folder, "csv", ""), TensorBoardLogger(folder, "tensorboard", "")]
    defaults = {"logger": loggers, "log_every_n_steps": 1, "callbacks": list(callbacks), "max_epochs": 1}
    quiet_trainer(**{**defaults, **settings}).fit(module, frames(data) if isinstance(data, int) else data)


def assert_statistics(folder: Path, name: str, values: dict[str, float], count: int) -> None:
    """Compare the statistics of an epoch with what was logged per observation."""
    for key, value in values.items():
        observations = list(logged(folder, f"aqr/{name}/{key}").values())
        reduce = {"max": max, "min": min}.get(key.split("_")[0], lambda items: sum(items) / len(items))
        assert len(observations) == count
        assert value == pytest.approx(reduce(observations), rel=1e-5), (name, key)


def test_monitoring_a_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = small_module()
    monitor = AQRMonitor(tmp_path, every_n_steps=2, histogram_bins=10)
    fit(tmp_path, module, 5, monitor)
    printed = capsys.readouterr().out

    for name in ("bev", "camera"):
        for key in KEYS:
            assert list(logged(tmp_path, f"aqr/{name}/{key}")) == [0, 2, 4]
    gradients = logged(tmp_path, "aqr/generator_gradient")
    assert list(gradients) == [0, 2, 4] and all(value > 0 for value in gradients.values())

    # Recompute the first step: same seed, same weights.
    fresh = small_module()
    fresh.on_train_batch_start(small_batch(3), 0)
    expected = output_statistics(AQROutput(**fresh.training_step(small_batch(3), 0)["aqr"]), 0.0)
    for key, value in expected.items():
        assert logged(tmp_path, f"aqr/{key}")[0] == pytest.approx(value.item(), rel=1e-6), key

    written = from_json(tmp_path / "map_statistics.json")
    assert set(written) == {"bev", "camera", "attention"}
    assert 0 < written["attention"]["mean"] < 1
    for name, values in written.items():
        assert set(values) >= KEYS if name != "attention" else set(values) == {"mean", "std", "min", "max"}
        assert_statistics(tmp_path, name, values, 3)
        for key, value in values.items():
            assert logged(tmp_path, f"aqr/epoch/{name}/{key}") == {4: pytest.approx(value)}
    assert "epoch 0 (observations: 3)" in printed
    assert f"{written['camera']['max']:.4g}" in printed and f"{written['bev']['drawn']:.1%}" in printed

    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"histograms": 0}).Reload()
    for sensor in ("lidar", "camera"):
        histograms = events.Histograms(f"aqr/weights/{sensor}")
        assert [event.step for event in histograms] == [0, 2, 4]
        assert 0 < histograms[0].histogram_value.num <= 20
    assert events.Scalars("aqr/camera/max")[0].step == 0


def test_between_observations_the_monitor_runs_no_tensor_operation(tmp_path: Path) -> None:
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


def test_only_the_first_process_observes(tmp_path: Path) -> None:
    module, monitor = small_module(), AQRMonitor(tmp_path)
    trainer = cast(pl.Trainer, SimpleNamespace(global_step=0, is_global_zero=False, current_epoch=0))
    monitor.on_train_batch_start(trainer, module, small_batch(2), 0)
    monitor.on_train_batch_end(trainer, module, None, small_batch(2), 0)  # reads no output
    assert monitor.state_dict()["epoch"]["looks"] == 0


@pytest.mark.parametrize(
    ("every", "settings", "steps"),
    [(100, {"max_epochs": 2}, [0, 4]), (1, {"accumulate_grad_batches": 2}, [0, 1])],
    ids=["first step of an epoch", "once per accumulated step"],
)
def test_observed_steps(every: int, settings: dict[str, int], steps: list[int], tmp_path: Path) -> None:
    fit(tmp_path, small_module(), 4, AQRMonitor(tmp_path, every_n_steps=every), **settings)
    assert list(logged(tmp_path, "aqr/bev/mean")) == list(logged(tmp_path, "aqr/generator_gradient")) == steps
    last_epoch = logged(tmp_path, "aqr/epoch/bev/mean")
    assert list(last_epoch) == ([3, 7] if "max_epochs" in settings else [1])
    written = from_json(tmp_path / "map_statistics.json")
    assert written["bev"]["mean"] == pytest.approx(list(last_epoch.values())[-1], rel=1e-6)


def test_without_aqr_nothing_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, small_module("aqr=none"), 2, AQRMonitor(tmp_path, every_n_steps=1))
    assert "aqr/" not in (tmp_path / "csv" / "metrics.csv").read_text(encoding="utf-8")
    assert not (tmp_path / "map_statistics.json").exists()
    assert "AQR" not in capsys.readouterr().out


def test_half_precision(tmp_path: Path) -> None:
    fit(tmp_path, small_module(), 1, AQRMonitor(tmp_path), precision="bf16-mixed")
    fit(tmp_path / "full", small_module(), 1, AQRMonitor(tmp_path / "full"))
    written, expected = (from_json(folder / "map_statistics.json") for folder in (tmp_path, tmp_path / "full"))
    for name in ("bev", "camera"):
        assert all(math.isfinite(value) for value in written[name].values())
        assert written[name]["mean"] == pytest.approx(expected[name]["mean"], rel=0.05)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "cmt_aqr.training.monitor"]


def test_a_high_maximum_is_warned_of_once_per_map(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, small_module(), 3, AQRMonitor(tmp_path, every_n_steps=1, max_over_mean_limit=1.5))
    for name, message in zip(("bev", "camera"), warnings_of(caplog), strict=True):
        highest, mean = logged(tmp_path, f"aqr/{name}/max")[0], logged(tmp_path, f"aqr/{name}/mean")[0]
        assert f"{name} map at step 0: its maximum of {highest:.4g}" in message
        assert f"{highest / mean:.4g} times its mean of {mean:.4g}" in message


@pytest.mark.parametrize(
    ("override", "norms", "warnings"),
    [("modulator.residual_weight=1", [0, 0], 1), ("lr_mult.aqr_weight_generator=0", [], 0)],
    ids=["features do not change", "frozen"],
)
def test_a_gradient_of_0_is_warned_of_once_unless_frozen(
    override: str, norms: list[float], warnings: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, small_module(override), 2, AQRMonitor(tmp_path, every_n_steps=1))
    assert list(logged(tmp_path, "aqr/generator_gradient").values()) == norms
    assert logged(tmp_path, "aqr/bev/mean")
    assert ["gradient of exactly 0 at step 0" in message for message in warnings_of(caplog)] == [True] * warnings


def test_a_resumed_monitor_averages_and_warns_like_an_uninterrupted_one(tmp_path: Path) -> None:
    first, second = AQRMonitor(tmp_path), AQRMonitor(tmp_path)
    for value in (1.0, math.inf, math.nan):  # numbers that are not finite are ignored
        first._epoch.add({"bev/mean": value, "bev/max": 5.0})
    first._warned.add("bev")
    torch.save(first.state_dict(), tmp_path / "state.ckpt")
    second.load_state_dict(torch.load(tmp_path / "state.ckpt", weights_only=True))
    second._epoch.add({"bev/mean": 2.0, "bev/max": 3.0})
    assert second._epoch.numbers == {"bev/mean": 1.5, "bev/max": 5.0} and second._epoch.looks == 4
    assert second._warned == {"bev"}
    assert first._epoch.numbers == {"bev/mean": 1.0, "bev/max": 5.0}


@pytest.mark.parametrize("ends", [True, False])
def test_an_epoch_left_open_by_a_checkpoint_is_closed(ends: bool, tmp_path: Path) -> None:
    """At the end of training, or at the start of the next epoch."""
    monitor = AQRMonitor(tmp_path)
    epoch = {"looks": 1, "counts": {"bev/mean": 1}, "numbers": {"bev/mean": 1.0}}
    monitor.load_state_dict({"epoch_number": 3, "epoch": epoch, "warned": []})
    trainer = SimpleNamespace(global_step=12, is_global_zero=True, loggers=[], current_epoch=3 if ends else 4)
    if ends:
        monitor.on_train_end(cast(pl.Trainer, trainer), small_module())
    else:
        monitor.on_train_batch_start(cast(pl.Trainer, trainer), small_module(), small_batch(1), 0)
        assert monitor.state_dict()["epoch_number"] == 4
    assert monitor._epoch.looks == 0
    assert from_json(tmp_path / "map_statistics.json") == {"bev": {"mean": 1.0}}


class NoMetric:
    """A metric with constant results."""

    def update(self, *_: Any) -> None: ...

    def reset(self) -> None: ...

    def compute(self) -> dict[str, float]:
        return {"NDS": 0.5, "mAP": 0.5}


def test_monitoring_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = small_module(metric=NoMetric())
    logger, monitor = CSVLogger(tmp_path, "csv", ""), AQRMonitor(tmp_path, every_n_steps=2)
    trainer = quiet_trainer(logger=logger, callbacks=[monitor])
    trainer.validate(module, frames(3), verbose=False)
    written = from_json(tmp_path / "map_statistics.json")
    assert "evaluation (observations: 2)" in capsys.readouterr().out
    module.eval()
    maps = []
    for number in (0, 2):
        with torch.no_grad():
            maps.append(module.model(small_batch(3, seed=number)).aqr.maps()["camera"][0])
    assert written["camera"]["max"] == pytest.approx(max(map_.max().item() for map_ in maps), rel=1e-5)
    assert written["camera"]["mean"] == pytest.approx(sum(map_.mean().item() for map_ in maps) / 2, rel=1e-5)
    assert list(logged(tmp_path, "aqr/val/camera/mean").values()) == [pytest.approx(written["camera"]["mean"])]


@pytest.mark.parametrize(("form", "of"), [(("aqr.stop_gradient=true",), "weights"), (BIAS, "beta")])
def test_an_evaluation_has_one_auc_over_all_batches(
    form: tuple[str, ...], of: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = small_module(*form, metric=NoMetric()).eval()
    if of == "beta":
        torch.nn.init.normal_(cast(Any, module.model.aqr).beta_head.weight)
    monitor = AQRMonitor(tmp_path, every_n_steps=3)
    trainer = quiet_trainer(logger=CSVLogger(tmp_path, "csv", ""), callbacks=[monitor])
    trainer.validate(module, damaged_frames(3), verbose=False)
    scores, broken = [], []
    for batch in damaged_frames(3):
        with torch.no_grad():
            output = cast(Any, module.model(batch).aqr)
        sees = torch.ones_like(output.lidar_lost, dtype=torch.bool) if of == "beta" else output.bev_seen
        scores.append((output.beta if of == "beta" else output.weights)[..., 0][sees])
        broken.append(output.lidar_lost[sees] > 0.5)
    high, low = torch.cat(scores)[~torch.cat(broken)], torch.cat(scores)[torch.cat(broken)]
    expected = (high[:, None] > low).float().mean().item()  # share of pairs in order; there are no ties
    assert list(logged(tmp_path, f"aqr/val/{of}/auc_lidar").values()) == [pytest.approx(expected, abs=1e-6)]
    assert f"{expected:.4g}" in capsys.readouterr().out


def test_an_evaluation_within_training_is_logged_separately(tmp_path: Path) -> None:
    module = small_module(metric=NoMetric())
    logger, monitor = CSVLogger(tmp_path, "csv", ""), AQRMonitor(tmp_path, every_n_steps=1)
    trainer = quiet_trainer(max_epochs=1, logger=logger, callbacks=[monitor], num_sanity_val_steps=1)
    trainer.fit(module, frames(2), frames(1))
    assert list(logged(tmp_path, "aqr/val/bev/mean")) == [1]
    written = from_json(tmp_path / "map_statistics.json")
    assert written["bev"]["mean"] == pytest.approx(logged(tmp_path, "aqr/epoch/bev/mean")[1], rel=1e-6)
    assert written["bev"]["mean"] != pytest.approx(logged(tmp_path, "aqr/val/bev/mean")[1], rel=1e-6)


def test_monitoring_a_fit_with_a_bias(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, monitor = small_module(*BIAS), AQRMonitor(tmp_path, every_n_steps=1, histogram_bins=10)
    torch.nn.init.normal_(cast(Any, module.model.aqr).beta_head.weight, std=0.1)
    fit(tmp_path, module, damaged_frames(2), monitor)
    written, printed = from_json(tmp_path / "map_statistics.json"), capsys.readouterr().out
    states = {"lidar_broken", "whole"}  # the cameras lost a quarter
    assert set(written) == {"beta", "attention"}
    assert set(written["beta"]) == {"mean", "std", "min", "max", "auc_lidar", *states}
    assert set(written["attention"]) == {"mean", "std", "min", "max", *states}
    for name, values in written.items():
        assert_statistics(tmp_path, name, values, 2)
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
def test_attention_probe(form: tuple[str, ...]) -> None:
    """The share equals that of an explicit softmax and is read once; the model's outputs do not change."""
    module, batch = small_module(*form).eval(), damaged(small_batch(2))
    attention = module.model.decoder.layers[-1].cross_attention
    inputs: list[Any] = []
    with torch.no_grad():
        if form:
            torch.nn.init.normal_(cast(Any, module.model.aqr).beta_head.weight)
        plain = module.model(batch).matching.codes
        recorder = attention.register_forward_pre_hook(
            lambda _, args, kwargs: inputs.append((*args, kwargs["bias"])), with_kwargs=True
        )
        probe = AttentionProbe(module.model)
        probed = module.model(batch).matching.codes
        recorder.remove()
        assert torch.equal(plain, probed) and not attention._forward_pre_hooks
        query, key, _, bias = inputs[0]
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
        one_sensor = small_module("model=tiny_lidar").eval().model
        without_share = AttentionProbe(one_sensor)
        one_sensor(small_batch(1, cameras=False))
    assert without_share.share is None
    assert probe.share is not None and len(expected.unique()) > 1
    torch.testing.assert_close(probe.share, expected, rtol=0, atol=1e-5)
