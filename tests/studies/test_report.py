"""The page, its figures and the CSV file."""

import csv
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from cmt_aqr.runs.folder import find_runs
from cmt_aqr.studies.figures import learning_curves, overview, thinned
from cmt_aqr.studies.records import find_axes
from cmt_aqr.studies.report import make_report
from tests.helpers.commands import finished, run_command
from tests.helpers.folders import CLAMPS, ERRORS, MAPS, RESIDUALS, grid_nds, write_grid, write_run

VOID = {"meta", "br", "wbr", "hr", "img", "input", "link"}
LOADS = {"src", "href", "xlink:href", "action", "data", "poster", "srcset"}


class Page(HTMLParser):
    """Reads a page strictly: every element closed in order; keeps cells and what would be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.plots = 0
        self.rows: list[list[str]] = []
        self.commands: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.plots += ("class", "plot") in attrs
        self.loads += [value or "" for name, value in attrs if name in LOADS]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag == "pre":
            self.commands.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"{tag} closes nothing"

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.rows[-1][-1] += data
        if "pre" in self.open:
            self.commands[-1] += data


def report(folder: Path, **options: str) -> tuple[Page, str]:
    page, table = make_report(folder, **options)  # type: ignore[arg-type]
    assert table.is_file()
    text = page.read_text(encoding="utf-8")
    return Page(text), text


def check_alone(page: Page, text: str) -> None:
    """Nothing is loaded from anywhere, and plotly's button that would send a figure to its server is off."""
    assert "showSendToCloud: false" in text
    assert page.loads == []
    assert not re.search(r"url\(|@import|https?://", text.replace(get_plotlyjs(), ""))


def test_the_page_of_a_grid(tmp_path: Path) -> None:
    page, text = report(write_grid(tmp_path))
    check_alone(page, text)
    rows = [row for row in page.rows if row]
    assert [row[0] for row in rows] == ["4", "5", "1", "3", "2", "0", "6", "7", "8"]
    assert rows[0][:6] == ["4", "complete", "2", "0.65", "0.3000", "0.1500"]
    assert rows[0][6:] == [
        *("0.7000", "0.3000", "1.1000", "0.9000", "0.2000"),
        *("0:01:15", "3.25", "1.50 GiB"),
        *("0.12", "15", "0.01", "0.3", "4", "0"),
    ]
    assert rows[8][1] == "failedtrain/loss is not finite (nan) at step 80"
    assert rows[7][1] == "unfinished"
    assert rows[8][4] == rows[8][-1] == "not recorded"
    assert page.commands[0] == (
        "python scripts/train.py renderer.max_weight_clamp=2.0 modulator.residual_weight=0.65 trainer.max_epochs=2"
    )
    assert len(page.commands) == 10
    assert page.plots == 2
    assert "7 complete · 1 unfinished · 1 failed" in text


