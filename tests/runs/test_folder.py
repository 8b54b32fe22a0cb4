"""What is read from a run's folder, whole, broken or absent."""

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cmt_aqr.runs.folder import Run, find_runs
from tests.helpers.commands import environment
from tests.helpers.folders import MAPS, write_run


def test_runs_are_found_at_any_depth_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "2026-01-31/12-00-00_train", ".trash/0"):
        write_run(tmp_path / name, [], 0.1)
    write_run(tmp_path / "9" / "inside", [], 0.1)
    assert [run.name for run in find_runs(tmp_path)] == ["9", "10", "2026-01-31/12-00-00_train"]
    assert [run.name for run in find_runs(tmp_path / "9")] == ["9"], "the folder may be a run"
    assert find_runs(tmp_path / "nowhere") == []


def test_what_is_recorded_is_read(tmp_path: Path) -> None:
    machine = {"cpu": "AMD", "cores": 2, "memory_bytes": 2**30, "gpus": []}
    write_run(tmp_path / "0", ["seed=3"], 0.25, [(0, 4.0), (2, 9.0), (2, 3.0)], MAPS, seed=3, machine=machine)
    run = Run(tmp_path / "0")
    assert (run.name, run.script, run.overrides, run.seed) == ("0", "train.py", ("seed=3",), 3)
    assert (run.status, run.ending, run.outcome, run.error) == ("complete", "complete", "complete", None)
    assert (run.commit, run.machine) == ("0123456789", "AMD, 2 cores, 1.00 GiB of memory")
    assert [run.numbers[key] for key in ("NDS", "bev/max_over_mean", "wall_time_s")] == [0.25, 15.0, 75.0]
    assert run.curves["train/loss"] == ([0, 2], [4.0, 3.0]), (
        "of a step logged again after a resume, the last counts"
    )
    assert run.curves["val/NDS"] == ([2], [0.25])
    assert math.isnan(run.numbers["AVE/barrier"]), "null is undefined, and not absent"
    assert run.problems == []


def test_what_is_absent_is_not_made_up(tmp_path: Path) -> None:
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    (tmp_path / "0" / ".hydra" / "overrides.yaml").write_text("- seed=3\n", encoding="utf-8")
    (run,) = find_runs(tmp_path)
    assert (run.overrides, run.setting("seed"), run.setting("a.b")) == (("seed=3",), 3, None)
    assert (run.status, run.ending, run.error, run.seed) == (None, "not recorded", None, None)
    assert (run.numbers, run.curves, run.problems, run.commit, run.machine) == ({}, {}, [], "", "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("record.json", '{"status": "comp'),
        ("record.json", "[]"),
        ("metrics.json", '{"NDS": "many"}'),
        ("map_statistics.json", '{"bev": 3}'),
        ("config.yaml", "a: [1"),
        (".hydra/run.json", "{}"),
        ("csv/metrics.csv", "step,train/loss\nx,1.0\n"),
    ],
)
def test_a_broken_file_is_named_and_the_rest_is_read(tmp_path: Path, name: str, text: str) -> None:
    folder = write_run(tmp_path / "0", ["seed=3"], 0.25, [(0, 4.0)], MAPS)
    (folder / name).write_text(text, encoding="utf-8")
    run = Run(folder)
    (problem,) = run.problems
    assert problem.startswith(f"{name} cannot be read: ")
    assert run.overrides == run.claimed == ("seed=3",)
    assert ("NDS" in run.numbers) == (name != "metrics.json")
    assert run.outcome == ("stopped" if name in ("record.json", "metrics.json") else "complete")


@pytest.mark.parametrize(
    ("record", "evaluated", "outcome"),
    [
        (None, False, "stopped"),
        (None, True, "complete"),
        ({}, True, "complete"),
        ({"status": "running"}, True, "stopped"),
        ({"status": "stopped"}, False, "stopped"),
        ({"status": "complete"}, True, "complete"),
        ({"status": "complete"}, False, "stopped"),
        ({"status": "failed"}, True, "failed"),
    ],
)
def test_how_a_run_ended(record: dict | None, evaluated: bool, outcome: str, tmp_path: Path) -> None:
    if record is not None:
        (tmp_path / "record.json").write_text(json.dumps(record), encoding="utf-8")
    if evaluated:
        (tmp_path / "metrics.json").write_text('{"mAP": 0.1, "NDS": 0.2}', encoding="utf-8")
    assert Run(tmp_path).outcome == outcome
    assert Run(tmp_path / "nowhere").outcome == "new"


def test_a_setting_is_that_of_the_overrides_the_groups_or_the_configuration(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path / "0", ["renderer=aggressive", "a=null", "b='x y'", "~c", "d=[1,2]", "{"], 0.1))
    keys = ("renderer", "modulator", "renderer.max_weight_clamp", "a", "b", "c", "d", "renderer.nothing")
    expected = ["aggressive", "recommended", 2.0, "null", "x y", "deleted", "[1, 2]", None]
    assert [run.setting(key) for key in keys] == expected


def test_an_evaluation_is_a_run_of_its_script(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", ["ckpt_path=a.ckpt"], 0.2)
    (folder / "record.json").unlink()
    hydra = (folder / ".hydra" / "hydra.yaml").read_text(encoding="utf-8")
    (folder / ".hydra" / "hydra.yaml").write_text(hydra.replace("name: train", "name: evaluate"), encoding="utf-8")
    assert Run(folder).command == "python scripts/evaluate.py ckpt_path=a.ckpt"


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
    of_the_sweep = ["sweep=presets", "launcher=joblib", "sweep_dir=outputs/a"]
    run = Run(write_run(tmp_path / "0", [override, *of_the_sweep, "seed=3"], 0.1))
    command = shlex.split(run.command)
    assert command[:2] == ["python", "scripts/train.py"]
    parser = OverridesParser.create()
    again, first = parser.parse_overrides(command[2:]), parser.parse_overrides([override, "seed=3"])
    assert [(o.type, o.get_key_element(), o.value()) for o in again] == [
        (o.type, o.get_key_element(), o.value()) for o in first
    ]


@pytest.mark.parametrize("module", ["cmt_aqr.runs.folder", "cmt_aqr.studies.report"])
def test_reading_runs_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
