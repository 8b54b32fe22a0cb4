"""Which file each point of a frame comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_aqr.structures import Frame, Returns

_LOWEST_RING, _RING_STEP, _RINGS = -0.5353, 0.023275, 32
"""Elevation in radians of nuScenes' ring 0, from ring to ring, and how many there are."""


def returns_of_files(clouds: Sequence[NDArray[np.float32]], motions: NDArray[np.float64]) -> Returns:
    """Where the points of files come from.

    Args:
        clouds: points (point, 5) of each file as stored: the last column is the ring.
        motions: (file, 4, 4) from each file's LiDAR frame to the keyframe's.
    """
    rings = [cloud[:, 4].astype(np.int16) for cloud in clouds]
    sweeps = np.repeat(np.arange(len(clouds), dtype=np.uint8), [len(cloud) for cloud in clouds])
    motions = motions.copy()
    motions[:1] = np.eye(4)  # what rounding made of the keyframe's own
    return Returns(
        sweep=torch.from_numpy(sweeps),
        ring=torch.from_numpy(np.concatenate([np.zeros(0, np.int16), *rings])),
        motions=torch.from_numpy(motions),
    )


def with_more_points(frame: Frame, more: Tensor) -> Frame:
    """A frame with points that were recorded elsewhere, as if its own LiDAR had seen them.

    Their sweep is the one whose lag is nearest to theirs, their ring the one of their elevation.

    Args:
        frame: whose ``returns``, if there are any, get rows for them.
        more: (point, 5), in the keyframe's LiDAR frame.
    """
    points, returns = torch.cat((frame.points, more)), frame.returns
    if returns is None or not len(returns.motions):
        return frame.replace(points=points, returns=None)
    lags = torch.zeros(len(returns.motions))
    lags[returns.sweep.long()] = frame.points[:, 4]
    sweep = (more[:, 4:5] - lags).abs().argmin(dim=1)
    inverse = torch.linalg.inv(returns.motions).float()[sweep]
    own = torch.einsum("pij,pj->pi", inverse[:, :3, :3], more[:, :3]) + inverse[:, :3, 3]
    elevation = torch.atan2(own[:, 2], own[:, :2].norm(dim=1))
    ring = ((elevation - _LOWEST_RING) / _RING_STEP).round().clamp(0, _RINGS - 1)
    joined = returns.replace(
        sweep=torch.cat((returns.sweep, sweep.to(returns.sweep.dtype))),
        ring=torch.cat((returns.ring, ring.to(returns.ring.dtype))),
    )
    return frame.replace(points=points, returns=joined)
