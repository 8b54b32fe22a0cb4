"""Time loading a training frame against the loading code of the published CMT, on one core.

    python benchmarks/bench_loader.py [--root ROOT --version v1.0-mini --split mini_train] [--frames 30]

A frame of the published recipe voxel0100_r50_800x320: six images, resized, cropped and flipped to 800 x 320, and
the points of a keyframe and ten sweeps, with scene augmentation, cropped to the range. Where a frame has fewer
sweeps (a single keyframe has none), the last one is read again. Without ROOT, embedded data are rendered with
images of 1600 x 900, which takes a minute.

The rival, below, does what mmdetection3d's and CMT's pipelines do in NumPy, OpenCV and PyTorch: ``imdecode``,
resize in uint8, crop in float64, normalise in float32; transform the sweeps in float64; rotate, scale, translate,
flip, crop and shuffle the points. It is timed as published, and without the steps that change no value: images are
stacked with the view as the last axis and unstacked (LoadMultiViewImageFromFiles), rotated by 0 degrees with
``warpAffine`` (ResizeCropFlipImage), copied before they are normalised (mmcv.imnormalize) and padded by 0
(PadMultiViewImage); all five columns of the points are selected, per sweep and once more for all
(LoadPointsFromMultiSweeps). There, normalisation, shuffle and GridMask are part of loading; here they run on the
device, and are timed separately. All use the same random numbers, and must give the same pixels to the bit and the
same points to 1e-3 m, or nothing is compared.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from measuring import RANGE
from numpy.typing import NDArray
from rich.table import Table

from cmt_aqr.data.augmentation import ImageAugmentation, SceneAugmentation
from cmt_aqr.data.collate import collate
from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.dataset import FrameDataset, SampleKey, frame_generator
from cmt_aqr.data.index import FrameIndex
from cmt_aqr.data.masking import GridMask
from cmt_aqr.data.poses import invert
from cmt_aqr.runs.console import console
from cmt_aqr.runs.memory import keep_freed_memory
from cmt_aqr.scenes import make_dataset

SIZE = (320, 800)
SWEEPS = 10
ROTATION, SCALE, SHIFT, RESIZE = (-0.785, 0.785), (0.9, 1.1), (0.5, 0.5, 0.5), (0.94, 1.25)
RIVAL, LEAN = "published code", "without steps that change no value"
MEAN, STD = np.array([103.530, 116.280, 123.675]), np.array([57.375, 57.120, 58.395])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--version", default="v1.0-mini")
    parser.add_argument("--split", default="mini_train")
    parser.add_argument("--frames", type=int, default=30)
    options = parser.parse_args()
    keep_freed_memory()  # as in training, for all
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as name:
        folder, root = Path(name), options.root
        if root is None:
            root = folder / "data"
            make_dataset(root, scenes=2, samples_per_scene=2, image_width=1600)
        compare(root, options.version, options.split, folder / "cache", options.frames)


def compare(root: Path, version: str, split: str, cache: Path, frames: int) -> None:
    """Time the ways in turns; ours also with images decoded at half size."""
    full, half = (data_of(root, version, split, cache, half_size_images=half) for half in (False, True))
    index = full.dataset("train").reader.index
    keys = [SampleKey(number, number % len(index)) for number in range(frames)]
    rival, lean = Release(root, index), Release(root, index, lean=True)
    for release in (rival, lean):
        check(full, release, keys[:4])
    batches = [collate([full.dataset("train")[key]]) for key in keys[:4]]
    ways: dict[str, Callable[[SampleKey], Any]] = {
        RIVAL: rival.load,
        LEAN: lean.load,
        "ours": lambda key: collate([full.dataset("train")[key]]),
        "ours, images decoded at half size": lambda key: collate([half.dataset("train")[key]]),
        "on the device (here the CPU)": lambda key: full.finish(batches[key.frame % len(batches)]),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for key in keys:
        for name, way in ways.items():
            start = time.process_time()
            way(key)
            times[name].append(1e3 * (time.process_time() - start))
    median = {name: float(np.median(values[len(values) // 5 :])) for name, values in times.items()}
    table = Table("CPU time", "ms per frame", f"times as fast as {RIVAL}", LEAN)
    for name, value in median.items():
        table.add_row(name, f"{value:.1f}", f"{median[RIVAL] / value:.1f}", f"{median[LEAN] / value:.1f}")
    console().print(table)


def data_of(root: Path, version: str, split: str, cache: Path, **settings: Any) -> NuScenesDataModule:
    """The recipe's training data, with eleven sweeps per frame."""
    data = NuScenesDataModule(
        root,
        version,
        RANGE,
        image_size=SIZE,
        train_split=split,
        val_split=split,
        sweeps=SWEEPS,
        num_workers=0,
        cache_dir=cache,
        scene_augmentation=SceneAugmentation(ROTATION, SCALE, SHIFT, 0.5, 0.5),
        image_augmentation=ImageAugmentation(RESIZE, 0.5, GridMask()),
        **settings,
    )
    data.prepare_data()
    data.setup("fit")
    reader = data.dataset("train").reader
    reader.index = AllSweeps(**vars(reader.index))
    return data


class AllSweeps(FrameIndex):
    """An index that repeats a frame's last sweep up to the requested number."""

    def sweeps_of(self, frame: int, count: int) -> list[int]:
        """Rows of the keyframe's sweep and of ``count`` earlier ones."""
        rows = super().sweeps_of(frame, count)
        return rows + rows[-1:] * (count + 1 - len(rows))


