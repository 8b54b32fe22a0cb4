"""MultiCorrupt's weather and light: fog for both sensors, snow and low light for the cameras.

Snow leaves the points clear: theirs needs files that are not in nuScenes.
"""

import functools
import math

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.constants import speed_of_light
from scipy.integrate import simpson
from scipy.stats import norm, poisson

from cmt_aqr.data.corruptions.images import (
    BAND,
    FLOOR,
    QUANTILES,
    Image,
    blurred_bands,
    look_up,
    random_bytes,
    store_floor,
)
from cmt_aqr.data.corruptions.lidar import standard_normal
from cmt_aqr.data.corruptions.sweeps import returns_of
from cmt_aqr.structures import Frame

PULSE = 2e-8  # half-power width of the LiDAR's pulse in seconds
OVERLAP_BEGIN, OVERLAP_FULL = 0.9, 1.0  # metres from which on beam and receiver overlap in part, and completely
MAX_RANGE, PER_METRE = 200, 10  # range of the table of echoes in metres, and its entries per metre
TARGET_REFLECTIVITY = 1e-6 / math.pi  # differential reflectivity of a hard target


@functools.cache
def echo_table(alpha: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The strongest echo of fog in front of a target, by the target's range in steps of 0.1 m.

    The power that fog at range R returns, relative to (aperture, pulse power and backscattering coefficient), with
    the extinction coefficient alpha in 1/m:

        I(R) = integral over t from 0 to 2 tau of sin^2(pi t / (2 tau)) exp(-2 alpha r) overlap(r) / r^2,
        r = R - c t / 2

    for R up to the target (Hahner et al., "Fog Simulation on Real LiDAR Point Clouds for 3D Object Detection in
    Adverse Weather", ICCV 2021). As in the published tables, R takes 2000 values from 0 to 200 m, t takes 2000,
    and the integral is Simpson's. Only R <= target depends on the target.

    Returns:
        By decimetre of the target's range (2001,): the range of the echo in metres, from the peak of the pulse
        (below 0 for targets nearer than half the pulse's length), and L = the largest I(R).
    """
    count = MAX_RANGE * PER_METRE
    ranges = np.linspace(0, MAX_RANGE, count)
    times = np.linspace(0, 2 * PULSE, count)
    pulse = np.sin(math.pi / (2 * PULSE) * times) ** 2
    response = np.zeros(count)
    for part in np.array_split(np.arange(count), 50):
        r = ranges[part, None] - speed_of_light * times / 2
        overlap = np.clip((r - OVERLAP_BEGIN) / (OVERLAP_FULL - OVERLAP_BEGIN), 0, 1)
        value = pulse * np.exp(-2 * alpha * np.maximum(r, 0)) * overlap / np.maximum(r, OVERLAP_BEGIN) ** 2
        response[part] = simpson(value, dx=times[1] - times[0], axis=-1)
    best = np.maximum.accumulate(response)
    index = np.maximum.accumulate(np.where(response >= best, np.arange(count), 0))
    targets = np.arange(count + 1) / PER_METRE
    last = np.searchsorted(ranges, targets, side="right") - 1
    return (ranges[index[last]] - PULSE * speed_of_light / 2).astype(np.float32), best[last].astype(np.float32)


def fog_points(frame: Frame, random: Generator, alpha: float, beta: float) -> Frame:
    """Dim all returns, and replace those that are weaker than the echo of the fog by that echo.

    With the range r in the frame of the point's sweep, the intensity i, the extinction coefficient alpha in 1/m
    and the backscattering coefficient beta in 1/sr:

        i' = round(i exp(-2 alpha r)),    s = L(r) i r^2 beta / beta0

    where beta0 is ``TARGET_REFLECTIVITY``. Where s > i', the point moves along its ray to the echo's range times
    r / U(r - 10, r + 10), and s becomes its intensity. No point is lost. The factor is as published: for r below
    10 m it may be large, or below 0.
    """
    returns = returns_of(frame)
    origins = returns.motions[:, :3, 3].float().index_select(0, returns.sweep.int())  # the LiDAR's, per point
    rays = frame.points[:, :3] - origins
    r = rays.norm(dim=1).numpy()
    intensity = frame.points[:, 3].numpy()
    echo_range, strength = echo_table(alpha)
    entry = np.minimum(np.rint(r * PER_METRE), MAX_RANGE * PER_METRE).astype(np.int32)
    hard = np.rint(np.exp(np.float32(-2 * alpha) * r) * intensity)
    soft = strength[entry] * intensity * r**2 * np.float32(beta / TARGET_REFLECTIVITY)
    drawn = random.random(len(r), np.float32)
    echo = np.flatnonzero(soft > hard)
    divisor = drawn[echo] * np.float32(20) + r[echo] - np.float32(10)
    factor = echo_range[entry[echo]] / np.where(divisor == 0, 1, divisor)
    points = frame.points.clone()
    rows = torch.from_numpy(echo)
    moved = origins.index_select(0, rows) + torch.from_numpy(factor)[:, None] * rays.index_select(0, rows)
    points[:, :3].index_copy_(0, rows, moved)
    points[:, 3] = torch.from_numpy(np.maximum(soft, hard))
    return frame.replace(points=points)


CELLS = 128  # side of the drawn fractals; finer levels would add less than a fifth of a grey level


def plasma(side: int, count: int, random: Generator) -> NDArray[np.float32]:
    """Plasma fractals (diamond-square, wrapped around) in [0, 1]: (count, cells, cells).

    Each level adds Uniform(-a^2, a^2) to the mean of four neighbours, and a falls by 1.7 per level. Of a fractal
    of ``side`` pixels, a power of 2, only the coarse levels down to ``CELLS`` cells are computed.
    """
    cells = min(side, CELLS)
    field = np.zeros((count, cells, cells), dtype=np.float32)
    step, wibble = cells, 100.0
    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        along = corners + np.roll(corners, -1, axis=1)
        field[:, half::step, half::step] = _noisy_mean(along + np.roll(along, -1, axis=2), wibble, random)
        centres = field[:, half::step, half::step]
        above = centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=2)
        beside = centres + np.roll(centres, 1, axis=2) + corners + np.roll(corners, -1, axis=1)
        field[:, ::step, half::step] = _noisy_mean(above, wibble, random)
        field[:, half::step, ::step] = _noisy_mean(beside, wibble, random)
        step, wibble = half, wibble / 1.7
    field -= field.min(axis=(1, 2), keepdims=True)
    field /= field.max(axis=(1, 2), keepdims=True)
    return field


def _noisy_mean(total: NDArray, wibble: float, random: Generator) -> NDArray[np.float32]:
    """The mean of four values, from their sum, plus Uniform(-wibble^2, wibble^2)."""
    noise = random.random(total.shape, np.float32) * 2 - 1
    return total / 4 + np.float32(wibble**2) * noise


def fog_image(image: Image, random: Generator, strength: float, beta: float, out: Image | None = None) -> Image:
    """Add clouds of haze, and grey that grows with the distance from the road in front.

    With x in [0, 1], plasma fractals f, a, b, the strength s and the largest value of the image, max:

        y = (x + s f (1 - 0.8 a)(1 + 0.5 b)) max / (max + s), clipped to [0, 1]
        x' = y t + 0.5 (1 - t),    t = exp(-beta d),    d = 2 rho (1 + U(0, 1) / 4) + sqrt(max(height, width))

    where rho is the distance in pixels to the rectangle of rows 0.65 to 0.99 and columns 0.1 to 0.85 of the image,
    and U is drawn per pixel (MultiCorrupt's ``fog``).

    ``out`` receives the result, or as many of its lowest rows as it has.
    """
    height, width = image.shape[:2]
    result = np.empty_like(image) if out is None else out
    first = height - len(result)
    brightest = float(image.max()) / 255
    gain = brightest / (brightest + strength)
    transmission = _transmission(height, width, first, beta, random)
    clouds = haze(height, width, random)[first:]
    foggy = np.empty((3, height - first, width), dtype=np.uint8)
    channels = cv2.split(image[first:])
    for top in range(0, height - first, 4 * BAND):
        rows = slice(top, top + 4 * BAND)
        # min(gain x + h, 255) t + 127.5 (1 - t) as min(gain t x + offset, limit), each rounded down.
        t = transmission[rows]
        offset = np.multiply(t, clouds[rows])
        cv2.addWeighted(t, -127.5, offset, 255 * strength * gain, 127.5, offset)
        limit = cv2.convertScaleAbs(t, None, 127.5, 127.5 + FLOOR)
        t *= np.float32(gain)
        for channel, grey in zip(channels, foggy[:, rows], strict=True):
            shade = offset.copy()
            cv2.accumulateProduct(np.asarray(channel[rows], np.float32), t, shade)
            store_floor(shade, grey)
            cv2.min(grey, limit, grey)
    cv2.merge(list(foggy), result)
    return result


def haze(height: int, width: int, random: Generator) -> NDArray[np.float32]:
    """f (1 - 0.8 a)(1 + 0.5 b), (height, width)."""
    side = 1 << (max(height, width, 3) - 1).bit_length()
    f, a, b = plasma(side, 3, random)
    field = f * (1 - np.float32(0.8) * a) * (1 + np.float32(0.5) * b)
    scale = side // len(field)
    # Enlarge only the part of the field that the image covers.
    rows, columns = (min(len(field), -(-count // scale)) for count in (height, width))
    large = cv2.resize(field[:rows, :columns], (columns * scale, rows * scale))
    return np.asarray(large[:height, :width], dtype=np.float32)


def _transmission(height: int, width: int, first: int, beta: float, random: Generator) -> NDArray[np.float32]:
    """t of the rows from ``first`` on, (height - first, width)."""
    fixed, per_step = (part[first:] for part in _exponents(height, width, beta))
    transmission = np.empty(fixed.shape, dtype=np.float32)
    steps = random_bytes((height, width), random)[first:]
    for top in range(0, len(transmission), 2 * BAND):
        rows = slice(top, top + 2 * BAND)
        part = np.multiply(steps[rows], per_step[rows], out=transmission[rows])
        cv2.exp(cv2.add(part, fixed[rows], part), part)
    return transmission


@functools.lru_cache(maxsize=16)
def _exponents(height: int, width: int, beta: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """-beta d (height, width) for U = 0, and what a step of 1/256 of U adds to it."""
    top, bottom, left, right = int(0.65 * height), int(0.99 * height), int(0.1 * width), int(0.85 * width)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    down = np.maximum(0, np.maximum(rows - bottom, top - rows))
    across = np.maximum(0, np.maximum(columns - right, left - columns))
    rho = -2 * beta * np.hypot(down, across)
    return (rho - beta * math.sqrt(max(height, width))).astype(np.float32), (rho / 1024).astype(np.float32)


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
