"""Files of LiDAR points: read, and told from those of other formats."""

from __future__ import annotations

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

LEAST = np.array([-5e3, -5e3, -5e3, -1, -1], dtype=np.float32)
MOST = np.array([5e3, 5e3, 5e3, 512, 512], dtype=np.float32)
"""Of x, y, z in metres, intensity (0 to 255, with some slack) and ring index: what is beyond is damage."""

_HEADERS = ((b"# .PCD", "PCD"), (b"VERSION", "PCD"), (b"ply\n", "PLY"), (b"ply\r", "PLY"), (b"LASF", "LAS"))

_TOGETHER = 128
"""Points that are compared side by side, which the processor does eight at a time."""


def point_count(path: Path) -> int:
    """Points of a nuScenes sweep by the size of its file; 0 where it is absent, which :func:`read_points` says."""
    try:
        return path.stat().st_size // _POINT_BYTES
    except OSError:
        return 0


def read_points(path: Path) -> NDArray[np.float32]:
    """Points (point, 5) of a nuScenes sweep: x, y, z, intensity 0..255, ring index; LiDAR frame of the sweep.

    Points with a value that is not finite, or absurd, are dropped, and said once.

    Raises:
        DataError: the file is missing, empty, or does not hold whole points of five float32.
    """
    points = _stored(path)
    low, high = _extremes(points)
    if not ((low >= LEAST) & (high <= MOST)).all():  # neither holds for NaN
        usable = ((points >= LEAST) & (points <= MOST)).all(axis=1)
        points = points[usable]
        _say_dropped(path, len(usable) - len(points), len(usable))
        if not len(points):
            raise DataError(
                f"{path} holds no usable point: values are not finite, or beyond {MOST.astype(int).tolist()}, the "
                "limits of x, y, z, intensity, ring; download or convert the file again"
            )
    return points


def _stored(path: Path) -> NDArray[np.float32]:
    """The points (point, 5) of a file, at least one, whatever their values."""
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): data.root lacks this sweep") from error
    if not len(raw) or len(raw) % _POINT_BYTES:
        raise _other_points(path, f"its {len(raw)} bytes are no multiple of a point's {_POINT_BYTES}")
    return raw.view(np.float32).reshape(-1, POINT_FEATURES)


def _extremes(points: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Least and greatest value of each column (5,), NaN where a column has one; at least one point."""
    whole = len(points) // _TOGETHER * _TOGETHER
    parts = [points[whole:], points[:whole].reshape(-1, _TOGETHER * POINT_FEATURES)]
    lows, highs = [
        np.concatenate([find(part, axis=0).reshape(-1, POINT_FEATURES) for part in parts if len(part)])
        for find in (np.min, np.max)
    ]
    return lows.min(axis=0), highs.max(axis=0)


@functools.cache
def _say_dropped(path: Path, count: int, of: int) -> None:
    log.warning("%s: %d of %d points have values that are not finite, or absurd, and are dropped", path, count, of)


def read_checked_points(path: Path) -> NDArray[np.float32]:
    """Points as of :func:`read_points`, of a file whose values look like x, y, z, intensity and ring.

    Raises:
        DataError: the file holds something else, such as points of four numbers, which may fill whole points of
            five by chance.
    """
    stored = _stored(path)
    finite = stored[np.isfinite(stored).all(axis=1)]
    intensity, ring = finite[:, 3], finite[:, 4]
    with np.errstate(invalid="ignore"):
        fits = (
            (np.abs(finite[:, :3]) <= MOST[:3]).all(axis=1),
            (intensity >= 0) & (intensity <= 255),
            (ring >= 0) & (ring < 256) & (ring == np.round(ring)),
        )
    # Single points that are damaged are dropped elsewhere.
    if len(finite) and min(column.mean() for column in fits) < 0.99:
        raise _other_points(path, "its columns look like others, such as the four of KITTI's points")
    points = read_points(path)
    highest = float(points[:, 3].max())
    if 0 < highest <= 1:
        _say_scale(path, highest)
    return points


@functools.cache
def _say_scale(path: Path, highest: float) -> None:
    log.warning(
        "%s: its intensities reach from 0 to %.3g; nuScenes has 0 to 255, and trained weights expect that: "
        "multiply them by 255, unless you train from nothing on such files",
        path,
        highest,
    )


def check_range(points: NDArray[np.float32], where: str, point_range: Sequence[float]) -> None:
    """Refuse points (point, 5) of a first frame of which none lies in x0, y0, z0, x1, y1, z1, metres.

    Raises:
        DataError: naming ``where`` they are from.
    """
    places = points[:, :3]
    if not ((places >= point_range[:3]) & (places <= point_range[3:])).all(axis=1).any():
        raise DataError(
            f"{where}: no point of the first frame lies within data.point_range={point_range}; "
            "are the files in metres, and the LiDAR's frame?"
        )


def _other_points(path: Path, why: str) -> DataError:
    """The error about a file of another format, or of other columns, or a truncated one."""
    with path.open("rb") as file:
        begin = file.read(16)
    name = next((name for start, name in _HEADERS if begin.startswith(start)), None)
    other = f"a file of the format {name}" if name else other_file(path) if len(begin) > 4 else None
    return DataError(
        f"{path} does not hold points of five float32 (x, y, z, intensity 0..255, ring index): "
        f"{f'it is {other}' if other else why}; convert the files first, or copy one that is cut again"
    )
