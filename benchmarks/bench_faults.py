"""How much longer a frame takes to read with each sensor failure than without.

The claim: at most 3 times. The rival is the clean frame: files read and decoded, sweeps merged, images resized.
One process and one thread, as a loader's worker has. Times are processor seconds, the least of several, clean and
struck in turns.

    python benchmarks/bench_faults.py                      renders a frame of nuScenes' size first (1 to 3 minutes)
    python benchmarks/bench_faults.py --root /data/nuscenes --version v1.0-mini --split mini_val
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import hydra
import torch
from omegaconf import DictConfig
from rich.table import Table

from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.dataset import FrameDataset, SampleKey
from cmt_aqr.runs.configuration import build
from cmt_aqr.runs.console import console
from cmt_aqr.runs.memory import keep_freed_memory
from cmt_aqr.scenes import make_dataset

CONF = Path(__file__).resolve().parents[1] / "conf"
RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)


def conditions() -> dict[str, DictConfig]:
    """Every condition of every suite, at its highest severity."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("robustness", ["suite=all"])
    found = {}
    for suite, members in config.conditions.items():
        for name, fault in members.items():
            if "severity" in fault:
                fault.severity = max(config.severities[suite])
            found[f"{suite}/{name}"] = fault
    return found


def dataset(given: argparse.Namespace, fault: DictConfig | None, cache: Path) -> FrameDataset:
    """The frames, each with a fault."""
    data = NuScenesDataModule(
        root=given.root,
        version=given.version,
        point_range=RANGE,
        image_size=given.image_size,
        train_split=given.split,
        val_split=given.split,
        num_workers=0,
        cache_dir=cache,
        eval_fault=None if fault is None else build(fault),
    )
    data.prepare_data()
    data.setup("validate")
    return data.dataset("val")


def seconds(frames: FrameDataset, number: int) -> float:
    """Processor time of one frame."""
    begin = time.process_time()
    frames[SampleKey(0, number)]
    return time.process_time() - begin


def main() -> None:
    """Measure in turns and print a table with ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="nuScenes data root; without it a frame is rendered")
    parser.add_argument("--version", default="v1.0-mini")
    parser.add_argument("--split", default="mini_val")
    parser.add_argument("--frame", type=int, default=2, help="its number in the split (2)")
    parser.add_argument("--image-size", type=int, nargs=2, default=(320, 800), help="height and width (320 800)")
    parser.add_argument("--repeats", type=int, default=7, help="of each condition (7)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        if given.root is None:
            given.root = f"{folder}/data"
            make_dataset(
                Path(given.root),
                scenes=2,
                samples_per_scene=4,
                sweep_rate=20,
                azimuth_resolution=0.33,
                image_width=1600,
            )
        print_table(given, Path(folder) / "cache")


def print_table(given: argparse.Namespace, cache: Path) -> None:
    """Measure, and print the ratios."""
    clean = dataset(given, None, cache)
    points = len(clean[SampleKey(0, given.frame)].points)
    table = Table("condition", "ms", "clean, ms", "ratio", title=f"A frame of {points:,} points and six images")
    for name, fault in conditions().items():
        struck = dataset(given, fault, cache)
        seconds(struck, given.frame)  # fills tables and masks
        pairs = [(seconds(clean, given.frame), seconds(struck, given.frame)) for _ in range(given.repeats)]
        without, with_fault = (min(side) for side in zip(*pairs, strict=True))
        cells = (f"{1e3 * with_fault:.0f}", f"{1e3 * without:.0f}", f"{with_fault / without:.2f}")
        table.add_row(name, *cells)
    console().print(table)


if __name__ == "__main__":
    main()
