"""Measures what faults destroyed, by comparing a frame before and after them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional

from cmt_aqr.damage import IMAGE_CELLS, RINGS, SECTORS, Damage, polar_cell
from cmt_aqr.data.augmentation import Transform, apply_transforms
from cmt_aqr.geometry import project_to_images
from cmt_aqr.structures import Frame

_MAX_SHIFT = 0.5  # metres; a point that moved farther counts as lost
_PRIOR_POINTS = 4.0  # weight of the sector's loss as a prior of its cells, in points
_PRIOR_VARIANCE = 16.0  # weight of the image's correlation as a prior of its cells, in squared grey levels
_STRIDE = 4  # along both axes, every n-th pixel is compared
_BLIND_SHIFT = 0.05  # of the image width; a calibration that moves objects at 20 m by that much counts as blind


@dataclass
class MeasureDamage:
    """Applies faults to a frame as read and stores in ``Frame.damage`` what they destroyed.

    Faults need not describe themselves: the frame is compared before and after them.

    - LiDAR: the share of a polar cell's returns that are gone or moved by more than 0.5 m. Cells with few returns
      are smoothed towards their sector, and sectors towards the frame. If the number of points has not changed,
      points are compared one by one, assuming the same order. Otherwise only counts are compared, which cannot
      distinguish old points from new ones: a delayed or stuck LiDAR of another number of points counts as intact.
    - Cameras: 1 - r per image cell, with r the correlation of its pixels before and after. Cells without contrast
      are smoothed towards their image. A calibration that moves objects at 20 m by 5 % of the width counts as
      blind.
    """

    faults: Sequence[Transform]

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """The frame after the faults, with its damage."""
        after = apply_transforms(frame, self.faults, random)
        return after.replace(damage=_damage_between(frame, after))


def _damage_between(before: Frame, after: Frame) -> Damage:
    """Damage between two states of a frame as read."""
    size = (1, 1) if before.images is None else (before.images.shape[-2], before.images.shape[-1])
    scale = torch.tensor((1 / size[1], 1 / size[0], 1.0, 1.0))[:, None]
    cameras = torch.zeros(len(before.lidar2img), *IMAGE_CELLS)
    if before.images is not None and after.images is not None and before.images is not after.images:
        cameras = _image_damage(before.images, after.images)
    if before.images is not None and not torch.equal(before.lidar2img, after.lidar2img):
        blind = _calibration_damage(before.lidar2img, after.lidar2img, size)
        cameras = torch.maximum(cameras, blind[:, None, None])
    lidar = torch.zeros(SECTORS * RINGS)
    if before.points is not after.points:
        lidar = _lidar_damage(before.points, after.points)
    return Damage(lidar, cameras, scale * before.lidar2img.float(), torch.eye(4))


def _lidar_damage(before: Tensor, after: Tensor) -> Tensor:
    """(sector * ring,), from points (point, 5)."""
    total = _counts(before)
    if len(before) == len(after):
        in_place = (after[:, :3] - before[:, :3]).square().sum(dim=1) < _MAX_SHIFT**2
        left = _counts(before[in_place])
    else:
        left = torch.minimum(_counts(after), total)
    total, left = total.view(SECTORS, RINGS), left.view(SECTORS, RINGS)
    share = left.sum() / total.sum().clamp(min=1)
    sector = (left.sum(1, keepdim=True) + _PRIOR_POINTS * share) / (total.sum(1, keepdim=True) + _PRIOR_POINTS)
    return 1 - ((left + _PRIOR_POINTS * sector) / (total + _PRIOR_POINTS)).flatten()


def _counts(points: Tensor) -> Tensor:
    """Points per polar cell, float32."""
    return torch.bincount(polar_cell(points[:, :2]), minlength=SECTORS * RINGS).float()


def _image_damage(before: Tensor, after: Tensor) -> Tensor:
    """(view, row, column), from images (view, 3, height, width) uint8 as read."""
    a, b = (images[:, 1, ::_STRIDE, ::_STRIDE].float() for images in (before, after))

    def moments(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Covariance, and product of the standard deviations, per cell."""
        mean = [functional.adaptive_avg_pool2d(value, size) for value in (a, b, a * a, b * b, a * b)]
        variances = (mean[2] - mean[0] ** 2).clamp(min=0) * (mean[3] - mean[1] ** 2).clamp(min=0)
        return mean[4] - mean[0] * mean[1], variances.sqrt()

    covariance, deviations = moments((1, 1))
    prior = covariance / deviations.clamp(min=1e-6)
    covariance, deviations = moments(IMAGE_CELLS)
    correlation = (covariance + _PRIOR_VARIANCE * prior) / (deviations + _PRIOR_VARIANCE)
    unchanged = (before == after).flatten(1).all(dim=1)  # exactly 0, whatever rounding does
    return torch.where(unchanged[:, None, None], 0.0, 1 - correlation.clamp(0, 1))


def _calibration_damage(before: Tensor, after: Tensor, size: tuple[int, int]) -> Tensor:
    """(view,), from two lidar2img (view, 4, 4): the mean shift in the image of what is 20 m away."""
    angle = torch.arange(360.0).deg2rad()
    circle = torch.stack((20 * angle.cos(), 20 * angle.sin(), torch.zeros(360)), dim=1)[None]
    true, _, seen = project_to_images(circle, before[None], size)
    wrong, _, _ = project_to_images(circle, after[None], size)
    shift = ((wrong - true).norm(dim=-1) * seen)[0].sum(dim=1) / seen[0].sum(dim=1).clamp(min=1)
    return (shift / (_BLIND_SHIFT * size[1])).clamp(max=1).float()