def check(data: NuScenesDataModule, rival: Release, keys: list[SampleKey]) -> None:
    """Exit if the two load different frames."""
    for key in keys:
        dataset = data.dataset("train")
        assert isinstance(dataset, FrameDataset)
        frame = dataset[key]
        images, points = rival.load(key, shuffled=False)
        assert frame.images is not None
        views = frame.images.permute(0, 2, 3, 1).numpy().astype(np.float64)
        ours = np.stack([rival.normalised(view).transpose(2, 0, 1) for view in views])
        if not np.array_equal(ours, images.numpy()):
            sys.exit("the pixels differ")
        if len(frame.points) != len(points) or not torch.allclose(frame.points, points, atol=1e-3):
            sys.exit("the points differ")


class Release:
    """The published loading code.

    Args:
        root: data root.
        index: index of the frames.
        lean: leave out the steps that change no value.
    """

    def __init__(self, root: Path, index: FrameIndex, lean: bool = False) -> None:
        self.root = root
        self.index = index
        self.lean = lean

    def load(self, key: SampleKey, shuffled: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (view, 3, height, width) and points (point, 5), shuffled or in the order of the sweeps."""
        random = frame_generator(0, key)
        points = self.augmented(self.points(key.frame), random)
        if shuffled:
            points = points[torch.randperm(len(points))]
        random.integers(2**63)  # ours draws a seed for the shuffle
        images = [self.normalised(image).transpose(2, 0, 1) for image in self.images(key.frame, random)]
        return torch.from_numpy(np.ascontiguousarray(np.stack(images))), points

    def points(self, frame: int) -> torch.Tensor:
        """Points (point, 5) of eleven sweeps: LoadPointsFromFile, LoadPointsFromMultiSweeps."""
        index, columns = self.index, list(range(5))
        rows = index.sweeps_of(frame, SWEEPS)
        to_keyframe = invert(index.sweep_to_global[rows[0]]) @ index.sweep_to_global[rows]
        clouds = []
        for number, row in enumerate(rows):
            raw = (self.root / index.sweep_files[row].decode()).read_bytes()
            cloud = np.frombuffer(raw, dtype=np.float32).copy().reshape(-1, 5)
            if number:
                cloud[:, :3] = cloud[:, :3] @ to_keyframe[number, :3, :3].T
                cloud[:, :3] += to_keyframe[number, :3, 3]
            cloud[:, 4] = 1e-6 * (index.sweep_times[rows[0]] - index.sweep_times[row])
            clouds.append(torch.from_numpy(cloud if self.lean else cloud[:, columns]))
        points = torch.cat(clouds)
        return points if self.lean else points[:, columns]

    def augmented(self, points: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        """GlobalRotScaleTransAll, CustomRandomFlip3D, PointsRangeFilter, with SceneAugmentation's numbers."""
        angle, scale = random.uniform(*ROTATION), random.uniform(*SCALE)
        shift = random.normal(0.0, SHIFT)
        flip_x, flip_y = random.random() < 0.5, random.random() < 0.5
        cosine, sine = math.cos(angle), math.sin(angle)
        turn = torch.tensor(((cosine, sine, 0), (-sine, cosine, 0), (0, 0, 1)), dtype=torch.float32)
        points[:, :3] = points[:, :3] @ turn
        points[:, :3] *= scale
        points[:, :3] += torch.tensor(shift, dtype=torch.float32)
        if flip_y:
            points[:, 1] = -points[:, 1]
        if flip_x:
            points[:, 0] = -points[:, 0]
        inside = (points[:, 0] > RANGE[0]) & (points[:, 1] > RANGE[1]) & (points[:, 2] > RANGE[2])
        inside &= (points[:, 0] < RANGE[3]) & (points[:, 1] < RANGE[4]) & (points[:, 2] < RANGE[5])
        return points[inside]

    def images(self, frame: int, random: np.random.Generator) -> Iterator[NDArray[np.float64]]:
        """Images (height, width, 3): LoadMultiViewImageFromFiles, ResizeCropFlipImage."""
        height, width = SIZE
        raws = [(self.root / name.decode()).read_bytes() for name in self.index.image_files[frame]]
        read = [cv2.imdecode(np.frombuffer(raw, dtype=np.uint8), cv2.IMREAD_COLOR) for raw in raws]
        if not self.lean:
            stack = np.stack(read, axis=-1)
            read = [stack[..., view] for view in range(len(raws))]
        factor = max(height / read[0].shape[0], width / read[0].shape[1]) * random.uniform(*RESIZE)
        flipped = random.random() < 0.5
        rows, columns = (int(side * factor + 1e-6) for side in read[0].shape[:2])
        left = int(random.uniform(0, max(0, columns - width)))
        top = rows - height
        for image in read:
            resized = cv2.resize(image, (columns, rows))
            cropped = np.zeros((height, width, 3))
            part = resized[max(0, top) : rows, left : left + width]
            cropped[max(0, -top) : max(0, -top) + part.shape[0], : part.shape[1]] = part
            if flipped:
                cropped = cv2.flip(cropped, 1)
            if not self.lean:
                turn = cv2.getRotationMatrix2D((width / 2, height / 2), 0.0, scale=1.0)
                cropped = cv2.warpAffine(cropped, turn, (width, height))
            yield cropped

    def normalised(self, image: NDArray[np.float64]) -> NDArray[np.float32]:
        """An image (height, width, 3) minus the mean, over the deviation: mmcv.imnormalize, PadMultiViewImage."""
        result = (image if self.lean else image.copy()).astype(np.float32)
        cv2.subtract(result, MEAN.reshape(1, -1), result)
        cv2.multiply(result, 1 / STD.reshape(1, -1), result)
        return result if self.lean else cv2.copyMakeBorder(result, 0, 0, 0, 0, cv2.BORDER_CONSTANT)


if __name__ == "__main__":
    main()
