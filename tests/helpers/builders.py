"""Boxes, batches and outputs written by hand."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmt_aqr.outputs import QueryOutputs
from cmt_aqr.structures import Batch

RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)


def box(x: float = 0.0, y: float = 0.0, z: float = 0.0, size: float = 2.0, yaw: float = 0.0) -> list[float]:
    """A cube of ``size`` metres at (x, y, z), standing still."""
    return [x, y, z, size, size, size, yaw, 0.0, 0.0]


def batch_of(boxes: Sequence[Sequence[Sequence[float]]], labels: Sequence[Sequence[int]]) -> Batch:
    """A batch without points and images, from lists of boxes and labels per frame."""
    size = len(boxes)
    return Batch(
        tokens=tuple(f"frame{i}" for i in range(size)),
        points=torch.zeros(0, 5),
        point_counts=(0,) * size,
        images=None,
        lidar2img=torch.eye(4).expand(size, 6, 4, 4),
        boxes=torch.tensor([box for frame in boxes for box in frame]).reshape(-1, 9),
        labels=torch.tensor([label for frame in labels for label in frame], dtype=torch.int64),
        box_counts=tuple(len(frame) for frame in boxes),
        lidar2global=torch.eye(4, dtype=torch.float64).expand(size, 4, 4),
    )


def outputs_of(codes: Tensor, logits: Tensor) -> QueryOutputs:
    """Outputs of one layer from (batch, query, 10) and (batch, query, class)."""
    return QueryOutputs(codes=codes[None], logits=logits[None])
