"""Frames side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmt_aqr.damage import Damage
from cmt_aqr.structures import Batch, DeviceWork, Frame


def collate(frames: Sequence[Frame], mask_per_frame: bool = False) -> Batch:
    """Put frames into a batch; points and boxes, whose number differs, are concatenated.

    Args:
        frames: at least one; all with images of one size, or all without.
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
    damages = [frame.damage for frame in frames if frame.damage is not None]
    return Batch(
        tokens=tuple(frame.token for frame in frames),
        points=_joined([frame.points for frame in frames]),
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


def _joined(points: Sequence[Tensor]) -> Tensor:
    """Points of all frames, (point, 5); those of a single frame as they are: megabytes that need no copy."""
    return points[0] if len(points) == 1 else torch.cat(list(points))


def _side_by_side(images: Sequence[Tensor]) -> Tensor:
    """Images (batch, view, 3, height, width) that keep the channel last in memory, as they have it.

    Those of a single frame are not copied, either.
    """
    if len(images) == 1:
        return images[0].unsqueeze(0)
    return torch.stack([image.permute(0, 2, 3, 1) for image in images]).permute(0, 1, 4, 2, 3)


def _masks(masks: Sequence[Tensor | None]) -> Tensor | None:
    """Masks (batch, height, width); where a frame has none, all of its pixels stay."""
    shape = next((mask.shape for mask in masks if mask is not None), None)
    if shape is None:
        return None
    return torch.stack([torch.ones(shape, dtype=torch.bool) if mask is None else mask for mask in masks])
