"""Scenes of the laboratory: boxes around the car, and a minimal recording that faults can corrupt."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmt_aqr.constants import CAMERAS, CLASSES
from cmt_aqr.structures import Frame, Returns

GROUPS: tuple[tuple[str, ...], ...] = (
    ("car", "truck"),
    ("construction_vehicle", "bus", "trailer"),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
    ("barrier",),
)
"""Classes that look alike to the LiDAR: their sizes have the same distribution."""

GROUP_OF = torch.tensor([next(n for n, group in enumerate(GROUPS) if label in group) for label in CLASSES])
"""(class,) int64."""

_SIZES = np.array(((5.0, 2.1, 2.0), (9.0, 2.8, 3.2), (1.9, 0.8, 1.4), (0.7, 0.7, 1.4), (0.6, 2.4, 1.0)))
"""Length, width and height by group in metres."""

_SPEEDS = np.array((6.0, 5.0, 4.0, 1.2, 0.0))
"""Highest speed by group, m/s; cones never move."""

_NEAREST, _FARTHEST = 3.0, 16.5  # distances of objects from the car in metres
_APART = 3.0  # smallest distance between the centres of two objects in metres
_GROUND = -1.8  # height of the ground relative to the LiDAR in metres

YAWS = dict(zip(CAMERAS, (0.0, -55.0, 55.0, 180.0, 110.0, -110.0), strict=True))
"""Directions of the cameras, degrees to the left of straight ahead, which is +y as in nuScenes' LiDAR frame."""

FIELDS = dict(zip(CAMERAS, (70.0, 70.0, 70.0, 110.0, 70.0, 70.0), strict=True))
"""Horizontal fields of view, degrees."""


def rig(size: tuple[int, int]) -> Tensor:
    """lidar2img (view, 4, 4) float64 of six cameras at the LiDAR, for images of a height and width in pixels.

    The horizon is in the upper third, as in nuScenes' cropped images.
    """
    height, width = size
    matrices = np.tile(np.eye(4), (len(CAMERAS), 1, 1))
    for matrix, name in zip(matrices, CAMERAS, strict=True):
        yaw, focal = math.radians(YAWS[name]), width / 2 / math.tan(math.radians(FIELDS[name]) / 2)
        ahead = np.array((-math.sin(yaw), math.cos(yaw), 0.0))
        right = np.array((math.cos(yaw), math.sin(yaw), 0.0))
        down = np.array((0.0, 0.0, -1.0))
        matrix[:3, :3] = (focal * right + width / 2 * ahead, focal * down + height / 3 * ahead, ahead)
    return torch.from_numpy(matrices)


def draw_boxes(random: np.random.Generator, objects: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes (box, 9) in the LiDAR frame and labels (box,), for a number of objects from a range.

    All classes are equally likely. Objects keep a distance from each other; those without a free place are
    dropped.
    """
    count = int(random.integers(objects[0], objects[1] + 1))
    labels = random.integers(len(CLASSES), size=count)
    xy = np.full((count, 2), np.nan)  # uniform in the ring between the smallest and the largest distance
    for number in range(count):
        distance = np.sqrt(random.uniform(_NEAREST**2, _FARTHEST**2, 8))
        angle = random.uniform(-math.pi, math.pi, 8)
        candidates = distance[:, None] * np.stack((np.cos(angle), np.sin(angle)), axis=1)
        near = np.linalg.norm(candidates[:, None] - xy[:number], axis=2) <= _APART  # False for dropped objects
        free = ~near.any(axis=1)
        if free.any():
            xy[number] = candidates[free.argmax()]
    placed = np.isfinite(xy[:, 0])
    labels, xy = labels[placed], xy[placed]
    group = GROUP_OF.numpy()[labels]
    count = len(labels)
    boxes = np.zeros((count, 9))
    boxes[:, :2] = xy
    boxes[:, 3:6] = _SIZES[group] * np.exp(0.2 * random.standard_normal((count, 3)))
    boxes[:, 2] = _GROUND + boxes[:, 5] / 2
    boxes[:, 6] = random.uniform(-math.pi, math.pi, count)
    moves = (random.random(count), random.random(count) < 0.6)
    speed = _SPEEDS[group] * moves[0] * moves[1] * (labels != CLASSES.index("traffic_cone"))
    boxes[:, 7] = speed * np.cos(boxes[:, 6])
    boxes[:, 8] = speed * np.sin(boxes[:, 6])
    return torch.from_numpy(boxes).float(), torch.from_numpy(labels)


def recording(image_size: tuple[int, int], lidar: bool, cameras: bool) -> Frame:
    """A frame without objects: points all around, with rings, and images of noise, for faults to corrupt.

    ``image_size`` is height and width in pixels.
    """
    random = np.random.default_rng(0x1AB)
    azimuth, distance = np.meshgrid(np.arange(144) * math.pi / 72 + 0.02, np.arange(24) * 2.5 + 1.2)
    azimuth, distance = azimuth.ravel(), distance.ravel()
    ring = np.tile(np.arange(32), len(azimuth) // 32).astype(np.int16)
    height = distance * np.tan(-0.5353 + 0.023275 * ring)
    intensity = random.uniform(1, 200, len(azimuth))
    columns = (distance * np.cos(azimuth), distance * np.sin(azimuth), height, intensity, np.zeros(len(azimuth)))
    points = torch.from_numpy(np.column_stack(columns)).float()
    images = random.integers(0, 256, (len(CAMERAS), *image_size, 3), dtype=np.uint8)
    empty = torch.zeros(0, dtype=torch.int64)
    frame = Frame(
        token="",
        points=points,
        images=torch.from_numpy(images).permute(0, 3, 1, 2) if cameras else None,
        lidar2img=rig(image_size),
        boxes=torch.zeros(0, 9),
        labels=empty,
        box_points=empty,
        lidar2global=torch.eye(4, dtype=torch.float64),
        returns=Returns(
            sweep=torch.zeros(len(points), dtype=torch.uint8),
            ring=torch.from_numpy(ring),
            motions=torch.eye(4, dtype=torch.float64)[None],
        ),
    )
    return frame if lidar else frame.keep_points(torch.zeros(len(points), dtype=torch.bool))


@dataclass
class Scenes:
    """Frames by number, whose boxes depend on (seed, split, number) alone.

    Attributes:
        frames: number of frames.
        split: a number that separates the scenes of different splits.
        objects: least and greatest number of objects.
        empty: everything but boxes and token of a frame, see :func:`recording`.
        seed: of the scenes.
    """

    frames: int
    split: int
    objects: tuple[int, int]
    empty: Frame
    seed: int = 0

    def __len__(self) -> int:
        return self.frames

    def token(self, frame: int) -> str:
        """The frame's sample token."""
        return f"lab-{self.split}-{frame}"

    def read(self, frame: int) -> Frame:
        """A frame with its boxes, each of which counts as hit by many points."""
        boxes, labels = draw_boxes(np.random.default_rng((self.seed, self.split, frame)), self.objects)
        box_points = torch.full((len(boxes),), 50)
        return self.empty.replace(token=self.token(frame), boxes=boxes, labels=labels, box_points=box_points)
