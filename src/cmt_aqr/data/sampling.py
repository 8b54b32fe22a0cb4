"""Ground-truth sampling: objects of other frames are pasted into the points and images of a training frame."""

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
"""Number of boxes per class that the release fills a frame up to."""


class Sampling:
    """The settings of object sampling."""

    def __init__(
        self,
        goals: Mapping[str, int]
        | None = None,  # boxes per class to fill a frame up to, none of other classes; None: GOALS
        rate: float = 1.0,  # share of the missing boxes to sample
        until_epoch: int | None = None,  # number of epochs with sampling, before the fade; None: all
        min_points: int = 5,  # minimum number of points of an object, over all sweeps
        images: bool = True,  # paste patches as well as points
        blend: float = 0.5,  # weight of a patch over the image below it
        patch_camera: str = "last",  # the camera of a patch: last, as published, or largest
        patch_behind: str = "third_corner",  # or any_corner: the test that a box is in front of a camera
        database: str | Path | None = None,  # folder of the database; None: in data.cache_dir
        processes: int | None = None,  # to build the database; None: one per core
    ) -> None:
        self.goals = dict(GOALS if goals is None else goals)
        for name, goal in self.goals.items():
            if name not in CLASSES:
                raise SettingError(f"goals.{name}: there is no such class, but {', '.join(CLASSES)}")
            require_whole(f"goals.{name}", goal)
        require_count("min_points", min_points)
        for name, value, low in (("until_epoch", until_epoch, 0), ("processes", processes, 1)):
            if value is not None:
                require_whole(name, value, low)
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
        """Whether an epoch, counted from 0, is before the fade."""
        return self.until_epoch is None or epoch < self.until_epoch

    def warn_without_fade(self, epochs: int | None) -> None:
        """Warn if a run of this many epochs ends before the fade."""
        if self.until_epoch is not None and epochs is not None and 0 < epochs <= self.until_epoch:
            rank_zero_only(log.warning)(
                "data.sampling.until_epoch=%d: with trainer.max_epochs=%d, objects are pasted until the end; "
                "the published recipe stops after 15 of 20 epochs",
                self.until_epoch,
                epochs,
            )

    def shortfall(self, labels: NDArray[np.int64]) -> dict[int, int]:
        """Number of boxes to sample by class, in the order of the goals, for a frame with these labels."""
        present = np.bincount(labels, minlength=len(CLASSES))
        goals = {CLASSES.index(name): goal for name, goal in self.goals.items()}
        missing = {label: round(self.rate * (goal - int(present[label]))) for label, goal in goals.items()}
        return {label: number for label, number in missing.items() if number > 0}


@dataclass
class ObjectSampler:
    """Pastes objects of a database into frames, as CMT's release does (``UnifiedObjectSample``)."""

    sampling: Sampling
    database: ObjectDatabase
    min_points: int = 1  # LiDAR points that a box of the frame needs to count for the goals and as an obstacle

    def __post_init__(self) -> None:
        sampling, database = self.sampling, self.database
        counts = np.diff(database.starts)
        missing = [name for name, goal in sampling.goals.items() if goal and not counts[CLASSES.index(name)]]
        if missing:
            rank_zero_only(log.warning)(
                "data.sampling.goals: the database of objects in %s has no %s, so none is pasted",
                database.folder,
                ", ".join(missing),
            )

    def __call__(self, frame: Frame, obstacles: NDArray[np.float32], random: Generator) -> Frame:
        """Paste objects into a frame as read where they hit neither its boxes nor obstacles (box, >= 7)."""
        counted = (frame.box_points >= self.min_points).numpy()
        rows, groups = self.draw(frame.labels.numpy()[counted], random)
        if not len(rows):
            return frame
        occupied = np.concatenate((frame.boxes.numpy()[counted], obstacles[:, : frame.boxes.shape[1]]))
        accepted = rows[find_room(occupied, self.database.entries["box"][rows], groups)]
        return self.paste(frame, accepted) if len(accepted) else frame

    def draw(self, labels: NDArray[np.int64], random: Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw candidates for a frame with these labels: rows, and for each the group, a number per class."""
        starts = self.database.starts
        rows: list[NDArray[np.int64]] = []
        for label, number in self.sampling.shortfall(labels).items():
            available = int(starts[label + 1] - starts[label])
            rows.append(starts[label] + random.choice(available, min(number, available), replace=False))
        groups = np.repeat(np.arange(len(rows)), list(map(len, rows)))
        return np.concatenate([np.zeros(0, dtype=np.int64), *rows]), groups

    def paste(self, frame: Frame, rows: NDArray[np.int64]) -> Frame:
        """Paste the objects of these rows; they are appended to those of the frame."""
        entries = self.database.entries[rows]
        boxes = np.ascontiguousarray(entries["box"])
        bottoms = boxes[:, :3].copy()
        bottoms[:, 2] -= boxes[:, 5] / 2
        points = frame.points.numpy()
        # Indexing by row numbers is three times as fast as by a mask.
        visible = torch.from_numpy(np.flatnonzero(without_points_inside(points, boxes)))
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
        new_points = torch.from_numpy(np.concatenate(clouds).reshape(-1, POINT_FEATURES))
        return with_more_points(frame.keep_points(visible), new_points).replace(
            images=images,
            boxes=torch.cat((frame.boxes, torch.from_numpy(boxes))),
            labels=torch.cat((frame.labels, torch.from_numpy(entries["label"].astype(np.int64)))),
            box_points=torch.cat((frame.box_points, torch.from_numpy(entries["points"].astype(np.int64)))),
        )


_LOWEST_RING, _RING_STEP, _RINGS = -0.5353, 0.023275, 32
"""Elevation of ring 0 of nuScenes' LiDAR and spacing of the rings in radians, and number of rings."""


def with_more_points(frame: Frame, more: Tensor) -> Frame:
    """Add points that were recorded elsewhere, as if the frame's own LiDAR had recorded them.

    They belong to the sweep with the nearest lag, and the ring with the nearest elevation.

    Args:
        frame: its ``returns``, if it has any, are extended.
        more: (point, 5), in the keyframe's LiDAR frame.
    """
    points, returns = torch.cat((frame.points, more)), frame.returns
    if returns is None or not len(returns.motions):
        return frame.replace(points=points, returns=None)
    lags = torch.zeros(len(returns.motions))
    lags[returns.sweep.long()] = frame.points[:, 4]
    sweep = (more[:, 4:5] - lags).abs().argmin(dim=1)
    inverse = torch.linalg.inv(returns.motions).float()[sweep]
    local = torch.einsum("pij,pj->pi", inverse[:, :3, :3], more[:, :3]) + inverse[:, :3, 3]
    elevation = torch.atan2(local[:, 2], local[:, :2].norm(dim=1))
    ring = ((elevation - _LOWEST_RING) / _RING_STEP).round().clamp(0, _RINGS - 1)
    joined = returns.replace(
        sweep=torch.cat((returns.sweep, sweep.to(returns.sweep.dtype))),
        ring=torch.cat((returns.ring, ring.to(returns.ring.dtype))),
    )
    return frame.replace(points=points, returns=joined)
