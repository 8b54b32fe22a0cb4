"""Explaining mistakes in overrides, and putting a checkpoint's configuration together with later ones."""

import os
import shlex
import warnings
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from lightning_fabric.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cmt_aqr.errors import UserError
from cmt_aqr.runs.command import check_overrides, check_paths, hide_noise, join_first_process, print_help
from cmt_aqr.runs.command_line import readable
from cmt_aqr.runs.configuration import build, clamp_given
from cmt_aqr.runs.saved import override_keys, with_overrides
from tests.helpers.composed import CONF
from tests.helpers.composed import composed as composed_as_trained


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        check_overrides(CONF, "train", list(overrides))
    assert "\n" not in str(refused.value)
    return str(refused.value)


REFUSED = [
    # groups and options
    (["logger=[]"], ["logger=[]: must be one of csv"]),
    (["logger=null"], ["logger=null", "must be one of csv"]),
    (["callbacks=null"], ["callbacks=null", "must be one of default"]),
    (["eval_fault=mome/fov6"], ["eval_fault=mome/fov6: there is no such option", "mome/fov60"]),
    (["eval_fault=mome/"], ["eval_fault=mome/: there is no such option", "mome/fov60"]),
    (["fault=mud"], ["fault=mud: there is no such option", "mome/..."]),
    (["fault=a/b"], ["fault=a/b: there is no such option", "fog_or_night"]),
    (["lr_mult=huge"], ["lr_mult=huge: there is no such option; choose from aggressive, cmt, conservative"]),
    (["model=[tiny,foo]"], ["model=foo: there is no such option", "tiny_lidar"]),
    (["experiment=[overfit,foo]"], ["experiment=foo: there is no such option", "embedded_30min"]),
    # keys
    (["+trainer.devices=2"], ["+trainer.devices=2: there is trainer.devices already; give it without +"]),
    (["optimizer.weight_deca=0.1"], ["optimizer.weight_decay", "+optimizer.weight_deca=0.1"]),
    (["optimizer.qqqqqqqqqqqqqqqqqqqqqq=1"], ["optimizer.lr, optimizer.weight_decay"]),
    (["optimizer.lrr=1"], ["optimizer.lrr=1: ", "no key optimizer.lrr ", "optimizer.lr or"]),
    (["optimizer={lrr:1}"], ["optimizer={lrr:1}: ", "no key optimizer.lrr ", "optimizer.lr or"]),
    (["aqr.beta=oracle"], ["aqr.beta=oracle", "aqr=attention_bias"]),
    (["rendrer=base"], ["rendrer=base", "did you mean renderer"]),
    (["+callbacks.stop={monitor: val/NDS}"], ["callbacks.stop", "nothing reads"]),
    # sweeps, of which every value is looked at that chooses a file
    (["-m", "renderer=base,foo", "seed=0,1"], ["renderer=foo"]),
    (["seed=0,1", "lr_mult=uniform,huge"], ["lr_mult=huge"]),
    (["model=choice(tiny,foo)", "-m"], ["model=foo"]),
    (["model=glob(zzz*)", "-m"], ["model=glob(zzz*): "]),
    (["seed=glob(*)", "-m"], ["seed=glob(*): "]),
    # no overrides
    (["foo"], ["foo: ", "key=value"]),
    (["a b=3"], ["a b=3: ", "key=value"]),
    (["-1"], ["-1: ", "key=value"]),
    # flags, where Hydra would show a traceback
    (["--info", "defaults", "model=foo"], ["model=foo"]),
    (["--cfg", "job", "seed=1,2"], ["seed=1,2"]),
    (["-m", "--cfg", "job"], ["--multirun and --cfg"]),
    (["--resolve"], ["--resolve"]),
    (["--cfg", "job", "--resolve", "name=${oc.env:NO_SUCH_VARIABLE}"], ["NO_SUCH_VARIABLE"]),
    (["--cfg", "hydra", "--resolve"], ["--cfg all --resolve"]),
    (["--config-dir=nowhere"], ["--config-dir=nowhere"]),
    (["--config-name=nothing"], ["nothing"]),
    (["--config-path=nowhere"], ["nowhere"]),
    (["--experimental-rerun=x.pickle"], ["x.pickle"]),
    (["-sc"], ["install=bash"]),
    (["-sc", "install=tcsh"], ["install=bash"]),
    (["-sc", "query=bash"], ["install=bash"]),
]


