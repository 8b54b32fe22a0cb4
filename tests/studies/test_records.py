"""The settings that differ between runs, the best runs, and means over seeds."""

import json
import statistics
from pathlib import Path

import pandas as pd
import pytest

from cmt_aqr.errors import UserError
from cmt_aqr.runs.folder import find_runs
from cmt_aqr.studies.records import Comparison, is_numeric, label, short, spread
from cmt_aqr.studies.report import make_report
from tests.helpers.folders import CLAMPS, RESIDUALS, grid_nds, write_grid, write_run


def compared(folder: Path, metric: str = "NDS") -> Comparison:
    return Comparison(find_runs(folder), metric)


def values_of(axis: pd.Series) -> list[object]:
    return [None if value != value else value for value in axis]


def test_axes_are_the_settings_that_differ_without_seeds(tmp_path: Path) -> None:
    comparison = compared(write_grid(tmp_path, seeds=(0, 1)))
    axes = comparison.axes
    assert [axis.name for axis in axes] == ["renderer.max_weight_clamp", "modulator.residual_weight"]
    assert [tuple(axis.cat.categories) for axis in axes] == [CLAMPS, RESIDUALS]
    assert all(map(is_numeric, axes)) and label(axes, 0) == "max_weight_clamp=1.5, residual_weight=0.5"
    assert list(comparison.seeds.cat.categories) == [0, 1]
    # An axis is found by the end of its name.
    assert comparison.axis("residual_weight", "x") is axes[1]
    assert comparison.axis("seed", "x").name == "seed"
    with pytest.raises(UserError, match=r"x=lr: .* renderer.max_weight_clamp, modulator.residual_weight"):
        comparison.axis("lr", "x")


def test_a_run_without_the_override_has_the_value_of_its_configuration(tmp_path: Path) -> None:
    write_run(tmp_path / "0", ["renderer.max_weight_clamp=1.5", "renderer=aggressive"], 0.1)
    write_run(tmp_path / "1", [], 0.1)
    write_run(tmp_path / "2", [], 0.1)
    (tmp_path / "2" / "config.yaml").unlink()
    (tmp_path / "2" / ".hydra" / "hydra.yaml").unlink()
    clamp, renderer = compared(tmp_path).axes
    assert values_of(clamp) == [1.5, 2.0, None]
    assert values_of(renderer) == ["aggressive", "recommended", None]


def test_words_that_change_together_are_one_axis(tmp_path: Path) -> None:
    for number, preset in enumerate(("conservative", "aggressive")):
        presets = [f"renderer={preset}", f"modulator={preset}"]
        write_run(tmp_path / str(number), [*presets, f"optimizer.lr={number + 1}e-4", f"data.k={number}"], 0.1)
    axes = compared(tmp_path).axes
    assert [axis.name for axis in axes] == ["renderer + modulator", "optimizer.lr", "data.k"]
    assert values_of(axes[0]) == ["conservative", "aggressive"]
    assert [short(axis) for axis in axes] == ["renderer + modulator", "lr", "k"]


def test_names_seeds_and_sweep_settings_are_not_axes(tmp_path: Path) -> None:
    for number in range(2):
        overrides = [f"{key}={number}" for key in ("name", "seed", "sweep_dir", "launcher")]
        write_run(tmp_path / str(number), overrides, 0.1)
    assert compared(tmp_path).axes == []


def test_the_best_is_first_and_the_lowest_error(tmp_path: Path) -> None:
    for number, nds in enumerate((0.1, None, 0.3, 0.2)):
        folder = write_run(tmp_path / str(number), [], nds)
        if nds is not None:
            metrics = {"NDS": nds, "mATE": nds, "ATE/car": 1 - nds}
            (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    orders = [compared(tmp_path, metric).order for metric in ("NDS", "mATE", "ATE/car")]
    assert orders == [[2, 3, 0, 1], [0, 3, 2, 1], [2, 3, 0, 1]]
    with pytest.raises(UserError, match=r"metric=nds: .* NDS, mATE"):
        make_report(tmp_path, metric="nds")


def test_seeds_are_averaged_with_their_sample_deviation(tmp_path: Path) -> None:
    comparison = compared(write_grid(tmp_path, seeds=(0, 1, 2)))
    clamp, residual = comparison.axes
    stats = spread(comparison.values, [residual, clamp], empty=True)
    values = [grid_nds(1.5, 0.65, seed) for seed in (0, 1, 2)]
    expected = (statistics.fmean(values), statistics.stdev(values), 3, 3)
    assert tuple(stats.loc[0.65, 1.5]) == pytest.approx(expected)
    assert stats["count"].tolist() == [3, 3, 3, 3, 3, 2, 3, 3, 2] and stats["size"].tolist() == [3] * 9
    one = spread(pd.Series([0.5], name="NDS"), [pd.Series([1])])
    assert one["mean"].item() == 0.5 and one["std"].isna().item()
