"""Transforms of a frame as one object, so that points, boxes, images and lidar2img never disagree.

A transform takes a frame and a random generator and returns a new frame; it changes nothing in place, so
that frames may be kept in memory and read again. All its randomness comes from that generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cmt_aqr.errors import SettingError
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


def _check_probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise SettingError(f"{name}={value}: a probability must be in [0, 1]")
    return float(value)


def _check_range(name: str, values: Sequence[float], above: float = -math.inf) -> tuple[float, float]:
    low, high = values
    if not above < low <= high:
        limit = "" if above == -math.inf else f", both above {above:g}"
        raise SettingError(f"{name}={list(values)}: give [low, high] with low <= high{limit}")
    return float(low), float(high)


class SceneAugmentation:
    """Turn, scale, shift and mirror the scene: points, boxes with their velocities, and lidar2img.

    In the order of CMT's release: rotation about z, scale, translation, mirroring. Images stay as they are;
    lidar2img takes the inverse, so every point still projects onto the pixel it did before. ``lidar2global``
    takes it too: it still brings points home, but it is no longer rigid, so boxes cannot be moved with it,
    which evaluation, where nothing is augmented, never asks for.

    Args:
        rotation: least and greatest angle about z, radians.
        scale: least and greatest factor.
        translation_std: standard deviation of the shift along x, y, z, metres.
        flip_x: probability of x -> -x.
        flip_y: probability of y -> -y.
    """

    def __init__(
        self,
        rotation: Sequence[float] = (0.0, 0.0),
        scale: Sequence[float] = (1.0, 1.0),
        translation_std: Sequence[float] = (0.0, 0.0, 0.0),
        flip_x: float = 0.0,
        flip_y: float = 0.0,
    ) -> None:
        self.rotation = _check_range("augmentation.scene.rotation", rotation)
        self.scale = _check_range("augmentation.scene.scale", scale, above=0)
        self.translation_std = tuple(float(value) for value in translation_std)
        if len(self.translation_std) != 3 or min(self.translation_std) < 0:
            raise SettingError(
                f"augmentation.scene.translation_std={list(translation_std)}: give three values of at least 0"
            )
        self.flip_x = _check_probability("augmentation.scene.flip_x", flip_x)
        self.flip_y = _check_probability("augmentation.scene.flip_y", flip_y)

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
    points = frame.points.clone()
    points[:, :3] = points[:, :3] @ linear32.T + offset32
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
        points=points,
        boxes=boxes,
        lidar2img=(frame.lidar2img.double() @ inverse).float(),
        lidar2global=frame.lidar2global @ inverse,
    )


class TrainingFilter:
    """Keep what a training step can use.

    Args:
        point_range: x0, y0, z0, x1, y1, z1 in metres, LiDAR frame. Boxes whose centre lies outside in x or y
            are dropped.
        min_points: boxes with fewer annotated LiDAR points are dropped; CMT trains on boxes with one or more.
        crop_points: drop points outside the range, which no voxel would take.
        shuffle_points: bring the points into random order: a voxel keeps its first ten points, which would
            otherwise always be those of the newest sweeps.
    """

    def __init__(
        self,
        point_range: Sequence[float],
        min_points: int = 1,
        crop_points: bool = True,
        shuffle_points: bool = True,
    ) -> None:
        self.point_range = tuple(float(value) for value in point_range)
        self.min_points = min_points
        self.crop_points = crop_points
        self.shuffle_points = shuffle_points

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Drop boxes and points."""
        low, high = torch.tensor(self.point_range[:3]), torch.tensor(self.point_range[3:])
        points = frame.points
        if self.crop_points:
            xyz = points[:, :3]
            points = points[((xyz >= low) & (xyz < high)).all(dim=1)]
        if self.shuffle_points:
            points = points[torch.from_numpy(random.permutation(len(points)))]
        centre = frame.boxes[:, :2]
        keep = ((centre > low[:2]) & (centre < high[:2])).all(dim=1) & (frame.box_points >= self.min_points)
        return frame.replace(
            points=points,
            boxes=frame.boxes[keep],
            labels=frame.labels[keep],
            box_points=frame.box_points[keep],
        )


