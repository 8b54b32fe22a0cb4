"""Frames side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmt_aqr.damage import Damage
from cmt_aqr.structures import Batch, DeviceWork, Frame


def collate(frames: Sequence[Frame], mask_per_frame: bool = False) -> Batch:
    """Put frames into a batch; points and boxes, whose number differs, are concatenated.

    Args:
        frames: at least one; all with images of one size, or all without. A single frame is not copied.
        mask_per_frame: let each frame's own ``image_mask`` count; otherwise the first one's counts for all, as
            in CMT's release, which draws one GridMask a batch.
    """
    with_images = [frame.images for frame in frames if frame.images is not None]
    damages = [frame.damage for frame in frames if frame.damage is not None]
    return Batch(
        tokens=tuple(frame.token for frame in frames),
        points=frames[0].points if len(frames) == 1 else torch.cat([frame.points for frame in frames]),
        point_counts=tuple(len(frame.points) for frame in frames),
        images=_side_by_side(with_images) if with_images else None,
        lidar2img=torch.stack([frame.lidar2img for frame in frames]).float(),
        boxes=torch.cat([frame.boxes for frame in frames]),
        labels=torch.cat([frame.labels for frame in frames]),
        box_counts=tuple(len(frame.boxes) for frame in frames),
        lidar2global=torch.stack([frame.lidar2global for frame in frames]),
        device_work=DeviceWork(
            _masks([frame.image_mask if mask_per_frame else frames[0].image_mask for frame in frames]),
            tuple(frame.shuffle for frame in frames),
        ),
        damage=Damage.stack(damages) if damages else None,
    )


def _side_by_side(images: Sequence[Tensor]) -> Tensor:
    """Images (batch, view, 3, height, width) that keep the channel last in memory."""
    if len(images) == 1:
        return images[0].unsqueeze(0)
    return torch.stack([image.permute(0, 2, 3, 1) for image in images]).permute(0, 1, 4, 2, 3)


def _masks(masks: Sequence[Tensor | None]) -> Tensor | None:
    """Masks (batch, height, width); where a frame has none, all of its pixels stay."""
    shape = next((mask.shape for mask in masks if mask is not None), None)
    if shape is None:
        return None
    return torch.stack([torch.ones(shape, dtype=torch.bool) if mask is None else mask for mask in masks])
