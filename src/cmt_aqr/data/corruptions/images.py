"""Corruptions of images as read, one image at a time.

Such a corruption takes an image, which it does not modify, and a generator of the image's own.
"""

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

from cmt_aqr.data.corruptions.corruption import by_severity
from cmt_aqr.structures import Frame

Image = NDArray[np.uint8]  # (height, width, 3), BGR

BAND = 16
"""Rows of 1600 pixels that are computed together where a step has many passes, so that they stay in the cache."""

FLOOR = 1e-4 - 0.5
"""Offset that makes OpenCV's rounding a floor; integers that came out slightly too small are kept."""

QUANTILES = 256  # equally likely outcomes that represent the distribution of a pixel


def each_image(frame: Frame, random: Generator, change: Callable[..., Image], skips_unseen: bool = False) -> Frame:
    """Corrupt the images of a frame one by one, before they are resized and normalised.

    Args:
        frame: the frame; its ``unseen_rows`` are not changed.
        random: spawns a generator for each image.
        change: the corruption of an image.
        skips_unseen: whether ``change`` takes ``out=``, an array for the rows below the unseen ones, and computes
            only those.
    """
    assert frame.images is not None
    images = np.ascontiguousarray(frame.images.permute(0, 2, 3, 1).numpy())
    changed, first = np.empty_like(images), frame.unseen_rows
    changed[:, :first] = images[:, :first]
    for image, seen, image_random in zip(images, changed[:, first:], random.spawn(len(images)), strict=True):
        if skips_unseen:
            change(image, image_random, out=seen)
        else:
            seen[:] = change(image, image_random)[first:]
    return frame.replace(images=torch.from_numpy(changed).permute(0, 3, 1, 2))


def images_by_severity(
    change: Callable[..., Image], /, skips_unseen: bool = False, **settings: Sequence[Any]
) -> list[Callable[..., Frame]]:
    """:func:`each_image` at severity 1, 2, ..., from the values that each setting of ``change`` takes."""
    return by_severity(
        functools.partial(each_image, skips_unseen=skips_unseen), change=by_severity(change, **settings)
    )


