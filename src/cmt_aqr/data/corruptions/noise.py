"""Points and pixels that are missing, doubled or noisy, after nuScenes-C."""

from __future__ import annotations

import numpy as np
import torch
from numpy.random import Generator
from scipy.stats import norm

from cmt_aqr.data.corruptions.pictures import EachPicture, Picture, draw_from, spread_quantiles
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
        points = frame.points.double().numpy()
        squares = np.square(points).sum(axis=1)
        size = int(len(points) * self.share)
        keep = np.ones(len(points), dtype=bool)
        for _ in range(self.holes):
            rows = np.flatnonzero(keep)
            if len(rows) <= size or size == 0:
                break
            # |x - c|^2 without what is the same for all x.
            apart = squares - 2 * (points @ points[rows[random.integers(len(rows))]])
            apart[~keep] = np.inf
            keep[np.argpartition(apart, size)[:size]] = False
        return frame.keep_points(torch.from_numpy(keep))


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


class NoisyPictures(EachPicture):
    """Noise on every pixel and channel.

    Args:
        size: standard deviation of a normal, or half the width of a uniform distribution, of full white.
        uniform: which of the two.
    """

    def __init__(self, size: float, uniform: bool = False) -> None:
        self.size = size
        self.uniform = uniform

    def change(self, picture: Picture, random: Generator, view: int) -> Picture:
        """Add noise."""
        quantiles = spread_quantiles(random)
        noise = self.size * (2 * quantiles - 1 if self.uniform else norm.ppf(quantiles))
        noisy = np.clip(np.arange(256)[:, None] / 255 + noise, 0, 1)
        return draw_from((255 * noisy + 1e-6).astype(np.uint8), picture, random)


class SaltAndPepper(EachPicture):
    """Some pixels' channels are white or black, as often the one as the other.

    Args:
        share: of all.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def change(self, picture: Picture, random: Generator, view: int) -> Picture:
        """Strew pixels."""
        quantiles = spread_quantiles(random)
        table = np.tile(np.arange(256, dtype=np.uint8)[:, None], (1, len(quantiles)))
        table[:, quantiles < self.share] = 0
        table[:, quantiles < self.share / 2] = 255
        return draw_from(table, picture, random)
