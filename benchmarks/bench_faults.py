"""Time reading a frame with each sensor failure against reading the clean frame.

The claim: at most 3 times as long. The rival reads and decodes the files, merges the sweeps and resizes the
images. In one process with one thread, as a loader worker has. Times are processor time, the minimum of several
turns.

    python benchmarks/bench_faults.py                      renders a frame of nuScenes' size first (1 to 3 minutes)
    python benchmarks/bench_faults.py --root /data/nuscenes --version v1.0-mini --split mini_val
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import cv2
import torch
from measuring import RANGE, composed, in_turns
from omegaconf import DictConfig
from rich.table import Table

from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.dataset import FrameDataset, SampleKey
from cmt_aqr.runs.configuration import build
from cmt_aqr.runs.console import console
from cmt_aqr.runs.memory import keep_freed_memory
from cmt_aqr.scenes import make_dataset


def conditions() -> dict[str, DictConfig]:
    """Every condition of every suite, at its highest severity."""
    config = composed(["suite=all"], "robustness")
    faults = {}
    for suite, members in config.conditions.items():
        for name, fault in members.items():
            if "severity" in fault:
                fault.severity = max(config.severities[suite])
            faults[f"{suite}/{name}"] = fault
    return faults


def dataset(options: argparse.Namespace, fault: DictConfig | None, cache: Path) -> FrameDataset:
    """The frames of the split with a fault."""
    data = NuScenesDataModule(
        root=options.root,
        version=options.version,
        point_range=RANGE,
        image_size=options.image_size,
        train_split=options.split,
        val_split=options.split,
        num_workers=0,
        cache_dir=cache,
        eval_fault=None if fault is None else build(fault),
    )
    data.prepare_data()
    data.setup("validate")
    return data.dataset("val")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="nuScenes data root; without it a frame is rendered")
    parser.add_argument("--version", default="v1.0-mini")
    parser.add_argument("--split", default="mini_val")
    parser.add_argument("--frame", type=int, default=2, help="index of the frame in the split (2)")
    parser.add_argument("--image-size", type=int, nargs=2, default=(320, 800), help="height and width (320 800)")
    parser.add_argument("--repeats", type=int, default=7, help="repeats of each condition (7)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        if options.root is None:
            options.root = f"{folder}/data"
            settings = {"scenes": 2, "samples_per_scene": 4, "sweep_rate": 20, "image_width": 1600}
            make_dataset(Path(options.root), azimuth_resolution=0.33, **settings)
        print_table(options, Path(folder) / "cache")


def print_table(options: argparse.Namespace, cache: Path) -> None:
    """Time each condition in turns with the clean frame."""
    key, clean = SampleKey(0, options.frame), dataset(options, None, cache)
    points = len(clean[key].points)
    table = Table("condition", "ms", "clean, ms", "ratio", title=f"A frame of {points:,} points and six images")
    for name, fault in conditions().items():
        faulty = dataset(options, fault, cache)
        ways = {"clean": partial(clean.__getitem__, key), "faulty": partial(faulty.__getitem__, key)}
        without, with_fault = (seconds.processor for seconds in in_turns(ways, options.repeats).values())
        table.add_row(name, f"{1e3 * with_fault:.0f}", f"{1e3 * without:.0f}", f"{with_fault / without:.2f}")
    console().print(table)


if __name__ == "__main__":
    main()
