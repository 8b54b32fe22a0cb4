"""Images one after another, as they were read, each changed by itself."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from cmt_aqr.data.errors import DataError
from cmt_aqr.structures import Frame

Picture = NDArray[np.uint8]
"""(height, width, 3), BGR."""

BAND = 16
"""Rows that are computed at once where a step has many passes: they stay in the processor's cache."""


class EachPicture:
    """Changes the images of a frame one by one; the raw ones, before they are resized and normalised.

    A subclass says what becomes of one picture, with a generator of its own.
    """

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Change every image that :meth:`change` is asked for."""
        assert frame.images is not None
        if frame.images.dtype != torch.uint8:
            raise DataError(
                f"{type(self).__name__} needs images as they were read (uint8), but got {frame.images.dtype}: put "
                "it before image processing"
            )
        views = np.ascontiguousarray(frame.images.permute(0, 2, 3, 1).numpy())
        changed = np.empty_like(views)
        for view, own in enumerate(random.spawn(len(views))):
            changed[view] = self.change(views[view], own, view)
        return frame.replace(images=torch.from_numpy(changed).permute(0, 3, 1, 2))

    def change(self, picture: Picture, random: Generator, view: int) -> Picture:
        """What becomes of a picture.

        Args:
            picture: (height, width, 3) uint8, BGR; it stays as it is.
            random: of this picture.
            view: its place in ``CAMERAS``.
        """
        raise NotImplementedError


def whole(values: NDArray[np.float32]) -> Picture:
    """Values in 0..255 as pixels, cut off below the point, as the suites' converters do."""
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


class BlackViews:
    """Some images are black (0 before normalisation).

    Args:
        probability: of each image, independently.
        views: or the places in ``CAMERAS`` of those that are, always.
    """

    def __init__(self, probability: float = 1.0, views: tuple[int, ...] | None = None) -> None:
        self.probability = probability
        self.views = views

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Blacken the images that are struck."""
        assert frame.images is not None
        struck = random.random(len(frame.images)) < self.probability
        if self.views is not None:
            struck &= np.isin(np.arange(len(struck)), self.views)
        images = frame.images.clone()
        images[torch.from_numpy(struck)] = 0
        return frame.replace(images=images)


class Brighter(EachPicture):
    """Value (of hue, saturation, value) is raised; hue and saturation stay.

    With both kept, every channel is proportional to the value, so that x' = x min(V + added, 1) / V.

    Args:
        added: to the value, of 1.
    """

    def __init__(self, added: float) -> None:
        value = np.maximum(np.arange(256), 1e-9) / 255
        self.factor = (np.minimum(value + added, 1) / value).astype(np.float32)
        self.black = np.float32(255 * min(added, 1))

    def change(self, picture: Picture, random: Generator, view: int) -> Picture:
        """Scale the channels; black becomes grey."""
        value = np.maximum(np.maximum(picture[..., 0], picture[..., 1]), picture[..., 2])
        # A little more than nothing, or 255 would be cut off to 254.
        bright = picture * self.factor[value][..., None] + np.float32(1e-3)
        bright[value == 0] = self.black
        return whole(bright)


class Blur(EachPicture):
    """Motion blur: taps along a line, from the pixel in one direction, with the weights of half a Gaussian.

    Edge pixels are repeated beyond the border (the motion blur of Hendrycks and Dietterich's ImageNet-C).

    Args:
        sigma: of the Gaussian, pixels.
        radius: there are 2 radius + 1 taps, a pixel apart.
        degrees: lowest and highest angle of the direction.
    """

    def __init__(self, sigma: float, radius: int = 15, degrees: tuple[float, float] = (-45.0, 45.0)) -> None:
        weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
        self.weights = (weights / weights.sum()).astype(np.float32)
        self.degrees = degrees

    def offsets(self, degrees: float) -> NDArray[np.int64]:
        """Rows and columns (tap, 2) that the picture is shifted by for every tap."""
        angle = np.deg2rad(degrees)
        line = np.arange(len(self.weights))[:, None] * (np.sin(angle), np.cos(angle))
        return -np.ceil(line - 0.5).astype(np.int64)

    def change(self, picture: Picture, random: Generator, view: int) -> Picture:
        """Add the shifted pictures up."""
        return whole(self.blurred(picture, random.uniform(*self.degrees)))

    def blurred(self, picture: NDArray, degrees: float) -> NDArray[np.float32]:
        """The picture (height, width) or (height, width, channel), blurred in a direction, float32."""
        height, width = picture.shape[:2]
        channels = picture.shape[2] if picture.ndim == 3 else 1
        edge = len(self.weights)
        padded = cv2.copyMakeBorder(picture, edge, edge, edge, edge, cv2.BORDER_REPLICATE).astype(np.float32)
        flat = padded.reshape(len(padded), -1)
        result = np.zeros((height, width * channels), dtype=np.float32)
        taps = list(zip(self.offsets(degrees).tolist(), self.weights.tolist(), strict=True))
        for top in range(0, height, BAND):
            band = result[top : top + BAND]
            for (down, right), weight in taps:
                first, left = top + edge - down, (edge - right) * channels
                shifted = flat[first : first + len(band), left : left + band.shape[1]]
                cv2.scaleAdd(shifted, weight, band, band)
        return result.reshape(picture.shape)
