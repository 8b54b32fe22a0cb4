"""Reading a run's folder, complete, damaged or missing."""

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


def test_runs_are_found_at_any_depth_in_natural_order(tmp_path: Path) -> None:
    for name in ("10", "9", "2026-01-31/12-00-00_train", ".trash/0"):
        write_run(tmp_path / name, [], 0.1)
    write_run(tmp_path / "9" / "inside", [], 0.1)
    assert [run.name for run in find_runs(tmp_path)] == ["9", "10", "2026-01-31/12-00-00_train"]
    assert [run.name for run in find_runs(tmp_path / "9")] == ["9"], "the folder itself may be a run"
    assert find_runs(tmp_path / "nowhere") == []


def test_recorded_values_are_read(tmp_path: Path) -> None:
    machine = {"cpu": "AMD", "cores": 2, "memory_bytes": 2**30, "gpus": []}
    write_run(tmp_path / "0", ["seed=3"], 0.25, [(0, 4.0), (2, 9.0), (2, 3.0)], MAPS, seed=3, machine=machine)
    run = Run(tmp_path / "0")
    assert (run.name, run.overrides, run.seed) == ("0", ("seed=3",), 3)
    assert (run.status, run.ending, run.outcome, run.error) == ("complete", "complete", "complete", None)
    assert (run.commit, run.machine) == ("0123456789", "AMD, 2 cores, 1.00 GiB of memory")
    assert [run.numbers[key] for key in ("NDS", "bev/max_over_mean", "wall_time_s")] == [0.25, 15.0, 75.0]
    assert run.curves["train/loss"] == ([0, 2], [4.0, 3.0]), "of a step logged twice, the last value counts"
    assert run.curves["val/NDS"] == ([2], [0.25])
    assert math.isnan(run.numbers["AVE/barrier"]), "null is undefined, not missing"
    assert run.problems == []


def test_missing_values_are_empty(tmp_path: Path) -> None:
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
def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path: Path, name: str, text: str) -> None:
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


def test_a_setting_comes_from_overrides_groups_or_configuration(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path / "0", ["renderer=aggressive", "a=null", "b='x y'", "~c", "d=[1,2]", "{"], 0.1))
    keys = ("renderer", "modulator", "renderer.max_weight_clamp", "a", "b", "c", "d", "renderer.nothing")
    expected = ["aggressive", "recommended", 2.0, "null", "x y", "deleted", "[1, 2]", None]
    assert [run.setting(key) for key in keys] == expected


def test_without_a_record_the_script_is_that_of_hydra(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", ["ckpt_path=a.ckpt"], 0.2)
    (folder / "record.json").unlink()
    path = folder / ".hydra" / "hydra.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("name: train", "name: evaluate"), encoding="utf-8")
    assert Run(folder).command == "python scripts/evaluate.py ckpt_path=a.ckpt"


def test_the_command_preserves_the_overrides_through_shell_and_hydra(tmp_path: Path) -> None:
    overrides = [
        "name='two words'",
        '+note="it\'s"',
        "~callbacks.learning_rate",
        "data.root=/with\\ space",
        "a={b:1}",
    ]
    of_the_sweep = ["sweep=presets", "launcher=joblib", "sweep_dir=outputs/a"]
    command = shlex.split(Run(write_run(tmp_path / "0", [*overrides, *of_the_sweep], 0.1)).command)
    assert command[:2] == ["python", "scripts/train.py"]
    parse = OverridesParser.create().parse_overrides
    for parsed, expected in zip(parse(command[2:]), parse(overrides), strict=True):
        assert parsed.type == expected.type and parsed.get_key_element() == expected.get_key_element()
        assert parsed.value() == expected.value()


@pytest.mark.parametrize("module", ["cmt_aqr.runs.folder", "cmt_aqr.studies.report"])
def test_reading_runs_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
