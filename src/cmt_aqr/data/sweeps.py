"""A keyframe's points and those of the sweeps before it, in one cloud."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cmt_aqr.data.poses import move_points

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
    if remove_close:
        clouds = [clouds[0], *map(without_close, clouds[1:])]
    ends = np.cumsum([len(cloud) for cloud in clouds])
    joined = np.empty((ends[-1], 5), dtype=np.float32)
    for number, (cloud, motion, end) in enumerate(zip(clouds, motions, ends, strict=True)):
        part = joined[end - len(cloud) : end]
        if number:
            # The relative motion is a few metres, so float32 keeps micrometres.
            move_points(cloud, motion[:3, :3], motion[:3, 3], out=part)
        else:
            part[:] = cloud
        part[:, 4] = lags[number]
    if len(clouds) > 1 or not pad_to:
        return joined
    again = without_close(joined) if remove_close else joined
    return np.concatenate([joined, *[again] * pad_to])


def without_close(cloud: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points of a sweep, in its own frame, without those on the car itself."""
    return cloud[(np.abs(cloud[:, :2]) >= CLOSE).any(axis=1)]
