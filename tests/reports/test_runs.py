import json
from pathlib import Path

import pytest

from cmt_aqr.errors import UserError
from cmt_aqr.reports.runs import find_runs, read_run
from tests.reports.folders import MAPS, write_run


def test_runs_are_found_at_any_depth_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "2026-01-31/12-00-00_train", ".trash/0"):
        write_run(tmp_path / name, [], 0.1)
    write_run(tmp_path / "9" / "inside", [], 0.1)
    assert [run.name for run in find_runs(tmp_path)] == ["9", "10", "2026-01-31/12-00-00_train"]


def test_what_is_recorded_is_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", ["seed=3"], 0.25, [(0, 4.0), (2, 3.0)], MAPS, seed=3)
    run = read_run(folder, tmp_path)
    assert (run.name, run.script, run.overrides) == ("0", "train.py", ("seed=3",))
    assert (run.status, run.error, run.seed) == ("complete", None, 3)
    assert run.number("NDS") == 0.25
    assert run.number("bev/max_over_mean") == 15.0
    assert run.number("wall_time_s") == 75.0
    assert run.curves["train/loss"] == ([0, 2], [4.0, 3.0])
    assert run.curves["val/NDS"] == ([2], [0.25])
    assert run.problems == ()


def test_what_is_absent_is_not_made_up(tmp_path: Path) -> None:
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    (tmp_path / "0" / ".hydra" / "overrides.yaml").write_text("- seed=3\n", encoding="utf-8")
    (run,) = find_runs(tmp_path)
    assert run.overrides == ("seed=3",)
    assert (run.status, run.error, run.seed) == (None, None, None)
    assert [run.number(key) for key in ("NDS", "bev/mean", "wall_time_s")] == [None, None, None]
    assert dict(run.curves) == {} and run.problems == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("record.json", '{"status": "comp'),
        ("record.json", "[]"),
        ("metrics.json", '{"NDS": "many"}'),
        ("map_statistics.json", '{"bev": 3}'),
        ("config.yaml", "a: [1"),
        ("csv/metrics.csv", "step,train/loss\nx,1.0\n"),
    ],
)
def test_a_broken_file_is_named_and_the_rest_is_read(tmp_path: Path, name: str, text: str) -> None:
    folder = write_run(tmp_path / "0", ["seed=3"], 0.25, [(0, 4.0)], MAPS)
    (folder / name).write_text(text, encoding="utf-8")
    run = read_run(folder, tmp_path)
    (problem,) = run.problems
    assert problem.startswith(f"{name} cannot be read: ")
    assert run.overrides == ("seed=3",)
    assert (run.number("NDS") is None) == (name == "metrics.json")


def test_a_step_logged_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "0", [], 0.2, [(0, 4.0), (2, 3.0), (4, 9.0), (2, 2.5)]), tmp_path)
    assert run.curves["train/loss"] == ([0, 2, 4], [4.0, 2.5, 9.0])


def test_the_folder_may_be_a_run(tmp_path: Path) -> None:
    write_run(tmp_path / "mine", [], 0.2)
    assert [run.name for run in find_runs(tmp_path / "mine")] == ["mine"]


def test_an_evaluation_is_a_run_of_its_script(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", ["ckpt_path=a.ckpt"], 0.2)
    (folder / "record.json").unlink()
    hydra = (folder / ".hydra" / "hydra.yaml").read_text(encoding="utf-8")
    (folder / ".hydra" / "hydra.yaml").write_text(hydra.replace("name: train", "name: evaluate"), encoding="utf-8")
    run = read_run(folder, tmp_path)
    assert (run.script, run.overrides, run.status) == ("evaluate.py", ("ckpt_path=a.ckpt",), None)


@pytest.mark.parametrize(
    ("name", "reason"), [("none", "there is no such folder"), ("", "no run is in or below it")]
)
def test_nothing_to_report_is_one_sentence(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        find_runs(tmp_path / name)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_nan_in_json_is_undefined_and_not_absent(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "0", [], 0.2), tmp_path)
    value = run.number("AVE/barrier")
    assert value is not None and value != value
    assert json.loads((tmp_path / "0" / "metrics.json").read_text(encoding="utf-8"))["AVE/barrier"] is None
