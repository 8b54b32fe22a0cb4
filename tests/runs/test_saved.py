"""Overrides on the configuration of a checkpoint, new or old."""

import functools
import json
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from cmt_aqr.errors import UserError
from cmt_aqr.runs.configuration import build, build_data, check_config
from cmt_aqr.runs.resuming import changes
from cmt_aqr.runs.saved import below, check_evaluation, links, override_keys, with_overrides
from cmt_aqr.runs.tree import at, nodes, unresolved
from tests.helpers.commands import SMALL
from tests.helpers.composed import composed

BASE = [item for item in SMALL if not item.startswith("trainer=")]
FOLDERS = [f"callbacks.{name}.folder=." for name in ("checkpoint", "aqr_monitor")]
FOLDERS += ["logger=csv", "logger.csv.save_dir=."]

new_and_old = pytest.mark.parametrize("resolved", [False, True], ids=["new", "old"])
"""Old checkpoints hold their configuration resolved."""


def saved(resolved: bool) -> dict[str, Any]:
    """The configuration in a checkpoint."""
    config = composed(*BASE, *FOLDERS)
    plain: Any = OmegaConf.to_container(config, resolve=False)
    if resolved:
        groups = [key for key in plain if key not in ("callbacks", "logger")]  # which name folders of the run
        plain |= OmegaConf.to_container(OmegaConf.masked_copy(config, groups), resolve=True)  # type: ignore[operator]
    return plain


def merged(resolved: bool, *overrides: str) -> DictConfig:
    return with_overrides(saved(resolved), composed(*overrides), overrides)


def test_override_keys() -> None:
    overrides = ["+a.b=1", "~c", "++d.e=x=y", "renderer@other=base", "hydra/launcher=basic"]
    assert override_keys(overrides) == ["a.b", "c", "d.e", "other", "hydra.launcher"]


RANGE = "model.grid.point_range=[-50.0,-50.0,-5.0,50.0,50.0,3.0]"
OVERRIDES = (
    *("model.embed_dims=64", "model.layers=3", "model.queries=33", "model.heads=2", "model.feedforward=48", RANGE),
    *("model.dropout=0.25", "model.attention_dropout=0.25", "model.feedforward_dropout=0.25"),
    *("model.image_size=[96,224]", "model.network.head.cameras=false", "model.network.head.bev_channels=null"),
    *("data.val_split=mini_train", "aqr=none", "renderer=aggressive", "seed=7"),
)
OTHER = {item.partition("=")[0]: item for item in OVERRIDES}
OTHER |= {"model.grid": RANGE, "modulator": "modulator.residual_weight=1.0"}
"""For each key that another is interpolated from: an override of it."""


@functools.cache
def linked_keys() -> dict[str, list[str]]:
    """By source: the keys that are interpolated from it."""
    keys: dict[str, list[str]] = {}
    for target, source in links(unresolved(composed(*BASE))):
        if not target.startswith(("callbacks", "logger")):
            keys.setdefault(source, []).append(target)
    return keys


def test_every_key_that_another_is_interpolated_from_has_an_override_here() -> None:
    assert linked_keys().keys() == OTHER.keys()


@new_and_old
@pytest.mark.parametrize("source", OTHER)
def test_an_override_reaches_every_key_that_is_interpolated_from_it(source: str, resolved: bool) -> None:
    before, after = merged(resolved), merged(resolved, OTHER[source])
    expected = OmegaConf.select(composed(*BASE, OTHER[source]) if source != "aqr" else after, source)
    for target in linked_keys()[source]:
        old, new = (OmegaConf.select(config, target) for config in (before, after))
        assert new == expected and (new != old or source == "aqr"), target


@new_and_old
def test_overrides_reach_the_parts_of_an_evaluation(resolved: bool) -> None:
    config = merged(resolved, "modulator.residual_weight=1.0", "renderer=aggressive", "renderer.clamp_mode=soft")
    check_config(config, evaluating=True)
    model = build(config.model.network)
    assert model.aqr.modulator.residual_weight == 1.0
    aggressive = composed("renderer=aggressive").renderer
    assert model.aqr.renderer.max_weight_clamp == pytest.approx(aggressive.max_weight_clamp)
    assert model.aqr.renderer.clamp_mode == "soft"
    assert build(merged(resolved, "aqr=none").model.network).aqr is None
    # embed_dims reaches AQR's generator through two interpolations.
    assert build(merged(resolved, "model.embed_dims=64").model.network).aqr.generator.embed_dims == 64
    larger = merged(resolved, "model.image_size=[96,224]", "data.root=elsewhere", "seed=7", "eval_fault=night")
    data = build_data(larger, evaluating=True)
    assert str(data.root) == "elsewhere" and data.seed == 7 and data.train_split is None
    assert list(data._eval_transforms[-1].size) == [96, 224]
    assert type(data._eval_transforms[1]).__name__ == "SomeFrames"


def test_an_experiment_cannot_override_a_checkpoint() -> None:
    with pytest.raises(UserError, match="drop experiment="):
        with_overrides(saved(False), composed(), ["experiment=x"])


def test_an_evaluation_reads_only_eval_split() -> None:
    data = build_data(merged(False, "data.eval_split=mini_train"), evaluating=True)
    assert (data.train_split, data.val_split) == (None, "mini_train")
    data = build_data(merged(False, "data.val_split=mini_train"), evaluating=True)
    assert data.val_split == "mini_train"
    training = build_data(merged(False, "data.eval_split=nowhere"))
    assert training.train_split == "mini_train" and training.val_split == "mini_val"


