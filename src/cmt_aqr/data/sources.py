"""Which file each point of a frame comes from."""

from __future__ import annotations

import torch
from torch import Tensor

from cmt_aqr.structures import Frame

_LOWEST_RING, _RING_STEP, _RINGS = -0.5353, 0.023275, 32
"""Elevation in radians of nuScenes' ring 0, from ring to ring, and how many there are."""


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
