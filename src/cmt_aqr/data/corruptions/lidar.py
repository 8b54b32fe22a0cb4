"""Corruptions of points: lost beams, points, sectors and objects, shifted sweeps, noise.

Every function is a transform of a frame. Those that corrupt sweeps, each in its own LiDAR frame, draw
independently for each sweep.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.stats import norm

from cmt_aqr.data.corruptions.sweeps import move_sweeps, returns_of, rings_of
from cmt_aqr.data.paste import without_points_inside
from cmt_aqr.structures import Frame


def keep_elevations(frame: Frame, random: Generator, intervals: Sequence[tuple[float, float]]) -> Frame:
    """Keep points whose elevation asin(z / |xyz|) in the frame of their sweep is in an open interval (radians)."""
    returns = returns_of(frame)
    positions = move_sweeps(frame.points[:, :3], returns.sweep, torch.linalg.inv(returns.motions).float())
    elevation = torch.asin(positions[:, 2] / positions.norm(dim=1).clamp(min=1e-9))
    keep = torch.zeros(len(positions), dtype=torch.bool)
    for low, high in intervals:
        keep |= (elevation > low) & (elevation < high)
    return frame.keep_points(keep)


def keep_rings(frame: Frame, random: Generator, rings: Sequence[int]) -> Frame:
    """Keep points of some rings, numbered as in nuScenes' files: 0 is the lowest."""
    return frame.keep_points(torch.isin(rings_of(frame), torch.tensor(rings, dtype=torch.int16)))


def zero_points(frame: Frame, random: Generator) -> Frame:
    """Set every value of every point to 0."""
    return frame.replace(points=torch.zeros_like(frame.points))


def keep_sector(frame: Frame, random: Generator, degrees: float) -> Frame:
    """Keep points within an angle to either side of straight ahead, atan2(x, y) in the keyframe's LiDAR frame."""
    return frame.keep_points(torch.atan2(frame.points[:, 0], frame.points[:, 1]).abs() <= math.radians(degrees))


def drop_object_points(frame: Frame, random: Generator, probability: float) -> Frame:
    """With a probability, one draw per frame, drop all points in annotated boxes."""
    if random.random() >= probability or not len(frame.boxes):
        return frame
    return frame.keep_points(torch.from_numpy(without_points_inside(frame.points.numpy(), frame.boxes.numpy())))


def subsample_sweeps(frame: Frame, random: Generator, share: float) -> Frame:
    """Keep a random share of each sweep's points, rounded to the nearest integer."""
    sweep = returns_of(frame).sweep.numpy()
    keep = np.zeros(len(sweep), dtype=bool)
    for number in np.unique(sweep):
        rows = np.flatnonzero(sweep == number)
        keep[random.permutation(rows)[: round(len(rows) * share)]] = True
    return frame.keep_points(torch.from_numpy(keep))


POINT_JITTER, MAX_JITTER = (0.15, 0.2, 0.12), 3.0
"""Motion blur of a point relative to its sweep's: standard deviations along x, y, z, and the limit."""


def motion_blur(frame: Frame, random: Generator, std: float) -> Frame:
    """Shift each sweep by Normal(0, std) metres along each axis of its LiDAR frame, and jitter each point."""
    returns = returns_of(frame)
    shifts = random.normal(0, std, (len(returns.motions), 3)).astype(np.float32)
    jitter = standard_normal((len(frame.points), 3), random)
    jitter *= np.array([std * value for value in POINT_JITTER], dtype=np.float32)
    np.clip(jitter, -MAX_JITTER * std, MAX_JITTER * std, out=jitter)
    shift = torch.from_numpy(jitter) + torch.from_numpy(shifts).index_select(0, returns.sweep.int())
    rotations = returns.motions.clone()
    rotations[:, :3, 3] = 0
    points = frame.points.clone()
    points[:, :3] += move_sweeps(shift, returns.sweep, rotations.float())
    return frame.replace(points=points)


def standard_normal(shape: tuple[int, ...], random: Generator) -> NDArray[np.float32]:
    """Standard normal numbers by look-up: each is one of 65536 equally likely quantiles."""
    return _quantiles().take(random.integers(0, 1 << 16, shape, np.uint16), mode="clip")


