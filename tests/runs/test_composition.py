"""Mistakes in a command line, and help."""

import shlex
from pathlib import Path
from unittest.mock import Mock

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins

from cmt_aqr.errors import UserError
from cmt_aqr.runs.command_line import readable
from cmt_aqr.runs.composition import check_overrides, print_help
from tests.helpers.composed import CONF


def refusal(*arguments: str, script: str = "train") -> str:
    with pytest.raises(UserError) as refused:
        check_overrides(CONF, script, list(arguments))
    assert "\n" not in str(refused.value)
    return str(refused.value)


REFUSED = [
    # groups and options
    (["logger=[]"], ["logger=[]: must be one of csv"]),
    (["callbacks=null"], ["callbacks=null", "must be one of default"]),
    (["eval_fault=mome/fov6"], ["eval_fault=mome/fov6: there is no such option", "mome/fov60"]),
    (["eval_fault=mome/"], ["eval_fault=mome/: there is no such option", "mome/fov60"]),
    (["fault=mud"], ["fault=mud: there is no such option", "mome/...", "fog_or_night"]),
    (["experiment=[overfit,foo]"], ["experiment=foo: there is no such option", "embedded_30min"]),
    # keys
    (["+trainer.devices=2"], ["+trainer.devices=2: there is trainer.devices already"]),
    (["optimizer.weight_deca=0.1"], ["optimizer.weight_decay", "+optimizer.weight_deca=0.1"]),
    (["optimizer.qqqqqqqqqqqqqqqqqqqqqq=1"], ["optimizer.lr, optimizer.weight_decay"]),
    (["optimizer={lrr:1}"], ["optimizer={lrr:1}: ", "no key optimizer.lrr ", "optimizer.lr or"]),
    (["aqr.beta=oracle"], ["aqr.beta=oracle", "aqr=attention_bias"]),
    (["rendrer=base"], ["rendrer=base", "did you mean renderer"]),
    (["+callbacks.stop={monitor: val/NDS}"], ["callbacks.stop", "nothing reads"]),
    # references
    (["seed=${sed}"], ["seed=${sed}: "]),
    (["seed=${seed}"], ["seed=${seed}: "]),
    (["optimizer={lr:${optimizer.lr}}"], ["optimizer={lr:${optimizer.lr}}: "]),
    # sweeps: every value that chooses a file is checked
    (["-m", "renderer=base,foo", "seed=0,1"], ["renderer=foo"]),
    (["seed=0,1", "lr_mult=uniform,huge"], ["lr_mult=huge", "choose from aggressive, cmt, conservative"]),
    (["model=choice(tiny,foo)", "-m"], ["model=foo"]),
    (["model=glob(zzz*)", "-m"], ["model=glob(zzz*): "]),
    (["--cfg", "job", "seed=1,2"], ["seed=1,2"]),
    # no overrides
    (["foo"], ["foo: ", "key=value"]),
    (["a b=3"], ["a b=3: ", "key=value"]),
    # flags for which Hydra prints a traceback
    (["--info", "defaults", "model=foo"], ["model=foo"]),
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


@pytest.mark.parametrize(("arguments", "parts"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_a_mistake_is_one_sentence_with_the_alternatives(arguments: list[str], parts: list[str]) -> None:
    message = refusal(*arguments)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=tiny_lidar", "trainer.max_steps=3", "+trainer.fast_dev_run=true"],
        ["-m", "renderer.max_weight_clamp=1.5,2.0", "renderer=base,recommended"],
        ["clamp_schedule.milestones={0:2.0,3:1.0}", "~callbacks.learning_rate"],
        ["--cfg", "all", "--resolve", "aqr=none"],
        ["optimizer.lr=tag(log,interval(1e-5,1e-3))", "seed=range(0,3)", "sweep=clamp_x_residual"],
        ["model=glob(tiny*)", "seed=range(0,1000000)", "name=choice(a,b)", "--multirun"],
        ["seed=${model.layers}", "hydra.run.dir=outputs/${now:%H}_${hydra:job.name}"],
    ],
    ids=" ".join,
)
def test_good_overrides_pass(arguments: list[str]) -> None:
    check_overrides(CONF, "train", arguments)


def test_a_group_without_keys_is_named() -> None:
    message = refusal("suite=mome", "severities={mome:null}", script="robustness")
    assert "no key severities.mome in" in message and "severities has none" in message


@pytest.mark.parametrize(
    ("override", "hydra_group", "name", "extra"),
    [
        ("sweep=optuna", "sweeper", "optuna", "-e '.[sweeps]'"),
        ("launcher=joblib", "launcher", "joblib", "-e '.[sweeps]'"),
        ("launcher=slurm", "launcher", "submitit_slurm", "-e '.[slurm]'"),
        ("launcher=slurm_local", "launcher", "submitit_local", "-e '.[slurm]'"),
        ("launcher=ray", "launcher", "ray", "-e '.[ray]'"),
    ],
)
def test_a_missing_launcher_or_sweeper_is_named_with_its_extra(
    override: str, hydra_group: str, name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Plugins.instance()  # registers the installed plugins
    store = ConfigStore.instance().repo["hydra"][hydra_group]
    if f"{name}.yaml" in store:
        monkeypatch.delitem(store, f"{name}.yaml")
    message = refusal(override, "seed=1")
    assert message.startswith(f"{override}: ") and "pip install" in message and extra in message


@pytest.mark.parametrize(
    ("override", "typed"),
    [
        ("trainer.max_steps=[1", """'trainer.max_steps="[1"'"""),
        ("weights=~/epoch=3.ckpt", f"""'weights="{Path.home()}/epoch=3.ckpt"'"""),
        ("name=a,b", """'name="a,b"'"""),
        ("name=a,b", "'name=[a,b]'"),
    ],
)
def test_an_unreadable_override_is_shown_as_it_should_be_typed(override: str, typed: str) -> None:
    message = refusal(override)
    assert message.startswith(readable(override)) and typed in message
    check_overrides(CONF, "train", [shlex.split(typed)[0]])


def test_a_folder_of_configurations_is_searched(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("defaults:\n  - tiny\n", encoding="utf-8")
    (tmp_path / "other.yaml").write_text("defaults:\n  - train\n  - _self_\nmine: 1\n", encoding="utf-8")
    check_overrides(CONF, "train", ["-cd", str(tmp_path), "--config-name=other", "mine=2", "model=mine"])
    assert "model=yours" in refusal("model=yours", f"--config-dir={tmp_path}")


@pytest.mark.parametrize(
    ("key", "more"),
    [("hydra.run.dir", []), ("hydra.sweep.dir", ["-m", "seed=1,2"]), ("sweep_dir", ["sweep=presets"])],
)
def test_a_results_folder_that_cannot_be_created_is_refused(key: str, more: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "below"
    assert refusal(f"{key}={folder}", *more).startswith(f"{key}={folder}: ")
    check_overrides(CONF, "train", [f"{key}={tmp_path / 'new' / 'folder'}", *more])
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "a check creates nothing"


CONTENTS = {
    "train": ["renderer: aggressive", "eval_fault/mome: ", "-m renderer.max_weight_clamp=", "ckpt_path="],
    "evaluate": ["ckpt_path=", "data: lab, nuscenes, synthetic", "metrics.json"],
    "visualize": ["ckpt_path=", "frames=[0,5]", "_cameras.png"],
    "explain_maps": ["finding=pile_up", "finding=background", "data.root=FOLDER"],
}


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_the_help_of_every_command_is_quick_and_fits_on_a_screen(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra's own help copies all plugins' configurations for each of a hundred groups: three times as slow."""
    copy = Mock(return_value=ConfigStore.instance())
    monkeypatch.setattr(ConfigStore, "__deepcopy__", copy, raising=False)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    assert print_help(CONF, name, ["--help"], Path(f"{name}.py")) and 1 <= copy.call_count <= 3
    page = capsys.readouterr().out
    assert f"/{name}.py" in page and "powered by Hydra" not in page
    assert all(part in page for part in CONTENTS.get(name, []))
    # Hydra lists the options of a group on one line, however long.
    long = ("experiment", "fault/", "eval_fault/")
    lines = [line for line in page.splitlines() if not line.startswith(long)]
    if name in CONTENTS:
        assert len(lines) < 60 and max(map(len, lines)) < 121 and "_target_" not in page
    assert not print_help(CONF, name, ["--cfg", "job"], Path(f"{name}.py"))