def store_floor(values: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Store non-negative values, rounded down and clipped to 255, in an array of the same shape."""
    cv2.convertScaleAbs(values, out, 1, FLOOR)


def random_bytes(shape: tuple[int, ...], random: Generator) -> NDArray[np.uint8]:
    """Random bytes from SFC64, seeded by ``random``: twice as fast as numpy's default generator."""
    count = math.prod(shape)
    words = np.random.SFC64(int(random.integers(1 << 63))).random_raw(-(-count // 8))
    return words.view(np.uint8)[:count].reshape(shape)


def look_up(table: NDArray[np.uint8], first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``table[first, second]`` of a table (256, 256), for two arrays of the same shape."""
    result = np.empty(first.shape, dtype=np.uint8)
    flat = torch.from_numpy(table.ravel())
    for top in range(0, len(first), 2 * BAND):
        rows = slice(top, top + 2 * BAND)
        # Two bytes are an index, the lower one first; PyTorch takes it in 32 bits, NumPy would need 64.
        index = cv2.merge([second[rows].reshape(1, -1), first[rows].reshape(1, -1)]).view("<u2").ravel()
        out = torch.from_numpy(result[rows].reshape(-1))
        torch.index_select(flat, 0, torch.from_numpy(index.astype(np.int32)), out=out)
    return result


def black_out(
    frame: Frame, random: Generator, probability: float = 1.0, views: Sequence[int] | None = None
) -> Frame:
    """With a probability, replace each image, or each of some views, by a black one (0 before normalisation)."""
    assert frame.images is not None
    black = random.random(len(frame.images)) < probability
    if views is not None:
        black &= np.isin(np.arange(len(black)), views)
    images = frame.images.permute(0, 2, 3, 1).numpy().copy()  # several times faster than by PyTorch
    images[black] = 0
    return frame.replace(images=torch.from_numpy(images).permute(0, 3, 1, 2))


def brighten(image: Image, random: Generator, added: float) -> Image:
    """Raise the value (of hue, saturation, value, in [0, 1]) by ``added``; black becomes grey."""
    channels = [np.asarray(channel, np.uint8) for channel in cv2.split(image)]
    value = np.maximum(np.maximum(channels[0], channels[1]), channels[2])
    return np.asarray(cv2.merge([look_up(_brighter(added), value, channel) for channel in channels]))


@functools.cache
def _brighter(added: float) -> NDArray[np.uint8]:
    """New value of a channel by (V, channel), (256, 256).

    With hue and saturation fixed, every channel is proportional to the value V: x' = x min(V + added, 1) / V.
    """
    value, channel = np.arange(256)[:, None] / 255, np.arange(256) / 255
    with np.errstate(divide="ignore", invalid="ignore"):
        bright = np.where(value > 0, channel * np.minimum(value + added, 1) / value, min(added, 1))
    # The offset keeps 255 that rounding made slightly smaller from becoming 254.
    return np.minimum(255 * bright + 1e-6, 255).astype(np.uint8)


def motion_blur(image: Image, random: Generator, sigma: float, out: Image | None = None) -> Image:
    """Motion blur of 31 taps in a direction from -45 to 45 degrees, see :func:`blurred_bands`.

    ``out`` receives the result, or as many of its lowest rows as it has.
    """
    result = np.empty_like(image) if out is None else out
    first = len(image) - len(result)
    for rows, band in blurred_bands(image, random.uniform(-45.0, 45.0), sigma, radius=15, first=first):
        store_floor(band, result[rows])
    return result


def blurred_bands(
    image: NDArray, degrees: float, sigma: float, radius: int, first: int = 0
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Blur an image (height, width) or (height, width, channel), uint8, along a line, in bands of rows.

    There are 2 radius + 1 taps, one pixel apart, to one side of the pixel, weighted by half a Gaussian; edge
    pixels are repeated beyond the border (the motion blur of Hendrycks and Dietterich's ImageNet-C). Rows before
    ``first`` are skipped.

    Yields:
        Rows, counted from ``first``, and their new values, float32. The array is reused for the next band.
    """
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    height, width = image.shape[:2]
    edge = len(weights)
    padded = cv2.copyMakeBorder(image, edge, edge, edge, edge, cv2.BORDER_REPLICATE)
    angle = np.deg2rad(degrees)
    line = np.arange(edge)[:, None] * (np.sin(angle), np.cos(angle))
    offsets = -np.ceil(line - 0.5).astype(np.int64)  # (tap, 2) shift in rows and columns
    starts = np.flatnonzero(np.diff(offsets, axis=0, prepend=edge).any(axis=1))  # taps may share a pixel
    offsets, weights = offsets[starts], np.add.reduceat(weights, starts)
    # A running weighted mean: the one-pass sum of weighted bytes that OpenCV has.
    taps = list(zip(offsets.tolist(), (weights / np.cumsum(weights)).tolist(), strict=True))
    rows = min(BAND * 4800 * len(image) // image.size + 1, height)
    buffer = np.empty((rows, *image.shape[1:]), np.float32)
    for top in range(first, height, rows):
        band = buffer[: height - top]
        for number, ((down, right), share) in enumerate(taps):
            upper, left = top + edge - down, edge - right
            shifted = padded[upper : upper + len(band), left : left + width]
            if number:
                cv2.accumulateWeighted(shifted, band, share)
            else:
                band[:] = shifted
        yield slice(top - first, top - first + len(band)), band


def _quantiles(random: Generator) -> NDArray[np.float64]:
    """(QUANTILES,) evenly spaced probabilities with a random offset, so that over many images all occur."""
    return (np.arange(QUANTILES) + random.random()) / QUANTILES


def uniform_noise(image: Image, random: Generator, size: float) -> Image:
    """Add uniform noise from ``-size`` to ``size``, relative to white, to every channel, and round down."""
    quantiles, drawn = _quantiles(random), random_bytes(image.shape, random)
    width = 255 * size
    least = width * (2 * float(quantiles[0]) - 1)
    return np.asarray(cv2.addWeighted(drawn, 2 * width / QUANTILES, image, 1, least + FLOOR), dtype=np.uint8)


def gaussian_noise(image: Image, random: Generator, std: float) -> Image:
    """Add normal noise, relative to white, by one of ``QUANTILES`` quantiles to every channel, and round down."""
    quantiles, drawn = _quantiles(random), random_bytes(image.shape, random)
    # Pixels are integers, so rounding the noise down is the same as rounding the sum down.
    steps = np.floor(255 * std * norm.ppf(quantiles) + 1e-6)
    amount = cv2.LUT(drawn, np.minimum(np.abs(steps), 255).astype(np.uint8))
    up = cv2.threshold(drawn, int((steps < 0).sum()) - 1, 255, cv2.THRESH_BINARY)[1]
    cv2.bitwise_and(amount, up, up)
    down = cv2.subtract(amount, up, amount)
    return np.asarray(cv2.subtract(cv2.add(image, up, up), down, down), dtype=np.uint8)


def impulse_noise(image: Image, random: Generator, share: float) -> Image:
    """Salt and pepper: make a share of all pixels' channels white or black, with equal probability."""
    quantiles, drawn = _quantiles(random), random_bytes(image.shape, random)
    changed, white = (int((quantiles < part).sum()) for part in (share, share / 2))
    kept = cv2.threshold(drawn, changed - 1, 255, cv2.THRESH_BINARY)[1]
    cv2.bitwise_and(image, kept, kept)
    cv2.threshold(drawn, white - 1, 255, cv2.THRESH_BINARY_INV, drawn)
    return np.asarray(cv2.bitwise_or(kept, drawn, kept), dtype=np.uint8)