def test_a_resolved_copy_with_another_value_is_refused() -> None:
    old = saved(resolved=True)
    old["data"]["image_size"] = [32, 64]
    with pytest.raises(UserError, match=r"model.image_size.*data.image_size"):
        with_overrides(old, composed("model.image_size=[96,224]"), ["model.image_size=[96,224]"])
    both = ["model.image_size=[96,224]", "data.image_size=[96,224]"]
    assert with_overrides(old, composed(*both), both).data.image_size == [96, 224]


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.lr=1e-3"],
        ["lr_mult=cmt"],
        ["training.denoising.groups=1"],
        ["trainer.max_steps=4"],
        ["+trainer.min_epochs=2"],
        ["fault=fog"],
        ["seed=3"],
        ["modulator.residual_weight=0.3", "modulator.learnable_modulation=true"],
    ],
)
def test_overrides_without_effect_on_an_evaluation_are_refused(overrides: list[str]) -> None:
    with pytest.raises(UserError, match=f"^{overrides[0].lstrip('+').split('=')[0]} has no effect"):
        check_evaluation(merged(False, *overrides), overrides)


def test_a_seed_has_an_effect_with_random_faults() -> None:
    check_evaluation(merged(False, "eval_fault=fog", "seed=3"), ["eval_fault=fog", "seed=3"])


@new_and_old
def test_a_removed_key_is_gone(resolved: bool) -> None:
    config = merged(resolved, "~callbacks.aqr_monitor", "~logger")
    assert "aqr_monitor" not in config.callbacks and config.logger is None


def test_a_relocated_group_goes_to_its_new_place() -> None:
    config = merged(False, "renderer=base", "+eval_fault@data.eval_transforms.bad=night")
    assert config.data.eval_transforms.bad.share == 1.0
    assert config.eval_fault.share == 0.0, "its own place does not change"


def test_a_relative_interpolation_stays() -> None:
    """A severity that a fault takes from the group above it, in the configuration of an old checkpoint."""
    old = {"eval_fault": {"share": 0.0}, "ckpt_path": None, "weights": None, "name": "old"}
    now = OmegaConf.create({**old, "eval_fault": {"severity": 2, "fog": {"severity": "${..severity}"}}})
    assert with_overrides(old, now, ["eval_fault=multicorrupt/fog"]).eval_fault.fog.severity == 2


@pytest.mark.parametrize(
    ("make", "overrides", "expected"),
    [
        ({"scenes": 10, "seed": 0}, ["data.make.scenes=4"], {"scenes": 4, "seed": None}),
        ({"scenes": 6, "seed": 0}, [], {"scenes": 6, "seed": 0}),
    ],
)
def test_the_old_default_generates_no_data(
    make: dict[str, int], overrides: list[str], expected: dict[str, int | None]
) -> None:
    """It would generate data wherever a mistyped data.root points."""
    old = saved(True)
    old["data"]["make"] = make
    assert with_overrides(old, composed(*overrides), overrides).data.make == expected


OLD_NAMES = {
    "pytorch_lightning.Trainer": "lightning.Trainer",
    "pytorch_lightning.callbacks": "lightning.pytorch.callbacks",
    "cmt_aqr.runs.checkpoints": "cmt_aqr.training.checkpoints",
    "cmt_aqr.runs.curves": "cmt_aqr.training.curves",
    "cmt_aqr.runs.progress": "cmt_aqr.visual.progress",
    "cmt_aqr.training.plan.ParameterSummary": "cmt_aqr.visual.summary.ParameterSummary",
    "cmt_aqr.data.masking": "cmt_aqr.data.augmentation",
}
"""Old names of modules and classes, by their current names."""

NEW_KEYS = (
    *("callbacks.plan", "aqr.stop_gradient", "model.network.aqr.stop_gradient"),
    *("training.criterion.signal_weight", "training.denoising._target_"),
    *("optimizer._target_", "lr_mult._target_", "lr_mult._convert_", "data.sampling", "data.resampling"),
    *("data.damage", "data.exact_lidar2img", "data.half_points", "data.half_size_images"),
    "data.replace_empty_frames",
)


def targets(config: DictConfig) -> dict[str, str]:
    return {key: name for key, name in nodes(unresolved(config)) if key.endswith("_target_")}


def test_an_old_checkpoint_is_evaluated_and_resumed() -> None:
    written = json.dumps(saved(True))
    for now, then in OLD_NAMES.items():
        written = written.replace(now, then)
    old = json.loads(written)
    old["data"]["make"] = {"scenes": 10, "seed": 0}
    for key in NEW_KEYS:
        place, _, name = key.rpartition(".")
        del at(old, place)[name]
    current = composed(*BASE, *FOLDERS)
    config = with_overrides(old, current, [])
    check_config(config, evaluating=True)
    assert type(build(config.optimizer)) is type(build(current.optimizer))
    assert build(config.lr_mult) == build(current.lr_mult)
    assert targets(config) == {key: name for key, name in targets(current).items() if not below(key, NEW_KEYS[:1])}
    changed = {change.key: change.refusal for change in changes(old, config)}
    assert changed == {"data.make.scenes": None, "data.make.seed": None}
