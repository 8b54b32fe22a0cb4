"""Images one after another, as they were read, each changed by itself.

A change is a function of a picture, which stays as it is, and of a generator of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.stats import norm

from cmt_aqr.data.corruptions.corruption import over
from cmt_aqr.structures import Frame

Picture = NDArray[np.uint8]
"""(height, width, 3), BGR."""

BAND = 16
"""Rows of 1600 pixels that are computed at once where a step has many passes, so that they stay in the cache."""

DOWN = 1e-4 - 0.5
"""What turns OpenCV's rounding into cutting off below the point; a whole number that came out just below stays."""

LEVELS = 256
"""Equally likely outcomes that stand for a distribution of what a pixel becomes."""


def each_picture(frame: Frame, random: Generator, change: Callable[..., Picture], lower: bool = False) -> Frame:
    """Change the images of a frame one by one; the raw ones, before they are resized and normalised.

    Args:
        frame: whose ``unseen_rows`` stay as they were.
        random: each image gets a generator that it spawns.
        change: of a picture, with a generator.
        lower: it takes ``out=`` as well, for the rows that are seen, and computes no others.
    """
    assert frame.images is not None
    views = np.ascontiguousarray(frame.images.permute(0, 2, 3, 1).numpy())
    changed, first = np.empty_like(views), frame.unseen_rows
    changed[:, :first] = views[:, :first]
    for picture, seen, own in zip(views, changed[:, first:], random.spawn(len(views)), strict=True):
        if lower:
            change(picture, own, out=seen)
        else:
            seen[:] = change(picture, own)[first:]
    return frame.replace(images=torch.from_numpy(changed).permute(0, 3, 1, 2))


def over_pictures(
    change: Callable[..., Picture], /, lower: bool = False, **settings: Sequence[Any]
) -> list[Callable[..., Frame]]:
    """A change of pictures by severity, as :func:`~cmt_aqr.data.corruptions.corruption.over` has it for frames."""
    return over(functools.partial(each_picture, lower=lower), change=over(change, **settings))


def floor(values: NDArray[np.float32], result: NDArray[np.uint8]) -> None:
    """Fill in values of 0 or more as pixels of the same shape, cut off below the point and at 255."""
    cv2.convertScaleAbs(values, result, 1, DOWN)


def planes_of(picture: Picture) -> list[NDArray[np.uint8]]:
    """The channels (height, width), each by itself."""
    return [np.asarray(plane, dtype=np.uint8) for plane in cv2.split(picture)]


def picture_of(planes: Sequence[NDArray[np.uint8]]) -> Picture:
    """The picture of channels (height, width)."""
    return np.asarray(cv2.merge(planes), dtype=np.uint8)


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


def black_views(
    frame: Frame, random: Generator, probability: float = 1.0, views: Sequence[int] | None = None
) -> Frame:
    """Each image, or each of some views, is black (0 before normalisation) with a probability."""
    assert frame.images is not None
    struck = random.random(len(frame.images)) < probability
    if views is not None:
        struck &= np.isin(np.arange(len(struck)), views)
    images = frame.images.permute(0, 2, 3, 1).numpy().copy()
    images[struck] = 0
    return frame.replace(images=torch.from_numpy(images).permute(0, 3, 1, 2))


def brighten(picture: Picture, random: Generator, added: float) -> Picture:
    """Value (of hue, saturation, value) is raised by ``added``, of 1; the others stay; black becomes grey."""
    planes = planes_of(picture)
    value = np.maximum(np.maximum(planes[0], planes[1]), planes[2])
    return picture_of([look_up(_brighter(added), value, plane) for plane in planes])


@functools.cache
def _brighter(added: float) -> NDArray[np.uint8]:
    """(value, channel) as they were, 256 each: the channel as it becomes.

    With hue and saturation kept, every channel is proportional to the value: x' = x min(V + added, 1) / V.
    """
    value, channel = np.arange(256)[:, None] / 255, np.arange(256) / 255
    with np.errstate(divide="ignore", invalid="ignore"):
        bright = np.where(value > 0, channel * np.minimum(value + added, 1) / value, min(added, 1))
    # A little more than nothing, or what rounding makes of 255 would be cut off to 254.
    return np.minimum(255 * bright + 1e-6, 255).astype(np.uint8)


