"""Measures what faults broke, by comparing a frame before and after them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional

from cmt_aqr.damage import IMAGE_CELLS, RINGS, SECTORS, Damage, polar_cell
from cmt_aqr.data.augmentation import Transform, apply_transforms
from cmt_aqr.geometry import project_to_images
from cmt_aqr.structures import Frame

_MOVED = 0.5
"""Metres that a point must have moved to count as lost."""

_PRIOR_POINTS = 4.0
"""Weight of what is known of the whole sector, in points, beside the points of a cell."""

_PRIOR_VARIANCE = 16.0
"""Weight of what is known of the whole image, in squared grey levels, beside the contrast of a cell."""

_STRIDE = 4
"""Of the pixels that are looked at, along both axes."""

_SHIFT = 0.05
"""Share of an image's width: so far off, a calibration shows nothing of an object at 20 m where it is."""


class TellDamage:
    """Applies faults to a frame as read and notes in ``Frame.damage`` what they broke.

    Whatever the fault, both frames are compared, so that a fault need not know how to describe itself:

    - LiDAR: share of the returns of a polar cell that are gone or were moved by more than 0.5 m. A cell with few
      returns leans on its sector, that on all. Where the number of points stays and their order with it, moved
      ones are told one by one; otherwise counts are compared, which cannot tell old points from new ones: a late
      or stuck LiDAR counts as whole.
    - Cameras: 1 - r per image cell, with r the correlation of its pixels before and after. A cell without contrast
      leans on its image. A calibration that moves what stands at 20 m by 5 % of the width counts as blind.
    """

    def __init__(self, faults: Sequence[Transform]) -> None:
        self.faults = tuple(faults)

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """The frame after the faults, with its damage."""
        after = apply_transforms(frame, self.faults, random)
        return after.replace(damage=damage_between(frame, after))


def damage_between(before: Frame, after: Frame) -> Damage:
    """What was lost between two states of a frame as read; see :class:`TellDamage`."""
    views = len(before.lidar2img)
    size = (1, 1) if before.images is None else (before.images.shape[-2], before.images.shape[-1])
    scale = torch.tensor((1 / size[1], 1 / size[0], 1.0, 1.0))[:, None]
    cameras = torch.zeros(views, *IMAGE_CELLS)
    if before.images is not None and after.images is not None and before.images is not after.images:
        cameras = _images_lost(before.images, after.images)
    if before.images is not None and not torch.equal(before.lidar2img, after.lidar2img):
        cameras = torch.maximum(cameras, _calibration_lost(before.lidar2img, after.lidar2img, size)[:, None, None])
    lidar = torch.zeros(SECTORS * RINGS)
    if before.points is not after.points:
        lidar = _returns_lost(before.points, after.points)
    return Damage(lidar, cameras, scale * before.lidar2img.float(), torch.eye(4))


def _returns_lost(before: Tensor, after: Tensor) -> Tensor:
    """(sector * ring,), from points (point, 5)."""
    had = _counts(before)
    if len(before) == len(after):
        stayed = (after[:, :3] - before[:, :3]).square().sum(dim=1) < _MOVED**2
        kept = _counts(before[stayed])
    else:
        kept = torch.minimum(_counts(after), had)
    had, kept = had.view(SECTORS, RINGS), kept.view(SECTORS, RINGS)
    share = kept.sum() / had.sum().clamp(min=1)
    sector = (kept.sum(1, keepdim=True) + _PRIOR_POINTS * share) / (had.sum(1, keepdim=True) + _PRIOR_POINTS)
    return 1 - ((kept + _PRIOR_POINTS * sector) / (had + _PRIOR_POINTS)).flatten()


def _counts(points: Tensor) -> Tensor:
    """Points per polar cell, float32."""
    return torch.bincount(polar_cell(points[:, :2]), minlength=SECTORS * RINGS).float()


def _images_lost(before: Tensor, after: Tensor) -> Tensor:
    """(view, row, column), from images (view, 3, height, width) uint8 as read."""
    a, b = (images[:, 1, ::_STRIDE, ::_STRIDE].float() for images in (before, after))

    def moments(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Covariance and product of the deviations, per cell."""
        mean = [functional.adaptive_avg_pool2d(value, size) for value in (a, b, a * a, b * b, a * b)]
        variances = (mean[2] - mean[0] ** 2).clamp(min=0) * (mean[3] - mean[1] ** 2).clamp(min=0)
        return mean[4] - mean[0] * mean[1], variances.sqrt()

    whole, spread = moments((1, 1))
    whole = whole / spread.clamp(min=1e-6)
    covariance, spread = moments(IMAGE_CELLS)
    left = (covariance + _PRIOR_VARIANCE * whole) / (spread + _PRIOR_VARIANCE)
    same = (before == after).flatten(1).all(dim=1)  # rounding shall not break what is whole
    return torch.where(same[:, None, None], 0.0, 1 - left.clamp(0, 1))


def _calibration_lost(before: Tensor, after: Tensor, size: tuple[int, int]) -> Tensor:
    """(view,), from two lidar2img (view, 4, 4): how far what stands at 20 m, has moved in the image."""
    angle = torch.arange(360.0).deg2rad()
    ring = torch.stack((20 * angle.cos(), 20 * angle.sin(), torch.zeros(360)), dim=1)[None]
    true, _, seen = project_to_images(ring, before[None], size)
    shown, _, _ = project_to_images(ring, after[None], size)
    shift = ((shown - true).norm(dim=-1) * seen)[0].sum(dim=1) / seen[0].sum(dim=1).clamp(min=1)
    return (shift / (_SHIFT * size[1])).clamp(max=1).float()
