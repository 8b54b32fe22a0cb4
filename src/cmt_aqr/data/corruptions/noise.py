"""Points and pixels that are missing, doubled or noisy, after nuScenes-C."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.random import Generator
from scipy.stats import norm

from cmt_aqr.data.corruptions.pictures import (
    DOWN,
    LEVELS,
    EachPicture,
    Picture,
    random_bytes,
    spread_quantiles,
)
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
        """Add one of ``LEVELS`` quantiles of the noise to each, cut off below the point."""
        quantiles, drawn = spread_quantiles(random), random_bytes(picture.shape, random)
        width = 255 * self.size
        if self.uniform:  # quantiles are evenly apart
            least = width * (2 * float(quantiles[0]) - 1)
            noisy = cv2.addWeighted(drawn, 2 * width / LEVELS, picture, 1, least + DOWN)
            return np.asarray(noisy, dtype=np.uint8)
        # Pixels are whole steps: the noise may be cut off below the point by itself.
        steps = np.floor(width * norm.ppf(quantiles) + 1e-6)
        amount = cv2.LUT(drawn, np.minimum(np.abs(steps), 255).astype(np.uint8))
        up = cv2.threshold(drawn, int((steps < 0).sum()) - 1, 255, cv2.THRESH_BINARY)[1]
        cv2.bitwise_and(amount, up, up)
        down = cv2.subtract(amount, up, amount)
        return np.asarray(cv2.subtract(cv2.add(picture, up, up), down, down), dtype=np.uint8)


class SaltAndPepper(EachPicture):
    """Some pixels' channels are white or black, as often the one as the other.

    Args:
        share: of all.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def change(self, picture: Picture, random: Generator, view: int) -> Picture:
        """Strew pixels."""
        quantiles, drawn = spread_quantiles(random), random_bytes(picture.shape, random)
        struck, white = (int((quantiles < share).sum()) for share in (self.share, self.share / 2))
        kept = cv2.threshold(drawn, struck - 1, 255, cv2.THRESH_BINARY)[1]
        cv2.bitwise_and(picture, kept, kept)
        cv2.threshold(drawn, white - 1, 255, cv2.THRESH_BINARY_INV, drawn)
        return np.asarray(cv2.bitwise_or(kept, drawn, kept), dtype=np.uint8)
