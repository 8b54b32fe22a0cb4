"""Dirt on the lens: a mask over each image, from files or drawn here."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cmt_aqr.data.corruptions.pictures import EachPicture, Picture, look_up
from cmt_aqr.errors import SettingError

MASKS = 16
"""How many there are in nuScenes-R, each as likely as the others."""

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")


class Occluded(EachPicture):
    """Every image gets one of 16 masks: with a = (m / 255)^3, picture' = a picture + (1 - a) m.

    Args:
        masks: folder with nuScenes-R's 16 masks (its Occlusion_mask.zip), which are turned by 90 degrees
            counter-clockwise and resized to the picture; ``None``: splashes of mud of our own, as many.

    Raises:
        SettingError: there is no such folder, or there are not 16 pictures in it.
    """

    def __init__(self, masks: str | None = None) -> None:
        self.files = None if masks is None else _mask_files(masks)

    def change(self, picture: Picture, random: Generator, view: int) -> Picture:
        """Lay a mask over the picture."""
        number, (height, width) = int(random.integers(MASKS)), picture.shape[:2]
        mask = _loaded(self.files[number] if self.files else number, height, width)
        return look_up(_blends(), mask, picture)


def _mask_files(folder: str) -> list[Path]:
    path = Path(folder).expanduser()
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _ENDINGS) if path.is_dir() else []
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

    Drops of all sizes around a few centres; a quarter to a half of the picture is covered. The
    same for a number and shape always.

    Args:
        number: which, from 0.
        height: pixels.
        width: pixels.
    """
    random = np.random.default_rng((number, 0x3D))
    rows, columns = 225, 400
    canvas = np.full((rows, columns), 255, dtype=np.uint8)
    centres = random.random((int(random.integers(2, 5)), 2))
    drops = 90
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
    mud = np.clip(cv2.resize(soft, (width, height)), 0, 255)
    return mud.astype(np.uint8)
