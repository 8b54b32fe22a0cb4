"""Masking of training frames: a sensor (masked-modal training), or squares of the images (GridMask)."""

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
    """Drop one sensor at random: CMT's masked-modal training; with probability 1, a test without the sensor.

    Images of dropped cameras are black (before normalisation), all values of a dropped LiDAR's points are 0. One
    draw from [0, 1) decides, so that at most one sensor is dropped: the cameras at the upper end, the LiDAR below
    that, as in CMT's release.

    A sensor may be dropped in part, drawn for each frame: some of the cameras, or a sector of the LiDAR's view.
    Points of a sector are removed, because zeros would be points at the origin.
    """

    def __init__(
        self,
        cameras: float = 0.25,  # probability of dropping cameras
        lidar: float = 0.25,  # probability of dropping the LiDAR
        views: int | Sequence[str] = len(CAMERAS),  # number of cameras, or names such as [CAM_FRONT, CAM_BACK]
        sector: float = 360.0,  # dropped azimuth of the LiDAR in degrees; 360 is the whole LiDAR
    ) -> None:
        self.cameras = require_fraction("cameras", cameras)
        self.lidar = require_fraction("lidar", lidar)
        require(cameras + lidar <= 1, "cameras", cameras, f"at most 1 together with lidar={lidar}")
        self.sector = require_number("sector", sector, above=0, high=360)
        self.count, self.views = _views(views)

    @property
    def strikes(self) -> frozenset[str]:
        """The sensors, of ``lidar`` and ``camera``, that may be dropped."""
        probabilities = {"lidar": self.lidar, "camera": self.cameras}
        return frozenset(sensor for sensor, probability in probabilities.items() if probability)

    def lost(self, draw: float) -> str | None:
        """The sensor, ``cameras`` or ``lidar``, that a draw from [0, 1) drops, or ``None``."""
        if draw > 1 - self.cameras or self.cameras == 1:
            return "cameras"
        if draw > 1 - self.cameras - self.lidar or self.cameras + self.lidar == 1:
            return "lidar"
        return None

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Drop the cameras, the LiDAR, or neither."""
        lost = self.lost(random.random())
        if lost == "cameras" and frame.images is not None:
            return frame.replace(images=self._without_views(frame.images, random))
        if lost == "lidar":
            return frame.replace(points=self._without_sector(frame.points, random))
        return frame

    def _without_views(self, images: Tensor, random: Generator) -> Tensor:
        """Images (view, 3, height, width) with the dropped views black."""
        if self.count == len(images):
            return torch.zeros_like(images)
        views = self.views or random.choice(len(images), self.count, replace=False)
        images = images.clone()
        images[list(views)] = 0
        return images

    def _without_sector(self, points: Tensor, random: Generator) -> Tensor:
        """Points (point, 5) without those of a random sector."""
        if self.sector == 360:
            return torch.zeros_like(points)
        start = random.uniform(-math.pi, math.pi)
        azimuth = torch.remainder(torch.atan2(points[:, 1], points[:, 0]) - start, 2 * math.pi)
        return points[azimuth >= math.radians(self.sector)]


def _views(views: int | Sequence[str]) -> tuple[int, list[int]]:
    """Number of dropped views, and their indices; no indices: random views."""
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
    """Mask a grid of squares in the images (GridMask, Chen et al., arXiv 2001.04086), as CMT's release does.

    The same squares in all views are set to 0 after normalisation. Bars, which are kept, and the squares between
    them repeat every ``period`` pixels, uniform in [2, height), in rows and columns. The release draws bars on a
    canvas 1.5 times as large, takes its centre, and draws no bar outside the complete periods: with a large period
    the border is one wide gap, so that more than ``(1 - ratio)^2`` is masked.
    """

    probability: float = 0.7  # of masking a frame
    ratio: float = 0.5  # kept share of the period, along each axis
    per_frame: bool = False  # off, as published: the first frame's mask applies to the batch (of a device)

    def __post_init__(self) -> None:
        require_fraction("probability", self.probability)
        require_number("ratio", self.ratio, above=0, below=1)

    def draw(self, size: tuple[int, int], random: Generator) -> NDArray[np.bool_] | None:
        """Pixels (height, width) that are kept, or ``None`` if the frame is not masked."""
        if random.random() >= self.probability:
            return None
        period = int(random.integers(2, max(size[0], 3)))
        row, column = random.integers(period, size=2)
        return self.mask(size, period, int(row), int(column))

    def mask(self, size: tuple[int, int], period: int, row: int, column: int) -> NDArray[np.bool_]:
        """Pixels (height, width) that are kept, for a period of at least 2 pixels.

        The first bars begin at ``row`` and ``column`` of the canvas, 0 to ``period - 1``.
        """
        bar = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        rows, columns = (_bars(side, period, bar, first) for side, first in zip(size, (row, column), strict=True))
        return rows[:, None] | columns[None, :]


def _bars(side: int, period: int, bar: int, first: int) -> NDArray[np.bool_]:
    """Which of the ``side`` rows at the centre of the canvas lie on a bar: (side,)."""
    canvas = int(1.5 * side)
    offset = np.arange(side) + (canvas - side) // 2 - first
    return (offset >= 0) & (offset // period < canvas // period) & (offset % period < bar)
