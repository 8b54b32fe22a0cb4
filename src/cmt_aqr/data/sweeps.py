"""A keyframe's points and those of the sweeps before it, in one cloud."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from cmt_aqr.data.poses import multiply
from cmt_aqr.structures import Returns

CLOSE = 1.0
"""Metres along x and y: nearer points are the car's own."""


def join_sweeps(
    clouds: Iterable[NDArray[np.float32]],
    motions: NDArray[np.float64],
    lags: NDArray[np.float64],
    room: int,
    remove_close: bool = False,
    pad_to: int = 0,
) -> tuple[NDArray[np.float32], Returns]:
    """Points (point, 5): x, y, z in the keyframe's LiDAR frame, intensity, lag in seconds; and their origin.

    Training and testing take the sweeps as they are. The release's database of objects is made with the last
    two arguments (mmdet3d, ``LoadPointsFromMultiSweeps``).

    Args:
        clouds: points (point, 5) of each sweep in its own LiDAR frame, finite, the keyframe's first; the last
            column is the ring. Read one after another, so that each is moved while the processor's cache has it;
            that column is then overwritten.
        motions: (sweep, 4, 4) from each sweep's LiDAR frame to the keyframe's.
        lags: (sweep,) seconds before the keyframe.
        room: points of all sweeps, at most.
        remove_close: drop points within ``CLOSE`` of the sensor, but not the keyframe's.
        pad_to: where there is the keyframe alone, add it so many times more, as sweeps of no lag, which
            the second result does not know.
    """
    points = np.empty((room, 5), dtype=np.float32)
    sweeps, rings = np.empty(room, dtype=np.uint8), np.empty(room, dtype=np.int16)
    end = 0
    for number, (cloud, motion, lag) in enumerate(zip(clouds, motions, lags, strict=True)):
        stays = without_close(cloud) if number and remove_close else cloud
        part = slice(end, end + len(stays))
        end += len(stays)
        sweeps[part], rings[part] = number, stays[:, 4]
        _move(stays, motion if number else np.eye(4), lag, out=points[part])
    motions = motions.copy()
    motions[:1] = np.eye(4)  # what rounding made of the keyframe's own
    returns = Returns(
        torch.from_numpy(sweeps[:end]), torch.from_numpy(rings[:end]), motions=torch.from_numpy(motions)
    )
    points = points[:end]
    if len(motions) == 1 and pad_to:
        again = without_close(points) if remove_close else points
        points = np.concatenate([points, *[again] * pad_to])
    return points, returns


def _move(cloud: NDArray[np.float32], motion: NDArray[np.float64], lag: float, out: NDArray[np.float32]) -> None:
    """Move a sweep's points (point, 5), and replace their ring by the lag: one product, with ones for the ring."""
    cloud[:, 4] = 1
    matrix = np.eye(5)
    # The relative motion is a few metres, so float32 keeps micrometres.
    matrix[:3, :3], matrix[4, :3], matrix[4, 4] = motion[:3, :3].T, motion[:3, 3], lag
    multiply(cloud, matrix, out)


def without_close(cloud: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points of a sweep, in its own frame, without those on the car itself."""
    return cloud[(np.abs(cloud[:, :2]) >= CLOSE).any(axis=1)]
