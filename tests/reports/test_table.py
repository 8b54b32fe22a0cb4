import csv
import math
import statistics
from pathlib import Path

import numpy as np
import pytest

from cmt_aqr.errors import UserError
from cmt_aqr.reports.grids import best_places, best_so_far, drawn, make_grid, panels
from cmt_aqr.reports.runs import find_runs
from cmt_aqr.reports.settings import find_axes, seed_axis
from cmt_aqr.reports.table import best_first, check_metric, over_seeds, same_settings, write_csv
from tests.reports.folders import CLAMPS, ERRORS, MAPS, RESIDUALS, grid_nds, write_grid, write_run


def test_the_best_run_is_first_and_those_without_the_metric_last(tmp_path: Path) -> None:
    for number, nds in enumerate((0.1, None, 0.3, 0.2)):
        write_run(tmp_path / str(number), [], nds)
    runs = find_runs(tmp_path)
    assert best_first(runs, "NDS") == [2, 3, 0, 1]


def test_of_an_error_the_least_is_best(tmp_path: Path) -> None:
    for number, error in enumerate((0.9, 0.4)):
        folder = write_run(tmp_path / str(number), [], 0.2)
        (folder / "metrics.json").write_text(f'{{"mATE": {error}, "ATE/car": {1 - error}}}', encoding="utf-8")
    runs = find_runs(tmp_path)
    assert best_first(runs, "mATE") == [1, 0]
    assert best_first(runs, "ATE/car") == [0, 1]


def test_an_unknown_metric_is_refused_with_those_there(tmp_path: Path) -> None:
    write_run(tmp_path / "0", [], 0.2)
    with pytest.raises(UserError, match=r"metric=nds: no run has it; runs have mAP, NDS, mATE"):
        check_metric(find_runs(tmp_path), "nds")


def test_the_csv_file_holds_what_the_folders_hold(tmp_path: Path) -> None:
    overrides = ["renderer.max_weight_clamp=1.8374651283", "renderer=aggressive", "trainer.max_epochs=2"]
    write_run(tmp_path / "0", overrides, 0.123456789, maps=MAPS, seed=3)
    write_run(tmp_path / "1", ["trainer.max_epochs=2"], None, error='loss is "nan", step 3', wall_time_s=None)
    runs = find_runs(tmp_path)
    write_csv(runs, find_axes(runs), [0, 1], tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        best, failed = csv.DictReader(file)
    assert (best["run"], best["status"], best["seed"], best["error"]) == ("0", "complete", "3", "")
    assert float(best["NDS"]) == 0.123456789
    assert {name: float(best[name]) for name in ERRORS} == ERRORS
    assert float(best["AP/car"]) == 0.25 and math.isnan(float(best["AVE/barrier"]))
    assert float(best["aqr/bev/max_over_mean"]) == MAPS["bev"]["max_over_mean"]
    assert (best["wall_time_s"], best["frames_per_second"], best["peak_memory_bytes"]) == (
        "75.0",
        "3.25",
        "1610612736",
    )
    assert best["renderer.max_weight_clamp"] == "1.8374651283" and best["renderer"] == "aggressive"
    assert best["overrides"] == " ".join(overrides)
    assert failed["error"] == 'loss is "nan", step 3'
    assert (failed["renderer.max_weight_clamp"], failed["renderer"]) == ("2.0", "recommended")
    assert failed["NDS"] == failed["wall_time_s"] == failed["aqr/bev/mean"] == ""


def test_seeds_are_averaged_with_their_sample_deviation(tmp_path: Path) -> None:
    values = (0.1, 0.2, 0.6)
    for seed, nds in enumerate(values):
        write_run(tmp_path / str(seed), [f"seed={seed}"], nds, seed=seed)
    write_run(tmp_path / "9", ["seed=9"], None, seed=9)
    runs = find_runs(tmp_path)
    (setting,) = same_settings(runs, find_axes(runs))
    found = over_seeds(runs, setting, "NDS")
    assert found is not None and len(setting.members) == 4
    assert (found.mean, found.std, found.count) == pytest.approx((0.3, statistics.stdev(values), 3))
    assert seed_axis(runs).known == [0, 1, 2, 9]


def test_the_grid_has_every_value_at_its_place(tmp_path: Path) -> None:
    runs = find_runs(write_grid(tmp_path))
    clamp, residual = find_axes(runs)
    grid = make_grid(runs, range(len(runs)), clamp, residual, "NDS")
    expected = np.array([[grid_nds(c, r) for c in CLAMPS] for r in RESIDUALS])
    expected[1, 2] = expected[2, 2] = np.nan
    np.testing.assert_array_equal(grid.mean, expected)
    np.testing.assert_array_equal(grid.count, ~np.isnan(expected))
    np.testing.assert_array_equal(grid.without, np.isnan(expected))
    assert (grid.xs, grid.ys) == (CLAMPS, RESIDUALS)
    assert best_places(grid, "NDS") == [(1, 1)]


def test_the_grid_averages_over_seeds(tmp_path: Path) -> None:
    runs = find_runs(write_grid(tmp_path, seeds=(0, 1, 2)))
    clamp, residual = find_axes(runs)
    grid = make_grid(runs, range(len(runs)), clamp, residual, "NDS")
    values = [grid_nds(1.5, 0.65, seed) for seed in (0, 1, 2)]
    assert grid.mean[1, 0] == pytest.approx(statistics.fmean(values))
    assert grid.std[1, 0] == pytest.approx(statistics.stdev(values))
    np.testing.assert_array_equal(grid.count, [[3, 3, 3], [3, 3, 2], [3, 3, 2]])


def test_equal_bests_are_all_found_and_less_is_better_of_errors(tmp_path: Path) -> None:
    for number, clamp in enumerate((1.0, 2.0, 3.0)):
        folder = write_run(tmp_path / str(number), [f"renderer.max_weight_clamp={clamp}"], 0.2)
        (folder / "metrics.json").write_text(f'{{"mATE": {0.9 if number == 1 else 0.5}}}', encoding="utf-8")
    runs = find_runs(tmp_path)
    grid = make_grid(runs, range(3), find_axes(runs)[0], None, "mATE")
    assert best_places(grid, "mATE") == [(0, 0), (0, 2)]


def test_panels_are_in_the_order_of_their_values(tmp_path: Path) -> None:
    for number, lr in enumerate((1e-3, 1e-4, 1e-3)):
        write_run(tmp_path / str(number), [f"optimizer.lr={lr}"], 0.2)
    axes = find_axes(find_runs(tmp_path))
    assert panels(axes, range(3)) == {(1e-4,): [1], (1e-3,): [0, 2]}


def test_values_drawn_from_a_range_are_told_from_chosen_ones(tmp_path: Path) -> None:
    for number in range(12):
        overrides = [f"renderer.max_weight_clamp={1 + number / 7}", f"optimizer.lr={1 + number % 3}e-4"]
        write_run(tmp_path / str(number), overrides, 0.2)
    clamp, lr = find_axes(find_runs(tmp_path))
    assert drawn(clamp) and not drawn(lr)


def test_best_so_far_follows_the_direction_and_passes_over_failures() -> None:
    np.testing.assert_array_equal(best_so_far([None, 0.2, 0.1, None, 0.3], "NDS"), [np.nan, 0.2, 0.2, 0.2, 0.3])
    np.testing.assert_array_equal(best_so_far([0.2, 0.1, 0.3], "mATE"), [0.2, 0.1, 0.1])
