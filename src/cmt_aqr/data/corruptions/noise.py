"""Points and pixels that are missing, doubled or noisy, after nuScenes-C."""

from __future__ import annotations

import numpy as np
import torch
from numpy.random import Generator
from scipy.stats import norm

from cmt_aqr.data.corruptions.pictures import EachPicture, Picture, look_up
from cmt_aqr.structures import Frame


class DropPoints:
    """A random share of all points is lost.

    Args:
        share: of the points.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Drop points."""
        count = len(frame.points)
        keep = np.ones(count, dtype=bool)
        keep[random.permutation(count)[: int(count * self.share)]] = False
        return frame.keep_points(torch.from_numpy(keep))


class CutHoles:
    """Several times a random point is taken, and the nearest points to it are lost.

    Distances are over all five columns, as nuScenes-C has them.

    Args:
        holes: how many times.
        share: of the points as they were, that each hole takes.
    """

    def __init__(self, holes: int, share: float = 0.02) -> None:
        self.holes = holes
        self.share = share

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Cut the holes one after another."""
        left = frame.points.numpy()
        rows = np.arange(len(left))
        size = int(len(left) * self.share)
        for _ in range(self.holes):
            if len(rows) <= size or size == 0:
                break
            centre = left[rows[random.integers(len(rows))]]
            apart = np.square(left[rows] - centre).sum(axis=1)
            rows = rows[np.sort(np.argpartition(apart, size)[size:])]
        keep = torch.zeros(len(left), dtype=torch.bool)
        keep[torch.from_numpy(rows)] = True
        return frame.keep_points(keep)


class Crosstalk:
    """Some points are disturbed by another LiDAR: normal noise on every column.

    Args:
        share: of the points.
        std: of the noise, in units of each column.
    """

    def __init__(self, share: float, std: float = 3.0) -> None:
        self.share = share
        self.std = std

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Disturb points."""
        points = frame.points.clone()
        rows = random.permutation(len(points))[: int(len(points) * self.share)]
        noise = self.std * random.standard_normal((len(rows), points.shape[1]), np.float32)
        points[torch.from_numpy(rows)] += torch.from_numpy(noise)
        return frame.replace(points=points)


class NoisyPoints:
    """Noise on every column of every point.

    Args:
        size: standard deviation of a normal, or half the width of a uniform distribution.
        uniform: which of the two.
    """

    def __init__(self, size: float, uniform: bool = False) -> None:
        self.size = size
        self.uniform = uniform

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Add noise."""
        shape = tuple(frame.points.shape)
        noise = (
            2 * random.random(shape, np.float32) - 1 if self.uniform else random.standard_normal(shape, np.float32)
        )
        return frame.replace(points=frame.points + self.size * torch.from_numpy(noise))


class ImpulsePoints:
    """Some points jump by a fixed distance, up or down, on every column.

    Args:
        one_in: of so many points, one jumps.
        size: of the jump.
    """

    def __init__(self, one_in: int, size: float = 0.1) -> None:
        self.one_in = one_in
        self.size = size

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Let points jump."""
        points = frame.points.clone()
        rows = random.permutation(len(points))[: len(points) // self.one_in]
        signs = random.choice(np.array((-1, 1), dtype=np.float32), (len(rows), points.shape[1]))
        points[torch.from_numpy(rows)] += self.size * torch.from_numpy(signs)
        return frame.replace(points=points)


_BITS = 12


class NoisyPictures(EachPicture):
    """Noise on every pixel and channel.

    The distribution of the noise stands in 4096 equally likely values, of which each pixel draws one.

    Args:
        size: standard deviation of a normal, or half the width of a uniform distribution, of full white.
        uniform: which of the two.
    """

    def __init__(self, size: float, uniform: bool = False) -> None:
        quantile = (np.arange(1 << _BITS) + 0.5) / (1 << _BITS)
        noise = size * (2 * quantile - 1 if uniform else norm.ppf(quantile))
        noisy = np.clip(np.arange(256)[:, None] / 255 + noise, 0, 1)
        self.table = (255 * noisy + 1e-6).astype(np.uint8)

    def change(self, picture: Picture, random: Generator, view: int) -> Picture:
        """Add noise."""
        drawn = np.frombuffer(random.bytes(2 * picture.size), np.uint16).reshape(picture.shape)
        return look_up(self.table, picture, drawn >> (16 - _BITS), _BITS)


class SaltAndPepper(EachPicture):
    """Some pixels' channels are white or black, as often the one as the other.

    Args:
        share: of all.
    """

    def __init__(self, share: float) -> None:
        drawn = np.arange(1 << _BITS) / (1 << _BITS)
        table = np.tile(np.arange(256, dtype=np.uint8)[:, None], (1, 1 << _BITS))
        table[:, drawn < share] = 0
        table[:, drawn < share / 2] = 255
        self.table = table

    def change(self, picture: Picture, random: Generator, view: int) -> Picture:
        """Strew pixels."""
        drawn = np.frombuffer(random.bytes(2 * picture.size), np.uint16).reshape(picture.shape)
        return look_up(self.table, picture, drawn >> (16 - _BITS), _BITS)
