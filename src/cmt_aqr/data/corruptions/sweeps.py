"""Points by sweep: which sweep and ring each belongs to, and transforms in each sweep's own LiDAR frame."""

from collections.abc import Sequence

import cv2
import torch
from torch import Tensor

from cmt_aqr.data.errors import DataError
from cmt_aqr.structures import Frame, Returns


def returns_of(frame: Frame) -> Returns:
    """Sweep and ring of a frame's points.

    Raises:
        ValueError: they are unknown, or points were added or dropped without updating them.
    """
    returns = frame.returns
    if returns is None or len(returns.sweep) != len(frame.points):
        count = 0 if returns is None else len(returns.sweep)
        raise ValueError(
            f"frame {frame.token}: sweep and ring are known for {count} of {len(frame.points)} points; faults "
            "that read them must come before transforms that add or drop points without Frame.keep_points"
        )
    return returns


def rings_of(frame: Frame) -> Tensor:
    """Ring (point,) of every point.

    Raises:
        DataError: the files have no rings: all points have the same one.
    """
    returns = returns_of(frame)
    rings = returns.ring[returns.sweep == 0]
    if len(rings) > 100 and bool((rings == rings[0]).all()):
        raise DataError(
            f"frame {frame.token}: its points have no ring, the fifth column of the file is {int(rings[0])} "
            "throughout; reducing beams needs the ring index, as in nuScenes' own files"
        )
    return returns.ring


def move_sweeps(positions: Tensor, sweep: Tensor, matrices: Tensor) -> Tensor:
    """Positions (point, 3) after the rigid transform (4, 4) float32 of each point's sweep (point,)."""
    result = positions.clone()
    for rows, matrix in zip(_rows_of_sweeps(sweep, len(matrices)), matrices, strict=True):
        part = positions[rows]
        if len(part) and not torch.equal(matrix, torch.eye(4)):
            # OpenCV is many times faster here than a matrix product with one tiny factor.
            result[rows] = torch.from_numpy(cv2.transform(part.numpy()[None], matrix[:3].numpy())[0])
    return result


def _rows_of_sweeps(sweep: Tensor, count: int) -> Sequence[slice | Tensor]:
    """Rows of the points of each sweep, from the sweep of every point (point,); slices where it is sorted."""
    if bool((sweep[1:] >= sweep[:-1]).all()):
        ends = torch.bincount(sweep, minlength=count).cumsum(0).tolist()
        return [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [(sweep == number).nonzero(as_tuple=True)[0] for number in range(count)]