@functools.cache
def _quantiles() -> NDArray[np.float32]:
    """(65536,)"""
    return norm.ppf((np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.float32)


def misalign_sweeps(
    frame: Frame, random: Generator, probability: float, degrees: float, shift: tuple[float, float, float]
) -> Frame:
    """With a probability, rotate and shift (metres along x, y, z) each sweep in its own LiDAR frame.

    The rotation is clockwise by the same angle about x, y and z, as in MultiCorrupt's converter: xyz' = Rx Ry Rz
    xyz + shift, where Rz maps (1, 0, 0) to (cos a, -sin a, 0).
    """
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    about_x = np.array(((1, 0, 0), (0, c, s), (0, -s, c)))
    about_y = np.array(((c, 0, -s), (0, 1, 0), (s, 0, c)))
    about_z = np.array(((c, s, 0), (-s, c, 0), (0, 0, 1)))
    change = torch.eye(4, dtype=torch.float64)
    change[:3, :3] = torch.from_numpy(about_x @ about_y @ about_z)
    change[:3, 3] = torch.tensor(shift, dtype=torch.float64)
    returns = returns_of(frame)
    misaligned = torch.from_numpy(random.random(len(returns.motions)) < probability)
    changes = returns.motions @ change @ torch.linalg.inv(returns.motions)  # in the keyframe's LiDAR frame
    changes[~misaligned] = torch.eye(4, dtype=torch.float64)
    points = frame.points.clone()
    points[:, :3] = move_sweeps(points[:, :3], returns.sweep, changes.float())
    return frame.replace(points=points)


# The functions below treat all sweeps as one point cloud.


def drop_points(frame: Frame, random: Generator, share: float) -> Frame:
    """Drop a random share of the points."""
    count = len(frame.points)
    keep = np.ones(count, dtype=bool)
    keep[random.permutation(count)[: int(count * share)]] = False
    return frame.keep_points(torch.from_numpy(keep))


def cutout(frame: Frame, random: Generator, holes: int, share: float = 0.02) -> Frame:
    """For each hole, choose a random point and drop the points nearest to it, a share of the original number.

    Distances are over all five columns, as in nuScenes-C.
    """
    points = frame.points.double().numpy()
    squares = np.square(points).sum(axis=1)
    size = int(len(points) * share)
    keep = np.ones(len(points), dtype=bool)
    for _ in range(holes):
        rows = np.flatnonzero(keep)
        if len(rows) <= size or size == 0:
            break
        # |x - c|^2 without |c|^2, which is the same for all x.
        distance = squares - 2 * (points @ points[rows[random.integers(len(rows))]])
        distance[~keep] = np.inf
        keep[np.argpartition(distance, size)[:size]] = False
    return frame.keep_points(torch.from_numpy(keep))


def crosstalk(frame: Frame, random: Generator, share: float, std: float = 3.0) -> Frame:
    """Add normal noise to every column, in its unit, of a random share of the points: another LiDAR interferes."""
    rows = random.permutation(len(frame.points))[: int(len(frame.points) * share)]
    return _add(frame, rows, std * random.standard_normal((len(rows), frame.points.shape[1]), np.float32))


def gaussian_noise(frame: Frame, random: Generator, std: float) -> Frame:
    """Add normal noise to every column of every point."""
    noise = random.standard_normal(tuple(frame.points.shape), np.float32)
    return frame.replace(points=frame.points + std * torch.from_numpy(noise))


def uniform_noise(frame: Frame, random: Generator, size: float) -> Frame:
    """Add uniform noise from ``-size`` to ``size`` to every column of every point."""
    noise = 2 * random.random(tuple(frame.points.shape), np.float32) - 1
    return frame.replace(points=frame.points + size * torch.from_numpy(noise))


def impulse_noise(frame: Frame, random: Generator, one_in: int, size: float = 0.1) -> Frame:
    """Move one in ``one_in`` points by ``size``, up or down, on every column."""
    rows = random.permutation(len(frame.points))[: len(frame.points) // one_in]
    signs = random.choice(np.array((-1, 1), dtype=np.float32), (len(rows), frame.points.shape[1]))
    return _add(frame, rows, np.float32(size) * signs)


def _add(frame: Frame, rows: NDArray[np.int64], noise: NDArray[np.float32]) -> Frame:
    """The frame with noise (row, 5) added to some rows of its points."""
    points = frame.points.clone()
    points[torch.from_numpy(rows)] += torch.from_numpy(noise)
    return frame.replace(points=points)
