"""What happens to points: beams, points, sectors and objects are lost, files are shifted.

Every class is a transform of a frame. Those that strike files (sweeps, each in its own LiDAR frame) draw for each
file anew.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.stats import norm

from cmt_aqr.data.corruptions.files import in_own_frames, moved_in_own_frames, returns_of, rings_of, to_keyframe
from cmt_aqr.data.paste import without_points_inside
from cmt_aqr.structures import Frame


class KeepElevations:
    """Points whose elevation in the frame of their file lies in one of some open intervals stay.

    Args:
        intervals: lowest and highest elevation asin(z / |xyz|) of each, radians.
    """

    def __init__(self, intervals: Sequence[tuple[float, float]]) -> None:
        self.intervals = tuple(intervals)

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Drop the other points."""
        own = in_own_frames(frame)
        elevation = torch.asin(own[:, 2] / own.norm(dim=1).clamp(min=1e-9))
        keep = torch.zeros(len(own), dtype=torch.bool)
        for low, high in self.intervals:
            keep |= (elevation > low) & (elevation < high)
        return frame.keep_points(keep)


class KeepRings:
    """Points of some of the LiDAR's lasers stay.

    Args:
        rings: indices as in nuScenes' files, 0 is the lowest.
    """

    def __init__(self, rings: Sequence[int]) -> None:
        self.rings = tuple(rings)

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Drop the points of the other lasers."""
        return frame.keep_points(torch.isin(rings_of(frame), torch.tensor(self.rings, dtype=torch.int16)))


class ZeroPoints:
    """The LiDAR is lost: its points are as many as before, and every value is 0."""

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Put all points into the origin."""
        return frame.replace(points=torch.zeros_like(frame.points))


class KeepSector:
    """Points near the forward direction stay, in the keyframe's LiDAR frame.

    Args:
        degrees: the largest angle to either side, of atan2(x, y): 0 is ahead.
    """

    def __init__(self, degrees: float) -> None:
        self.limit = math.radians(degrees)

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Drop the points beside and behind."""
        return frame.keep_points(torch.atan2(frame.points[:, 0], frame.points[:, 1]).abs() <= self.limit)


class EmptyBoxes:
    """In a share of the frames, no object returns anything: all points in annotated boxes are dropped.

    Args:
        probability: that a frame is struck; one draw for the frame.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Drop the points of all sweeps in the keyframe's boxes, or none."""
        if random.random() >= self.probability or not len(frame.boxes):
            return frame
        stays = without_points_inside(frame.points.numpy(), frame.boxes.numpy())
        return frame.keep_points(torch.from_numpy(stays))


class KeepShare:
    """Of each file, a random share of the points stays.

    Args:
        share: of the points of a file, rounded to whole points.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Drop the other points."""
        sweep = returns_of(frame).sweep.numpy()
        keep = np.zeros(len(sweep), dtype=bool)
        for number in np.unique(sweep):
            rows = np.flatnonzero(sweep == number)
            keep[random.permutation(rows)[: round(len(rows) * self.share)]] = True
        return frame.keep_points(torch.from_numpy(keep))


class BlurPoints:
    """A moving LiDAR: each file is shifted as a whole, and each point trembles a little.

    Args:
        std: standard deviation in metres of a file's shift along x, y, z, in its own LiDAR frame.
        tremble: standard deviations of a point's own shift, in units of ``std``.
        limit: of a point's own shift, in units of ``std``.
    """

    def __init__(
        self, std: float, tremble: tuple[float, float, float] = (0.15, 0.2, 0.12), limit: float = 3.0
    ) -> None:
        self.std = std
        self.tremble = tuple(std * value for value in tremble)
        self.limit = limit * std

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Shift the points."""
        returns = returns_of(frame)
        shifts = random.normal(0, self.std, (len(returns.motions), 3)).astype(np.float32)
        own = normal_numbers((len(frame.points), 3), random)
        own *= np.array(self.tremble, dtype=np.float32)
        np.clip(own, -self.limit, self.limit, out=own)
        shift = torch.from_numpy(own) + torch.from_numpy(shifts).index_select(0, returns.sweep.int())
        turns = returns.motions.clone()
        turns[:, :3, 3] = 0
        points = frame.points.clone()
        points[:, :3] += to_keyframe(shift, returns.replace(motions=turns))
        return frame.replace(points=points)


def normal_numbers(shape: tuple[int, ...], random: Generator) -> NDArray[np.float32]:
    """Numbers of a standard normal distribution, by look-up: each is one of 65536 equally likely quantiles."""
    return _quantiles().take(random.integers(0, 1 << 16, shape, np.uint16), mode="clip")


@functools.cache
def _quantiles() -> NDArray[np.float32]:
    """(65536,)"""
    return norm.ppf((np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.float32)


class TurnFiles:
    """Some files are turned and shifted in their own LiDAR frame.

    Turned clockwise about x, y and z, as MultiCorrupt's converter has it: xyz' = Rx Ry Rz xyz + shift, where
    Rz takes (1, 0, 0) to (cos a, -sin a, 0).

    Args:
        probability: of each file.
        degrees: the angle about each axis.
        shift: metres along x, y, z.
    """

    def __init__(self, probability: float, degrees: float, shift: tuple[float, float, float]) -> None:
        self.probability = probability
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        about_x = np.array(((1, 0, 0), (0, c, s), (0, -s, c)))
        about_y = np.array(((c, 0, -s), (0, 1, 0), (s, 0, c)))
        about_z = np.array(((c, s, 0), (-s, c, 0), (0, 0, 1)))
        self.change = torch.eye(4, dtype=torch.float64)
        self.change[:3, :3] = torch.from_numpy(about_x @ about_y @ about_z)
        self.change[:3, 3] = torch.tensor(shift, dtype=torch.float64)

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Turn and shift the files that are struck."""
        sweeps = len(returns_of(frame).motions)
        struck = torch.from_numpy(random.random(sweeps) < self.probability)
        changes = torch.where(struck[:, None, None], self.change, torch.eye(4, dtype=torch.float64))
        points = frame.points.clone()
        points[:, :3] = moved_in_own_frames(frame, changes)
        return frame.replace(points=points)