class MaskModality:
    """Lose one sensor at random: CMT's masked-modal training, and, with probability 1, testing a lost sensor.

    A lost camera rig shows black pictures (before normalisation), a lost LiDAR returns points whose every
    value is 0. One draw decides, so never both are lost.

    Args:
        cameras: probability that the cameras are lost.
        lidar: probability that the LiDAR is lost.
    """

    def __init__(self, cameras: float = 0.25, lidar: float = 0.25) -> None:
        self.cameras = _check_probability("mask_modality.cameras", cameras)
        self.lidar = _check_probability("mask_modality.lidar", lidar)
        if self.cameras + self.lidar > 1:
            raise SettingError(
                f"mask_modality.cameras={cameras} and mask_modality.lidar={lidar}: together they must not exceed 1"
            )

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Lose the cameras, the LiDAR, or nothing."""
        draw = random.random()
        if draw >= 1 - self.cameras:
            return frame if frame.images is None else frame.replace(images=torch.zeros_like(frame.images))
        if draw >= 1 - self.cameras - self.lidar:
            return frame.replace(points=torch.zeros_like(frame.points))
        return frame


class GridMask:
    """Drop a regular grid of squares from the images (GridMask, Chen et al., arXiv 2001.04086).

    The same squares in all views of a frame, set to 0 after normalisation, as in CMT's release.
    A square and the bars between squares repeat every d pixels, d uniform in [2, height); a share
    ``ratio`` of d is bar, so (1 - ratio)^2 of the pixels are dropped.

    Args:
        probability: how often a frame is masked.
        ratio: share of the period that stays, along each axis.
    """

    def __init__(self, probability: float = 0.7, ratio: float = 0.5) -> None:
        self.probability = _check_probability("augmentation.image.grid_mask.probability", probability)
        if not 0 < ratio < 1:
            raise SettingError(f"augmentation.image.grid_mask.ratio={ratio}: it must be above 0 and below 1")
        self.ratio = float(ratio)

    def draw(self, size: tuple[int, int], random: Generator) -> NDArray[np.bool_] | None:
        """Pixels (height, width) that stay, or None where this frame is not masked."""
        if random.random() >= self.probability:
            return None
        height, width = size
        period = int(random.integers(2, max(height, 3)))
        bar = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        phase_y, phase_x = random.integers(period, size=2)
        rows = (np.arange(height) + phase_y) % period < bar
        columns = (np.arange(width) + phase_x) % period < bar
        return rows[:, None] | columns[None, :]


class ImageAugmentation:
    """What varies in :class:`ImageProcessing` in training; one draw a frame, the same for its six views.

    Args:
        resize: least and greatest factor, relative to the test-time resize. CMT's 0.47..0.625 of a 1600 x 900
            picture at a test-time factor of 0.5 is 0.94..1.25, and so is its 0.94..1.25 at a test-time factor
            of 1; relative factors fit pictures of any size.
        flip: probability of a horizontal mirroring.
        grid_mask: squares dropped after normalisation, or None.
    """

    def __init__(
        self, resize: Sequence[float] = (1.0, 1.0), flip: float = 0.0, grid_mask: GridMask | None = None
    ) -> None:
        self.resize = _check_range("augmentation.image.resize", resize, above=0)
        self.flip = _check_probability("augmentation.image.flip", flip)
        self.grid_mask = grid_mask


class ImageProcessing:
    """Resize, crop, perhaps mirror, and normalise the images; lidar2img goes along.

    Test time: resize by the smallest factor that covers ``size``, keep the bottom rows, centre the columns.
    Training adds what ``augmentation`` draws: another factor, a random place for the columns, mirroring,
    GridMask. Where a picture becomes smaller than the crop, it is filled up with black, right and top.

    The resize is bilinear in float32 without rounding back to integers, which gives the published pixels
    exactly. In lidar2img pixel *edges* scale and mirror: u' = s u, and u' = width - u, as in CMT's release.

    Args:
        size: height and width of the result.
        mean: mean of the B, G, R channels, 0..255.
        std: their standard deviation.
        augmentation: what varies in training, or None.
    """

    def __init__(
        self,
        size: Sequence[int],
        mean: Sequence[float] = (103.530, 116.280, 123.675),
        std: Sequence[float] = (57.375, 57.120, 58.395),
        augmentation: ImageAugmentation | None = None,
    ) -> None:
        height, width = size
        self.size = (int(height), int(width))
        self.mean = np.asarray(mean, dtype=np.float32)
        self.inverse_std = (1 / np.asarray(std, dtype=np.float64)).astype(np.float32)
        self.augmentation = augmentation

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Return the frame with images (view, 3, *size) float32; a frame without images stays as it is."""
        if frame.images is None:
            return frame
        height, width = self.size
        raw_height, raw_width = frame.images.shape[-2:]
        factor = max(height / raw_height, width / raw_width)
        mirrored, keep = False, None
        if self.augmentation is not None:
            factor *= random.uniform(*self.augmentation.resize)
            mirrored = random.random() < self.augmentation.flip
        # The small number keeps 800.0 from becoming 799 in floating point.
        resized = (int(raw_height * factor + 1e-6), int(raw_width * factor + 1e-6))
        spare = max(0, resized[1] - width)
        left = spare // 2 if self.augmentation is None else int(random.uniform(0, spare))
        top = resized[0] - height
        if self.augmentation is not None and self.augmentation.grid_mask is not None:
            keep = self.augmentation.grid_mask.draw(self.size, random)
        images = self._pixels(frame.images, resized, top, left, mirrored)
        if keep is not None:
            images *= keep[:, :, None]
        pixel = _pixel_transform(resized[1] / raw_width, resized[0] / raw_height, left, top)
        if mirrored:
            pixel = _mirror(width) @ pixel
        return frame.replace(
            images=torch.from_numpy(images).permute(0, 3, 1, 2),
            lidar2img=(pixel @ frame.lidar2img.double()).float(),
        )

    def _pixels(
        self, images: Tensor, resized: tuple[int, int], top: int, left: int, mirrored: bool
    ) -> NDArray[np.float32]:
        """Normalised pixels (view, height, width, 3) of uint8 images (view, 3, height, width)."""
        height, width = self.size
        result = np.zeros((len(images), height, width, 3), dtype=np.float32)
        rows = slice(max(0, -top), max(0, -top) + min(height, resized[0] - max(0, top)))
        columns = slice(0, min(width, resized[1] - left))
        for view, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            picture = cv2.resize(image.astype(np.float32), (resized[1], resized[0]))
            picture = picture[max(0, top) : max(0, top) + height, left : left + width]
            result[view, rows, columns] = picture
        if mirrored:
            result = result[:, :, ::-1].copy()
        result -= self.mean
        result *= self.inverse_std
        return result


def _pixel_transform(scale_u: float, scale_v: float, left: float, top: float) -> Tensor:
    """(4, 4) on (u * depth, v * depth, depth, 1): scale, then move the crop's corner to (0, 0)."""
    return torch.tensor(
        ((scale_u, 0, -left, 0), (0, scale_v, -top, 0), (0, 0, 1, 0), (0, 0, 0, 1)), dtype=torch.float64
    )


def _mirror(width: float) -> Tensor:
    """(4, 4) on (u * depth, v * depth, depth, 1): u -> width - u."""
    return torch.tensor(((-1, 0, width, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)), dtype=torch.float64)
