import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cmt_aqr.errors import UserError
from cmt_aqr.studies.reports.runs import find_runs, read_run
from cmt_aqr.studies.reports.settings import (
    NOT_RECORDED,
    choose_axis,
    common_overrides,
    find_axes,
    reproducing_command,
)
from tests.helpers.folders import CLAMPS, RESIDUALS, write_grid, write_run


def test_axes_are_the_settings_that_differ(tmp_path: Path) -> None:
    runs = find_runs(write_grid(tmp_path, seeds=(0, 1)))
    axes = find_axes(runs)
    assert [axis.name for axis in axes] == ["renderer.max_weight_clamp", "modulator.residual_weight"]
    assert [axis.known for axis in axes] == [list(CLAMPS), list(RESIDUALS)]
    assert axes[0].numeric
    assert common_overrides(runs) == ["trainer.max_epochs=2"]


def test_a_run_without_the_override_has_the_value_of_its_configuration(tmp_path: Path) -> None:
    write_run(tmp_path / "0", ["renderer.max_weight_clamp=1.5", "renderer=aggressive"], 0.1)
    write_run(tmp_path / "1", [], 0.1)
    write_run(tmp_path / "2", [], 0.1)
    (tmp_path / "2" / "config.yaml").unlink()
    (tmp_path / "2" / ".hydra" / "hydra.yaml").unlink()
    clamp, renderer = find_axes(find_runs(tmp_path))
    assert clamp.values == (1.5, 2.0, NOT_RECORDED)
    assert renderer.values == ("aggressive", "recommended", NOT_RECORDED)


def test_groups_that_change_together_are_one_axis_and_numbers_are_not(tmp_path: Path) -> None:
    for number, preset in enumerate(("conservative", "aggressive")):
        overrides = [
            f"renderer={preset}",
            f"modulator={preset}",
            f"optimizer.lr={number + 1}e-4",
            f"data.k={number}",
        ]
        write_run(tmp_path / str(number), overrides, 0.1)
    axes = find_axes(find_runs(tmp_path))
    assert [axis.name for axis in axes] == ["renderer + modulator", "optimizer.lr", "data.k"]
    assert axes[0].values == ("conservative", "aggressive")


def test_names_seeds_and_the_sweep_itself_are_no_axes(tmp_path: Path) -> None:
    for number in range(2):
        overrides = [f"name=run{number}", f"seed={number}", f"sweep_dir=folder{number}", f"launcher=local{number}"]
        write_run(tmp_path / str(number), overrides, 0.1)
    assert find_axes(find_runs(tmp_path)) == []


def test_an_axis_is_found_by_the_end_of_its_name(tmp_path: Path) -> None:
    runs = find_runs(write_grid(tmp_path))
    axes = find_axes(runs)
    assert choose_axis(axes, runs, "residual_weight", "x") is axes[1]
    assert choose_axis(axes, runs, "seed", "x").keys == ("seed",)
    with pytest.raises(UserError, match=r"x=lr: .* renderer.max_weight_clamp, modulator.residual_weight"):
        choose_axis(axes, runs, "lr", "x")


@pytest.mark.parametrize(
    "override",
    [
        "model.image_size=[64,160]",
        "name='two words'",
        '+note="it\'s"',
        "~callbacks.learning_rate",
        "renderer.max_weight_clamp=1.8374651283",
        "data.root=/data/with\\ space",
        "weights=null",
        "data.names={a:1,b:x}",
    ],
)
def test_the_command_gives_back_the_overrides_through_shell_and_hydra(tmp_path: Path, override: str) -> None:
    run = read_run(write_run(tmp_path / "0", [override, "seed=3"], 0.1), tmp_path)
    command = shlex.split(reproducing_command(run))
    assert command[:2] == ["python", "scripts/train.py"]
    parser = OverridesParser.create()
    again, first = parser.parse_overrides(command[2:]), parser.parse_overrides([override, "seed=3"])
    assert [(o.type, o.get_key_element(), o.value()) for o in again] == [
        (o.type, o.get_key_element(), o.value()) for o in first
    ]


def test_the_command_starts_one_run_and_no_sweep(tmp_path: Path) -> None:
    overrides = ["sweep=presets", "launcher=joblib", "sweep_dir=outputs/a", "renderer=aggressive"]
    run = read_run(write_run(tmp_path / "0", overrides, 0.1), tmp_path)
    assert reproducing_command(run) == "python scripts/train.py renderer=aggressive"
