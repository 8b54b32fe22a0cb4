"""Overrides on a checkpoint reach what is built, of new checkpoints and of old ones."""

import functools
import json
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.runs.configuration import build, build_data, check_config
from cmt_aqr.runs.resuming import changes
from cmt_aqr.runs.saved import (
    below,
    check_evaluation,
    check_for_evaluation,
    links,
    with_overrides,
)
from cmt_aqr.runs.tree import at, nodes, unresolved
from tests.helpers.commands import SMALL
from tests.helpers.composed import composed

BASE = [item for item in SMALL if not item.startswith("trainer=")]


FOLDERS = [
    "callbacks.checkpoint.folder=.",
    "callbacks.aqr_monitor.folder=.",
    "logger=csv",
    "logger.csv.save_dir=.",
]


def saved(resolved: bool) -> dict[str, Any]:
    """The configuration in a checkpoint; versions before held it resolved."""
    config = composed(*BASE, *FOLDERS)
    groups = ("callbacks", "logger")  # name folders of the run
    plain: Any = OmegaConf.to_container(config, resolve=False)
    if resolved:
        rest = OmegaConf.create({key: value for key, value in plain.items() if key not in groups})
        plain |= OmegaConf.to_container(rest, resolve=True)  # type: ignore[operator]
    return plain


def merged(resolved: bool, *overrides: str) -> DictConfig:
    return with_overrides(saved(resolved), composed(*overrides), overrides)


OTHER: dict[str, str] = {
    "model.grid": "model.grid.point_range=[-50.0,-50.0,-5.0,50.0,50.0,3.0]",
    "model.embed_dims": "model.embed_dims=64",
    "model.layers": "model.layers=3",
    "model.queries": "model.queries=33",
    "model.heads": "model.heads=2",
    "model.feedforward": "model.feedforward=48",
    "model.dropout": "model.dropout=0.25",
    "model.attention_dropout": "model.attention_dropout=0.25",
    "model.feedforward_dropout": "model.feedforward_dropout=0.25",
    "model.image_size": "model.image_size=[96,224]",
    "model.grid.point_range": "model.grid.point_range=[-50.0,-50.0,-5.0,50.0,50.0,3.0]",
    "model.network.head.cameras": "model.network.head.cameras=false",
    "model.network.head.bev_channels": "model.network.head.bev_channels=null",
    "data.val_split": "data.val_split=mini_train",
    "aqr": "aqr=none",
    "renderer": "renderer=aggressive",
    "modulator": "modulator.residual_weight=1.0",
    "seed": "seed=7",
}
"""For each key that another is interpolated from: an override of it."""


@functools.cache
def linked_keys() -> dict[str, list[str]]:
    """By source: the keys that are interpolated from it."""
    found: dict[str, list[str]] = {}
    for target, source in links(unresolved(composed(*BASE))):
        if not target.startswith(("callbacks", "logger")):
            found.setdefault(source, []).append(target)
    return found


def test_every_key_that_another_is_interpolated_from_has_an_override_here() -> None:
    assert linked_keys().keys() == OTHER.keys()


@pytest.mark.parametrize("resolved", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("source", OTHER)
def test_an_override_reaches_every_key_that_is_interpolated_from_it(source: str, resolved: bool) -> None:
    before, after = merged(resolved), merged(resolved, OTHER[source])
    expected = OmegaConf.select(composed(*BASE, OTHER[source]) if source != "aqr" else after, source)
    for target in linked_keys()[source]:
        old, new = (OmegaConf.select(config, target) for config in (before, after))
        assert new == expected and (new != old or source == "aqr"), target


@pytest.mark.parametrize("resolved", [False, True], ids=["new", "old"])
def test_what_is_built_is_what_was_given(resolved: bool) -> None:
    """Looked at in the objects that an evaluation uses."""
    config = merged(resolved, "modulator.residual_weight=1.0", "renderer=aggressive", "renderer.clamp_mode=soft")
    check_config(config, evaluating=True)
    model = build(config.model.network)
    assert model.aqr.modulator.residual_weight == 1.0
    aggressive = composed("renderer=aggressive").renderer
    assert model.aqr.renderer.max_weight_clamp == pytest.approx(aggressive.max_weight_clamp)
    assert model.aqr.renderer.clamp_mode == "soft"
    assert build(merged(resolved, "aqr=none").model.network).aqr is None
    # embed_dims goes through two interpolations to AQR's generator.
    assert build(merged(resolved, "model.embed_dims=64").model.network).aqr.generator.embed_dims == 64
    larger = merged(resolved, "model.image_size=[96,224]", "data.root=elsewhere", "seed=7", "eval_fault=night")
    data = build_data(larger, evaluating=True)
    assert str(data.root) == "elsewhere" and data.seed == 7 and data.train_split is None
    assert list(data._eval_transforms[-1].size) == [96, 224]
    assert type(data._eval_transforms[1]).__name__ == "SomeFrames"


def test_an_experiment_cannot_be_put_into_a_checkpoint_s_configuration() -> None:
    with pytest.raises(UserError, match="drop experiment="):
        with_overrides(saved(False), composed(), ["experiment=x"])


def test_the_evaluated_split_is_eval_split_and_no_other_is_read() -> None:
    data = build_data(merged(False, "data.eval_split=mini_train"), evaluating=True)
    assert (data.train_split, data.val_split) == (None, "mini_train")
    data = build_data(merged(False, "data.val_split=mini_train"), evaluating=True)
    assert data.val_split == "mini_train"
    training = build_data(merged(False, "data.eval_split=nowhere"))
    assert training.train_split == "mini_train" and training.val_split == "mini_val"


def test_a_copy_with_a_value_of_its_own_is_told_and_not_passed_over() -> None:
    old = saved(resolved=True)
    old["data"]["image_size"] = [32, 64]
    with pytest.raises(UserError, match=r"model.image_size.*data.image_size"):
        with_overrides(old, composed("model.image_size=[96,224]"), ["model.image_size=[96,224]"])
    both = ["model.image_size=[96,224]", "data.image_size=[96,224]"]
    assert with_overrides(old, composed(*both), both).data.image_size == [96, 224]


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=1e-3",
        "lr_mult=cmt",
        "training.denoising.groups=1",
        "trainer.max_steps=4",
        "+trainer.min_epochs=2",
        "fault=fog",
        "seed=3",
    ],
)
def test_what_changes_no_evaluation_is_refused_by_name(override: str) -> None:
    with pytest.raises(UserError, match=f"^{override.lstrip('+').split('=')[0]} has no effect"):
        check_for_evaluation([override])
        check_evaluation(merged(False, override), [override])


