"""Ground-truth sampling: objects of other frames are pasted into a training frame, points and pictures alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from cmt_aqr.checks import require_choice, require_count, require_number, require_whole
from cmt_aqr.constants import CLASSES, POINT_FEATURES
from cmt_aqr.data.collision import find_room
from cmt_aqr.data.database import ObjectDatabase
from cmt_aqr.data.paste import paste_patches, without_points_inside
from cmt_aqr.data.views import PATCH_BEHIND, PATCH_CAMERAS
from cmt_aqr.errors import SettingError
from cmt_aqr.structures import Frame

log = logging.getLogger(__name__)

GOALS: Mapping[str, int] = {
    "car": 2,
    "truck": 3,
    "construction_vehicle": 7,
    "bus": 4,
    "trailer": 6,
    "barrier": 2,
    "motorcycle": 6,
    "bicycle": 6,
    "pedestrian": 2,
    "traffic_cone": 2,
}
"""Boxes of each class that the release fills a frame up to."""


class Sampling:
    """What is sampled, and how; a value out of range is refused by name."""

    def __init__(
        self,
        goals: Mapping[str, int] | None = None,  # boxes of each class that a frame is filled up to; else none
        rate: float = 1.0,  # share of what lacks that is asked for
        until_epoch: int | None = None,  # so many epochs sample, then none does (the fade); None: all
        min_points: int = 5,  # an object has so many points of all sweeps at least
        images: bool = True,  # paste patches, too; off, points and boxes only
        blend: float = 0.5,  # share of a patch where it is pasted, the rest is what was there
        patch_camera: str = "last",  # whose picture of an object is its patch: last, as published, or largest
        patch_behind: str = "third_corner",  # or any_corner: which say that a box is before a camera
        database: str | Path | None = None,  # folder of the database of objects; None: one below data.cache_dir
        processes: int | None = None,  # that make the database; None: one for each core
    ) -> None:
        self.goals = dict(GOALS if goals is None else goals)
        for name, goal in self.goals.items():
            if name not in CLASSES:
                raise SettingError(f"goals.{name}: there is no such class, but {', '.join(CLASSES)}")
            require_whole(f"goals.{name}", goal)
        require_count("min_points", min_points)
        for name, value, least in (("until_epoch", until_epoch, 0), ("processes", processes, 1)):
            if value is not None:
                require_whole(name, value, least)
        require_choice("patch_camera", patch_camera, PATCH_CAMERAS)
        require_choice("patch_behind", patch_behind, PATCH_BEHIND)
        self.rate = require_number("rate", rate, 0, below=1000)
        self.until_epoch = until_epoch
        self.min_points = min_points
        self.images = images
        self.blend = require_number("blend", blend, above=0, high=1)
        self.patch_camera = patch_camera
        self.patch_behind = patch_behind
        self.database = None if database is None else Path(database).expanduser()
        self.processes = processes

    def active(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, samples."""
        return self.until_epoch is None or epoch < self.until_epoch

    def tell_missing_fade(self, epochs: int | None) -> None:
        """Warn where a run of so many epochs ends before sampling does."""
        if self.until_epoch is not None and epochs is not None and 0 < epochs <= self.until_epoch:
            rank_zero_only(log.warning)(
                "data.sampling.until_epoch=%d: with trainer.max_epochs=%d objects are pasted to the end; "
                "published are 15 of 20 epochs",
                self.until_epoch,
                epochs,
            )

    def lacking(self, labels: NDArray[np.int64]) -> dict[int, int]:
        """How many boxes of which class to ask for, in the order of the goals, given the labels of a frame."""
        there = np.bincount(labels, minlength=len(CLASSES))
        asked = {
            CLASSES.index(name): round(self.rate * (goal - int(there[CLASSES.index(name)])))
            for name, goal in self.goals.items()
        }
        return {label: number for label, number in asked.items() if number > 0}


