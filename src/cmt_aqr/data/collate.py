"""Collation of frames into a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmt_aqr.damage import Damage
from cmt_aqr.structures import Batch, DeviceWork, Frame


def collate(frames: Sequence[Frame], mask_per_frame: bool = False) -> Batch:
    """Collate frames; points and boxes, whose number varies, are concatenated.

    Args:
        frames: at least one; all with images of one size, or all without. A single frame is not copied.
        mask_per_frame: apply each frame's own ``image_mask``. Otherwise that of the first applies to all, as in
            CMT's release, which draws one GridMask per batch.
    """
    images = [frame.images for frame in frames if frame.images is not None]
    damages = [frame.damage for frame in frames if frame.damage is not None]
    return Batch(
        tokens=tuple(frame.token for frame in frames),
        points=frames[0].points if len(frames) == 1 else torch.cat([frame.points for frame in frames]),
        point_counts=tuple(len(frame.points) for frame in frames),
        images=_stack_images(images) if images else None,
        lidar2img=torch.stack([frame.lidar2img for frame in frames]).float(),
        boxes=torch.cat([frame.boxes for frame in frames]),
        labels=torch.cat([frame.labels for frame in frames]),
        box_counts=tuple(len(frame.boxes) for frame in frames),
        lidar2global=torch.stack([frame.lidar2global for frame in frames]),
        device_work=DeviceWork(
            _stack_masks([(frame if mask_per_frame else frames[0]).image_mask for frame in frames]),
            tuple(frame.shuffle for frame in frames),
        ),
        damage=Damage.stack(damages) if damages else None,
    )


def _stack_images(images: Sequence[Tensor]) -> Tensor:
    """Images (batch, view, 3, height, width), channels last in memory."""
    if len(images) == 1:
        return images[0].unsqueeze(0)
    return torch.stack([image.permute(0, 2, 3, 1) for image in images]).permute(0, 1, 4, 2, 3)


def _stack_masks(masks: Sequence[Tensor | None]) -> Tensor | None:
    """Masks (batch, height, width); a frame without one keeps all pixels."""
    shape = next((mask.shape for mask in masks if mask is not None), None)
    if shape is None:
        return None
    return torch.stack([torch.ones(shape, dtype=torch.bool) if mask is None else mask for mask in masks])
