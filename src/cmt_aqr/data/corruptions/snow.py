"""Snow over the images, after MultiCorrupt; its points need label files that are not there, and stay clear."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cmt_aqr.data.corruptions.lidar import normal_numbers
from cmt_aqr.data.corruptions.pictures import DOWN, Picture, blurred


def snow_on(
    picture: Picture, random: Generator, mean: float, zoom: int, threshold: float, radius: int, keep: float
) -> Picture:
    """Blown flakes and a pale light, all in bytes.

    :func:`flakes` are laid over the picture twice, once turned by 180 degrees; ``keep`` is not pale:

        x' = 0.9 (keep x + (1 - keep) max(x, 1.5 grey + 0.5)) + layer + layer turned, cut to 0..1

    The flakes are whole steps, so that cutting the rest off below the point before or after they are added is the
    same; and of the two under ``max`` each is cut off by itself.
    """
    layer = flakes(picture.shape[0], picture.shape[1], random, mean, zoom, threshold, radius)
    both = cv2.add(layer, cv2.rotate(layer, cv2.ROTATE_180))
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    pale = 0.9 * (1 - keep)
    lit = cv2.addWeighted(picture, 0.9 * keep, grey, 1.5 * pale, 127.5 * pale + DOWN)
    cv2.max(lit, cv2.convertScaleAbs(picture, None, 0.9, DOWN), lit)
    return np.asarray(cv2.add(lit, cv2.cvtColor(both, cv2.COLOR_GRAY2BGR), lit), dtype=np.uint8)


def flakes(
    height: int, width: int, random: Generator, mean: float, zoom: int, threshold: float, radius: int
) -> NDArray[np.uint8]:
    """:func:`sharp_flakes`, blurred in a direction of U(-135, -45) degrees with a sigma of the radius."""
    sharp = sharp_flakes(height, width, random, mean, zoom, threshold)
    layer = np.empty((height, width), dtype=np.uint8)
    for band, softened in blurred(sharp, random.uniform(-135.0, -45.0), radius, radius):
        cv2.convertScaleAbs(softened, layer[band])
    return layer


def sharp_flakes(
    height: int, width: int, random: Generator, mean: float, zoom: int, threshold: float
) -> NDArray[np.uint8]:
    """Flakes (height, width), of 255, in whole steps.

    A layer of Normal(mean, 0.3) is drawn at its own size, height / zoom by width / zoom, which MultiCorrupt cuts
    out of a larger one, and enlarged; below the threshold it is 0; it is cut to 0..1.
    """
    rows, columns = math.ceil(height / zoom), math.ceil(width / zoom)
    small = np.float32(mean) + np.float32(0.3) * normal_numbers((rows, columns), random)
    large = cv2.resize(small, (columns * zoom, rows * zoom))[:height, :width]
    kept = cv2.threshold(large, threshold, 0, cv2.THRESH_TOZERO)[1]
    return np.asarray(cv2.convertScaleAbs(kept, None, 255), dtype=np.uint8)