@dataclass
class ObjectSampler:
    """Fills frames up with objects out of a database, as CMT's release does (``UnifiedObjectSample``)."""

    sampling: Sampling  # what and how
    database: ObjectDatabase  # where objects come from
    min_points: int = 1  # boxes of a frame with fewer annotated LiDAR points do not count, nor stand in the way

    def __post_init__(self) -> None:
        sampling, database = self.sampling, self.database
        counts = np.diff(database.starts)
        nobody = [name for name, goal in sampling.goals.items() if goal and not counts[CLASSES.index(name)]]
        if nobody:
            rank_zero_only(log.warning)(
                "data.sampling.goals: the database of objects in %s has no %s, so none is pasted",
                database.folder,
                ", ".join(nobody),
            )

    def __call__(self, frame: Frame, obstacles: NDArray[np.float32], random: Generator) -> Frame:
        """The frame, as read, with objects that find room among its boxes and obstacles (box, >= 7)."""
        counted = (frame.box_points >= self.min_points).numpy()
        rows, groups = self.draw(frame.labels.numpy()[counted], random)
        if not len(rows):
            return frame
        standing = np.concatenate((frame.boxes.numpy()[counted], obstacles[:, : frame.boxes.shape[1]]))
        accepted = rows[find_room(standing, self.database.entries["box"][rows], groups)]
        return self.paste(frame, accepted) if len(accepted) else frame

    def draw(self, labels: NDArray[np.int64], random: Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of candidates for a frame with boxes of these labels, and the place of their class in the goals."""
        starts = self.database.starts
        rows: list[NDArray[np.int64]] = []
        for label, number in self.sampling.lacking(labels).items():
            there = int(starts[label + 1] - starts[label])
            rows.append(starts[label] + random.choice(there, min(number, there), replace=False))
        groups = np.repeat(np.arange(len(rows)), [len(chosen) for chosen in rows])
        return np.concatenate([np.zeros(0, dtype=np.int64), *rows]), groups

    def paste(self, frame: Frame, rows: NDArray[np.int64]) -> Frame:
        """The frame with the objects of these rows in it, after its own."""
        entries = self.database.entries[rows]
        boxes = np.ascontiguousarray(entries["box"])
        bottoms = boxes[:, :3].copy()
        bottoms[:, 2] -= boxes[:, 5] / 2
        points = frame.points.numpy()
        # By row numbers, which is three times as fast as by a mask.
        stays = torch.from_numpy(np.flatnonzero(without_points_inside(points, boxes)))
        clouds = []
        for row, bottom in zip(rows.tolist(), bottoms, strict=True):
            cloud = self.database.points(row)
            cloud[:, :3] += bottom
            clouds.append(cloud)
        images = frame.images
        if images is not None and self.sampling.images:
            patches = [self.database.patch(row) for row in rows.tolist()]
            pixels = images.permute(0, 2, 3, 1).numpy()
            pasted = paste_patches(pixels, frame.lidar2img.numpy(), boxes, patches, self.sampling.blend)
            images = torch.from_numpy(pasted).permute(0, 3, 1, 2)
        more = torch.from_numpy(np.concatenate(clouds).reshape(-1, POINT_FEATURES))
        return with_more_points(frame.keep_points(stays), more).replace(
            images=images,
            boxes=torch.cat((frame.boxes, torch.from_numpy(boxes))),
            labels=torch.cat((frame.labels, torch.from_numpy(entries["label"].astype(np.int64)))),
            box_points=torch.cat((frame.box_points, torch.from_numpy(entries["points"].astype(np.int64)))),
        )


_LOWEST_RING, _RING_STEP, _RINGS = -0.5353, 0.023275, 32
"""Elevation in radians of nuScenes' ring 0, from ring to ring, and how many there are."""


def with_more_points(frame: Frame, more: Tensor) -> Frame:
    """A frame with points that were recorded elsewhere, as if its own LiDAR had seen them.

    Their sweep is the one whose lag is nearest to theirs, their ring the one of their elevation.

    Args:
        frame: whose ``returns``, if there are any, get rows for them.
        more: (point, 5), in the keyframe's LiDAR frame.
    """
    points, returns = torch.cat((frame.points, more)), frame.returns
    if returns is None or not len(returns.motions):
        return frame.replace(points=points, returns=None)
    lags = torch.zeros(len(returns.motions))
    lags[returns.sweep.long()] = frame.points[:, 4]
    sweep = (more[:, 4:5] - lags).abs().argmin(dim=1)
    inverse = torch.linalg.inv(returns.motions).float()[sweep]
    own = torch.einsum("pij,pj->pi", inverse[:, :3, :3], more[:, :3]) + inverse[:, :3, 3]
    elevation = torch.atan2(own[:, 2], own[:, :2].norm(dim=1))
    ring = ((elevation - _LOWEST_RING) / _RING_STEP).round().clamp(0, _RINGS - 1)
    joined = returns.replace(
        sweep=torch.cat((returns.sweep, sweep.to(returns.sweep.dtype))),
        ring=torch.cat((returns.ring, ring.to(returns.ring.dtype))),
    )
    return frame.replace(points=points, returns=joined)
