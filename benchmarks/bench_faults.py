"""How much longer a frame takes to read with each sensor failure than without.

The claim: at most 3 times. The rival is the clean frame: files read and decoded, sweeps merged, images resized.
One process and one thread, as a loader's worker has. Times are processor seconds, the least of several, clean and
struck in turns.

    python benchmarks/bench_faults.py                      renders a frame of nuScenes' size first (1 to 3 minutes)
    python benchmarks/bench_faults.py --root /data/nuscenes --version v1.0-mini --split mini_val
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import cv2
import torch
from measuring import composed, in_turns
from omegaconf import DictConfig
from rich.table import Table

from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.dataset import FrameDataset, SampleKey
from cmt_aqr.runs.configuration import build
from cmt_aqr.runs.console import console
from cmt_aqr.runs.memory import keep_freed_memory
from cmt_aqr.scenes import make_dataset

RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)


def conditions() -> dict[str, DictConfig]:
    """Every condition of every suite, at its highest severity."""
    config = composed(["suite=all"], "robustness")
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
            settings = {"scenes": 2, "samples_per_scene": 4, "sweep_rate": 20, "image_width": 1600}
            make_dataset(Path(given.root), azimuth_resolution=0.33, **settings)
        print_table(given, Path(folder) / "cache")


def print_table(given: argparse.Namespace, cache: Path) -> None:
    """Measure, and print the ratios."""
    key, clean = SampleKey(0, given.frame), dataset(given, None, cache)
    points = len(clean[key].points)
    table = Table("condition", "ms", "clean, ms", "ratio", title=f"A frame of {points:,} points and six images")
    for name, fault in conditions().items():
        struck = dataset(given, fault, cache)
        ways = {"clean": partial(clean.__getitem__, key), "struck": partial(struck.__getitem__, key)}
        without, with_fault = (found.processor for found in in_turns(ways, given.repeats).values())
        table.add_row(name, f"{1e3 * with_fault:.0f}", f"{1e3 * without:.0f}", f"{with_fault / without:.2f}")
    console().print(table)


if __name__ == "__main__":
    main()
