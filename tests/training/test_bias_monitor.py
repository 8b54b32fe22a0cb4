"""What the monitor logs, prints and writes of a bias in the decoder's attention, and of the attention itself."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cmt_aqr.training.monitor import AQRMonitor
from cmt_aqr.training.watched import AttentionWatch
from tests.helpers.ran import from_json, logged
from tests.helpers.small_detector import damaged, damaged_frames, small_batch, small_module
from tests.helpers.trainers import quiet_trainer

BIAS = ("aqr=attention_bias", "model.heads=2", "training.criterion.signal_weight=1")


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
        watch = AttentionWatch(module.model)
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
    watch = AttentionWatch(module.model)
    with torch.no_grad():
        module.model(small_batch(1, cameras=False))
    assert watch.share is None
