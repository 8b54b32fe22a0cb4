from pathlib import Path

import pytest
from rich.console import Console

from cmt_aqr.runs.folder import Run, find_runs
from cmt_aqr.runs.sweep import summary_rows, summary_table, swept_keys
from tests.helpers.folders import write_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    write_run(tmp_path / "0", ["clamp=1.5", "steps=2"], 0.25, wall_time_s=3.2)
    write_run(tmp_path / "1", ["clamp=-1", "steps=2"], error="clamp=-1: must be above 0")
    write_run(tmp_path / "2", ["clamp=2.5", "steps=2", "size=[4,8]"], 0.5)
    return [*find_runs(tmp_path), Run(tmp_path / "-", given=["clamp=3", "steps=2"])]


def test_only_what_differs_has_a_column(runs: list[Run]) -> None:
    assert swept_keys(runs) == ["clamp", "size"]
    assert swept_keys(runs[:1]) == []


def test_the_table_names_every_run_and_why_one_failed(runs: list[Run]) -> None:
    console = Console(width=120, record=True)
    console.print(summary_table(runs, "Sweep s"))
    text = console.export_text()
    for part in ("0.1250", "0.5000", "complete", "failed", "new", "clamp=-1: must be above 0", "[4,8]"):
        assert part in text
    assert "steps" not in text


def test_a_row_has_every_override(runs: list[Run]) -> None:
    rows = summary_rows(runs)
    assert [row["run"] for row in rows] == ["0", "1", "2", "-"] and rows[3]["status"] == "new"
    assert rows[0]["overrides"] == "clamp=1.5 steps=2" and rows[0]["clamp"] == "1.5"
    assert rows[1]["NDS"] is None and rows[1]["error"] == "clamp=-1: must be above 0"
    assert (rows[2]["mAP"], rows[2]["NDS"], rows[2]["size"]) == (0.25, 0.5, "[4,8]")
