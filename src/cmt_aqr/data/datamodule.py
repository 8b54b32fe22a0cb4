"""The data side of a run: index, frames, augmentation and loaders, as Lightning asks for them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule

from cmt_aqr.checks import require_choice, require_count, require_numbers, require_whole
from cmt_aqr.data.augmentation import (
    ImageAugmentation,
    ImageProcessing,
    SceneAugmentation,
    TrainingFilter,
    Transform,
)
from cmt_aqr.data.damage import MeasureDamage
from cmt_aqr.data.database import Contents, ObjectDatabase
from cmt_aqr.data.dataset import FrameDataset, FrameLoader, FrameSampler
from cmt_aqr.data.finishing import Finishing
from cmt_aqr.data.ground_truth import GroundTruth, load_ground_truth
from cmt_aqr.data.index import FrameIndex, load_index
from cmt_aqr.data.make_database import prepare_database
from cmt_aqr.data.points import check_range
from cmt_aqr.data.reading import FrameReader
from cmt_aqr.data.resampling import RESAMPLINGS, resampled_frames
from cmt_aqr.data.sampling import ObjectSampler, Sampling
from cmt_aqr.data.tables import check_request, close_tables, fingerprint, is_annotated
from cmt_aqr.errors import SettingError
from cmt_aqr.runs.trainer_settings import check_shares
from cmt_aqr.structures import Batch

Transforms = Mapping[str, Transform | None] | None
"""Named, so that a configuration can override or switch off (null) one; applied in the order given."""


class NuScenesDataModule(LightningDataModule):
    """nuScenes, or anything in its format.

    Objects are pasted into a training frame by ``sampling``; then it goes through ``train_fault``,
    ``train_transforms``, ``scene_augmentation``, the training filter, and the image processing with
    ``image_augmentation``, in this order; an evaluated one through ``eval_fault``, ``eval_transforms`` and the
    plain image processing. Sensor faults and masked-modal training see the frame as it was read, with what was
    pasted. All of it depends on (seed, epoch, frame, repeat) only.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],  # the folder with samples, sweeps and the version's folder
        version: str,  # e.g. v1.0-trainval
        point_range: Sequence[float],  # x0, y0, z0, x1, y1, z1 of the model's grid, metres, LiDAR frame
        image_size: Sequence[int] = (320, 800),  # height and width of the images that the model gets
        train_split: str | None = "train",  # a split of the devkit, or of splits.json
        resampling: str = "none",  # or cbgs, see cmt_aqr.data.resampling
        sampling: Sampling | None = None,  # objects to paste into training frames
        replace_empty_frames: bool = False,  # train on another frame in place of one without a box
        val_split: str = "val",  # for evaluations in training
        eval_split: str | None = None,  # what evaluating reads; None: val_split
        evaluating: bool = False,  # read eval_split instead of the others
        sweeps: int = 10,  # before the keyframe's own, at most
        cameras: bool = True,  # read images; off for a LiDAR-only model
        lidar: bool = True,  # read points; off for a camera-only model
        batch_size: int = 2,  # frames per step and device in training
        eval_batch_size: int | None = None,  # the same in evaluation; None: batch_size
        num_workers: int = 4,  # reading processes per loader; 0 reads in the main process
        image_mean: Sequence[float] = (103.530, 116.280, 123.675),  # of the B, G, R channels, 0..255
        image_std: Sequence[float] = (57.375, 57.120, 58.395),  # likewise
        scene_augmentation: SceneAugmentation | None = None,  # of points, boxes and calibration together
        image_augmentation: ImageAugmentation | None = None,
        train_fault: Transform | None = None,  # of a sensor in training frames; see cmt_aqr.data.faults
        eval_fault: Transform | None = None,  # in evaluated ones; drawn from (seed, frame), the same every time
        train_transforms: Transforms = None,  # on frames as read, in training
        eval_transforms: Transforms = None,  # in evaluation; drawn like eval_fault
        damage: bool = False,  # note what these faults and transforms broke, for a model that learns from it
        min_points: int = 1,  # boxes with fewer LiDAR points are not trained on
        crop_points: bool = True,  # see TrainingFilter
        shuffle_points: bool = True,  # likewise
        half_size_images: bool = False,  # decode images to half their height and width, see reading.read_image
        half_points: bool = False,  # see TrainingFilter
        exact_lidar2img: bool = True,  # see ImageProcessing
        cache_frames: bool = False,  # keep frames in memory once read, in each process; for small data sets
        cache_dir: str | os.PathLike[str] = ".cache/cmt_aqr",  # for indexes, ground truth and objects
        limit_train_frames: int | None = None,  # the first so many frames of the training split only
        limit_eval_frames: int | None = None,  # the same for the other splits
        seed: int = 0,  # of shuffling and augmentation
    ) -> None:
        super().__init__()
        require_count("batch_size", batch_size)
        require_whole("num_workers", num_workers)
        require_whole("sweeps", sweeps)
        require_whole("min_points", min_points)
        for name, value in (
            ("eval_batch_size", eval_batch_size),
            ("limit_train_frames", limit_train_frames),
            ("limit_eval_frames", limit_eval_frames),
        ):
            if value is not None:
                require_count(name, value)
        require_choice("resampling", resampling, RESAMPLINGS)
        if sampling is not None and not lidar:
            raise SettingError(
                "sampling: objects are chosen by their LiDAR points, and this model reads none; choose "
                "data/sampling=none"
            )
        require_numbers("point_range", point_range, 6)
        require_numbers("image_mean", image_mean, 3)
        require_numbers("image_std", image_std, 3)
        if not (cameras or lidar):
            raise SettingError("cameras=false and lidar=false: at least one sensor must be read")
        self.root = Path(root).expanduser()
        self.version = version
        self.train_split = None if evaluating else train_split
        self.val_split = (eval_split or val_split) if evaluating else val_split
        self.cache_dir = Path(cache_dir).expanduser()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.cache_frames = cache_frames
        self.limit_train_frames = limit_train_frames
        self.limit_eval_frames = limit_eval_frames
        self.seed = seed
        self.resampling = resampling
        self.sampling = None if evaluating else sampling
        self.replace_empty_frames = replace_empty_frames
        grid_mask = None if image_augmentation is None else image_augmentation.grid_mask
        self.mask_per_frame = grid_mask is not None and grid_mask.per_frame
        self.sweeps = sweeps
        self.cameras = cameras
        self.lidar = lidar
        self.min_points = min_points
        self.point_range = list(point_range)
        images = ImageProcessing(image_size, image_augmentation, exact_lidar2img)
        eval_images = ImageProcessing(image_size, exact_lidar2img=exact_lidar2img)
        self._train_transforms: list[Transform] = [
            *_faults(train_fault, train_transforms, damage, images),
            *([scene_augmentation] if scene_augmentation is not None else []),
            TrainingFilter(point_range, min_points, crop_points, shuffle_points, half_points),
            images,
        ]
        self._eval_transforms: list[Transform] = [
            *_faults(eval_fault, eval_transforms, damage, eval_images),
            eval_images,
        ]
        self.half_size_images = half_size_images
        self._finishing = Finishing(image_mean, image_std)
        self._datasets: dict[str, FrameDataset] = {}
        self._objects: ObjectDatabase | None = None

    def prepare_data(self) -> None:
        """Index the splits and cache their ground truth, once a machine; then the tables are let go of."""
        for split in self._splits():
            load_index(self.root, self.version, split, self.cache_dir)
        if self.annotated:
            load_ground_truth(self.root, self.version, self.val_split, self.cache_dir)
        close_tables()
        if self.sampling is not None and self.train_split is not None:
            self.make_database()

    def make_database(self) -> ObjectDatabase:
        """Make the database of objects of the training frames where that is needed, and open it."""
        assert self.sampling is not None and self.train_split is not None
        index = self.index(self.train_split).first(self.limit_train_frames)
        folder, contents = self._database()
        given, processes = self.sampling.database is not None, self.sampling.processes
        self._objects = prepare_database(folder, contents, self.root, index, given, processes)
        return self._objects

    def database_folder(self) -> Path | None:
        """Where the database of objects is; ``None`` for a run that pastes none."""
        return None if self.sampling is None or self.train_split is None else self._database()[0]

    def _database(self) -> tuple[Path, Contents]:
        """Where the database of objects is, and what it is made of."""
        assert self.sampling is not None and self.train_split is not None
        frames = len(self.index(self.train_split).first(self.limit_train_frames))
        contents = Contents(
            tables=fingerprint(self.root, self.version),
            version=self.version,
            split=self.train_split,
            frames=frames,
            sweeps=self.sweeps,
            cameras=self.cameras and self.sampling.images,
            min_points=self.sampling.min_points,
            patch_camera=self.sampling.patch_camera,
            patch_behind=self.sampling.patch_behind,
        )
        return self.sampling.database or contents.folder(self.cache_dir, self.root), contents

    def setup(self, stage: str | None = None) -> None:
        """Load the indexes of the splits that the stage needs, and see that their first frame is on disk."""
        for name in ("train", "val") if stage == "fit" else ("val",):
            if name not in self._datasets:
                self._datasets[name] = self._make_dataset(name)
        if stage == "fit" and self.sampling is not None and self.trainer:
            self.sampling.tell_missing_fade(self.trainer.max_epochs)

    @property
    def annotated(self) -> bool:
        """Whether there are annotations to train on and to evaluate with."""
        return is_annotated(self.version)

    def _splits(self) -> list[str]:
        """The splits that are read."""
        return list(dict.fromkeys(split for split in (self.train_split, self.val_split) if split is not None))

    def _make_dataset(self, name: str) -> FrameDataset:
        training = name == "train"
        limit = self.limit_train_frames if training else self.limit_eval_frames
        split = self.train_split if training else self.val_split
        assert split is not None
        index = self.index(split).first(limit)
        reader = FrameReader(
            self.root, index, self.sweeps, self.cameras, self.lidar, half_size=self.half_size_images
        )
        points = reader.check_first()
        if training:
            where = f"split {split} of {self.root / self.version}, {len(index)} frames"
            categories = self.root / self.version / "category.json"
            index.check_learnable(where, categories, self.min_points, self.point_range)
            if points is not None:
                check_range(points, where, self.point_range)
        transforms = self._train_transforms if training else self._eval_transforms
        sampler = None
        if training and self.sampling is not None:
            database = self._objects or ObjectDatabase(*self._database())
            sampler = ObjectSampler(self.sampling, database, self.min_points)
        replace_empty = training and self.replace_empty_frames
        return FrameDataset(reader, transforms, self.seed, self.cache_frames, replace_empty, sampler)

    def index(self, split: str) -> FrameIndex:
        """The index of a split, see :func:`cmt_aqr.data.index.load_index`."""
        return load_index(self.root, self.version, split, self.cache_dir)

    def ground_truth(self, split: str | None = None) -> GroundTruth:
        """What the official evaluation compares with, of ``val_split`` or the split that is named."""
        split = split or self.val_split
        if self.annotated:
            return load_ground_truth(self.root, self.version, split, self.cache_dir)
        index = self.index(split)
        return GroundTruth.unknown(self.version, split, tuple(map(index.token, range(len(index)))))

    def check(self) -> None:
        """See, without reading a table, that root, version and splits exist; else raise a ``DataError``."""
        for split in self._splits():
            check_request(self.root, self.version, split)

    def dataset(self, name: str) -> FrameDataset:
        """The data set ``train`` or ``val``; set up first."""
        return self._datasets[name]

    def _loader(self, name: str) -> FrameLoader:
        dataset = self.dataset(name)
        training = name == "train"
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        resampled = self._resampled(dataset) if training else None
        frames = len(dataset) if resampled is None else len(resampled)
        batch_size = self.batch_size if training else self.eval_batch_size
        sampler = FrameSampler(frames, batch_size, training, self.seed, ranks, rank, resampled)
        loader = FrameLoader(dataset, sampler, self.num_workers, torch.cuda.is_available(), self.mask_per_frame)
        if self.trainer:
            check_shares(self.trainer, name, len(loader))
        return loader

    def _resampled(self, dataset: FrameDataset) -> NDArray[np.int64] | None:
        """Numbers of the frames of an epoch; ``None``: all, once."""
        return resampled_frames(dataset.reader.index, self.resampling, self.seed)

    def finish(self, batch: Batch) -> Batch:
        """Normalise, mask and shuffle a batch where it is: what a loader gives needs it before a model."""
        return self._finishing(batch)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Finish a batch on the device. Lightning calls it."""
        return self.finish(batch)

    def train_dataloader(self) -> FrameLoader:
        """Batches of augmented frames, shuffled by (seed, epoch); its position can be saved and restored."""
        return self._loader("train")

    def val_dataloader(self) -> FrameLoader:
        """Every frame of ``val_split`` once, in order, shared out among the processes."""
        return self._loader("val")


def _faults(
    fault: Transform | None, transforms: Transforms, damage: bool, images: ImageProcessing
) -> list[Transform]:
    """What acts on a frame as read; with ``damage`` it is noted what they broke, in whole images."""
    present = [step for step in (fault, *(transforms or {}).values()) if step is not None]
    if damage:
        return [MeasureDamage(present)]
    return [images.mark_unseen, *present] if present else []