@pytest.mark.parametrize(("given", "parts"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_a_mistake_is_one_sentence_that_names_it_and_what_there_is(given: list[str], parts: list[str]) -> None:
    said = refusal(*given)
    assert all(part in said for part in parts), said


@pytest.mark.parametrize(
    "given",
    [
        ["model=tiny_lidar", "trainer.max_steps=3", "+trainer.fast_dev_run=true"],
        ["-m", "renderer.max_weight_clamp=1.5,2.0", "renderer=base,recommended"],
        ["clamp_schedule.milestones={0:2.0,3:1.0}", "~callbacks.learning_rate"],
        ["--cfg", "job", "aqr=none"],
        ["--cfg", "all", "--resolve"],
        ["optimizer.lr=tag(log,interval(1e-5,1e-3))", "seed=range(0,3)", "sweep=clamp_x_residual"],
        ["model=glob(tiny*)", "seed=range(0,1000000)", "name=choice(a,b)", "--multirun"],
    ],
    ids=" ".join,
)
def test_good_overrides_pass(given: list[str]) -> None:
    check_overrides(CONF, "train", given)


def test_help_copies_the_plugins_configurations_only_to_compose(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Hydra prints it, each of a hundred groups takes a copy, and the command three times as long."""
    copies: list[int] = []

    def copied(store: ConfigStore, memo: dict[int, object]) -> ConfigStore:
        copies.append(1)
        return store

    monkeypatch.setattr(ConfigStore, "__deepcopy__", copied, raising=False)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    assert print_help(CONF, "train", ["--help"], Path(__file__))
    assert 1 <= len(copies) <= 3
    assert "eval_fault/mome: " in capsys.readouterr().out
    assert not print_help(CONF, "train", ["--cfg", "job"], Path(__file__))


TAUGHT = {
    "train": ["renderer: aggressive", "model: ", "-m renderer.max_weight_clamp=", "outputs/", "ckpt_path="],
    "evaluate": ["ckpt_path=", "data: lab, nuscenes, synthetic", "metrics.json"],
    "visualize": ["ckpt_path=", "frames=[0,5]", "_cameras.png"],
    "explain_maps": ["finding=pile_up", "finding=background", "data.root=FOLDER"],
}


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_the_help_of_every_command_teaches_and_fits_on_a_screen(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    assert print_help(CONF, name, ["--help"], Path(f"{name}.py"))
    shown = capsys.readouterr().out
    assert f"/{name}.py" in shown and "powered by Hydra" not in shown
    assert all(part in shown for part in TAUGHT.get(name, []))
    # Hydra lists the options of a group on one line, however many; the terminal wraps the longest.
    long = ("experiment", "fault/", "eval_fault/")
    lines = [line for line in shown.splitlines() if not line.startswith(long)]
    if name in TAUGHT:
        assert len(lines) < 60 and max(map(len, lines)) < 121 and "_target_" not in shown


@pytest.mark.parametrize("override", ["seed=${sed}", "seed=${seed}", "optimizer={lr:${optimizer.lr}}"])
def test_what_an_override_refers_to_must_be_there(override: str) -> None:
    check_overrides(CONF, "train", ["seed=${model.layers}", "hydra.run.dir=outputs/${now:%H}_${hydra:job.name}"])
    with pytest.raises(UserError) as error:
        check_overrides(CONF, "train", [override])
    assert str(error.value).startswith(override)


@pytest.mark.parametrize("override", ["severities={mome:null}", "severities.mome=[1]"])
def test_a_group_without_keys_is_said_to_have_none(override: str) -> None:
    with pytest.raises(UserError) as refused:
        check_overrides(CONF, "robustness", ["suite=mome", override])
    assert "no key severities.mome in" in str(refused.value) and "severities has none" in str(refused.value)


@pytest.mark.parametrize("job", [None, "1234"])
def test_srun_is_a_matter_of_slurm_s_jobs(
    job: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Lightning says on every machine with Slurm that srun is there and not used."""
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        hide_noise()
        SLURMEnvironment.detect()
    assert ["srun" in str(one.message) for one in told] == ([] if job is None else [True])


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


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("trainer.max_steps=[1", """'trainer.max_steps="[1"'"""),
        ("weights=x/epoch=3.ckpt", """'weights="x/epoch=3.ckpt"'"""),
        ("data.root=/d/nu(1)", """'data.root="/d/nu(1)"'"""),
        ("weights=~/epoch=3.ckpt", f"""'weights="{Path.home()}/epoch=3.ckpt"'"""),
        ("name=a,b", """'name="a,b"'"""),
        ("name=a,b", "'name=[a,b]'"),
    ],
)
def test_an_override_that_cannot_be_read_shows_what_to_type(override: str, shown: str) -> None:
    said = refusal(override)
    assert said.startswith(readable(override)) and shown in said
    check_overrides(CONF, "train", [shlex.split(shown)[0]])


def test_a_folder_of_configurations_is_searched(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("defaults:\n  - tiny\n", encoding="utf-8")
    (tmp_path / "other.yaml").write_text("defaults:\n  - train\n  - _self_\nmine: 1\n", encoding="utf-8")
    check_overrides(CONF, "train", ["model=mine", "seed=1", f"--config-dir={tmp_path}"])
    check_overrides(CONF, "train", ["-cd", str(tmp_path), "--config-name=other", "mine=2"])
    assert "model=yours" in refusal("model=yours", f"--config-dir={tmp_path}")
    assert "optimizer.lrr" in refusal("optimizer.lrr=1", f"--config-dir={tmp_path}")


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/below", "link"])
@pytest.mark.parametrize(
    ("key", "more"),
    [("hydra.run.dir", []), ("hydra.sweep.dir", ["-m", "seed=1,2"]), ("sweep_dir", ["sweep=presets"])],
)
def test_a_folder_of_results_that_cannot_be_made_is_refused(
    key: str, more: list[str], place: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    folder = tmp_path / place
    assert refusal(f"{key}={folder}", *more).startswith(f"{key}={folder}: ")
    check_overrides(CONF, "train", [f"{key}={tmp_path / 'new' / 'folder'}", *more])
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}, "a check leaves nothing"


def test_paths_are_texts_with_the_home_folder_written_out() -> None:
    config = OmegaConf.create({"weights": "~/x.pth", "out": None, "data": {"root": 2024}, "name": "~/kept"})
    check_paths(config)
    assert config == {
        "weights": str(Path.home() / "x.pth"),
        "out": None,
        "data": {"root": "2024"},
        "name": "~/kept",
    }
    check_paths(OmegaConf.create({"target": "???"}))


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}, True, 1.5, ""])
def test_what_is_no_path_is_refused(value: object) -> None:
    for key in ("target", "data.cache_dir"):
        config = OmegaConf.create({})
        OmegaConf.update(config, key, value)
        with pytest.raises(UserError, match=f"{key}=.*must be a path"):
            check_paths(config)


