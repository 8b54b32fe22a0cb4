"""Dirt on the lens: a mask over each image, from files or drawn here."""

import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cmt_aqr.data.corruptions.images import Image, look_up
from cmt_aqr.errors import SettingError

MASKS = 16  # in nuScenes-R, each equally likely
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


def occlude(image: Image, random: Generator, masks: Sequence[Path | int]) -> Image:
    """The image x under one of 16 masks m: with a = (m / 255)^3, x' = a x + (1 - a) m."""
    mask = _load_mask(masks[int(random.integers(MASKS))], image.shape[0], image.shape[1])
    return look_up(_blends(), mask, image)


def find_masks(folder: str | None) -> Sequence[Path | int]:
    """The 16 mask files of a folder, sorted, or the numbers of our own :func:`mud_mask`.

    Args:
        folder: of nuScenes-R's masks (its Occlusion_mask.zip), which are rotated by 90 degrees counter-clockwise
            and resized to the image; ``None``: our own.

    Raises:
        SettingError: the folder does not exist, or does not contain 16 images.
    """
    if folder is None:
        return range(MASKS)
    path = Path(folder).expanduser()
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if len(files) != MASKS:
        reason = f"it contains {len(files)} images" if path.is_dir() else "there is no such folder"
        raise SettingError(
            f"masks={folder}: {reason}, but must contain the {MASKS} masks of nuScenes-R's Occlusion_mask.zip; "
            "without masks= our own mud is used"
        )
    return files


@functools.cache
def _blends() -> NDArray[np.uint8]:
    """The pixel under the mask, by (mask, pixel), (256, 256)."""
    mask, pixel = np.arange(256)[:, None], np.arange(256)
    through = (mask / 255) ** 3
    return (through * pixel + (1 - through) * mask + 1e-6).astype(np.uint8)


@functools.lru_cache(maxsize=2 * MASKS)
def _load_mask(mask: Path | int, height: int, width: int) -> NDArray[np.uint8]:
    """A mask (height, width, 3)."""
    if isinstance(mask, int):
        return np.repeat(mud_mask(mask, height, width)[..., None], 3, axis=2)
    image = cv2.imread(str(mask), cv2.IMREAD_COLOR)
    if image is None:
        raise SettingError(f"masks: {mask} is not a readable image; unpack the masks again")
    rotated = cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE)
    return np.asarray(cv2.resize(rotated, (width, height)), dtype=np.uint8)


def mud_mask(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """Splashes of mud (height, width): 255 is clean glass, lower values hide more.

    Drops of all sizes around a few centres cover a quarter to half of the image. The mask depends on the number
    and the shape alone.
    """
    random = np.random.default_rng((number, 0x3D))
    rows, columns, drops = 225, 400, 90
    canvas = np.full((rows, columns), 255, dtype=np.uint8)
    clusters = random.random((int(random.integers(2, 5)), 2))
    centres = clusters[random.integers(len(clusters), size=drops)] + random.normal(0, 0.16, (drops, 2))
    radii = np.clip(random.pareto(1.6, drops) * 6, 3, 55)
    shades = random.integers(25, 110, drops)
    for (x, y), radius, shade in zip(centres, radii, shades, strict=True):
        centre = (int(x * columns), int(y * rows))
        axes = (int(radius), int(radius * random.uniform(0.6, 1.0)))
        cv2.ellipse(canvas, centre, axes, float(random.uniform(0, 180)), 0, 360, (int(shade),), cv2.FILLED)
    grain = random.normal(0, 7, (rows // 8, columns // 8)).astype(np.float32)
    soft = cv2.GaussianBlur(canvas, (0, 0), 1.5).astype(np.float32)
    soft += cv2.resize(grain, (columns, rows)) * (soft < 200)
    return np.clip(cv2.resize(soft, (width, height)), 0, 255).astype(np.uint8)
