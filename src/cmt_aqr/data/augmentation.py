"""Transforms of a frame as one object, so that points, boxes, images and lidar2img never disagree.

A transform takes a frame and a random generator and returns a new frame; it changes nothing in place, so
that frames may be kept in memory and read again. All its randomness comes from that generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cmt_aqr.checks import require_fraction, require_numbers, require_range
from cmt_aqr.data.masking import GridMask
from cmt_aqr.data.poses import move_points
from cmt_aqr.geometry import wrap_angle
from cmt_aqr.structures import Frame


class Transform(Protocol):
    """Anything that turns a frame into another: an augmentation, a sensor fault, a filter."""

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Return the changed frame; ``frame`` itself stays as it is."""
        ...


def apply_transforms(frame: Frame, transforms: Iterable[Transform], random: Generator) -> Frame:
    """Apply transforms one after another, all drawing from one generator."""
    for transform in transforms:
        frame = transform(frame, random)
    return frame


@dataclass
class SceneAugmentation:
    """Turn, scale, shift and mirror the scene: points, boxes with their velocities, and lidar2img.

    In the order of CMT's release: rotation about z, scale, translation, mirroring. Images stay as they are;
    lidar2img takes the inverse, so every point still projects onto the pixel it did before. ``lidar2global``
    takes it too: it still brings points home, but it is no longer rigid, so boxes cannot be moved with it,
    which evaluation, where nothing is augmented, never asks for.
    """

    rotation: tuple[float, float] = (0.0, 0.0)  # least and greatest angle about z, radians
    scale: tuple[float, float] = (1.0, 1.0)  # least and greatest factor
    translation_std: Sequence[float] = (0.0, 0.0, 0.0)  # standard deviation of the shift along x, y, z, metres
    flip_x: float = 0.0  # probability of x -> -x
    flip_y: float = 0.0  # probability of y -> -y

    def __post_init__(self) -> None:
        self.rotation = require_range("rotation", self.rotation)
        self.scale = require_range("scale", self.scale, above=0)
        require_numbers("translation_std", self.translation_std, 3, low=0)
        require_fraction("flip_x", self.flip_x)
        require_fraction("flip_y", self.flip_y)

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Draw a transform and apply it."""
        angle = random.uniform(*self.rotation)
        scale = random.uniform(*self.scale)
        shift = random.normal(0.0, self.translation_std)
        flip_x = random.random() < self.flip_x
        flip_y = random.random() < self.flip_y
        return transform_scene(frame, angle, scale, shift, flip_x, flip_y)


def transform_scene(
    frame: Frame, angle: float, scale: float, shift: ArrayLike, flip_x: bool, flip_y: bool
) -> Frame:
    """Rotate by ``angle`` radians about z, scale, shift by metres (x, y, z), then mirror x and y.

    See :class:`SceneAugmentation`. Velocities scale with the scene, as in CMT's release.
    """
    cosine, sine = math.cos(angle), math.sin(angle)
    mirror = torch.tensor((-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, 1.0), dtype=torch.float64)
    turn = torch.tensor(((cosine, -sine, 0), (sine, cosine, 0), (0, 0, 1)), dtype=torch.float64)
    linear = mirror[:, None] * turn * scale
    offset = mirror * torch.as_tensor(np.asarray(shift, dtype=np.float64))
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3], matrix[:3, 3] = linear, offset
    inverse = torch.linalg.inv(matrix)

    linear32, offset32 = linear.float(), offset.float()
    boxes = frame.boxes.clone()
    boxes[:, :3] = boxes[:, :3] @ linear32.T + offset32
    boxes[:, 3:6] *= scale
    yaw = boxes[:, 6] + angle
    if flip_x:
        yaw = math.pi - yaw
    if flip_y:
        yaw = -yaw
    boxes[:, 6] = wrap_angle(yaw)
    boxes[:, 7:9] = boxes[:, 7:9] @ linear32[:2, :2].T
    return frame.replace(
        points=torch.from_numpy(move_points(frame.points.numpy(), linear.numpy(), offset.numpy())),
        boxes=boxes,
        lidar2img=frame.lidar2img.double() @ inverse,
        lidar2global=frame.lidar2global @ inverse,
        damage=None if frame.damage is None else frame.damage.moved(inverse),
    )


@dataclass
class TrainingFilter:
    """Keep what a training step can use.

    Boxes are dropped whose centre lies outside the range in x or y, or that have few annotated LiDAR points: CMT
    trains on boxes with one or more. A voxel keeps its first ten points, which would always be those of the newest
    sweeps: a random order is drawn, into which points are brought on the device. The release's detector rounds
    points to half precision on entry while it trains (not while it is tested): steps of 0.031 m beyond 32 m.
    """

    point_range: Sequence[float]  # x0, y0, z0, x1, y1, z1 in metres, LiDAR frame
    min_points: int = 1
    crop_points: bool = True  # drop points outside the range, which no voxel would take
    shuffle_points: bool = True
    half_points: bool = False

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Drop boxes and points."""
        low, high = torch.tensor(self.point_range[:3]), torch.tensor(self.point_range[3:])
        points = frame.points
        if self.crop_points:
            points = _inside(points, self.point_range)
        if self.half_points:
            points = points.half()
        centre = frame.boxes[:, :2]
        keep = ((centre > low[:2]) & (centre < high[:2])).all(dim=1) & (frame.box_points >= self.min_points)
        return frame.replace(
            points=points,
            boxes=frame.boxes[keep],
            labels=frame.labels[keep],
            box_points=frame.box_points[keep],
            shuffle=int(random.integers(2**63)) if self.shuffle_points else None,
        )


