"""A keyframe's points and those of the sweeps before it, in one cloud."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CLOSE = 1.0
"""Metres along x and y: nearer points are the car's own."""


def join_sweeps(
    clouds: Sequence[NDArray[np.float32]],
    motions: NDArray[np.float64],
    lags: NDArray[np.float64],
    remove_close: bool = False,
    pad_to: int = 0,
) -> NDArray[np.float32]:
    """Points (point, 5): x, y, z in the keyframe's LiDAR frame, intensity, lag in seconds.

    Training and testing take the sweeps as they are. The release's database of objects is made with the other
    two arguments (mmdet3d, ``LoadPointsFromMultiSweeps``).

    Args:
        clouds: points (point, 5) of each sweep in its own LiDAR frame, the keyframe's first.
        motions: (sweep, 4, 4) from each sweep's LiDAR frame to the keyframe's.
        lags: (sweep,) seconds before the keyframe.
        remove_close: drop points within ``CLOSE`` of the sensor, but not the keyframe's.
        pad_to: where there is the keyframe alone, add it so many times more, as sweeps of no lag.
    """
    joined = []
    for number, (cloud, motion, lag) in enumerate(zip(clouds, motions, lags, strict=True)):
        cloud = cloud.copy()
        if number:
            if remove_close:
                cloud = without_close(cloud)
            # The relative motion is a few metres, so float32 keeps micrometres.
            turn, shift = motion[:3, :3].astype(np.float32), motion[:3, 3].astype(np.float32)
            cloud[:, :3] = cloud[:, :3] @ turn.T + shift
        cloud[:, 4] = lag
        joined.append(cloud)
    if len(joined) == 1 and pad_to:
        again = without_close(joined[0]) if remove_close else joined[0]
        joined.extend([again] * pad_to)
    return np.concatenate(joined)


def without_close(cloud: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points of a sweep, in its own frame, without those on the car itself."""
    return cloud[(np.abs(cloud[:, :2]) >= CLOSE).any(axis=1)]
