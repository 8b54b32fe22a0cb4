"""Transforms of complete frames, so that points, boxes, images and lidar2img stay consistent.

A transform takes a frame and a random generator and returns a new frame. It modifies nothing in place, so that
frames can be cached, and draws from that generator only.
"""

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
    """A function of a frame: an augmentation, a sensor fault, a filter."""

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Return the transformed frame; ``frame`` is not modified."""
        ...


def apply_transforms(frame: Frame, transforms: Iterable[Transform], random: Generator) -> Frame:
    """Apply transforms in order, all with the same generator."""
    for transform in transforms:
        frame = transform(frame, random)
    return frame


@dataclass
class SceneAugmentation:
    """Rotate, scale, shift and mirror the scene: points, boxes with their velocities, and lidar2img.

    In the order of CMT's release: rotation about z, scale, translation, mirroring. Images do not change; lidar2img
    is multiplied by the inverse, so that every point projects to the same pixel as before. So is ``lidar2global``,
    which is then no longer rigid and cannot transform boxes; evaluation, which needs that, does not augment.
    """

    rotation: tuple[float, float] = (0.0, 0.0)  # minimum and maximum angle about z, radians
    scale: tuple[float, float] = (1.0, 1.0)  # minimum and maximum factor
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
        """Apply a random transform."""
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
    rotation = torch.tensor(((cosine, -sine, 0), (sine, cosine, 0), (0, 0, 1)), dtype=torch.float64)
    linear = mirror[:, None] * rotation * scale
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
    """Drop boxes and points that are not used in training, and draw the order of the points.

    A box needs its centre inside the range in x and y, and ``min_points`` annotated LiDAR points (1 in CMT).
    Points are shuffled, on the device, because a voxel keeps only its first ten, which would always be those of
    the newest sweeps. In training, though not at test time, the release's detector rounds its input points to half
    precision: steps of 0.031 m beyond 32 m.
    """

    point_range: Sequence[float]  # x0, y0, z0, x1, y1, z1 in metres, LiDAR frame
    min_points: int = 1
    crop_points: bool = True  # drop points outside the range, which belong to no voxel
    shuffle_points: bool = True
    half_points: bool = False  # round points to half precision

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Filter boxes and points."""
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

    Contiguous columns are compared, and points are gathered as records of 20 bytes: a sixth of the time of a mask
    (point, 3).
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
    """The random part of :class:`ImageProcessing` in training, drawn once per frame for all views.

    Factors are relative to the test-time resize, which fits images of any size: CMT's 0.47..0.625 at a test-time
    factor of 0.5 is 0.94..1.25, and so is its 0.94..1.25 at a factor of 1.
    """

    resize: tuple[float, float] = (1.0, 1.0)  # minimum and maximum factor
    flip: float = 0.0  # probability of a horizontal flip
    grid_mask: GridMask | None = None  # applied after normalisation

    def __post_init__(self) -> None:
        self.resize = require_range("resize", self.resize, above=0)
        require_fraction("flip", self.flip)


@dataclass
class ImageProcessing:
    """Resize, crop and optionally mirror the images, and update lidar2img.

    At test time: resize by the smallest factor that covers ``size``, keep the bottom rows, centre the columns.
    Training draws from ``augmentation``: the factor, the position of the columns, mirroring, GridMask. An image
    that becomes smaller than the crop is padded with black, right and top.

    Images are resized as uint8, bilinear, in training and at test time, which reproduces the published pixels
    exactly. In lidar2img, pixel *edges* scale and mirror: u' = s u, and u' = width - u, as in CMT's release. The
    scale s is the ratio of the sizes in whole pixels, which is exact, or the factor as drawn, as in the release
    (up to a pixel apart at the far edge).
    """

    size: Sequence[int]  # height and width of the result
    augmentation: ImageAugmentation | None = None
    exact_lidar2img: bool = True  # whether lidar2img scales by the ratio of the sizes

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Return the frame with images (view, 3, *size) uint8; a frame without images is returned as it is.

        A GridMask is only drawn here: collation decides whether it is applied.
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
        # 1e-6 keeps a product of 799.999... from becoming 799.
        resized = (int(raw_height * factor + 1e-6), int(raw_width * factor + 1e-6))
        margin = max(0, resized[1] - width)
        left = margin // 2 if self.augmentation is None else int(random.uniform(0, margin))
        if self.augmentation is not None and self.augmentation.grid_mask is not None:
            mask = self.augmentation.grid_mask.draw((height, width), random)
        frame = self.resize(frame, factor, resized, left, mirrored)
        return frame.replace(image_mask=None if mask is None else torch.from_numpy(mask))

    def mark_unseen(self, frame: Frame, random: Generator) -> Frame:
        """Set ``unseen_rows`` of a frame as read: the rows at the top of its images that the crop always drops."""
        if frame.images is None:
            return frame
        height, width = self.size
        raw_height, raw_width = frame.images.shape[-2:]
        smallest = 1.0 if self.augmentation is None else self.augmentation.resize[0]
        factor = smallest * max(height / raw_height, width / raw_width)
        dropped = int(raw_height * factor) - height
        # A margin for rounding, and for interpolation, which reads two rows per pixel.
        return frame.replace(unseen_rows=max(0, int((dropped - 1) / factor) - 2))

    def resize(self, frame: Frame, factor: float, resized: tuple[int, int], left: int, mirrored: bool) -> Frame:
        """Resize, keep the bottom rows and the columns from ``left`` on, optionally mirror, and update lidar2img.

        Args:
            frame: with images (view, 3, height, width) uint8, which become (view, 3, *size).
            factor: from stored to resized pixels, as drawn.
            resized: height and width before the crop.
            left: first column of the crop.
            mirrored: whether to swap left and right, last.
        """
        assert frame.images is not None
        raw_height, raw_width = frame.images.shape[-2:]
        top = resized[0] - self.size[0]
        scale = (resized[1] / raw_width, resized[0] / raw_height) if self.exact_lidar2img else (factor, factor)
        pixel = torch.eye(4, dtype=torch.float64)  # of (u * depth, v * depth, depth, 1)
        pixel[0, 0], pixel[1, 1] = scale
        pixel[0, 2], pixel[1, 2] = -left, -top
        if mirrored:
            pixel[0] = self.size[1] * pixel[2] - pixel[0]  # u -> width - u
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
        covered = min(width, resized[1] - left)
        columns = slice(width - covered, width) if mirrored else slice(0, covered)
        padded = covered < width or rows != slice(0, height)
        result = (np.zeros if padded else np.empty)((len(images), height, width, 3), dtype=np.uint8)
        # Columns right of the crop need not be resized. Those left of it must: a resize that starts elsewhere
        # rounds differently. The scale is given as factors, because the ratio of truncated sizes is another.
        scale_u, scale_v = resized[1] / raw_width, resized[0] / raw_height
        needed = int((left + covered + 1) / scale_u) + 3
        for view, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            image = cv2.resize(image[:, :needed], None, fx=scale_u, fy=scale_v)
            image = image[max(0, top) : max(0, top) + height, left : left + width]
            target = result[view, rows, columns]
            if mirrored:
                cv2.flip(image, 1, dst=target)
            else:
                target[:] = image
        return result
