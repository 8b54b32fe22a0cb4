"""Little light: images are dark, and noisy because few photons arrive."""

from __future__ import annotations

import functools

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.stats import norm, poisson

from cmt_aqr.data.corruptions.pictures import EachPicture, Picture, look_up

BITS = 12
LEVELS = 1 << BITS
"""Equally likely outcomes that stand for the distribution of what a pixel becomes."""


class Darker(EachPicture):
    """Low light with photon and read noise (MultiCorrupt's ``dark``).

    With x in 0..1 and the least and greatest value of the picture:

        y = scale ((x - min) / (max - min))^2
        p = min(Poisson(photons y) / photons, 1),    x' = p + Normal(0, std), cut to 0..1, in whole steps of 1/255

    What a pixel becomes depends on its value alone, so the distribution of x' is computed for each of the 256
    values, and a pixel draws one of ``LEVELS`` equally likely outcomes of it: no probability is off by more than
    1 / LEVELS, and a picture takes a look-up instead of millions of Poisson draws.

    Args:
        scale: of the light that is left.
        photons: that y = 1 stands for.
        std: of the read noise, in units of full white.
    """

    def __init__(self, scale: float, photons: int, std: float) -> None:
        self.scale = scale
        self.photons = photons
        self.std = std

    def change(self, picture: Picture, random: Generator, view: int) -> Picture:
        """Draw what becomes of every pixel and channel."""
        low, high = int(picture.min()), int(picture.max())
        drawn = np.frombuffer(random.bytes(2 * picture.size), np.uint16).reshape(picture.shape)
        return look_up(self.outcomes(low, high), picture, drawn >> (16 - BITS), BITS)

    def outcomes(self, low: int, high: int) -> NDArray[np.uint8]:
        """What values (256,) become: (256, LEVELS), sorted, each as likely as the others.

        Args:
            low: the least value of the picture.
            high: the greatest.
        """
        return _outcomes(self.scale, self.photons, self.std, low, high)


@functools.lru_cache(maxsize=64)
def _outcomes(scale: float, photons: int, std: float, low: int, high: int) -> NDArray[np.uint8]:
    share = np.clip((np.arange(256) - low) / max(high - low, 1), 0, 1)
    below = poisson.pmf(np.arange(2 * photons), photons * scale * share[:, None] ** 2) @ _read_noise(photons, std)
    # How many of the levels are at most each value; the last takes what rounding left.
    ends = np.rint(LEVELS * below).astype(np.int64)
    ends[:, -1] = LEVELS
    counts = np.diff(np.maximum.accumulate(ends, axis=1), prepend=0)
    return np.repeat(np.tile(np.arange(256, dtype=np.uint8), 256), counts.ravel()).reshape(256, LEVELS)


@functools.cache
def _read_noise(photons: int, std: float) -> NDArray[np.float64]:
    """Probability that a count (2 photons,) of photons becomes a pixel of at most a value (256,)."""
    light = np.minimum(np.arange(2 * photons) / photons, 1)
    at_most = norm.cdf(((np.arange(256) + 1) / 255 - light[:, None]) / std)
    at_most[:, -1] = 1
    return at_most
