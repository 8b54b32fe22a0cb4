"""Frames side by side."""

from collections.abc import Sequence

import torch

from cmt_aqr.structures import Batch, Frame


def collate(frames: Sequence[Frame]) -> Batch:
    """Put frames into a batch; points and boxes, whose number differs, are concatenated.

    Args:
        frames: at least one; all with images of one size, normalised, or all without.

    Raises:
        ValueError: no frame, or images in some frames only.
    """
    if not frames:
        raise ValueError("collate got no frame: a batch needs at least one")
    with_images = [frame.images for frame in frames if frame.images is not None]
    if with_images and len(with_images) != len(frames):
        raise ValueError(
            f"collate got images in {len(with_images)} of {len(frames)} frames: it must be all or none"
        )
    return Batch(
        tokens=tuple(frame.token for frame in frames),
        points=torch.cat([frame.points for frame in frames]),
        point_counts=tuple(len(frame.points) for frame in frames),
        images=torch.stack([image.contiguous() for image in with_images]) if with_images else None,
        lidar2img=torch.stack([frame.lidar2img for frame in frames]),
        boxes=torch.cat([frame.boxes for frame in frames]),
        labels=torch.cat([frame.labels for frame in frames]),
        box_counts=tuple(len(frame.boxes) for frame in frames),
        lidar2global=torch.stack([frame.lidar2global for frame in frames]),
    )
