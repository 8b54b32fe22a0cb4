"""Fog for both sensors, after MultiCorrupt: haze in clouds over the images, echoes of the fog among the points."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.integrate import simpson

from cmt_aqr.data.corruptions.files import returns_of
from cmt_aqr.data.corruptions.pictures import BAND, DOWN, Picture, floor, planes_of, random_bytes
from cmt_aqr.structures import Frame

PULSE = 2e-8
"""Seconds, half-power width of the LiDAR's pulse."""

BEGIN, FULL = 0.9, 1.0
"""Metres from which on beam and receiver overlap, and overlap wholly."""

FARTHEST, PER_METRE = 200, 10
"""Range of the table of echoes in metres, and its entries per metre."""

TARGET = 1e-6 / math.pi
"""Differential reflectivity of a hard target."""

_LIGHT = 299_792_458.0


@functools.cache
def echo_table(alpha: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The strongest echo of fog in front of a target, by the target's range in steps of 0.1 m.

    The power that fog sends back at range R, over (aperture, pulse power and backscattering coefficient), with the
    extinction coefficient alpha in 1/m:

        I(R) = integral over t from 0 to 2 tau of sin^2(pi t / (2 tau)) exp(-2 alpha r) overlap(r) / r^2,
        r = R - c t / 2

    for R up to the target (Hahner et al., "Fog Simulation on Real LiDAR Point Clouds for 3D Object Detection in
    Adverse Weather", ICCV 2021). R runs over 2000 values from 0 to 200 m, t over 2000, and the integral is
    Simpson's, as in the published tables. Nothing but R <= target depends on the target.

    Returns:
        By the tenth metre of the target's range (2001,): the range of the echo in metres, taken from the peak of
        the pulse (below 0 where the target is nearer than half the pulse's length), and L = the largest I(R).
    """
    count = FARTHEST * PER_METRE
    ranges = np.linspace(0, FARTHEST, count)
    times = np.linspace(0, 2 * PULSE, count)
    pulse = np.sin(math.pi / (2 * PULSE) * times) ** 2
    response = np.zeros(count)
    for part in np.array_split(np.arange(count), 50):
        r = ranges[part, None] - _LIGHT * times / 2
        overlap = np.clip((r - BEGIN) / (FULL - BEGIN), 0, 1)
        value = pulse * np.exp(-2 * alpha * np.maximum(r, 0)) * overlap / np.maximum(r, BEGIN) ** 2
        response[part] = simpson(value, dx=times[1] - times[0], axis=-1)
    best = np.maximum.accumulate(response)
    place = np.maximum.accumulate(np.where(response >= best, np.arange(count), 0))
    targets = np.arange(count + 1) / PER_METRE
    last = np.searchsorted(ranges, targets, side="right") - 1
    return (ranges[place[last]] - PULSE * _LIGHT / 2).astype(np.float32), best[last].astype(np.float32)


def echo_fog(frame: Frame, random: Generator, alpha: float, beta: float) -> Frame:
    """The LiDAR in fog: returns are dimmer, and where the fog's own echo is stronger, it takes their place.

    With r the range in the frame of the point's file, i its intensity, alpha the extinction coefficient in 1/m and
    beta
    the backscattering coefficient in 1/sr:

        i' = round(i exp(-2 alpha r)),    s = L(r) i r^2 beta / beta0

    and where s > i', the point moves to the echo's range along its ray, times r / U(r - 10, r + 10), with
    intensity s. No point is lost. That factor is published as it is here: for r below 10 m it may be large, or
    below 0.
    """
    returns = returns_of(frame)
    lidars = returns.motions[:, :3, 3].float().index_select(0, returns.sweep.int())  # at each point's return
    away = frame.points[:, :3] - lidars
    r = away.norm(dim=1).numpy()
    intensity = frame.points[:, 3].numpy()
    echo_range, strength = echo_table(alpha)
    entry = np.minimum(np.rint(r * PER_METRE), FARTHEST * PER_METRE).astype(np.int32)
    hard = np.rint(np.exp(np.float32(-2 * alpha) * r) * intensity)
    soft = strength[entry] * intensity * r**2 * np.float32(beta / TARGET)
    drawn = random.random(len(r), np.float32)
    echo = np.flatnonzero(soft > hard)
    shown = drawn[echo] * np.float32(20) + r[echo] - np.float32(10)
    factor = echo_range[entry[echo]] / np.where(shown == 0, 1, shown)
    points = frame.points.clone()
    rows = torch.from_numpy(echo)
    moved = lidars.index_select(0, rows) + torch.from_numpy(factor)[:, None] * away.index_select(0, rows)
    points[:, :3].index_copy_(0, rows, moved)
    points[:, 3] = torch.from_numpy(np.maximum(soft, hard))
    return frame.replace(points=points)


CELLS = 128
"""Side of the fractals. What the diamond-square's finer levels would add is below a fifth of a grey level."""


def plasma(side: int, count: int, random: Generator) -> NDArray[np.float32]:
    """Plasma fractals (diamond-square, wrapped around), 0..1: (count, cells, cells).

    Each level adds Uniform(-a^2, a^2) to the mean of four neighbours, and a falls by 1.7 from level to level. Of a
    fractal of ``side`` pixels, a power of 2, the coarse levels are drawn, down to ``CELLS`` a side.
    """
    cells = min(side, CELLS)
    field = np.zeros((count, cells, cells), dtype=np.float32)
    step, wibble = cells, 100.0
    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        along = corners + np.roll(corners, -1, axis=1)
        field[:, half::step, half::step] = _near(along + np.roll(along, -1, axis=2), wibble, random)
        centres = field[:, half::step, half::step]
        above = centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=2)
        beside = centres + np.roll(centres, 1, axis=2) + corners + np.roll(corners, -1, axis=1)
        field[:, ::step, half::step] = _near(above, wibble, random)
        field[:, half::step, ::step] = _near(beside, wibble, random)
        step, wibble = half, wibble / 1.7
    field -= field.min(axis=(1, 2), keepdims=True)
    field /= field.max(axis=(1, 2), keepdims=True)
    return field


def _near(total: NDArray, wibble: float, random: Generator) -> NDArray[np.float32]:
    """A quarter of a sum of four, and noise."""
    noise = random.random(total.shape, np.float32) * 2 - 1
    return total / 4 + np.float32(wibble**2) * noise


def fog_over(
    picture: Picture, random: Generator, strength: float, beta: float, out: Picture | None = None
) -> Picture:
    """Images in fog: clouds of haze, and grey by distance from the road in front.

    With x in 0..1, f, a, b plasma fractals, the strength s and the greatest value of the picture, max:

        y = (x + s f (1 - 0.8 a)(1 + 0.5 b)) max / (max + s), cut to 0..1
        x' = y t + 0.5 (1 - t),    t = exp(-beta d),    d = 2 rho (1 + U(0, 1) / 4) + sqrt(max(height, width))

    where rho is the distance in pixels to the rectangle of rows 0.65 to 0.99 and columns 0.1 to 0.85 of the
    picture, and U is drawn for every pixel (MultiCorrupt's ``fog``).

    ``out`` takes the result, or as many of its lowest rows as it has.
    """
    height, width = picture.shape[:2]
    result = np.empty_like(picture) if out is None else out
    first = height - len(result)
    brightest = float(picture.max()) / 255
    gain = brightest / (brightest + strength)
    clear = _clear(height, width, first, beta, random)
    clouds = haze(height, width, random)[first:]
    foggy = np.empty((3, height - first, width), dtype=np.uint8)
    planes = planes_of(picture[first:])
    for top in range(0, height - first, 4 * BAND):
        rows = slice(top, top + 4 * BAND)
        # min(gain x + h, 255) t + 127.5 (1 - t) as min(gain t x + rest, most), each cut off below the point.
        t = clear[rows]
        rest = np.multiply(t, clouds[rows])
        cv2.addWeighted(t, -127.5, rest, 255 * strength * gain, 127.5, rest)
        most = cv2.convertScaleAbs(t, None, 127.5, 127.5 + DOWN)
        t *= np.float32(gain)
        for plane, grey in zip(planes, foggy[:, rows], strict=True):
            shade = rest.copy()
            cv2.accumulateProduct(plane[rows].astype(np.float32), t, shade)
            floor(shade, grey)
            cv2.min(grey, most, grey)
    cv2.merge(list(foggy), result)
    return result


def haze(height: int, width: int, random: Generator) -> NDArray[np.float32]:
    """f (1 - 0.8 a)(1 + 0.5 b), (height, width)."""
    side = 1 << (max(height, width, 3) - 1).bit_length()
    f, a, b = plasma(side, 3, random)
    field = f * (1 - np.float32(0.8) * a) * (1 + np.float32(0.5) * b)
    scale = side // len(field)
    # Of the enlarged field only the part that the picture shows.
    rows, columns = (min(len(field), -(-count // scale)) for count in (height, width))
    large = cv2.resize(field[:rows, :columns], (columns * scale, rows * scale))
    return np.asarray(large[:height, :width], dtype=np.float32)


def _clear(height: int, width: int, first: int, beta: float, random: Generator) -> NDArray[np.float32]:
    """t of the rows from ``first`` on, (height - first, width)."""
    still, drawn = (part[first:] for part in _distances(height, width, beta))
    clear = np.empty(still.shape, dtype=np.float32)
    steps = random_bytes((height, width), random)[first:]
    for top in range(0, len(clear), 2 * BAND):
        rows = slice(top, top + 2 * BAND)
        part = np.multiply(steps[rows], drawn[rows], out=clear[rows])
        cv2.exp(cv2.add(part, still[rows], part), part)
    return clear


@functools.lru_cache(maxsize=16)
def _distances(height: int, width: int, beta: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """-beta d without U (height, width), and what a step of 1/256 of U adds to it."""
    top, bottom, left, right = int(0.65 * height), int(0.99 * height), int(0.1 * width), int(0.85 * width)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    down = np.maximum(0, np.maximum(rows - bottom, top - rows))
    across = np.maximum(0, np.maximum(columns - right, left - columns))
    away = -2 * beta * np.hypot(down, across)
    return (away - beta * math.sqrt(max(height, width))).astype(np.float32), (away / 1024).astype(np.float32)
