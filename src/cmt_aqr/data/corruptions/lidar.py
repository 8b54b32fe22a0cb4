"""What happens to points: beams, points, sectors and objects are lost, files are shifted, noise is added.

Every function is a transform of a frame. Those that strike files (sweeps, each in its own LiDAR frame) draw for
each file anew.
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


def keep_elevations(frame: Frame, random: Generator, intervals: Sequence[tuple[float, float]]) -> Frame:
    """Points stay whose elevation asin(z / |xyz|), frame of their file, lies in an open interval (radians)."""
    own = in_own_frames(frame)
    elevation = torch.asin(own[:, 2] / own.norm(dim=1).clamp(min=1e-9))
    keep = torch.zeros(len(own), dtype=torch.bool)
    for low, high in intervals:
        keep |= (elevation > low) & (elevation < high)
    return frame.keep_points(keep)


def keep_rings(frame: Frame, random: Generator, rings: Sequence[int]) -> Frame:
    """Points of some of the lasers stay; numbers as in nuScenes' files, 0 is the lowest."""
    return frame.keep_points(torch.isin(rings_of(frame), torch.tensor(rings, dtype=torch.int16)))


def zero_points(frame: Frame, random: Generator) -> Frame:
    """The LiDAR is lost: its points are as many as before, and every value is 0."""
    return frame.replace(points=torch.zeros_like(frame.points))


def keep_sector(frame: Frame, random: Generator, degrees: float) -> Frame:
    """Points up to an angle on either side of ahead, atan2(x, y) in the keyframe's LiDAR frame, stay."""
    return frame.keep_points(torch.atan2(frame.points[:, 0], frame.points[:, 1]).abs() <= math.radians(degrees))


def empty_boxes(frame: Frame, random: Generator, probability: float) -> Frame:
    """No object returns anything: all points in annotated boxes are dropped; one draw for the frame."""
    if random.random() >= probability or not len(frame.boxes):
        return frame
    stays = without_points_inside(frame.points.numpy(), frame.boxes.numpy())
    return frame.keep_points(torch.from_numpy(stays))


def keep_share(frame: Frame, random: Generator, share: float) -> Frame:
    """Of each file, a random share of the points, rounded to whole ones, stays."""
    sweep = returns_of(frame).sweep.numpy()
    keep = np.zeros(len(sweep), dtype=bool)
    for number in np.unique(sweep):
        rows = np.flatnonzero(sweep == number)
        keep[random.permutation(rows)[: round(len(rows) * share)]] = True
    return frame.keep_points(torch.from_numpy(keep))


TREMBLE, MOST_TREMBLE = (0.15, 0.2, 0.12), 3.0
"""Of a point of a blurred LiDAR, in units of its file's: standard deviations along x, y, z, and the limit."""


def blur_points(frame: Frame, random: Generator, std: float) -> Frame:
    """A moving LiDAR: each file is shifted as a whole, and each point trembles a little.

    The standard deviation, metres, is that of a file's shift along x, y, z, in its own LiDAR frame.
    """
    returns = returns_of(frame)
    shifts = random.normal(0, std, (len(returns.motions), 3)).astype(np.float32)
    own = normal_numbers((len(frame.points), 3), random)
    own *= np.array([std * value for value in TREMBLE], dtype=np.float32)
    np.clip(own, -MOST_TREMBLE * std, MOST_TREMBLE * std, out=own)
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


def turn_files(
    frame: Frame, random: Generator, probability: float, degrees: float, shift: tuple[float, float, float]
) -> Frame:
    """Each file is, with a probability, turned and shifted (metres along x, y, z) in its own LiDAR frame.

    Turned clockwise by the same angle about x, y and z, as MultiCorrupt's converter has it: xyz' = Rx Ry Rz xyz +
    shift, where Rz takes (1, 0, 0) to (cos a, -sin a, 0).
    """
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    about_x = np.array(((1, 0, 0), (0, c, s), (0, -s, c)))
    about_y = np.array(((c, 0, -s), (0, 1, 0), (s, 0, c)))
    about_z = np.array(((c, s, 0), (-s, c, 0), (0, 0, 1)))
    change = torch.eye(4, dtype=torch.float64)
    change[:3, :3] = torch.from_numpy(about_x @ about_y @ about_z)
    change[:3, 3] = torch.tensor(shift, dtype=torch.float64)
    struck = torch.from_numpy(random.random(len(returns_of(frame).motions)) < probability)
    changes = torch.where(struck[:, None, None], change, torch.eye(4, dtype=torch.float64))
    points = frame.points.clone()
    points[:, :3] = moved_in_own_frames(frame, changes)
    return frame.replace(points=points)


# Of all sweeps, merged


def drop_points(frame: Frame, random: Generator, share: float) -> Frame:
    """A random share of all points is lost."""
    count = len(frame.points)
    keep = np.ones(count, dtype=bool)
    keep[random.permutation(count)[: int(count * share)]] = False
    return frame.keep_points(torch.from_numpy(keep))


def cut_holes(frame: Frame, random: Generator, holes: int, share: float = 0.02) -> Frame:
    """So many times a random point is taken, and the nearest points to it, a share of those there were, are lost.

    Distances are over all five columns, as nuScenes-C has them.
    """
    points = frame.points.double().numpy()
    squares = np.square(points).sum(axis=1)
    size = int(len(points) * share)
    keep = np.ones(len(points), dtype=bool)
    for _ in range(holes):
        rows = np.flatnonzero(keep)
        if len(rows) <= size or size == 0:
            break
        # |x - c|^2 without what is the same for all x.
        apart = squares - 2 * (points @ points[rows[random.integers(len(rows))]])
        apart[~keep] = np.inf
        keep[np.argpartition(apart, size)[:size]] = False
    return frame.keep_points(torch.from_numpy(keep))


def disturb_points(frame: Frame, random: Generator, share: float, std: float = 3.0) -> Frame:
    """A share of the points is disturbed by another LiDAR: normal noise on every column, in its unit."""
    points = frame.points.clone()
    rows = random.permutation(len(points))[: int(len(points) * share)]
    noise = std * random.standard_normal((len(rows), points.shape[1]), np.float32)
    points[torch.from_numpy(rows)] += torch.from_numpy(noise)
    return frame.replace(points=points)


def add_normal(frame: Frame, random: Generator, std: float) -> Frame:
    """Normal noise on every column of every point."""
    noise = random.standard_normal(tuple(frame.points.shape), np.float32)
    return frame.replace(points=frame.points + std * torch.from_numpy(noise))


def add_uniform(frame: Frame, random: Generator, size: float) -> Frame:
    """Uniform noise from ``-size`` to ``size`` on every column of every point."""
    noise = 2 * random.random(tuple(frame.points.shape), np.float32) - 1
    return frame.replace(points=frame.points + size * torch.from_numpy(noise))


def jolt_points(frame: Frame, random: Generator, one_in: int, size: float = 0.1) -> Frame:
    """One of so many points jumps by a fixed distance, up or down, on every column."""
    points = frame.points.clone()
    rows = random.permutation(len(points))[: len(points) // one_in]
    signs = random.choice(np.array((-1, 1), dtype=np.float32), (len(rows), points.shape[1]))
    points[torch.from_numpy(rows)] += size * torch.from_numpy(signs)
    return frame.replace(points=points)
