"""The summary of a sweep."""

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
    return [*find_runs(tmp_path), Run(tmp_path / "-", overrides=["clamp=3", "steps=2"])]


def test_the_table_has_every_run_and_the_keys_that_differ(runs: list[Run]) -> None:
    assert swept_keys(runs) == ["clamp", "size"] and swept_keys(runs[:1]) == []
    console = Console(width=120, record=True)
    console.print(summary_table(summary_rows(runs, swept_keys(runs)), swept_keys(runs), "Sweep s"))
    text = console.export_text()
    for part in ("0.1250", "0.5000", "complete", "failed", "new", "clamp=-1: must be above 0", "[4,8]"):
        assert part in text
    assert "steps" not in text