def test_override_keys_and_whether_the_clamp_is_among_them() -> None:
    given = ["+a.b=1", "~c", "++d.e=x=y", "renderer@other=base", "hydra/launcher=basic"]
    assert override_keys(given) == ["a.b", "c", "d.e", "other", "hydra.launcher"]
    assert clamp_given(["renderer=base"]) and clamp_given(["renderer.max_weight_clamp=null"])
    assert not clamp_given(["renderer.gaussian_sigma=2", "model=tiny"])


def test_a_list_of_paths_is_for_commands_that_take_several() -> None:
    config = OmegaConf.create({"ckpt_path": ["a", "~/b"], "data": {"root": "x"}})
    with pytest.raises(UserError, match="ckpt_path="):
        check_paths(config)
    check_paths(config, ["ckpt_path"])
    assert config.ckpt_path == ["a", str(Path("~/b").expanduser())]


def test_a_value_beside_another_is_no_link_from_the_top() -> None:
    """A severity that a fault takes from the group above it, put into the configuration of an old checkpoint."""
    saved = {"eval_fault": {"share": 0.0}, "ckpt_path": None, "weights": None, "name": "old"}
    composed = OmegaConf.create({**saved, "eval_fault": {"severity": 2, "fog": {"severity": "${..severity}"}}})
    merged = with_overrides(saved, composed, ["eval_fault=multicorrupt/fog"])
    assert merged.eval_fault.fog.severity == 2


def test_build_turns_refusals_into_sentences_and_nothing_else() -> None:
    def target(name: str, **values: object) -> DictConfig:
        return OmegaConf.create({"_target_": name, **values})

    with pytest.raises(UserError, match=r"^residual_weight=3: must be a number from 0 to 1"):
        build(target("cmt_aqr.aqr.Modulator", residual_weight=3))
    with pytest.raises(UserError, match=r"foo: there is no such setting of cmt_aqr.aqr.modulator.Modulator"):
        build(target("cmt_aqr.aqr.Modulator", foo=3))
    with pytest.raises(UserError, match="No supported gpu backend found"):
        build(target("pytorch_lightning.Trainer", accelerator="gpu", logger=False, barebones=True))
    with pytest.raises(Exception, match="ZeroDivisionError") as kept:
        build(target("operator.truediv", _args_=[1, 0]))
    assert not isinstance(kept.value, UserError)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["model.network.head.task_kernel=2"], "model.network.head.task_kernel=2"),
        (["model.heads=3"], "model.heads=3"),  # model.network.decoder.heads is ${model.heads}
        (["aqr.generator.num_heads=3"], "aqr.generator.num_heads=3"),  # model.network.aqr is ${aqr}
        (["modulator.activation=gelu"], "modulator.activation=gelu"),  # and aqr.modulator ${modulator}
        (["model.network.lidar=null", "model.network.image=null"], "model.network.lidar=null"),
        (["model.grid.sparse_shape=[11,2,2]"], "model.grid.sparse_shape="),
    ],
)
def test_a_refusal_names_the_key_that_the_value_stands_at(overrides: list[str], key: str) -> None:
    with pytest.raises(UserError) as refused:
        build(composed_as_trained(*overrides).model.network)
    assert str(refused.value).startswith(key)


def test_a_refusal_that_is_of_no_single_parameter_names_the_part() -> None:
    with pytest.raises(UserError, match=r"^model\.network\.lidar: a sparse grid of"):
        build(composed_as_trained("model.network.lidar.encoder_paddings=[[0,1,1],[0,1,1]]").model.network)


@pytest.mark.parametrize("sweep", ["-m", "sweep=presets"])
def test_a_sweep_is_not_started_by_torchrun(sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(rank_zero_only, "rank", getattr(rank_zero_only, "rank", 0))
    with pytest.raises(UserError, match=f"{sweep} does not go with torchrun"):
        join_first_process(["train.py", sweep])
