"""Folders of runs with known numbers, as training writes them."""

import csv
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ERRORS = {"mATE": 0.7, "mASE": 0.3, "mAOE": 1.1, "mAVE": 0.9, "mAAE": 0.2}
_STATISTICS = ("mean", "std", "min", "max", "max_over_mean", "clamped", "drawn")
MAPS = {
    "bev": dict(zip(_STATISTICS, (0.12, 0.2, 0.0, 1.8, 15.0, 0.01, 0.6), strict=True)),
    "camera": dict(zip(_STATISTICS, (0.3, 0.1, 0.0, 1.2, 4.0, 0.0, 0.9), strict=True)),
}
CONFIG: dict[str, Any] = {
    "seed": 0,
    "renderer": {"max_weight_clamp": 2.0},
    "modulator": {"residual_weight": 0.5},
    "optimizer": {"lr": 1e-4},
}
CHOICES = {"renderer": "recommended", "modulator": "recommended", "model": "tiny", "experiment": None}


def metrics(nds: float, map_: float | None = None) -> dict[str, float | None]:
    """Metrics as in ``metrics.json``; a class without velocities has null."""
    return {
        "mAP": nds / 2 if map_ is None else map_,
        "NDS": nds,
        **ERRORS,
        "AP/car": 0.25,
        "AVE/barrier": None,
        "frames": 8.0,
    }


def write_run(
    folder: Path,
    overrides: Sequence[str] = (),
    nds: float | None = None,
    curve: Sequence[tuple[int, float]] = (),
    maps: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] = CONFIG,
    **record: Any,
) -> Path:
    """Write a run's folder, without metrics if ``nds`` is ``None``; ``None`` removes a key of its record."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)), encoding="utf-8")
    hydra = {"job": {"name": "train"}, "runtime": {"choices": CHOICES}}
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": hydra}), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    written = {
        "command": ["scripts/train.py", *overrides],
        "overrides": list(overrides),
        "git_commit": "0123456789abcdef",
        "git_dirty": False,
        "status": "complete" if nds is not None else "failed",
        "error": None,
        "wall_time_s": 75.0,
        "frames_per_second": 3.25,
        "peak_memory_bytes": 1_610_612_736,
        "steps": 20,
        "epochs": 2,
        **record,
    }
    (folder / "record.json").write_text(
        json.dumps({k: v for k, v in written.items() if v is not None}), encoding="utf-8"
    )
    if nds is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics(nds)), encoding="utf-8")
    if maps is not None:
        (folder / "map_statistics.json").write_text(json.dumps(maps), encoding="utf-8")
    if curve:
        write_curve(folder, curve, nds)
    return folder


def write_curve(folder: Path, curve: Sequence[tuple[int, float]], nds: float | None) -> None:
    """Write Lightning's CSV log: a row per training step, and one for the evaluation at the end."""
    (folder / "csv").mkdir()
    with (folder / "csv" / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["epoch", "step", "train/loss", "val/NDS", "val/mAP"])
        writer.writeheader()
        for step, loss in curve:
            writer.writerow({"epoch": 0, "step": step, "train/loss": loss})
        if nds is not None:
            writer.writerow({"epoch": 0, "step": curve[-1][0], "val/NDS": nds, "val/mAP": nds / 2})


CLAMPS, RESIDUALS = (1.5, 2.0, 2.5), (0.5, 0.65, 0.7)


def grid_nds(clamp: float, residual: float, seed: int = 0) -> float:
    """The NDS of a run of the grid, best at clamp 2.0 and residual weight 0.65."""
    return round(0.3 - 0.08 * (clamp - 2.0) ** 2 - 0.9 * (residual - 0.65) ** 2 + 0.004 * seed, 6)


def write_grid(root: Path, seeds: Sequence[int] = (0,)) -> Path:
    """Write a 3 x 3 sweep, of which one run failed and one is running."""
    for number, (clamp, residual, seed) in enumerate(itertools.product(CLAMPS, RESIDUALS, seeds)):
        folder = root / str(number)
        overrides = [
            f"renderer.max_weight_clamp={clamp}",
            f"modulator.residual_weight={residual}",
            *([f"seed={seed}"] if len(seeds) > 1 else []),
            "trainer.max_epochs=2",
        ]
        curve = [(step, 20 / (1 + 0.05 * step) + clamp) for step in range(0, 200, 4)]
        if (clamp, residual, seed) == (2.5, 0.7, 0):
            error = "train/loss is not finite (nan) at step 80"
            write_run(folder, overrides, None, curve[:20], error=error, seed=seed)
        elif (clamp, residual, seed) == (2.5, 0.65, 0):
            write_run(folder, overrides, None, curve[:30], status="running", seed=seed)
        else:
            nds, machine = grid_nds(clamp, residual, seed), {"cpu": "AMD", "cores": 2}
            write_run(folder, overrides, nds, curve, MAPS, seed=seed, machine=machine)
    return root
