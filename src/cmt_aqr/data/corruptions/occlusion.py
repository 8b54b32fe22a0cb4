"""Dirt on the lens: a mask over each image, from files or drawn here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cmt_aqr.data.corruptions.pictures import Picture, look_up
from cmt_aqr.errors import SettingError

MASKS = 16
"""How many there are in nuScenes-R, each as likely as the others."""

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")


def occlude(picture: Picture, random: Generator, masks: Sequence[Path | int]) -> Picture:
    """The picture under one of 16 masks: with a = (m / 255)^3, picture' = a picture + (1 - a) m."""
    mask = _loaded(masks[int(random.integers(MASKS))], picture.shape[0], picture.shape[1])
    return look_up(_blends(), mask, picture)


def masks_of(folder: str | None) -> Sequence[Path | int]:
    """The 16 masks of a folder, in order; or numbers of splashes of mud of our own.

    Args:
        folder: with nuScenes-R's masks (its Occlusion_mask.zip), which are turned by 90 degrees counter-clockwise
            and resized to the picture; ``None``: our own.

    Raises:
        SettingError: there is no such folder, or there are not 16 pictures in it.
    """
    if folder is None:
        return range(MASKS)
    path = Path(folder).expanduser()
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _ENDINGS)
    if len(found) != MASKS:
        what = f"{len(found)} pictures are in it" if path.is_dir() else "there is no such folder"
        raise SettingError(
            f"masks={folder}: {what}, and it must hold the {MASKS} masks of nuScenes-R's Occlusion_mask.zip; "
            "without masks= there is mud of our own"
        )
    return found


@functools.cache
def _blends() -> NDArray[np.uint8]:
    """(mask, pixel) to the pixel under the mask."""
    mask, pixel = np.arange(256)[:, None], np.arange(256)
    through = (mask / 255) ** 3
    return (through * pixel + (1 - through) * mask + 1e-6).astype(np.uint8)


@functools.lru_cache(maxsize=2 * MASKS)
def _loaded(mask: Path | int, height: int, width: int) -> NDArray[np.uint8]:
    """A mask (height, width, 3)."""
    if isinstance(mask, int):
        return np.repeat(mud_mask(mask, height, width)[..., None], 3, axis=2)
    read = cv2.imread(str(mask), cv2.IMREAD_COLOR)
    if read is None:
        raise SettingError(f"masks: {mask} is not a readable picture; unpack the masks again")
    turned = cv2.rotate(read, cv2.ROTATE_90_COUNTERCLOCKWISE)
    return np.asarray(cv2.resize(turned, (width, height)), dtype=np.uint8)


def mud_mask(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """A splash of mud (height, width): 255 is clean glass, the darker the more is hidden.

    Drops of all sizes around a few centres; a quarter to a half of the picture is covered. The same for a number
    and shape always.
    """
    random = np.random.default_rng((number, 0x3D))
    rows, columns, drops = 225, 400, 90
    canvas = np.full((rows, columns), 255, dtype=np.uint8)
    centres = random.random((int(random.integers(2, 5)), 2))
    around = centres[random.integers(len(centres), size=drops)] + random.normal(0, 0.16, (drops, 2))
    radii = np.clip(random.pareto(1.6, drops) * 6, 3, 55)
    shades = random.integers(25, 110, drops)
    for (x, y), radius, shade in zip(around, radii, shades, strict=True):
        middle = (int(x * columns), int(y * rows))
        axes = (int(radius), int(radius * random.uniform(0.6, 1.0)))
        cv2.ellipse(canvas, middle, axes, float(random.uniform(0, 180)), 0, 360, (int(shade),), cv2.FILLED)
    grain = random.normal(0, 7, (rows // 8, columns // 8)).astype(np.float32)
    soft = cv2.GaussianBlur(canvas, (0, 0), 1.5).astype(np.float32)
    soft += cv2.resize(grain, (columns, rows)) * (soft < 200)
    return np.clip(cv2.resize(soft, (width, height)), 0, 255).astype(np.uint8)
