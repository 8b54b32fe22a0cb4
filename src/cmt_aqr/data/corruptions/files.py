"""Points as their files have them: each sweep in its own LiDAR frame, before it is moved to the keyframe's."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import torch
from torch import Tensor

from cmt_aqr.data.errors import DataError
from cmt_aqr.structures import Frame, Returns


def returns_of(frame: Frame) -> Returns:
    """Where a frame's points come from.

    Raises:
        ValueError: nobody knows, or points were added or dropped without keeping count.
    """
    returns = frame.returns
    if returns is None or len(returns.sweep) != len(frame.points):
        known = 0 if returns is None else len(returns.sweep)
        raise ValueError(
            f"frame {frame.token}: of {len(frame.points)} points {known} are known by their file; faults that "
            "strike files come before whatever adds or drops points without Frame.keep_points"
        )
    return returns


def rings_of(frame: Frame) -> Tensor:
    """The ring (point,) of every point.

    Raises:
        DataError: the files have none: all points would be of one ring.
    """
    ring = returns_of(frame).ring
    own = ring[returns_of(frame).sweep == 0]
    if len(own) > 100 and bool((own == own[0]).all()):
        raise DataError(
            f"frame {frame.token}: its points have no ring, the fifth column of the file is {int(own[0])} "
            "throughout; reducing beams needs the ring index, as in nuScenes' own files"
        )
    return ring


def in_own_frames(frame: Frame) -> Tensor:
    """Positions (point, 3), each in the LiDAR frame of its file."""
    returns = returns_of(frame)
    inverse = torch.linalg.inv(returns.motions).float()
    return _moved(frame.points[:, :3], returns.sweep, inverse)


def to_keyframe(positions: Tensor, returns: Returns) -> Tensor:
    """Positions (point, 3) in the LiDAR frame of the keyframe: the inverse of :func:`in_own_frames`."""
    return _moved(positions, returns.sweep, returns.motions.float())


def moved_in_own_frames(frame: Frame, changes: Tensor) -> Tensor:
    """Positions (point, 3), keyframe, where every file has been moved as a whole in its own LiDAR frame.

    Changes (sweep, 4, 4) are float64 and rigid; the identity leaves a file alone.
    """
    returns = returns_of(frame)
    whole = returns.motions @ changes @ torch.linalg.inv(returns.motions)
    untouched = (changes == torch.eye(4, dtype=changes.dtype)).all(dim=2).all(dim=1)
    whole[untouched] = torch.eye(4, dtype=whole.dtype)
    return _moved(frame.points[:, :3], returns.sweep, whole.float())


def _moved(positions: Tensor, sweep: Tensor, matrices: Tensor) -> Tensor:
    """Apply the matrix (4, 4) of its sweep to each position; one loop over the sweeps, of which there are few."""
    result = positions.clone()
    for rows, matrix in zip(rows_of_sweeps(sweep, len(matrices)), matrices, strict=True):
        part = positions[rows]
        if len(part) and not bool((matrix == torch.eye(4)).all()):
            # OpenCV is many times as fast here as a product of matrices, of which one is tiny.
            result[rows] = torch.from_numpy(cv2.transform(part.numpy()[None], matrix[:3].numpy())[0])
    return result


def rows_of_sweeps(sweep: Tensor, count: int) -> Sequence[slice | Tensor]:
    """The points of each sweep, given every point's (point,): slices where they lie one sweep after another."""
    if bool((sweep[1:] >= sweep[:-1]).all()):
        ends = torch.bincount(sweep, minlength=count).cumsum(0).tolist()
        return [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [(sweep == number).nonzero(as_tuple=True)[0] for number in range(count)]