def test_seeds_have_a_table_of_their_own(tmp_path: Path) -> None:
    page, _ = report(write_grid(tmp_path, seeds=(0, 1)))
    rows = [row for row in page.rows if row]
    assert rows[0][:4] == ["2", "0.65", "2", "0.3020 ± 0.0028"]
    assert [row[2] for row in rows[:9]].count("1 of 2") == 2


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a&b \"c\" 'd'", "[bold]x[/nothing]", "{{ 7 * 7 }}"]
)
def test_odd_names_are_text(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    # A slash makes a folder of its own.
    write_run(tmp_path / name / "0", [f"note={name}", "a=1"], 0.2, [(0, 1.0)], error=None)
    write_run(tmp_path / name / "1", ["note=plain", "a=1"], None, error=f"no file {name}")
    page, text = report(tmp_path)
    check_alone(page, text)
    assert page.tags.count("script") == 2
    cells = [cell for row in page.rows for cell in row]
    assert f"{name}/0" in cells and f"failedno file {name}" in cells
    assert f"no file {name}" in re.sub(r"\s*\n", " ", capsys.readouterr().out)


def test_folders_that_lack_everything_make_a_page(tmp_path: Path) -> None:
    for name in "01":
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text(f"- seed={name}\n", encoding="utf-8")
    page, text = report(tmp_path)
    check_alone(page, text)
    assert "No run has NDS yet" in text and page.plots == 0
    rows = [row for row in page.rows if row]
    # The table over seeds comes first.
    assert [row[:3] for row in rows[-2:]] == [[name, "not recorded", name] for name in "01"]
    assert {cell for row in rows[-2:] for cell in row[3:]} == {"not recorded"}


def test_a_broken_file_is_told_on_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", [], 0.2)
    (folder / "map_statistics.json").write_text("{", encoding="utf-8")
    assert "0: map_statistics.json cannot be read: " in report(tmp_path)[1]


def test_what_is_drawn_follows_what_was_varied(tmp_path: Path) -> None:
    def titles(name: str, **chosen: str) -> list[str]:
        runs = find_runs(tmp_path / name)
        x, y = chosen.get("x"), chosen.get("y")
        return [picture.title for picture in overview(runs, find_axes(runs), "NDS", x, y)]

    write_run(tmp_path / "one" / "0", [], 0.2)
    for number in range(12):
        odd = number % 2
        settings = {
            "line": [f"a.lr={number % 3}"],
            "bars": [f"renderer={'xyz'[number % 3]}"],
            "three": [f"a.lr={number % 3}", f"b.k={number // 6}", f"c.word={'no' if odd else 'yes'}"],
            "drawn": [f"a.lr={number / 7}", f"b.k={number * number / 3}"],
            "drawn3": [f"a.lr={number / 7}", f"b.k={number * number / 3}", f"c.word={odd}"],
        }
        for name, overrides in settings.items():
            write_run(tmp_path / name / str(number), [*overrides, f"seed={number}"], 0.01 * number, seed=number)
    assert titles("one") == []
    assert titles("line") == ["NDS over a.lr"]
    assert titles("bars") == ["NDS over renderer"]
    assert titles("line", x="seed") == ["NDS over seed"]
    assert titles("three") == ["NDS over a.lr and b.k"]
    assert titles("three", x="word", y="k") == ["NDS over c.word and b.k"]
    assert titles("three", x="k") == ["NDS over b.k"]
    assert titles("drawn") == ["NDS over a.lr and b.k", "NDS in the order of the runs"]
    assert titles("drawn3") == ["NDS over each setting", "NDS in the order of the runs"]
    assert titles("drawn3", x="k", y="lr") == ["NDS over b.k and a.lr", "NDS in the order of the runs"]


def test_the_heat_map_has_every_value_at_its_place_and_frames_the_best(tmp_path: Path) -> None:
    runs = find_runs(write_grid(tmp_path))
    (picture,) = overview(runs, find_axes(runs), "NDS", None, None)
    (cells,) = picture.figure.data
    expected = np.array([[grid_nds(c, r) for c in CLAMPS] for r in RESIDUALS])
    expected[1, 2] = expected[2, 2] = np.nan
    np.testing.assert_array_equal(cells.z, expected)
    assert cells.text[1][1] == "0.3000" and cells.text[2][2] == ""
    framed = [shape for shape in picture.figure.layout.shapes if shape.line.width == 3]
    assert [(shape.x0 + shape.x1, shape.y0 + shape.y1) for shape in framed] == [(2, 2)]
    assert [(note.x, note.y, note.text) for note in picture.figure.layout.annotations] == [
        (2, 1, "no NDS"),
        (2, 2, "no NDS"),
    ]
    assert list(picture.figure.layout.xaxis.ticktext) == ["1.5", "2", "2.5"]
    for number, folder in enumerate(tmp_path.glob("[0-2]")):
        (folder / "metrics.json").write_text(f'{{"mATE": {0.9 if number == 1 else 0.5}}}', encoding="utf-8")
    runs = find_runs(tmp_path)[:3]
    (picture,) = overview(runs, find_axes(runs), "mATE", None, "residual_weight")
    assert sorted(picture.figure.data[0].y) == [0.5, 0.5, 0.9]


def test_names_stand_in_figures_as_text(tmp_path: Path) -> None:
    for number, word in enumerate(("<a href='x'>y</a>", "plain")):
        write_run(tmp_path / str(number), [], 0.1, config={"note": word})
        (tmp_path / str(number) / "record.json").write_text(
            '{"overrides": ["note=z"]}' if number else "{}", encoding="utf-8"
        )
    runs = find_runs(tmp_path)
    (picture,) = overview(runs, find_axes(runs), "NDS", None, None)
    assert list(picture.figure.layout.xaxis.ticktext) == ["&lt;a href=&#x27;x&#x27;&gt;y&lt;/a&gt;", "z"]


def test_panels_whose_titles_read_alike_stay_apart(tmp_path: Path) -> None:
    for number in range(8):
        overrides = [f"a.k={number % 2}", f"b.k={number // 2 % 2}", f"c.lr={0.123451 + number // 4 * 1e-6}"]
        write_run(tmp_path / str(number), overrides, number / 10)
    runs = find_runs(tmp_path)
    (picture,) = overview(runs, find_axes(runs), "NDS", None, None)
    assert [cells.z.tolist() for cells in picture.figure.data] == [
        [[0, 0.1], [0.2, 0.3]],
        [[0.4, 0.5], [0.6, 0.7]],
    ]
    assert {note.text for note in picture.figure.layout.annotations} == {"lr=0.1235"}


def test_failed_runs_are_named_in_the_learning_curves(tmp_path: Path) -> None:
    runs = find_runs(write_grid(tmp_path))
    (picture,) = learning_curves(runs, find_axes(runs), range(len(runs)))
    shown = {line.name: len(line.x) for line in picture.figure.data if line.showlegend}
    assert len(shown) == 9 and shown["max_weight_clamp=2.5, residual_weight=0.7 (failed)"] == 20


def test_what_no_run_has_logged_has_no_plot(tmp_path: Path) -> None:
    log = write_run(tmp_path / "0", [], 0.25, curve=[(9, 7.5)]) / "csv" / "metrics.csv"
    log.write_text(log.read_text(encoding="utf-8").replace("7.5", ""), encoding="utf-8")
    runs = find_runs(tmp_path)
    (picture,) = learning_curves(runs, find_axes(runs), [0])
    assert [axis.title.text for axis in picture.figure.select_yaxes()] == ["val/NDS", "val/mAP"]


def test_the_best_so_far_follows_the_direction_and_passes_over_failures(tmp_path: Path) -> None:
    values = [0.5, 0.3, None, *(0.4 + number / 100 for number in range(9))]
    for number, nds in enumerate(values):
        folder = write_run(tmp_path / str(number), [f"a.lr={number / 7}", f"b.k={number / 3}"], nds)
        if nds is not None:
            (folder / "metrics.json").write_text(f'{{"NDS": {nds}, "mATE": {nds}}}', encoding="utf-8")
    runs = find_runs(tmp_path)
    expected = {"NDS": [0.5] * 12, "mATE": [0.5] + [0.3] * 11}
    for metric, best in expected.items():
        _, history = overview(runs, find_axes(runs), metric, None, None)
        (line,) = [line for line in history.figure.data if line.name == "best so far"]
        assert list(line.y) == best


def test_a_long_curve_is_averaged_over_neighbours() -> None:
    steps, values = thinned((list(range(1000)), [float(i % 2) for i in range(1000)]), 100)
    assert len(steps) == len(values) == 100
    assert steps[0] == 4.5 and set(values) == {0.5}
    assert math.isclose(sum(steps) / 100, 499.5)


def test_the_csv_file_holds_what_the_folders_hold(tmp_path: Path) -> None:
    overrides = ["renderer.max_weight_clamp=1.8374651283", "renderer=aggressive", "trainer.max_epochs=2"]
    write_run(tmp_path / "0", overrides, 0.123456789, maps=MAPS, seed=3)
    write_run(tmp_path / "1", ["trainer.max_epochs=2"], None, error='loss is "nan", step 3', wall_time_s=None)
    with make_report(tmp_path)[1].open(newline="", encoding="utf-8") as file:
        best, failed = csv.DictReader(file)
    assert (best["run"], best["status"], best["seed"], best["error"]) == ("0", "complete", "3", "")
    assert float(best["NDS"]) == 0.123456789
    assert {name: float(best[name]) for name in ERRORS} == ERRORS
    assert float(best["AP/car"]) == 0.25 and math.isnan(float(best["AVE/barrier"]))
    assert float(best["aqr/bev/max_over_mean"]) == MAPS["bev"]["max_over_mean"]
    costs = ("wall_time_s", "frames_per_second", "peak_memory_bytes")
    assert [best[key] for key in costs] == ["75.0", "3.25", "1610612736"]
    assert best["renderer.max_weight_clamp"] == "1.8374651283" and best["renderer"] == "aggressive"
    assert best["overrides"] == " ".join(overrides)
    assert failed["error"] == 'loss is "nan", step 3'
    assert (failed["renderer.max_weight_clamp"], failed["renderer"]) == ("2.0", "recommended")
    assert failed["NDS"] == failed["wall_time_s"] == failed["aqr/bev/mean"] == ""


@pytest.mark.system
def test_the_command(tmp_path: Path) -> None:
    write_run(tmp_path / "sweep" / "0", ["a=1"], 0.25, maps=MAPS)
    done = finished(tmp_path, "report", "sweep_dir=sweep", "out=page")
    assert (tmp_path / "page" / "report.html").is_file() and (tmp_path / "page" / "report.csv").is_file()
    assert "0.2500" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page", "sweep"]


@pytest.mark.system
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "error: sweep_dir is missing: python scripts/report.py sweep_dir="),
        (["sweep_dir=empty"], "error: sweep_dir=empty: no run is in or below it"),
    ],
)
def test_the_command_refuses_in_one_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    done = run_command(tmp_path, "report", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(sentence) and done.stderr.count("\n") == 1
