"""Explaining mistakes in overrides, and putting a checkpoint's configuration together with later ones."""

from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cmt_aqr.command import check_overrides, flatten, join_first_process
from cmt_aqr.configuration import build, clamp_given
from cmt_aqr.errors import UserError
from cmt_aqr.saved import override_keys, with_overrides

CONF = Path(__file__).resolve().parents[1] / "conf"


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        check_overrides(CONF, "train", list(overrides))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_good_overrides_pass() -> None:
    check_overrides(CONF, "train", ["model=tiny_lidar", "trainer.max_steps=3", "+trainer.fast_dev_run=true"])
    check_overrides(CONF, "train", ["-m", "renderer.max_weight_clamp=1.5,2.0", "renderer=base,recommended"])
    check_overrides(CONF, "train", ["clamp_schedule.milestones={0:2.0,3:1.0}", "~callbacks.learning_rate"])
    check_overrides(CONF, "train", ["--cfg", "job", "aqr=none"])


def test_a_mistyped_key_names_its_neighbour_and_how_to_add_one() -> None:
    said = refusal("optimizer.weight_deca=0.1")
    assert said.startswith("optimizer.weight_deca=0.1: ")
    assert "optimizer.weight_decay" in said and "+optimizer.weight_deca=0.1" in said


def test_an_unlikely_key_gets_the_keys_of_its_place() -> None:
    assert "keys there are optimizer.lr, optimizer.weight_decay" in refusal("optimizer.qqqqqqqqqqqqqqqqqqqqqq=1")


def test_an_unknown_option_names_the_options_also_within_a_sweep() -> None:
    assert refusal("lr_mult=huge") == (
        "lr_mult=huge: there is no such option; choose from aggressive, cmt, conservative, from_scratch, "
        "recommended, uniform"
    )
    assert "renderer=foo" in refusal("-m", "renderer=foo,base")


def test_every_value_of_a_sweep_is_looked_at_and_intervals_are_known() -> None:
    assert "renderer=foo" in refusal("-m", "renderer=base,foo", "seed=0,1")
    assert "lr_mult=huge" in refusal("seed=0,1", "lr_mult=uniform,huge")
    check_overrides(
        CONF, "train", ["optimizer.lr=tag(log,interval(1e-5,1e-3))", "seed=range(0,3)", "sweep=clamp_x_residual"]
    )


@pytest.mark.parametrize(
    ("override", "hydra_group", "name", "extra"),
    [
        ("launcher=joblib", "launcher", "joblib", "-e '.[sweeps]'"),
        ("sweep=optuna", "sweeper", "optuna", "-e '.[sweeps]'"),
        ("launcher=slurm", "launcher", "submitit_slurm", "-e '.[slurm]'"),
        ("launcher=slurm_local", "launcher", "submitit_local", "-e '.[slurm]'"),
        ("launcher=ray", "launcher", "ray", "-e '.[ray]'"),
    ],
)
def test_a_launcher_that_is_not_installed_says_which_extra_it_is(
    override: str, hydra_group: str, name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Plugins.instance()  # looks for plugins, once
    store = ConfigStore.instance().repo["hydra"][hydra_group]
    if f"{name}.yaml" in store:
        monkeypatch.delitem(store, f"{name}.yaml")
    said = refusal(override, "seed=1")
    assert said.startswith(f"{override}: this needs an extra that is not installed: pip install") and extra in said


def test_an_override_that_cannot_be_read_is_quoted() -> None:
    assert "trainer.max_steps=[1" in refusal("trainer.max_steps=[1")


def test_flatten_names_groups_leaves_and_numbers_but_resolves_nothing() -> None:
    config = OmegaConf.create({"a": {"b": 1, 3: 2.5}, "c": "${nothing}", "d": None})
    assert list(flatten(config)) == ["a", "a.b", "a.3", "c", "d"]


def test_override_keys_and_whether_the_clamp_is_among_them() -> None:
    given = ["+a.b=1", "~c", "++d.e=x=y", "renderer@other=base", "hydra/launcher=basic"]
    assert override_keys(given) == ["a.b", "c", "d.e", "renderer", "hydra.launcher"]
    assert clamp_given(["renderer=base"]) and clamp_given(["renderer.max_weight_clamp=null"])
    assert not clamp_given(["renderer.gaussian_sigma=2", "model=tiny"])


def saved() -> dict[str, object]:
    return {"ckpt_path": None, "weights": "w.pth", "name": "old", "data": {"root": "a", "n": 1}, "lr": 1.0}


def composed(**changes: object) -> DictConfig:
    base = {"ckpt_path": "last.ckpt", "weights": None, "name": "new", "data": {"root": "b", "m": 2}, "lr": 2.0}
    return OmegaConf.create({**base, **changes})


def test_a_checkpoint_s_configuration_takes_only_what_is_overridden() -> None:
    merged = with_overrides(saved(), composed(), ["lr=2.0"])
    assert merged == {
        "ckpt_path": "last.ckpt",
        "weights": None,  # they began the run, and are not to be loaded again
        "name": "new",
        "data": {"root": "a", "n": 1},
        "lr": 2.0,
    }


def test_a_group_is_replaced_a_value_set_and_a_deleted_key_is_null() -> None:
    assert with_overrides(saved(), composed(), ["data=other"]).data == {"root": "b", "m": 2}
    assert with_overrides(saved(), composed(), ["data.root=b"]).data == {"root": "b", "n": 1}
    assert with_overrides(saved(), composed(added={"x": 1}), ["+added.x=1"]).added == {"x": 1}
    gone = composed()
    del gone["lr"]
    assert with_overrides(saved(), gone, ["~lr"]).lr is None


def test_an_experiment_cannot_be_put_into_a_checkpoint_s_configuration() -> None:
    with pytest.raises(UserError, match="drop experiment="):
        with_overrides(saved(), composed(), ["experiment=x"])


def test_build_turns_refusals_into_sentences_and_nothing_else() -> None:
    def target(name: str, **values: object) -> DictConfig:
        return OmegaConf.create({"_target_": name, **values})

    with pytest.raises(UserError, match=r"modulator.residual_weight=3: must be a number from 0 to 1"):
        build(target("cmt_aqr.aqr.Modulator", residual_weight=3))
    with pytest.raises(UserError, match=r"foo is no setting of cmt_aqr.aqr.Modulator"):
        build(target("cmt_aqr.aqr.Modulator", foo=3))
    with pytest.raises(UserError, match="No supported gpu backend found"):
        build(target("pytorch_lightning.Trainer", accelerator="gpu", logger=False, barebones=True))
    with pytest.raises(Exception, match="ZeroDivisionError") as kept:
        build(target("operator.truediv", _args_=[1, 0]))
    assert not isinstance(kept.value, UserError)


@pytest.mark.parametrize("sweep", ["-m", "sweep=presets"])
def test_a_sweep_is_not_started_by_torchrun(sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(rank_zero_only, "rank", getattr(rank_zero_only, "rank", 0))
    with pytest.raises(UserError, match=f"{sweep} does not go with torchrun"):
        join_first_process(["train.py", sweep])
