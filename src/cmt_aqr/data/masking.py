"""What a training frame loses on purpose: a sensor (masked-modal training), squares of its images (GridMask)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from cmt_aqr.checks import require, require_fraction, require_number
from cmt_aqr.constants import CAMERAS
from cmt_aqr.errors import SettingError
from cmt_aqr.structures import Frame


class MaskModality:
    """Lose one sensor at random: CMT's masked-modal training, and, with probability 1, testing a lost sensor.

    A lost camera shows a black picture (before normalisation), a lost LiDAR returns points whose every value
    is 0. One draw decides, so never both are lost: the upper end of [0, 1) is the cameras', the part below it
    the LiDAR's, as in CMT's release. Pasted objects are lost with the rest.

    A sensor may be lost in part: some of the six cameras, or a sector of the LiDAR's view, drawn anew for each
    frame. Points of a sector are dropped: as zeros they would stand for something at the origin.
    """

    def __init__(
        self,
        cameras: float = 0.25,  # probability that cameras are lost
        lidar: float = 0.25,  # probability that the LiDAR is lost
        views: int | Sequence[str] = len(CAMERAS),  # so many of the six, or names as in [CAM_FRONT, CAM_BACK]
        sector: float = 360.0,  # degrees of azimuth that the LiDAR then loses; 360 is all of it
    ) -> None:
        self.cameras = require_fraction("cameras", cameras)
        self.lidar = require_fraction("lidar", lidar)
        require(cameras + lidar <= 1, "cameras", cameras, f"at most 1 together with lidar={lidar}")
        self.sector = require_number("sector", sector, above=0, high=360)
        self.count, self.views = _views(views)

    @property
    def strikes(self) -> frozenset[str]:
        """The sensors, of ``lidar`` and ``camera``, that may be lost."""
        shares = {"lidar": self.lidar, "camera": self.cameras}
        return frozenset(sensor for sensor, share in shares.items() if share)

    def lost(self, draw: float) -> str | None:
        """The sensor, ``cameras`` or ``lidar``, that a number in [0, 1) loses; ``None``: neither."""
        if draw > 1 - self.cameras or self.cameras == 1:
            return "cameras"
        if draw > 1 - self.cameras - self.lidar or self.cameras + self.lidar == 1:
            return "lidar"
        return None

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Lose the cameras, the LiDAR, or nothing."""
        lost = self.lost(random.random())
        if lost == "cameras" and frame.images is not None:
            return frame.replace(images=self._without_views(frame.images, random))
        if lost == "lidar":
            return frame.replace(points=self._without_sector(frame.points, random))
        return frame

    def _without_views(self, images: Tensor, random: Generator) -> Tensor:
        """Images (view, 3, height, width) with the lost views black."""
        if self.count == len(images):
            return torch.zeros_like(images)
        views = self.views or random.choice(len(images), self.count, replace=False)
        images = images.clone()
        images[list(views)] = 0
        return images

    def _without_sector(self, points: Tensor, random: Generator) -> Tensor:
        """Points (point, 5) without those of the lost sector."""
        if self.sector == 360:
            return torch.zeros_like(points)
        start = random.uniform(-math.pi, math.pi)
        beyond = torch.remainder(torch.atan2(points[:, 1], points[:, 0]) - start, 2 * math.pi)
        return points[beyond >= math.radians(self.sector)]


def _views(views: int | Sequence[str]) -> tuple[int, list[int]]:
    """How many views are lost, and which; none named: drawn."""
    if isinstance(views, int) and not isinstance(views, bool) and 1 <= views <= len(CAMERAS):
        return views, []
    if isinstance(views, Sequence) and not isinstance(views, str) and views and set(views) <= set(CAMERAS):
        named = sorted({CAMERAS.index(name) for name in views})
        return len(named), named
    raise SettingError(
        f"views={views}: must be a number from 1 to {len(CAMERAS)}, or names out of {', '.join(CAMERAS)}"
    )


@dataclass
class GridMask:
    """Drop a grid of squares from the images (GridMask, Chen et al., arXiv 2001.04086), as CMT's release does it.

    The same squares in all views, set to 0 after normalisation. Bars, which stay, and squares between them
    repeat every ``period`` pixels, uniform in [2, height) for rows and columns alike. The release draws bars on
    a canvas 1.5 times as large, whose centre counts, and none before the first or after the last whole period:
    with a large period the border is one wide gap, so that more is lost than ``(1 - ratio)^2``.
    """

    probability: float = 0.7  # how often images are masked
    ratio: float = 0.5  # share of the period that stays, along each axis
    per_frame: bool = False  # off, as published: the frames of a batch (of one device) share the first one's mask

    def __post_init__(self) -> None:
        require_fraction("probability", self.probability)
        require_number("ratio", self.ratio, above=0, below=1)

    def draw(self, size: tuple[int, int], random: Generator) -> NDArray[np.bool_] | None:
        """Pixels (height, width) that stay, or None where this frame is not masked."""
        if random.random() >= self.probability:
            return None
        period = int(random.integers(2, max(size[0], 3)))
        row, column = random.integers(period, size=2)
        return self.mask(size, period, int(row), int(column))

    def mask(self, size: tuple[int, int], period: int, row: int, column: int) -> NDArray[np.bool_]:
        """Pixels (height, width) that stay, with a period of 2 pixels or more.

        The first bar of rows begins at ``row`` of the canvas, 0 to ``period - 1``, that of columns at ``column``.
        """
        bar = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        rows, columns = (_bars(side, period, bar, first) for side, first in zip(size, (row, column), strict=True))
        return rows[:, None] | columns[None, :]


def _bars(side: int, period: int, bar: int, first: int) -> NDArray[np.bool_]:
    """Which of ``side`` rows, cut out of the middle of the canvas, lie on a bar."""
    canvas = int(1.5 * side)
    place = np.arange(side) + (canvas - side) // 2 - first
    return (place >= 0) & (place // period < canvas // period) & (place % period < bar)
