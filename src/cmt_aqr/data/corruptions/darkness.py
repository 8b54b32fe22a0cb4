"""Little light: images are dark, and noisy because few photons arrive."""

from __future__ import annotations

import functools

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.stats import norm, poisson

from cmt_aqr.data.corruptions.pictures import LEVELS, Picture, look_up, random_bytes


def darken(picture: Picture, random: Generator, scale: float, photons: int, std: float) -> Picture:
    """Low light with photon and read noise (MultiCorrupt's ``dark``).

    With x in 0..1 and the least and greatest value of the picture, the ``scale`` of the light that is left, the
    number of
    photons that y = 1 stands for, and the read noise's standard deviation in units of full white:

        y = scale ((x - min) / (max - min))^2
        p = min(Poisson(photons y) / photons, 1),    x' = p + Normal(0, std), cut to 0..1, in whole steps of 1/255

    What a pixel becomes depends on its value alone, so the distribution of x' is computed for each of the 256
    values, and a pixel draws one of 256 equally likely outcomes of it, whose quantiles are shifted from picture to
    picture: a look-up instead of millions of Poisson draws.
    """
    at_most = _distributions(scale, photons, std, int(picture.min()), int(picture.max()))
    # How many of the quantiles fall to at most each value.
    ends = np.ceil(LEVELS * at_most - random.random()).clip(0, LEVELS).astype(np.int64)
    ends[:, -1] = LEVELS
    counts = np.diff(ends, axis=1, prepend=0)
    outcomes = np.repeat(np.tile(np.arange(256, dtype=np.uint8), 256), counts.ravel())
    return look_up(outcomes.reshape(256, LEVELS), picture, random_bytes(picture.shape, random))


@functools.lru_cache(maxsize=256)
def _distributions(scale: float, photons: int, std: float, low: int, high: int) -> NDArray[np.float64]:
    """Probability that a value (256,) becomes at most a value (256,), in a picture from ``low`` to ``high``."""
    share = np.clip((np.arange(256) - low) / max(high - low, 1), 0, 1)
    counted = poisson.pmf(np.arange(2 * photons), photons * scale * share[:, None] ** 2)
    return np.maximum.accumulate(counted @ _read_noise(photons, std), axis=1)


@functools.cache
def _read_noise(photons: int, std: float) -> NDArray[np.float64]:
    """Probability that a count (2 photons,) of photons becomes a pixel of at most a value (256,)."""
    light = np.minimum(np.arange(2 * photons) / photons, 1)
    at_most = norm.cdf(((np.arange(256) + 1) / 255 - light[:, None]) / std)
    at_most[:, -1] = 1
    return at_most
