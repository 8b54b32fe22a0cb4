"""The mAP of the region where a sensor is broken, which the mean over all boxes hides."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_aqr.aqr.statistics import BROKEN
from cmt_aqr.damage import Damage
from cmt_aqr.evaluation.metric import NuScenesMetric
from cmt_aqr.evaluation.official import evaluate_boxes
from cmt_aqr.evaluation.submission import GlobalDetections, to_global
from cmt_aqr.outputs import mean_seen
from cmt_aqr.structures import Batch


class BrokenRegion(pl.Callback):
    """Official mAP of the objects and detections in the broken region; NaN if it contains no object.

    A box is in the region if the LiDAR's damage there, or the mean damage of the cameras that see it, is above
    one half. Needs ``data.damage=true``.
    """

    def __init__(self) -> None:
        self._metric: NuScenesMetric | None = None
        self._objects = np.zeros(0, dtype=bool)
        self._detections: dict[int, NDArray[np.float64]] = {}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the ground truth from the module's metric."""
        assert isinstance(pl_module.metric, NuScenesMetric)
        self._metric = pl_module.metric
        self._objects = np.zeros(len(self._metric.truth.frames), dtype=bool)
        self._detections = {}

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Collect a batch's boxes in the region."""
        if batch.damage is None or self._metric is None:
            return
        truth = self._metric.truth
        for index, (token, detections) in enumerate(zip(batch.tokens, outputs["detections"], strict=True)):
            number = self._metric.numbers[token]
            damage = batch.damage.of_frame(index)
            pose = batch.lidar2global[index]
            broken = is_broken(damage, detections.boxes[:, :3])
            self._detections[number] = to_global(detections, pose)[broken.cpu().numpy()]
            rows = slice(*np.searchsorted(truth.frames, (number, number + 1)))
            to_lidar = torch.linalg.inv(pose.cpu())
            centres = torch.tensor(truth.rows[rows, :3]) @ to_lidar[:3, :3].T + to_lidar[:3, 3]
            self._objects[rows] = is_broken(damage, centres.to(detections.boxes.device)).cpu().numpy()

    def mean_precision(self) -> float:
        """mAP over the evaluated frames."""
        if self._metric is None or not self._objects.any():
            return math.nan
        frames = np.array(sorted(self._detections))
        rows = [self._detections[number] for number in frames.tolist()]
        detections = GlobalDetections(frames, np.array([len(of_frame) for of_frame in rows]), np.concatenate(rows))
        return evaluate_boxes(self._metric.truth.part(self._objects), detections)["mAP"]


def is_broken(damage: Damage, positions: Tensor) -> Tensor:
    """Whether a sensor is broken at positions (position, 3), metres, LiDAR frame, of a frame: (position,) bool."""
    lidar, cameras, seen = damage.at(positions[None].float())
    return ((lidar > BROKEN) | (mean_seen(cameras, seen) > BROKEN))[0]
