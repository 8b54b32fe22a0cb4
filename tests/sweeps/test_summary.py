import csv
from pathlib import Path

from rich.console import Console

from cmt_aqr.sweeps.runs import SweepRun
from cmt_aqr.sweeps.summary import summary_table, swept_keys, write_summary


def runs() -> list[SweepRun]:
    good = {"mAP": 0.25, "NDS": 0.5}
    return [
        SweepRun(Path("s/0"), ("clamp=1.5", "steps=2"), "complete", {"mAP": 0.125, "NDS": 0.25}, seconds=3.2),
        SweepRun(Path("s/1"), ("clamp=-1", "steps=2"), "failed", {}, "clamp=-1: must be above 0"),
        SweepRun(Path("s/2"), ("clamp=2.5", "steps=2", "size=[4,8]"), "complete", good),
    ]


def test_only_what_differs_has_a_column() -> None:
    assert swept_keys(runs()) == ["clamp", "size"]
    assert swept_keys(runs()[:1]) == []


def test_the_table_names_every_run_and_why_one_failed() -> None:
    console = Console(width=120, record=True)
    console.print(summary_table(runs(), "Sweep s"))
    text = console.export_text()
    for part in ("0.1250", "0.5000", "complete", "failed", "clamp=-1: must be above 0", "[4,8]"):
        assert part in text
    assert "steps" not in text


def test_the_csv_has_every_override(tmp_path: Path) -> None:
    with write_summary(runs(), tmp_path / "summary.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["overrides"] == "clamp=1.5 steps=2" and rows[0]["clamp"] == "1.5"
    assert rows[1]["NDS"] == "" and rows[1]["error"] == "clamp=-1: must be above 0"
    assert (rows[2]["mAP"], rows[2]["NDS"], rows[2]["size"]) == ("0.25", "0.5", "[4,8]")
