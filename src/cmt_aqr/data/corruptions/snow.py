"""Snow over the images, after MultiCorrupt; its points need label files that are not there, and stay clear."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cmt_aqr.data.corruptions.pictures import Blur, EachPicture, Picture, picture_of, planes_of, whole


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
        """Let it snow on a picture."""
        layer = self.layer(picture.shape[0], picture.shape[1], random)
        flakes = layer + cv2.rotate(layer, cv2.ROTATE_180)
        share = 0.9 * (1 - self.keep)
        grey = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)).astype(np.float32)
        pale = np.asarray(cv2.addWeighted(grey, 1.5, grey, 0.0, 127.5))
        snowy = []
        for plane in planes_of(picture):
            value = plane.astype(np.float32)
            lit = cv2.addWeighted(value, 0.9 * self.keep, np.asarray(cv2.max(value, pale)), share, 0.0)
            snowy.append(whole(np.asarray(cv2.add(lit, flakes), dtype=np.float32)))
        return picture_of(snowy)

    def layer(self, height: int, width: int, random: Generator) -> NDArray[np.float32]:
        """Flakes (height, width), whole steps in 0..255."""
        rows, columns = math.ceil(height / self.zoom), math.ceil(width / self.zoom)
        small = np.float32(self.mean) + np.float32(0.3) * random.standard_normal((rows, columns), np.float32)
        large = cv2.resize(small, (columns * self.zoom, rows * self.zoom))[:height, :width]
        flakes = cv2.threshold(large, self.threshold, 0, cv2.THRESH_TOZERO)[1]
        flakes = np.asarray(cv2.threshold(flakes, 1, 1, cv2.THRESH_TRUNC)[1], dtype=np.float32)
        blurred = self.blur.blurred(flakes, random.uniform(*self.blur.degrees), np.empty_like(flakes))
        blurred *= 255
        return np.rint(blurred, out=blurred)
