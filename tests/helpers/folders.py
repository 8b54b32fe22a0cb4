"""Writing run folders with known numbers, as a training run leaves them."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ERRORS = {"mATE": 0.7, "mASE": 0.3, "mAOE": 1.1, "mAVE": 0.9, "mAAE": 0.2}
MAPS = {
    "bev": {
        "mean": 0.12,
        "std": 0.2,
        "min": 0.0,
        "max": 1.8,
        "max_over_mean": 15.0,
        "clamped": 0.01,
        "drawn": 0.6,
    },
    "camera": {
        "mean": 0.3,
        "std": 0.1,
        "min": 0.0,
        "max": 1.2,
        "max_over_mean": 4.0,
        "clamped": 0.0,
        "drawn": 0.9,
    },
}
CONFIG: dict[str, Any] = {
    "seed": 0,
    "renderer": {"max_weight_clamp": 2.0},
    "modulator": {"residual_weight": 0.5},
    "optimizer": {"lr": 1e-4},
}
CHOICES = {"renderer": "recommended", "modulator": "recommended", "model": "tiny", "experiment": None}


def metrics(nds: float, map_: float | None = None) -> dict[str, float | None]:
    """Metrics as ``metrics.json`` has them; a class without velocity has null."""
    map_ = nds / 2 if map_ is None else map_
    return {"mAP": map_, "NDS": nds, **ERRORS, "AP/car": 0.25, "AVE/barrier": None, "frames": 8.0}


def write_run(
    folder: Path,
    overrides: Sequence[str] = (),
    nds: float | None = None,
    curve: Sequence[tuple[int, float]] = (),
    maps: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] = CONFIG,
    **record: Any,
) -> Path:
    """A run's folder; without ``nds`` it has no metrics, and a record's key given as ``None`` is left out."""
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
    """Lightning's CSV log: rows of training steps, and one of the evaluation at the end."""
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
    """The NDS that the grid's runs get: best at clamp 2.0 and residual 0.65."""
    return round(0.3 - 0.08 * (clamp - 2.0) ** 2 - 0.9 * (residual - 0.65) ** 2 + 0.004 * seed, 6)


def write_grid(root: Path, seeds: Sequence[int] = (0,)) -> Path:
    """A 3 x 3 sweep; one run failed and one is unfinished."""
    number = 0
    for clamp in CLAMPS:
        for residual in RESIDUALS:
            for seed in seeds:
                overrides = [
                    f"renderer.max_weight_clamp={clamp}",
                    f"modulator.residual_weight={residual}",
                    *([f"seed={seed}"] if len(seeds) > 1 else []),
                    "trainer.max_epochs=2",
                ]
                curve = [(step, 20 / (1 + 0.05 * step) + clamp) for step in range(0, 200, 4)]
                nds = grid_nds(clamp, residual, seed)
                if (clamp, residual, seed) == (2.5, 0.7, 0):
                    write_run(
                        root / str(number),
                        overrides,
                        None,
                        curve[:20],
                        error="train/loss is not finite (nan) at step 80",
                        seed=seed,
                    )
                elif (clamp, residual, seed) == (2.5, 0.65, 0):
                    write_run(root / str(number), overrides, None, curve[:30], status="running", seed=seed)
                else:
                    machine = {"cpu": "AMD", "cores": 2}
                    write_run(root / str(number), overrides, nds, curve, MAPS, seed=seed, machine=machine)
                number += 1
    return root