def test_a_seed_counts_where_something_is_drawn() -> None:
    check_evaluation(merged(False, "eval_fault=fog", "seed=3"), ["eval_fault=fog", "seed=3"])


def test_a_learnt_residual_weight_is_not_overridden() -> None:
    overrides = ["modulator.learnable_modulation=true", "modulator.residual_weight=0.3"]
    with pytest.raises(UserError, match=r"modulator\.residual_weight"):
        check_evaluation(merged(False, *overrides), overrides)


def test_lightning_s_classes_by_their_other_name() -> None:
    timer = build(OmegaConf.create({"_target_": "lightning.pytorch.callbacks.Timer"}))
    assert type(timer).__module__.startswith("pytorch_lightning")


@pytest.mark.parametrize("resolved", [False, True], ids=["new", "old"])
def test_a_key_that_is_taken_out_is_gone(resolved: bool) -> None:
    config = merged(resolved, "~callbacks.aqr_monitor", "~logger")
    assert "aqr_monitor" not in config.callbacks and config.logger is None


def test_a_group_that_is_put_elsewhere_arrives_there() -> None:
    config = merged(False, "renderer=base", "+eval_fault@data.eval_transforms.bad=night")
    assert config.data.eval_transforms.bad.share == 1.0
    assert config.eval_fault.share == 0.0, "the group's own place is left alone"


@pytest.mark.parametrize(
    ("make", "overrides", "expected"),
    [
        ({"scenes": 10, "seed": 0}, [], {"scenes": None, "seed": None}),
        ({"scenes": 10, "seed": 0}, ["data.make.scenes=4"], {"scenes": 4, "seed": None}),
        ({"scenes": 6, "seed": 0}, [], {"scenes": 6, "seed": 0}),
    ],
)
def test_an_old_checkpoint_asks_for_no_data(
    make: dict[str, int], overrides: list[str], expected: dict[str, int | None]
) -> None:
    """What was once the default would draw data wherever a mistyped data.root points."""
    old = saved(True)
    old["data"]["make"] = make
    assert with_overrides(old, composed(*overrides), overrides).data.make == expected


BEFORE = {
    "pytorch_lightning.Trainer": "lightning.Trainer",
    "pytorch_lightning.callbacks": "lightning.pytorch.callbacks",
    "cmt_aqr.runs.checkpoints": "cmt_aqr.training.checkpoints",
    "cmt_aqr.runs.curves": "cmt_aqr.training.curves",
    "cmt_aqr.runs.progress": "cmt_aqr.visual.progress",
    "cmt_aqr.training.plan.ParameterSummary": "cmt_aqr.visual.summary.ParameterSummary",
    "cmt_aqr.data.masking": "cmt_aqr.data.augmentation",
}
"""Where classes stood before the rooms were rebuilt, by where they stand now."""

SINCE = (
    *("callbacks.plan", "aqr.stop_gradient", "model.network.aqr.stop_gradient"),
    *("training.criterion.signal_weight", "training.denoising._target_"),
    *("optimizer._target_", "lr_mult._target_", "lr_mult._convert_", "data.sampling", "data.resampling"),
    *("data.damage", "data.exact_lidar2img", "data.half_points", "data.half_size_images"),
    "data.replace_empty_frames",
)
"""Keys that have come since."""


def targets(config: DictConfig) -> dict[str, str]:
    return {key: name for key, name in nodes(unresolved(config)) if key.endswith("_target_")}


def test_a_checkpoint_of_before_the_rebuilding_is_evaluated_and_resumed() -> None:
    written = json.dumps(saved(True))
    for now, then in BEFORE.items():
        written = written.replace(now, then)
    old = json.loads(written)
    old["data"]["make"] = {"scenes": 10, "seed": 0}
    for key in SINCE:
        place, _, name = key.rpartition(".")
        del at(old, place)[name]
    now = composed(*BASE, *FOLDERS)
    config = with_overrides(old, now, [])
    check_config(config, evaluating=True)
    assert type(build(config.optimizer)) is type(build(now.optimizer))
    assert build(config.lr_mult) == build(now.lr_mult)
    assert targets(config) == {key: name for key, name in targets(now).items() if not below(key, SINCE[:1])}
    changed = {change.key: change.refusal for change in changes(old, config)}
    assert changed == {"data.make.scenes": None, "data.make.seed": None}
