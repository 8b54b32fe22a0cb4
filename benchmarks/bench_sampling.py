"""Time ground-truth sampling against the rest of a training frame, and against a plain implementation.

    python benchmarks/bench_sampling.py data.root=/data/nuscenes data.version=v1.0-mini data.train_split=mini_train

The published recipe (experiment=cmt_voxel0100_r50_800x320_cbgs) with further overrides. A frame without earlier
sweeps repeats its own, so that a keyframe is as large as a frame of a drive. The rival removes the points in
pasted boxes by comparing every point with every box. Times are CPU seconds, which other work changes little.
"""

import dataclasses
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from measuring import composed
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cmt_aqr.data import paste, sampling
from cmt_aqr.data.augmentation import apply_transforms
from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.make_database import ObjectCutter
from cmt_aqr.data.reading import FrameReader
from cmt_aqr.geometry import points_in_boxes
from cmt_aqr.runs.configuration import build_data

ROUNDS = 24


def seconds(work: Callable[[int], object], rounds: int = ROUNDS) -> float:
    """Mean CPU seconds of a call, after one to warm up."""
    work(0)
    start = time.process_time()
    for number in range(rounds):
        work(number)
    return (time.process_time() - start) / rounds


def plainly(points: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which points (point,) are in no box, by comparing each with each."""
    inside = points_in_boxes(torch.from_numpy(points), torch.from_numpy(boxes))
    return ~inside.any(dim=1).numpy()


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    config = composed(["experiment=cmt_voxel0100_r50_800x320_cbgs", *sys.argv[1:]])
    data: NuScenesDataModule = build_data(config)
    data.prepare_data()
    data.setup("fit")
    dataset = data.dataset("train")
    sampler = dataset.sampler
    assert sampler is not None
    reader = FrameReader(data.root, dataset.reader.index, data.sweeps, data.cameras, for_database=True)
    frame, obstacles = reader.read(0), reader.obstacles(0)
    # A frame with few objects of its own, into which most are pasted.
    frame = dataclasses.replace(
        frame, **{name: getattr(frame, name)[:5] for name in ("boxes", "labels", "box_points")}
    )

    pasted: list[int] = []

    def sample(number: int) -> object:
        after = sampler(frame, obstacles, np.random.default_rng(number))
        pasted.append(len(after.boxes) - len(frame.boxes))
        return after

    reading = seconds(lambda _: reader.read(0))
    ours = seconds(sample)
    cutter = ObjectCutter(data.root, dataset.reader.index, sampler.database.contents)
    cutting = seconds(lambda _: cutter[0])
    transforms = seconds(lambda number: apply_transforms(frame, dataset.transforms, np.random.default_rng(number)))
    sampling.without_points_inside = plainly
    plain = seconds(sample, 4)
    sampling.without_points_inside = paste.without_points_inside

    title = f"A training frame of {len(frame.points):,} points, {np.mean(pasted):.1f} objects pasted, one core"
    table = Table("part", "ms", "share", title=title)
    total = reading + ours + transforms
    for name, value in (("reading", reading), ("sampling", ours), ("transforms", transforms)):
        table.add_row(name, f"{1000 * value:.1f}", f"{value / total:.0%}")
    Console().print(table)
    print(f"database: {1000 * cutting:.0f} ms per frame, with reading")
    print(f"sampling: {plain / ours:.1f} times as fast as the plain implementation ({1000 * plain:.1f} ms)")


if __name__ == "__main__":
    main()
