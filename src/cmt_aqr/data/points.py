"""Reading of point files, with checks that tell them from other formats."""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmt_aqr.constants import POINT_FEATURES
from cmt_aqr.data.errors import DataError
from cmt_aqr.file_kinds import other_file

log = logging.getLogger(__name__)

_POINT_BYTES = 4 * POINT_FEATURES

MIN_VALUES = np.array([-5e3, -5e3, -5e3, -1, -1], dtype=np.float32)
MAX_VALUES = np.array([5e3, 5e3, 5e3, 512, 512], dtype=np.float32)
"""Limits of x, y, z in metres, intensity (0 to 255, with some slack) and ring: values beyond are damaged."""

_HEADERS = ((b"# .PCD", "PCD"), (b"VERSION", "PCD"), (b"ply\n", "PLY"), (b"ply\r", "PLY"), (b"LASF", "LAS"))

_GROUP = 128
"""Points that are compared in one vectorised operation."""


def point_count(path: Path) -> int:
    """Number of points in a file by its size; 0 if it is missing, which :func:`read_points` reports."""
    try:
        return path.stat().st_size // _POINT_BYTES
    except OSError:
        return 0


def read_points(path: Path) -> NDArray[np.float32]:
    """Points (point, 5) of a nuScenes sweep: x, y, z, intensity 0..255, ring index; LiDAR frame of the sweep.

    Points with values that are not finite or out of range are dropped; a warning is logged once per file.

    Raises:
        DataError: the file is missing, empty, or its size is not a multiple of five float32.
    """
    points = _read(path)
    low, high = _extremes(points)
    if not ((low >= MIN_VALUES) & (high <= MAX_VALUES)).all():  # false for NaN
        usable = ((points >= MIN_VALUES) & (points <= MAX_VALUES)).all(axis=1)
        points = points[usable]
        message = "%s: %d of %d points have values that are not finite or out of range, and are dropped"
        _warn_once(message, path, len(usable) - len(points), len(usable))
        if not len(points):
            raise DataError(
                f"{path} holds no usable point: values are not finite, or beyond "
                f"{MAX_VALUES.astype(int).tolist()}, the limits of x, y, z, intensity, ring; "
                "download or convert the file again"
            )
    return points


def _read(path: Path) -> NDArray[np.float32]:
    """The points (point, 5) of a file, at least one, with unchecked values."""
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): data.root must contain this sweep") from error
    if not len(raw) or len(raw) % _POINT_BYTES:
        raise _format_error(path, f"its {len(raw)} bytes are no multiple of a point's {_POINT_BYTES}")
    return raw.view(np.float32).reshape(-1, POINT_FEATURES)


def _extremes(points: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Minimum and maximum of each column (5,) of at least one point; NaN for a column with NaN."""
    grouped = len(points) // _GROUP * _GROUP
    parts = [points[grouped:], points[:grouped].reshape(-1, _GROUP * POINT_FEATURES)]
    lows, highs = [
        np.concatenate([reduce(part, axis=0).reshape(-1, POINT_FEATURES) for part in parts if len(part)])
        for reduce in (np.min, np.max)
    ]
    return lows.min(axis=0), highs.max(axis=0)


@functools.cache
def _warn_once(message: str, *values: object) -> None:
    log.warning(message, *values)


def read_checked_points(path: Path) -> NDArray[np.float32]:
    """Points as in :func:`read_points`; also checks that the columns look like x, y, z, intensity and ring.

    Raises:
        DataError: the file holds something else, such as points of four numbers, whose size may fit by chance.
    """
    stored = _read(path)
    finite = stored[np.isfinite(stored).all(axis=1)]
    intensity, ring = finite[:, 3], finite[:, 4]
    with np.errstate(invalid="ignore"):
        plausible = (
            (np.abs(finite[:, :3]) <= MAX_VALUES[:3]).all(axis=1),
            (intensity >= 0) & (intensity <= 255),
            (ring >= 0) & (ring < 256) & (ring == np.round(ring)),
        )
    # A few damaged points are dropped by read_points.
    if len(finite) and min(column.mean() for column in plausible) < 0.99:
        raise _format_error(path, "its columns look like others, such as the four of KITTI's points")
    points = read_points(path)
    highest = float(points[:, 3].max())
    if 0 < highest <= 1:
        _warn_once(
            "%s: intensities range from 0 to %.3g; nuScenes has 0 to 255, which trained weights expect: multiply "
            "them by 255, unless you train from scratch on such files",
            path,
            highest,
        )
    return points


def check_range(points: NDArray[np.float32], source: str, point_range: Sequence[float]) -> None:
    """Check that a point (point, 5) of the first frame lies within x0, y0, z0, x1, y1, z1, metres.

    Raises:
        DataError: none does; the message begins with the ``source`` of the frames.
    """
    positions = points[:, :3]
    if not ((positions >= point_range[:3]) & (positions <= point_range[3:])).all(axis=1).any():
        raise DataError(
            f"{source}: no point of the first frame lies within data.point_range={point_range}; "
            "are the files in metres, and the LiDAR's frame?"
        )


def _format_error(path: Path, reason: str) -> DataError:
    """The error about a file of another format, or with other columns, or truncated."""
    with path.open("rb") as file:
        start = file.read(16)
    name = next((name for header, name in _HEADERS if start.startswith(header)), None)
    other = f"a file of the format {name}" if name else other_file(path) if len(start) > 4 else None
    return DataError(
        f"{path} does not hold points of five float32 (x, y, z, intensity 0..255, ring index): "
        f"{f'it is {other}' if other else reason}; convert the files first, or copy a truncated one again"
    )
