"""The laboratory's data: scenes that are drawn on demand, with nothing on disk."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cmt_aqr.checks import is_whole, require, require_count, require_whole
from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.dataset import FrameDataset
from cmt_aqr.data.ground_truth import GroundTruth
from cmt_aqr.errors import SettingError
from cmt_aqr.evaluation.submission import to_global
from cmt_aqr.lab.scenes import Scenes, recording
from cmt_aqr.outputs import Detections

SPLITS = ("lab_train", "lab_val")


class LabDataModule(NuScenesDataModule):
    """Scenes of the laboratory in place of nuScenes' frames: faults, transforms, loaders and metric are the same.

    Args:
        train_frames: number of frames of the training split.
        eval_frames: number of frames of the validation split.
        objects: least and greatest number of objects per scene.
        scene_seed: seed of the scenes; ``seed`` is that of order, faults and noise.
        **settings: those of :class:`NuScenesDataModule`; ``root`` and ``version`` are names only.

    Raises:
        SettingError: the laboratory has no such split, or a setting needs files.
    """

    def __init__(
        self,
        train_frames: int,
        eval_frames: int,
        objects: tuple[int, int],
        scene_seed: int,
        image_size: tuple[int, int],
        **settings: Any,
    ) -> None:
        super().__init__(image_size=image_size, **settings)
        require_count("train_frames", train_frames)
        require_count("eval_frames", eval_frames)
        require_whole("scene_seed", scene_seed)
        fits = isinstance(objects, Sequence) and len(objects) == 2 and all(map(is_whole, objects))
        require(fits and objects[0] <= objects[1], "objects", objects, "[least, most], whole numbers")
        self.sizes = dict(zip(SPLITS, (train_frames, eval_frames), strict=True))
        self.objects = objects
        self.scene_seed = scene_seed
        self.image_size = image_size
        for split in self._splits():
            if split not in SPLITS:
                raise SettingError(f"the laboratory has the splits {', '.join(SPLITS)} and no {split}")
        if self.sampling is not None or self.resampling != "none":
            raise SettingError(
                "the laboratory has no recordings to sample from: choose data/sampling=none, data.resampling=none"
            )

    def check(self) -> None:
        """There is nothing on disk to check."""

    def prepare_data(self) -> None:
        """There is nothing to prepare."""

    @property
    def annotated(self) -> bool:
        """Always true."""
        return True

    def index(self, split: str) -> Scenes:  # type: ignore[override]  # callers use its length only
        """The scenes of a split."""
        empty = recording(self.image_size, self.lidar, self.cameras)
        return Scenes(self.sizes[split], SPLITS.index(split), self.objects, empty, self.scene_seed)

    def _make_dataset(self, name: str) -> FrameDataset:
        training = name == "train"
        split = self.train_split if training else self.val_split
        assert split is not None
        scenes = self.index(split)
        limit = self.limit_train_frames if training else self.limit_eval_frames
        scenes.frames = min(scenes.frames, limit or scenes.frames)
        transforms = self._train_transforms if training else self._eval_transforms
        reader: Any = scenes
        return FrameDataset(reader, transforms, self.seed, cache_frames=self.cache_frames)

    def _resampled(self, dataset: FrameDataset) -> None:
        """Frames are not resampled."""

    def ground_truth(self, split: str | None = None) -> GroundTruth:
        """The boxes of a split, for the official evaluation."""
        split = split or self.val_split
        scenes = self.index(split)
        frames = [scenes.read(number) for number in range(len(scenes))]
        pose = torch.eye(4, dtype=torch.float64)
        rows = [
            to_global(Detections(frame.boxes, torch.full((len(frame.boxes),), -1.0), frame.labels), pose)
            for frame in frames
        ]
        counts = [len(of_frame) for of_frame in rows]
        return dataclasses.replace(
            GroundTruth.unknown(self.version, split, tuple(frame.token for frame in frames)),
            frames=np.repeat(np.arange(len(frames)), counts),
            rows=np.concatenate(rows),
            points=np.full(sum(counts), 50),
            ego=np.zeros((len(frames), 3)),
            annotated=True,
        )
