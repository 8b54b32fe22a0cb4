"""Low light: images are dark, and noisy because few photons arrive."""

from __future__ import annotations

import functools

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.stats import norm, poisson

from cmt_aqr.data.corruptions.images import QUANTILES, Image, look_up, random_bytes


def darken(image: Image, random: Generator, scale: float, photons: int, std: float) -> Image:
    """Low light with photon and read noise (MultiCorrupt's ``dark``).

    With x in [0, 1], min and max over the image, the remaining share of light ``scale``, the ``photons`` of y = 1,
    and the standard deviation ``std`` of the read noise relative to white:

        y = scale ((x - min) / (max - min))^2
        p = min(Poisson(photons y) / photons, 1),    x' = p + Normal(0, std), clipped to [0, 1], floored to 1/255

    The distribution of x' depends on the pixel's value alone. It is computed once for each of the 256 values, and
    each pixel draws one of 256 equally likely quantiles: a look-up instead of millions of Poisson draws. The
    quantiles have a random offset per image.
    """
    cumulative = _distributions(scale, photons, std, int(image.min()), int(image.max()))
    ends = np.ceil(QUANTILES * cumulative - random.random()).clip(0, QUANTILES).astype(np.int64)
    ends[:, -1] = QUANTILES
    counts = np.diff(ends, axis=1, prepend=0)
    outcomes = np.repeat(np.tile(np.arange(256, dtype=np.uint8), 256), counts.ravel())
    return look_up(outcomes.reshape(256, QUANTILES), image, random_bytes(image.shape, random))


@functools.lru_cache(maxsize=256)
def _distributions(scale: float, photons: int, std: float, low: int, high: int) -> NDArray[np.float64]:
    """P(x' <= new value) by (old value, new value), (256, 256), in an image from ``low`` to ``high``."""
    share = np.clip((np.arange(256) - low) / max(high - low, 1), 0, 1)
    counts = poisson.pmf(np.arange(2 * photons), photons * scale * share[:, None] ** 2)
    return np.maximum.accumulate(counts @ _read_noise(photons, std), axis=1)


@functools.cache
def _read_noise(photons: int, std: float) -> NDArray[np.float64]:
    """P(x' <= new value) by (photon count, new value), (2 photons, 256)."""
    light = np.minimum(np.arange(2 * photons) / photons, 1)
    cumulative = norm.cdf(((np.arange(256) + 1) / 255 - light[:, None]) / std)
    cumulative[:, -1] = 1
    return cumulative