def _inside(points: Tensor, point_range: Sequence[float]) -> Tensor:
    """The points (point, 5) within x0, y0, z0, x1, y1, z1.

    Columns are laid out side by side before they are compared, and points are gathered as records of 20 bytes: a
    sixth of the time of masks (point, 3).
    """
    values = np.ascontiguousarray(points.numpy())
    inside = np.ones(len(values), dtype=np.bool_)
    columns = np.ascontiguousarray(values[:, :3].T)
    for column, low, high in zip(columns, point_range[:3], point_range[3:], strict=True):
        inside &= column > np.float32(low)
        inside &= column < np.float32(high)
    records = values.view(np.dtype((np.void, values.itemsize * values.shape[1])))[:, 0]
    return torch.from_numpy(records[inside].view(values.dtype).reshape(-1, values.shape[1]))


@dataclass
class ImageAugmentation:
    """What varies in :class:`ImageProcessing` in training; one draw a frame, the same for its six views.

    Factors are relative to the test-time resize, so that they fit pictures of any size: CMT's 0.47..0.625 of a
    1600 x 900 picture at a test-time factor of 0.5 is 0.94..1.25, and so is its 0.94..1.25 at a factor of 1.
    """

    resize: tuple[float, float] = (1.0, 1.0)  # least and greatest factor
    flip: float = 0.0  # probability of a horizontal mirroring
    grid_mask: GridMask | None = None  # squares dropped after normalisation

    def __post_init__(self) -> None:
        self.resize = require_range("resize", self.resize, above=0)
        require_fraction("flip", self.flip)


