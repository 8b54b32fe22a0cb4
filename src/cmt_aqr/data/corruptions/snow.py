"""Snow over the images, after MultiCorrupt; its points need label files that are not there, and stay clear."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cmt_aqr.data.corruptions.lidar import normal_numbers
from cmt_aqr.data.corruptions.pictures import DOWN, Blur, EachPicture, Picture


class Snow(EachPicture):
    """Blown flakes and a pale light.

    A layer of Normal(mean, 0.3) is enlarged by ``zoom``; below ``threshold`` it is 0; it is cut to 0..1, blurred
    in a direction of U(-135, -45) degrees and laid over the picture twice, once turned by 180 degrees:

        x' = 0.9 (keep x + (1 - keep) max(x, 1.5 grey + 0.5)) + layer + layer turned, cut to 0..1

    The layer is drawn at its own size, height / zoom by width / zoom, which MultiCorrupt cuts out of a larger one.

    Args:
        mean: of the layer.
        zoom: how much it is enlarged.
        threshold: below it there is no flake.
        radius: of the blur; its sigma is the same number.
        keep: share of the picture that is not pale.
    """

    def __init__(self, mean: float, zoom: int, threshold: float, radius: int, keep: float) -> None:
        self.mean = mean
        self.zoom = zoom
        self.threshold = threshold
        self.keep = keep
        self.blur = Blur(sigma=radius, radius=radius, degrees=(-135.0, -45.0))

    def change(self, picture: Picture, random: Generator, view: int) -> Picture:
        """Let it snow on a picture.

        All in bytes: the flakes are whole steps, so that cutting the rest off below the point before or after
        they are added is the same; and of the two under ``max`` each is cut off by itself.
        """
        layer = self.layer(picture.shape[0], picture.shape[1], random)
        flakes = cv2.add(layer, cv2.rotate(layer, cv2.ROTATE_180))
        grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        pale = 0.9 * (1 - self.keep)
        lit = cv2.addWeighted(picture, 0.9 * self.keep, grey, 1.5 * pale, 127.5 * pale + DOWN)
        cv2.max(lit, cv2.convertScaleAbs(picture, None, 0.9, DOWN), lit)
        return np.asarray(cv2.add(lit, cv2.cvtColor(flakes, cv2.COLOR_GRAY2BGR), lit), dtype=np.uint8)

    def layer(self, height: int, width: int, random: Generator) -> NDArray[np.uint8]:
        """Flakes (height, width), of 255; whole steps before they are blurred and after."""
        rows, columns = math.ceil(height / self.zoom), math.ceil(width / self.zoom)
        small = np.float32(self.mean) + np.float32(0.3) * normal_numbers((rows, columns), random)
        large = cv2.resize(small, (columns * self.zoom, rows * self.zoom))[:height, :width]
        flakes = cv2.threshold(large, self.threshold, 0, cv2.THRESH_TOZERO)[1]
        layer = np.empty((height, width), dtype=np.uint8)
        sharp = cv2.convertScaleAbs(flakes, None, 255)
        for band, blurred in self.blur.blurred(sharp, random.uniform(*self.blur.degrees)):
            cv2.convertScaleAbs(blurred, layer[band])
        return layer