def blur(picture: Picture, random: Generator, sigma: float, out: Picture | None = None) -> Picture:
    """Motion blur of 31 taps in a direction of -45 to 45 degrees, cut off below the point; see :func:`blurred`.

    ``out`` takes the result, or as many of its lowest rows as it has.
    """
    result = np.empty_like(picture) if out is None else out
    first = len(picture) - len(result)
    for rows, sums in blurred(picture, random.uniform(-45.0, 45.0), sigma, radius=15, first=first):
        floor(sums, result[rows])
    return result


def blurred(
    picture: NDArray, degrees: float, sigma: float, radius: int, first: int = 0
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Blur a picture (height, width) or (height, width, channel), uint8, along a line, some rows at a time.

    There are 2 radius + 1 taps, a pixel apart, from the pixel in one direction, with the weights of half a
    Gaussian; edge pixels are repeated beyond the border (the motion blur of Hendrycks and Dietterich's
    ImageNet-C). Rows before ``first`` are left out.

    Yields:
        Rows, counted from ``first``, and what they become, float32; the array is used again for the next.
    """
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    height, width = picture.shape[:2]
    edge = len(weights)
    padded = cv2.copyMakeBorder(picture, edge, edge, edge, edge, cv2.BORDER_REPLICATE)
    angle = np.deg2rad(degrees)
    line = np.arange(edge)[:, None] * (np.sin(angle), np.cos(angle))
    offsets = -np.ceil(line - 0.5).astype(np.int64)  # rows and columns (tap, 2) of the shift
    starts = np.flatnonzero(np.diff(offsets, axis=0, prepend=edge).any(axis=1))  # some fall into one pixel
    offsets, weights = offsets[starts], np.add.reduceat(weights, starts)
    # A weighted mean, tap after tap: OpenCV has no sum of weighted bytes in one pass, but this.
    taps = list(zip(offsets.tolist(), (weights / np.cumsum(weights)).tolist(), strict=True))
    rows = min(BAND * 4800 * len(picture) // picture.size + 1, height)
    band = np.empty((rows, *picture.shape[1:]), np.float32)
    for top in range(first, height, rows):
        sums = band[: height - top]
        for number, ((down, right), share) in enumerate(taps):
            upper, left = top + edge - down, edge - right
            shifted = padded[upper : upper + len(sums), left : left + width]
            if number:
                cv2.accumulateWeighted(shifted, sums, share)
            else:
                sums[:] = shifted
        yield slice(top - first, top - first + len(sums)), sums


def _quantiles(random: Generator) -> NDArray[np.float64]:
    """(LEVELS,) probabilities, evenly apart; where the first lies is drawn, so that over pictures all are met."""
    return (np.arange(LEVELS) + random.random()) / LEVELS


def add_uniform(picture: Picture, random: Generator, size: float) -> Picture:
    """Uniform noise from ``-size`` to ``size``, of full white, on every channel, cut off below the point."""
    quantiles, drawn = _quantiles(random), random_bytes(picture.shape, random)
    width = 255 * size
    least = width * (2 * float(quantiles[0]) - 1)
    return np.asarray(cv2.addWeighted(drawn, 2 * width / LEVELS, picture, 1, least + DOWN), dtype=np.uint8)


def add_normal(picture: Picture, random: Generator, std: float) -> Picture:
    """Normal noise, of full white, on every channel: one of ``LEVELS`` quantiles, cut off below the point."""
    quantiles, drawn = _quantiles(random), random_bytes(picture.shape, random)
    # Pixels are whole steps: the noise may be cut off below the point by itself.
    steps = np.floor(255 * std * norm.ppf(quantiles) + 1e-6)
    amount = cv2.LUT(drawn, np.minimum(np.abs(steps), 255).astype(np.uint8))
    up = cv2.threshold(drawn, int((steps < 0).sum()) - 1, 255, cv2.THRESH_BINARY)[1]
    cv2.bitwise_and(amount, up, up)
    down = cv2.subtract(amount, up, amount)
    return np.asarray(cv2.subtract(cv2.add(picture, up, up), down, down), dtype=np.uint8)


def strew(picture: Picture, random: Generator, share: float) -> Picture:
    """A share of the pixels' channels is white or black, as often the one as the other."""
    quantiles, drawn = _quantiles(random), random_bytes(picture.shape, random)
    struck, white = (int((quantiles < part).sum()) for part in (share, share / 2))
    kept = cv2.threshold(drawn, struck - 1, 255, cv2.THRESH_BINARY)[1]
    cv2.bitwise_and(picture, kept, kept)
    cv2.threshold(drawn, white - 1, 255, cv2.THRESH_BINARY_INV, drawn)
    return np.asarray(cv2.bitwise_or(kept, drawn, kept), dtype=np.uint8)
