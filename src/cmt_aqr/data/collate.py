"""Frames side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmt_aqr.structures import Batch, Frame


def collate(frames: Sequence[Frame], mask_per_frame: bool = False) -> Batch:
    """Put frames into a batch; points and boxes, whose number differs, are concatenated.

    Args:
        frames: at least one; all with images of one size, normalised, or all without.
        mask_per_frame: let each frame's own ``image_mask`` count; otherwise the first one's counts for all, as
            in CMT's release, which draws one GridMask a batch.

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
        images=_images(frames, mask_per_frame) if with_images else None,
        lidar2img=torch.stack([frame.lidar2img for frame in frames]).float(),
        boxes=torch.cat([frame.boxes for frame in frames]),
        labels=torch.cat([frame.labels for frame in frames]),
        box_counts=tuple(len(frame.boxes) for frame in frames),
        lidar2global=torch.stack([frame.lidar2global for frame in frames]),
    )


def _images(frames: Sequence[Frame], mask_per_frame: bool) -> Tensor:
    """Images (batch, view, 3, height, width) of frames that have them, 0 where a mask says so."""
    images = torch.stack([frame.images.contiguous() for frame in frames if frame.images is not None])
    masks = [frame.image_mask if mask_per_frame else frames[0].image_mask for frame in frames]
    for picture, mask in zip(images, masks, strict=True):
        if mask is not None:
            picture *= mask
    return images
