"""Images one after another, as they were read, each changed by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

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
"""Rows of 1600 pixels that are computed at once where a step has many passes, so that they stay in the cache."""


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
        changed, first = np.empty_like(views), frame.unseen_rows
        changed[:, :first] = views[:, :first]
        for view, own in enumerate(random.spawn(len(views))):
            self.change_lower(views[view], own, view, out=changed[view, first:])
        return frame.replace(images=torch.from_numpy(changed).permute(0, 3, 1, 2))

    def change(self, picture: Picture, random: Generator, view: int) -> Picture:
        """What becomes of a picture.

        Args:
            picture: (height, width, 3) uint8, BGR; it stays as it is.
            random: of this picture.
            view: its place in ``CAMERAS``.
        """
        raise NotImplementedError

    def change_lower(self, picture: Picture, random: Generator, view: int, out: Picture) -> None:
        """Put the lowest rows of :meth:`change` into ``out``, as many as it has; slow ones compute no others."""
        out[:] = self.change(picture, random, view)[len(picture) - len(out) :]


def floor(values: NDArray[np.float32], result: NDArray[np.uint8]) -> None:
    """Values of 0 or more as pixels, cut off below the point and at 255, in one pass.

    Args:
        values: of any shape.
        result: of the same shape, filled in.
    """
    # OpenCV rounds; without a little more, a whole number that came out just below would lose one.
    cv2.convertScaleAbs(values, result, 1, DOWN)


def planes_of(picture: Picture) -> list[NDArray[np.uint8]]:
    """The channels (height, width), each by itself."""
    return [np.asarray(plane, dtype=np.uint8) for plane in cv2.split(picture)]


def picture_of(planes: Sequence[NDArray[np.uint8]]) -> Picture:
    """The picture of channels (height, width)."""
    return np.asarray(cv2.merge(planes), dtype=np.uint8)


DOWN = 1e-4 - 0.5
"""What turns rounding into cutting off below the point."""

LEVELS = 256
"""Equally likely outcomes that stand for a distribution of what a pixel becomes."""


def spread_quantiles(random: Generator) -> NDArray[np.float64]:
    """(LEVELS,) probabilities, evenly apart; where the first lies is drawn, so that over pictures all are met."""
    return (np.arange(LEVELS) + random.random()) / LEVELS


def random_bytes(shape: tuple[int, ...], random: Generator) -> NDArray[np.uint8]:
    """Bytes of any shape, as whole words of a generator that is twice as fast as the one that seeds it."""
    count = math.prod(shape)
    words = np.random.SFC64(int(random.integers(1 << 63))).random_raw(-(-count // 8))
    return words.view(np.uint8)[:count].reshape(shape)


def look_up(table: NDArray[np.uint8], first: Picture, second: Picture) -> Picture:
    """``table[first, second]``, (256, 256), for each pixel, whatever the shape."""
    result = np.empty(first.shape, dtype=np.uint8)
    flat = torch.from_numpy(table.ravel())
    for top in range(0, len(first), 2 * BAND):
        rows = slice(top, top + 2 * BAND)
        # Two bytes are an index, the lower one first; PyTorch takes it in 32 bits, NumPy would need 64.
        place = cv2.merge([second[rows].reshape(1, -1), first[rows].reshape(1, -1)]).view("<u2").ravel()
        found = torch.from_numpy(result[rows].reshape(-1))
        torch.index_select(flat, 0, torch.from_numpy(place.astype(np.int32)), out=found)
    return result


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
        views = frame.images.permute(0, 2, 3, 1).numpy().copy()
        views[struck] = 0
        return frame.replace(images=torch.from_numpy(views).permute(0, 3, 1, 2))


class Brighter(EachPicture):
    """Value (of hue, saturation, value) is raised; hue and saturation stay.

    With both kept, every channel is proportional to the value, so that x' = x min(V + added, 1) / V.

    Args:
        added: to the value, of 1.
    """

    def __init__(self, added: float) -> None:
        value, channel = np.arange(256)[:, None] / 255, np.arange(256) / 255
        with np.errstate(divide="ignore", invalid="ignore"):
            bright = np.where(value > 0, channel * np.minimum(value + added, 1) / value, min(added, 1))
        # A little more than nothing, or what rounding makes of 255 would be cut off to 254.
        self.table = np.minimum(255 * bright + 1e-6, 255).astype(np.uint8)
        """(value, channel) as they were: the channel as it becomes."""

    def change(self, picture: Picture, random: Generator, view: int) -> Picture:
        """Scale the channels; black becomes grey."""
        planes = planes_of(picture)
        value = np.maximum(np.maximum(planes[0], planes[1]), planes[2])
        return picture_of([look_up(self.table, value, plane) for plane in planes])


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
        """Add the shifted pictures up, cut off below the point."""
        result = np.empty_like(picture)
        self.change_lower(picture, random, view, out=result)
        return result

    def change_lower(self, picture: Picture, random: Generator, view: int, out: Picture) -> None:
        """Rows of :meth:`change`, the lowest."""
        first = len(picture) - len(out)
        for rows, sums in self.blurred(picture, random.uniform(*self.degrees), first):
            floor(sums, out[rows])

    def blurred(
        self, picture: NDArray, degrees: float, first: int = 0
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Blur a picture in a direction, some rows at a time.

        Args:
            picture: (height, width) or (height, width, channel), uint8.
            degrees: the direction.
            first: row to begin with.

        Yields:
            Rows, counted from ``first``, and what they become, float32; the array is used again for the next.
        """
        height, width = picture.shape[:2]
        edge = len(self.weights)
        padded = cv2.copyMakeBorder(picture, edge, edge, edge, edge, cv2.BORDER_REPLICATE)
        offsets = self.offsets(degrees)
        starts = np.flatnonzero(np.diff(offsets, axis=0, prepend=edge).any(axis=1))  # some fall into one pixel
        offsets, weights = offsets[starts], np.add.reduceat(self.weights, starts)
        # A weighted mean, tap after tap: OpenCV has no sum of weighted bytes in one pass, but this.
        taps = list(zip(offsets.tolist(), (weights / np.cumsum(weights)).tolist(), strict=True))
        band = np.empty(
            (min(BAND * 4800 * len(picture) // picture.size + 1, height), *picture.shape[1:]), np.float32
        )
        for top in range(first, height, len(band)):
            sums = band[: height - top]
            for number, ((down, right), share) in enumerate(taps):
                upper, left = top + edge - down, edge - right
                shifted = padded[upper : upper + len(sums), left : left + width]
                if number:
                    cv2.accumulateWeighted(shifted, sums, share)
                else:
                    sums[:] = shifted
            yield slice(top - first, top - first + len(sums)), sums
