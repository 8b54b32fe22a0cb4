"""The page, its figures and the CSV file."""

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from cmt_aqr.runs.folder import find_runs
from cmt_aqr.studies.figures import Picture, learning_curves, overview, thinned
from cmt_aqr.studies.records import Comparison
from cmt_aqr.studies.report import make_report
from tests.helpers.commands import finished, run_command
from tests.helpers.folders import CLAMPS, ERRORS, MAPS, RESIDUALS, grid_nds, write_grid, write_run

VOID = {"meta", "br", "wbr", "hr", "img", "input", "link"}
LOADS = {"src", "href", "xlink:href", "action", "data", "poster", "srcset"}


class Page(HTMLParser):
    """A page's table rows, commands and plots; every element must be closed in order, and nothing be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.plots = 0
        self.rows: list[list[str]] = []
        self.commands: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], self.open
        assert not re.search(r"url\(|@import|https?://", text.replace(get_plotlyjs(), ""))
        assert "showSendToCloud: false" in text

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not LOADS & dict(attrs).keys()
        self.tags.append(tag)
        self.plots += ("class", "plot") in attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            if self.open[-2:] == ["tr", "td"] and self.tags[-2] == "tr":
                self.rows.append([])
            self.rows[-1].append("")
        if tag == "pre":
            self.commands.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"{tag} closes nothing"

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.rows[-1][-1] += data
        if "pre" in self.open:
            self.commands[-1] += data


def report(folder: Path) -> tuple[Page, str]:
    text = make_report(folder)[0].read_text(encoding="utf-8")
    return Page(text), text


def overview_of(folder: Path, metric: str = "NDS", x: str | None = None, y: str | None = None) -> list[Picture]:
    return overview(Comparison(find_runs(folder), metric), x, y)


def curves_of(folder: Path) -> Picture:
    (picture,) = learning_curves(Comparison(find_runs(folder), "NDS"))
    return picture


def test_the_page_of_a_grid(tmp_path: Path) -> None:
    page, text = report(write_grid(tmp_path))
    assert [row[0] for row in page.rows] == ["4", "5", "1", "3", "2", "0", "6", "7", "8"]
    assert page.rows[0] == [
        *("4", "complete", "2", "0.65", "0.3000", "0.1500"),
        *("0.7000", "0.3000", "1.1000", "0.9000", "0.2000"),
        *("0:01:15", "3.25", "1.50 GiB"),
        *("0.12", "15", "0.01", "0.3", "4", "0"),
    ]
    assert page.rows[8][1] == "failedtrain/loss is not finite (nan) at step 80"
    assert page.rows[8][4] == page.rows[8][-1] == "not recorded"
    assert page.rows[7][1] == "unfinished"
    assert "7 complete · 1 unfinished · 1 failed" in text
    assert page.commands[0] == (
        "python scripts/train.py renderer.max_weight_clamp=2.0 modulator.residual_weight=0.65 trainer.max_epochs=2"
    )
    assert (len(page.commands), page.plots) == (10, 2)


def test_seeds_have_a_table(tmp_path: Path) -> None:
    page, _ = report(write_grid(tmp_path, seeds=(0, 1)))
    assert page.rows[0][:4] == ["2", "0.65", "2", "0.3020 ± 0.0028"]
    assert [row[2] for row in page.rows[:9]].count("1 of 2") == 2


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a&b \"c\" 'd'", "[bold]x[/nothing]", "{{ 7 * 7 }}"]
)
def test_odd_names_are_text(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    # A slash makes another folder.
    write_run(tmp_path / name / "0", [f"note={name}", "a=1"], 0.2, [(0, 1.0)], error=None)
    write_run(tmp_path / name / "1", ["note=plain", "a=1"], None, error=f"no file {name}")
    page, _ = report(tmp_path)
    assert page.tags.count("script") == 2
    cells = [cell for row in page.rows for cell in row]
    assert f"{name}/0" in cells and f"failedno file {name}" in cells
    assert f"no file {name}" in re.sub(r"\s*\n", " ", capsys.readouterr().out)


def test_folders_without_results_make_a_page(tmp_path: Path) -> None:
    for name in "01":
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text(f"- seed={name}\n", encoding="utf-8")
    page, text = report(tmp_path)
    assert "No run has NDS yet" in text and page.plots == 0
    rows = page.rows[-2:]  # below the table over seeds
    assert [row[:3] for row in rows] == [[name, "not recorded", name] for name in "01"]
    assert {cell for row in rows for cell in row[3:]} == {"not recorded"}


def test_a_damaged_file_is_named_on_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", [], 0.2)
    (folder / "map_statistics.json").write_text("{", encoding="utf-8")
    assert "0: map_statistics.json cannot be read: " in report(tmp_path)[1]


def test_figures_follow_from_the_settings_that_differ(tmp_path: Path) -> None:
    write_run(tmp_path / "one" / "0", [], 0.2)
    for number in range(12):
        odd = number % 2
        settings = {
            "line": [f"a.lr={number % 3}"],
            "bars": [f"renderer={'xyz'[number % 3]}"],
            "three": [f"a.lr={number % 3}", f"b.k={number // 6}", f"c.word={'no' if odd else 'yes'}"],
            "sampled": [f"a.lr={number / 7}", f"b.k={number * number / 3}"],
            "sampled3": [f"a.lr={number / 7}", f"b.k={number * number / 3}", f"c.word={odd}"],
        }
        for name, overrides in settings.items():
            write_run(tmp_path / name / str(number), [*overrides, f"seed={number}"], 0.01 * number, seed=number)
    for name, x, y, titles in (
        ("one", None, None, []),
        ("line", None, None, ["NDS over a.lr"]),
        ("bars", None, None, ["NDS over renderer"]),
        ("line", "seed", None, ["NDS over seed"]),
        ("three", None, None, ["NDS over a.lr and b.k"]),
        ("three", "word", "k", ["NDS over c.word and b.k"]),
        ("three", "k", None, ["NDS over b.k"]),
        ("sampled", None, None, ["NDS over a.lr and b.k", "NDS in the order of the runs"]),
        ("sampled3", None, None, ["NDS over each setting", "NDS in the order of the runs"]),
        ("sampled3", "k", "lr", ["NDS over b.k and a.lr", "NDS in the order of the runs"]),
    ):
        assert [picture.title for picture in overview_of(tmp_path / name, x=x, y=y)] == titles


def test_the_heat_map_has_every_value_in_its_cell_and_frames_the_best(tmp_path: Path) -> None:
    (picture,) = overview_of(write_grid(tmp_path))
    (cells,) = picture.figure.data
    layout = picture.figure.layout
    expected = np.array([[grid_nds(c, r) for c in CLAMPS] for r in RESIDUALS])
    expected[1, 2] = expected[2, 2] = np.nan
    np.testing.assert_array_equal(cells.z, expected)
    assert cells.text[1][1] == "0.3000" and cells.text[2][2] == ""
    framed = [shape for shape in layout.shapes if shape.line.width == 3]
    assert [(shape.x0 + shape.x1, shape.y0 + shape.y1) for shape in framed] == [(2, 2)]
    notes = [(note.x, note.y, note.text) for note in layout.annotations]
    assert notes == [(2, 1, "no NDS"), (2, 2, "no NDS")]
    assert list(layout.xaxis.ticktext) == ["1.5", "2", "2.5"]


def test_a_line_has_the_mean_of_every_value(tmp_path: Path) -> None:
    for number, error in enumerate((0.5, 0.9, 0.7)):
        folder = write_run(tmp_path / str(number), [f"a.k={number // 2}", f"seed={number}"], 0.1)
        (folder / "metrics.json").write_text(json.dumps({"mATE": error}), encoding="utf-8")
    (picture,) = overview_of(tmp_path, "mATE")
    assert list(picture.figure.data[0].y) == pytest.approx([0.7, 0.7])


def test_names_in_figures_are_escaped(tmp_path: Path) -> None:
    for number, word in enumerate(("<a href='x'>y</a>", "plain")):
        write_run(tmp_path / str(number), [], 0.1, config={"note": word})
        record = {"overrides": ["note=z"]} if number else {}
        (tmp_path / str(number) / "record.json").write_text(json.dumps(record), encoding="utf-8")
    (picture,) = overview_of(tmp_path)
    assert list(picture.figure.layout.xaxis.ticktext) == ["&lt;a href=&#x27;x&#x27;&gt;y&lt;/a&gt;", "z"]


def test_panels_with_equal_titles_stay_apart(tmp_path: Path) -> None:
    for number in range(8):
        overrides = [f"a.k={number % 2}", f"b.k={number // 2 % 2}", f"c.lr={0.123451 + number // 4 * 1e-6}"]
        write_run(tmp_path / str(number), overrides, number / 10)
    (picture,) = overview_of(tmp_path)
    assert [cells.z.tolist() for cells in picture.figure.data] == [
        [[0, 0.1], [0.2, 0.3]],
        [[0.4, 0.5], [0.6, 0.7]],
    ]
    assert {note.text for note in picture.figure.layout.annotations} == {"lr=0.1235"}


def test_failed_runs_are_named_in_the_learning_curves(tmp_path: Path) -> None:
    picture = curves_of(write_grid(tmp_path))
    lines = {line.name: len(line.x) for line in picture.figure.data if line.showlegend}
    assert len(lines) == 9 and lines["max_weight_clamp=2.5, residual_weight=0.7 (failed)"] == 20


def test_a_curve_that_no_run_has_logged_has_no_plot(tmp_path: Path) -> None:
    log = write_run(tmp_path / "0", [], 0.25, curve=[(9, 7.5)]) / "csv" / "metrics.csv"
    log.write_text(log.read_text(encoding="utf-8").replace("7.5", ""), encoding="utf-8")
    titles = [axis.title.text for axis in curves_of(tmp_path).figure.select_yaxes()]
    assert titles == ["val/NDS", "val/mAP"]


def test_the_best_so_far_follows_the_direction_and_skips_failures(tmp_path: Path) -> None:
    values = [0.5, 0.3, None, *(0.4 + number / 100 for number in range(9))]
    for number, nds in enumerate(values):
        folder = write_run(tmp_path / str(number), [f"a.lr={number / 7}", f"b.k={number / 3}"], nds)
        if nds is not None:
            (folder / "metrics.json").write_text(json.dumps({"NDS": nds, "mATE": nds}), encoding="utf-8")
    for metric, best in {"NDS": [0.5] * 12, "mATE": [0.5] + [0.3] * 11}.items():
        _, history = overview_of(tmp_path, metric)
        (line,) = [line for line in history.figure.data if line.name == "best so far"]
        assert list(line.y) == best


def test_a_long_curve_is_averaged_over_neighbours() -> None:
    steps, values = thinned((list(range(1000)), [float(i % 2) for i in range(1000)]), 100)
    assert len(steps) == len(values) == 100
    assert steps[0] == 4.5 and set(values) == {0.5}
    assert math.isclose(sum(steps) / 100, 499.5)


def test_the_csv_file_contains_what_is_recorded(tmp_path: Path) -> None:
    overrides = ["renderer.max_weight_clamp=1.8374651283", "renderer=aggressive", "trainer.max_epochs=2"]
    write_run(tmp_path / "0", overrides, 0.123456789, maps=MAPS, seed=3)
    write_run(tmp_path / "1", ["trainer.max_epochs=2"], None, error='loss is "nan", step 3', wall_time_s=None)
    with make_report(tmp_path)[1].open(newline="", encoding="utf-8") as file:
        best, failed = csv.DictReader(file)
    expected = {
        **{"run": "0", "status": "complete", "seed": "3", "error": "", "overrides": " ".join(overrides)},
        **{"wall_time_s": "75.0", "frames_per_second": "3.25", "peak_memory_bytes": "1610612736"},
        **{"renderer.max_weight_clamp": "1.8374651283", "renderer": "aggressive"},
        **{"NDS": "0.123456789", **{name: str(error) for name, error in ERRORS.items()}},
        **{"AP/car": "0.25", "AVE/barrier": "nan", "aqr/bev/max_over_mean": str(MAPS["bev"]["max_over_mean"])},
    }
    assert {name: best[name] for name in expected} == expected
    assert failed["error"] == 'loss is "nan", step 3'
    assert (failed["renderer.max_weight_clamp"], failed["renderer"]) == ("2.0", "recommended")
    assert failed["NDS"] == failed["wall_time_s"] == failed["aqr/bev/mean"] == ""


@pytest.mark.system
def test_the_command(tmp_path: Path) -> None:
    write_run(tmp_path / "sweep" / "0", ["a=1"], 0.25, maps=MAPS)
    done = finished(tmp_path, "report", "sweep_dir=sweep", "out=page")
    assert "0.2500" in done.stdout
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["report.csv", "report.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page", "sweep"]
    (tmp_path / "empty").mkdir()
    done = run_command(tmp_path, "report", "sweep_dir=empty")
    assert done.returncode == 1
    assert done.stderr.startswith("error: sweep_dir=empty: no run") and done.stderr.count("\n") == 1
