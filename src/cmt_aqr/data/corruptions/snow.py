"""Snow in the images, after MultiCorrupt. The points stay clear: theirs needs files that are not in nuScenes."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cmt_aqr.data.corruptions.images import FLOOR, Image, blurred_bands
from cmt_aqr.data.corruptions.lidar import standard_normal


def add_snow(
    image: Image, random: Generator, mean: float, zoom: int, threshold: float, radius: int, keep: float
) -> Image:
    """Make the image paler and add blown flakes, in 8-bit arithmetic.

    The :func:`flakes` are added twice, once rotated by 180 degrees; with the share ``keep`` that stays:

        x' = 0.9 (keep x + (1 - keep) max(x, 1.5 grey + 0.5)) + flakes + rotated flakes, clipped to [0, 1]

    The flakes are integers, so rounding down before or after adding them is the same. The two arguments of ``max``
    are rounded down separately.
    """
    layer = flakes(image.shape[0], image.shape[1], random, mean, zoom, threshold, radius)
    both = cv2.add(layer, cv2.rotate(layer, cv2.ROTATE_180))
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    pale = 0.9 * (1 - keep)
    lit = cv2.addWeighted(image, 0.9 * keep, grey, 1.5 * pale, 127.5 * pale + FLOOR)
    cv2.max(lit, cv2.convertScaleAbs(image, None, 0.9, FLOOR), lit)
    return np.asarray(cv2.add(lit, cv2.cvtColor(both, cv2.COLOR_GRAY2BGR), lit), dtype=np.uint8)


def flakes(
    height: int, width: int, random: Generator, mean: float, zoom: int, threshold: float, radius: int
) -> NDArray[np.uint8]:
    """:func:`sharp_flakes`, motion-blurred with sigma = ``radius`` in a direction of U(-135, -45) degrees."""
    sharp = sharp_flakes(height, width, random, mean, zoom, threshold)
    layer = np.empty((height, width), dtype=np.uint8)
    for rows, band in blurred_bands(sharp, random.uniform(-135.0, -45.0), radius, radius):
        cv2.convertScaleAbs(band, layer[rows])
    return layer


def sharp_flakes(
    height: int, width: int, random: Generator, mean: float, zoom: int, threshold: float
) -> NDArray[np.uint8]:
    """Flakes (height, width) before the blur.

    A layer of Normal(mean, 0.3) of height / zoom by width / zoom, which MultiCorrupt cuts out of a larger one, is
    enlarged, set to 0 below the threshold, clipped to [0, 1] and multiplied by 255.
    """
    rows, columns = math.ceil(height / zoom), math.ceil(width / zoom)
    small = np.float32(mean) + np.float32(0.3) * standard_normal((rows, columns), random)
    large = cv2.resize(small, (columns * zoom, rows * zoom))[:height, :width]
    kept = cv2.threshold(large, threshold, 0, cv2.THRESH_TOZERO)[1]
    return np.asarray(cv2.convertScaleAbs(kept, None, 255), dtype=np.uint8)
