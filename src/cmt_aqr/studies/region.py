"""Scores where the sensors are broken alone: elsewhere nothing changes, and the mean over all hides what does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_aqr.damage import Damage
from cmt_aqr.data.ground_truth import GroundTruth
from cmt_aqr.evaluation.metric import NuScenesMetric
from cmt_aqr.evaluation.official import evaluate_boxes
from cmt_aqr.evaluation.submission import FoundBoxes, to_global
from cmt_aqr.structures import Batch

BROKEN = 0.5
"""Damage of a sensor, at the place of a box, from which on the box counts."""


class BrokenRegion(pl.Callback):
    """mAP of the boxes, true and found, that stand where a sensor is broken; NaN where none is.

    The official evaluation on part of its boxes: where the LiDAR is broken, or the mean of the cameras that see
    the place is. Needs ``data.damage=true``.
    """

    def __init__(self) -> None:
        self._truth: GroundTruth | None = None
        self._number: dict[str, int] = {}
        self._true = np.zeros(0, dtype=bool)
        self._found: dict[int, NDArray[np.float64]] = {}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the ground truth of the module's metric."""
        assert isinstance(pl_module.metric, NuScenesMetric)
        self._truth = pl_module.metric.truth
        self._number = {token: number for number, token in enumerate(self._truth.tokens)}
        self._true = np.zeros(len(self._truth.frames), dtype=bool)
        self._found = {}

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Keep the boxes of a batch that count."""
        if batch.damage is None or self._truth is None:
            return
        for place, (token, detections) in enumerate(zip(batch.tokens, outputs["detections"], strict=True)):
            number = self._number[token]
            damage = batch.damage.of_frame(place)
            pose = batch.lidar2global[place]
            counts = broken_at(damage, detections.boxes[:, :3])
            self._found[number] = to_global(detections, pose)[counts.cpu().numpy()]
            rows = slice(*np.searchsorted(self._truth.frames, (number, number + 1)))
            home = torch.linalg.inv(pose.cpu())
            places = torch.tensor(self._truth.rows[rows, :3]) @ home[:3, :3].T + home[:3, 3]
            self._true[rows] = broken_at(damage, places.to(detections.boxes.device)).cpu().numpy()

    def mean_precision(self) -> float:
        """mAP over the frames seen; NaN where no true box counts."""
        if self._truth is None or not self._true.any():
            return math.nan
        frames = np.array(sorted(self._found))
        rows = [self._found[number] for number in frames.tolist()]
        found = FoundBoxes(frames, np.array([len(of_frame) for of_frame in rows]), np.concatenate(rows))
        return evaluate_boxes(self._truth.part(self._true), found)["mAP"]


def broken_at(damage: Damage, places: Tensor) -> Tensor:
    """Whether a sensor is broken at places (place, 3) of one frame: (place,) bool."""
    lidar, cameras, seen = damage.at(places[None].float())
    mean = cameras.sum(dim=-1) / seen.sum(dim=-1).clamp(min=1)
    return ((lidar > BROKEN) | (mean > BROKEN))[0]