@dataclass
class ImageProcessing:
    """Resize, crop and perhaps mirror the images; lidar2img goes along.

    Test time: resize by the smallest factor that covers ``size``, keep the bottom rows, centre the columns.
    Training adds what ``augmentation`` draws: another factor, a random place for the columns, mirroring,
    GridMask. Where a picture becomes smaller than the crop, it is filled up with black, right and top.

    Images are resized as they were read, bilinear, to whole grey levels (uint8), in training and at test, which
    gives the published pixels exactly. In lidar2img pixel *edges* scale and mirror: u' = s u, and
    u' = width - u, as in CMT's release; by the ratio of the sizes in whole pixels, which is what happens to the
    picture, or by the factor as drawn, as in the release (up to a pixel apart at the far edge).
    """

    size: Sequence[int]  # height and width of the result
    augmentation: ImageAugmentation | None = None  # what varies in training
    exact_lidar2img: bool = True  # whether lidar2img scales by the ratio of the sizes

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Return the frame with images (view, 3, *size) uint8; a frame without images stays as it is.

        A GridMask that was drawn travels with the frame: whether it counts is decided where frames become a batch.
        """
        if frame.images is None:
            return frame
        height, width = self.size
        raw_height, raw_width = frame.images.shape[-2:]
        factor = max(height / raw_height, width / raw_width)
        mirrored, mask = False, None
        if self.augmentation is not None:
            factor *= random.uniform(*self.augmentation.resize)
            mirrored = random.random() < self.augmentation.flip
        # The small number keeps 800.0 from becoming 799 in floating point.
        resized = (int(raw_height * factor + 1e-6), int(raw_width * factor + 1e-6))
        spare = max(0, resized[1] - width)
        left = spare // 2 if self.augmentation is None else int(random.uniform(0, spare))
        if self.augmentation is not None and self.augmentation.grid_mask is not None:
            mask = self.augmentation.grid_mask.draw((height, width), random)
        frame = self.resize(frame, factor, resized, left, mirrored)
        return frame.replace(image_mask=None if mask is None else torch.from_numpy(mask))

    def mark_unseen(self, frame: Frame, random: Generator) -> Frame:
        """Note in a frame as read how many rows at the top of its images the crop drops, whatever is drawn."""
        if frame.images is None:
            return frame
        height, width = self.size
        raw_height, raw_width = frame.images.shape[-2:]
        least = 1.0 if self.augmentation is None else self.augmentation.resize[0]
        factor = least * max(height / raw_height, width / raw_width)
        dropped = int(raw_height * factor) - height
        # A row less for those that are rounded, and for the other of the two that a pixel is made of.
        return frame.replace(unseen_rows=max(0, int((dropped - 1) / factor) - 2))

    def resize(self, frame: Frame, factor: float, resized: tuple[int, int], left: int, mirrored: bool) -> Frame:
        """Resize, keep the bottom rows and the columns from ``left`` on, perhaps mirror; lidar2img goes along.

        Args:
            frame: with images (view, 3, height, width) uint8, which become (view, 3, *size).
            factor: as drawn, from stored pixels to resized ones.
            resized: height and width in whole pixels.
            left: first column.
            mirrored: swap left and right, after all else.
        """
        assert frame.images is not None
        raw_height, raw_width = frame.images.shape[-2:]
        top = resized[0] - self.size[0]
        scale = (resized[1] / raw_width, resized[0] / raw_height) if self.exact_lidar2img else (factor, factor)
        pixel = _pixel_transform(*scale, left, top)
        if mirrored:
            pixel = _mirror(self.size[1]) @ pixel
        pixels = self._pixels(frame.images, resized, top, left, mirrored)
        return frame.replace(
            images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            lidar2img=pixel @ frame.lidar2img.double(),
            unseen_rows=0,
        )

    def _pixels(
        self, images: Tensor, resized: tuple[int, int], top: int, left: int, mirrored: bool
    ) -> NDArray[np.uint8]:
        """Pixels (view, height, width, 3) of images (view, 3, height, width)."""
        height, width = self.size
        raw_height, raw_width = images.shape[-2:]
        rows = slice(max(0, -top), max(0, -top) + min(height, resized[0] - max(0, top)))
        filled = min(width, resized[1] - left)
        columns = slice(width - filled, width) if mirrored else slice(0, filled)
        whole = filled == width and rows == slice(0, height)
        result = (np.empty if whole else np.zeros)((len(images), height, width, 3), dtype=np.uint8)
        # What the crop drops on the right need not be resized. At the other sides it must: a resize that begins in
        # the middle rounds otherwise. As factors, because a cut picture's sizes have another ratio.
        across, down = resized[1] / raw_width, resized[0] / raw_height
        needed = int((left + filled + 1) / across) + 3
        for view, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            picture = cv2.resize(image[:, :needed], None, fx=across, fy=down)
            picture = picture[max(0, top) : max(0, top) + height, left : left + width]
            place = result[view, rows, columns]
            if mirrored:
                cv2.flip(picture, 1, dst=place)
            else:
                place[:] = picture
        return result


def _pixel_transform(scale_u: float, scale_v: float, left: float, top: float) -> Tensor:
    """(4, 4) on (u * depth, v * depth, depth, 1): scale, then move the crop's corner to (0, 0)."""
    return torch.tensor(
        ((scale_u, 0, -left, 0), (0, scale_v, -top, 0), (0, 0, 1, 0), (0, 0, 0, 1)), dtype=torch.float64
    )


def _mirror(width: float) -> Tensor:
    """(4, 4) on (u * depth, v * depth, depth, 1): u -> width - u."""
    return torch.tensor(((-1, 0, width, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)), dtype=torch.float64)
