"""The Lightning data module: index, frames, augmentation and loaders of a run."""

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
from cmt_aqr.runs.trainer_settings import check_batch_limits
from cmt_aqr.structures import Batch

Transforms = Mapping[str, Transform | None] | None
"""By name, so that a configuration can override one or switch it off (null); applied in this order."""


class NuScenesDataModule(LightningDataModule):
    """nuScenes, or data in its format.

    A training frame goes through ``sampling``, which pastes objects, ``train_fault``, ``train_transforms``,
    ``scene_augmentation``, the training filter, and the image processing with ``image_augmentation``, in this
    order. A frame of the evaluation goes through ``eval_fault``, ``eval_transforms`` and the plain image
    processing. All randomness depends on (seed, epoch, frame, repeat) only.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],  # the folder that contains samples, sweeps and the version's folder
        version: str,  # e.g. v1.0-trainval
        point_range: Sequence[float],  # x0, y0, z0, x1, y1, z1 of the model's grid in metres, LiDAR frame
        image_size: Sequence[int] = (320, 800),  # height and width of the model's images
        train_split: str | None = "train",  # a split of the devkit, or of splits.json
        resampling: str = "none",  # or cbgs, see cmt_aqr.data.resampling
        sampling: Sampling | None = None,  # pastes objects into training frames
        replace_empty_frames: bool = False,  # replace training frames without a box by others
        val_split: str = "val",  # for validation during training
        eval_split: str | None = None,  # used in place of val_split if evaluating; None: val_split
        evaluating: bool = False,  # evaluate eval_split, and read no other
        sweeps: int = 10,  # maximum number of sweeps before the keyframe's
        cameras: bool = True,  # read images; off for a LiDAR-only model
        lidar: bool = True,  # read points; off for a camera-only model
        batch_size: int = 2,  # training frames per step and device
        eval_batch_size: int | None = None,  # evaluation frames per step and device; None: batch_size
        num_workers: int = 4,  # worker processes per loader; 0 reads in the main process
        image_mean: Sequence[float] = (103.530, 116.280, 123.675),  # of the B, G, R channels, 0..255
        image_std: Sequence[float] = (57.375, 57.120, 58.395),  # of the B, G, R channels
        scene_augmentation: SceneAugmentation | None = None,  # of points, boxes and calibration
        image_augmentation: ImageAugmentation | None = None,
        train_fault: Transform | None = None,  # a sensor fault in training; see cmt_aqr.data.faults
        eval_fault: Transform | None = None,  # in evaluation; drawn from (seed, frame), the same every time
        train_transforms: Transforms = None,  # of frames as read, in training
        eval_transforms: Transforms = None,  # of frames as read, in evaluation
        damage: bool = False,  # record the damage by faults and transforms, as a target for the model
        min_points: int = 1,  # LiDAR points that a box needs to be trained on
        crop_points: bool = True,  # see TrainingFilter
        shuffle_points: bool = True,  # see TrainingFilter
        half_size_images: bool = False,  # decode images at half height and width, see read_image
        half_points: bool = False,  # see TrainingFilter
        exact_lidar2img: bool = True,  # see ImageProcessing
        cache_frames: bool = False,  # keep frames in memory, in each process; for small data sets
        cache_dir: str | os.PathLike[str] = ".cache/cmt_aqr",  # for the index, ground truth and objects
        limit_train_frames: int | None = None,  # use only the first n frames of the training split
        limit_eval_frames: int | None = None,  # use only the first n frames of the other splits
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
                "sampling: objects are selected by their LiDAR points, and this model reads none; choose "
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
        self.sampling = None if self.train_split is None else sampling
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
        """Build the index, the ground truth and the database of objects, once per machine."""
        for split in self._splits():
            load_index(self.root, self.version, split, self.cache_dir)
        if self.annotated:
            load_ground_truth(self.root, self.version, self.val_split, self.cache_dir)
        close_tables()
        if self.sampling is not None:
            self.make_database()

    def make_database(self) -> ObjectDatabase:
        """Open the database of objects; build it, or its missing parts, first."""
        assert self.sampling is not None and self.train_split is not None
        index = self.index(self.train_split).first(self.limit_train_frames)
        user_folder = self.sampling.database is not None
        self._objects = prepare_database(*self._database(), self.root, index, user_folder, self.sampling.processes)
        return self._objects

    def database_folder(self) -> Path | None:
        """The folder of the database of objects; ``None`` if none are pasted."""
        return None if self.sampling is None else self._database()[0]

    def _database(self) -> tuple[Path, Contents]:
        """Folder and contents of the database of objects."""
        assert self.sampling is not None and self.train_split is not None
        contents = Contents(
            tables=fingerprint(self.root, self.version),
            version=self.version,
            split=self.train_split,
            frames=len(self.index(self.train_split).first(self.limit_train_frames)),
            sweeps=self.sweeps,
            cameras=self.cameras and self.sampling.images,
            min_points=self.sampling.min_points,
            patch_camera=self.sampling.patch_camera,
            patch_behind=self.sampling.patch_behind,
        )
        return self.sampling.database or contents.folder(self.cache_dir, self.root), contents

    def setup(self, stage: str | None = None) -> None:
        """Load the splits that the stage needs, and check that the files of their first frame exist."""
        for name in ("train", "val") if stage == "fit" else ("val",):
            if name not in self._datasets:
                self._datasets[name] = self._make_dataset(name)
        if stage == "fit" and self.sampling is not None and self.trainer:
            self.sampling.warn_without_fade(self.trainer.max_epochs)

    @property
    def annotated(self) -> bool:
        """Whether the version has annotations."""
        return is_annotated(self.version)

    def _splits(self) -> list[str]:
        """The splits in use."""
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
            source = f"split {split} of {self.root / self.version}, {len(index)} frames"
            categories = self.root / self.version / "category.json"
            index.check_learnable(source, categories, self.min_points, self.point_range)
            if points is not None:
                check_range(points, source, self.point_range)
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
        """The ground truth of a split, ``val_split`` by default."""
        split = split or self.val_split
        if self.annotated:
            return load_ground_truth(self.root, self.version, split, self.cache_dir)
        index = self.index(split)
        return GroundTruth.unknown(self.version, split, tuple(map(index.token, range(len(index)))))

    def check(self) -> None:
        """Raise a ``DataError`` unless root, version and splits exist; reads no table."""
        for split in self._splits():
            check_request(self.root, self.version, split)

    def dataset(self, name: str) -> FrameDataset:
        """The data set ``train`` or ``val``; requires :meth:`setup`."""
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
            check_batch_limits(self.trainer, name, len(loader))
        return loader

    def _resampled(self, dataset: FrameDataset) -> NDArray[np.int64] | None:
        """The frames of an epoch; ``None``: all, once."""
        return resampled_frames(dataset.reader.index, self.resampling, self.seed)

    def finish(self, batch: Batch) -> Batch:
        """Normalise, mask and shuffle a batch from a loader on its device, as the model needs it."""
        return self._finishing(batch)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Finish a batch on the device. Called by Lightning."""
        return self.finish(batch)

    def train_dataloader(self) -> FrameLoader:
        """Batches of augmented frames, in an order that depends on (seed, epoch)."""
        return self._loader("train")

    def val_dataloader(self) -> FrameLoader:
        """Every frame of ``val_split`` once, in order, distributed over the ranks."""
        return self._loader("val")


def _faults(
    fault: Transform | None, transforms: Transforms, damage: bool, images: ImageProcessing
) -> list[Transform]:
    """The transforms of a frame as read; with ``damage``, it is recorded what they broke, in complete images."""
    present = [step for step in (fault, *(transforms or {}).values()) if step is not None]
    if damage:
        return [MeasureDamage(present)]
    return [images.mark_unseen, *present] if present else []
