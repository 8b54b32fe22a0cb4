"""Frames for tests of sensor failures."""

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from cmt_aqr.data.dataset import SampleKey, frame_generator
from cmt_aqr.structures import Frame, Returns


def generator(frame: int = 0, seed: int = 0) -> Generator:
    """The random generator of a frame in the first epoch."""
    return frame_generator(seed, SampleKey(0, frame))


def driving(points: int = 400, sweeps: int = 3) -> Frame:
    """A frame of several sweeps from a car that drives and turns, with rings and four boxes, without images."""
    random = np.random.default_rng(5)
    motions = torch.eye(4, dtype=torch.float64).repeat(sweeps, 1, 1)
    for number in range(1, sweeps):
        angle = 0.05 * number
        c, s = np.cos(angle), np.sin(angle)
        motions[number, :2, :2] = torch.tensor(((c, -s), (s, c)))
        motions[number, :3, 3] = torch.tensor((0.1, -0.6, 0.02)) * number
    ring = torch.from_numpy(random.integers(0, 32, points * sweeps).astype(np.int16))
    elevation = -0.5353 + 0.023275 * ring.double()
    azimuth = torch.from_numpy(random.uniform(-np.pi, np.pi, points * sweeps))
    distance = torch.from_numpy(random.uniform(2, 50, points * sweeps))
    flat = distance * elevation.cos()
    positions = torch.stack((flat * azimuth.sin(), flat * azimuth.cos(), distance * elevation.sin()), dim=1)
    sweep = torch.repeat_interleave(torch.arange(sweeps, dtype=torch.uint8), points)
    moved = torch.einsum("pij,pj->pi", motions[sweep.long(), :3, :3], positions) + motions[sweep.long(), :3, 3]
    intensity = torch.from_numpy(random.uniform(1, 200, points * sweeps))
    table = torch.column_stack((moved, intensity, 0.05 * sweep)).float()
    boxes = torch.zeros(4, 9)
    boxes[:, :2] = torch.tensor(((5.0, 8.0), (-12.0, 3.0), (0.0, -20.0), (30.0, 30.0)))
    boxes[:, 2], boxes[:, 3:6], boxes[:, 6] = -1.0, torch.tensor((6.0, 4.0, 5.0)), torch.tensor((0.3, 1.2, -2, 0))
    return Frame(
        token="token",
        points=table,
        images=None,
        lidar2img=torch.eye(4).repeat(6, 1, 1),
        boxes=boxes,
        labels=torch.arange(4),
        box_points=torch.full((4,), 9),
        lidar2global=torch.eye(4, dtype=torch.float64),
        returns=Returns(sweep=sweep, ring=ring, motions=motions),
    )


def own_frames(frame: Frame) -> Tensor:
    """Positions (point, 3), float64, each in the LiDAR frame of its own sweep."""
    motions = frame.returns.motions[frame.returns.sweep.long()]
    return torch.einsum("pji,pj->pi", motions[:, :3, :3], frame.points[:, :3].double() - motions[:, :3, 3])


def photograph(height: int = 60, width: int = 90, views: int = 6) -> Tensor:
    """Images (view, 3, height, width) uint8 with edges, gradients, black and white."""
    random = np.random.default_rng(7)
    small = random.integers(0, 256, (views, 3, height // 6, width // 6), dtype=np.uint8)
    images = torch.from_numpy(small).repeat_interleave(6, dim=2).repeat_interleave(6, dim=3)
    ramp = torch.linspace(0, 60, width).to(torch.uint8)
    images = torch.where(images > 195, images, images + ramp)
    images[:, :, :4, :4], images[:, :, -4:, -4:] = 0, 255
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def cameras_around(height: int, width: int, sees: float = 70.0) -> Tensor:
    """lidar2img (6, 4, 4), float64, of cameras at the LiDAR, 60 degrees apart, with a field of view in degrees."""
    yaw = torch.arange(6, dtype=torch.float64) * torch.pi / 3
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    forward = torch.stack((yaw.cos(), yaw.sin(), zero, zero), dim=-1)
    right = torch.stack((yaw.sin(), -yaw.cos(), zero, zero), dim=-1)
    down = torch.stack((zero, zero, -one, zero), dim=-1)
    last = torch.stack((zero, zero, zero, one), dim=-1)
    focal = width / 2 / np.tan(np.radians(sees) / 2)
    rows = (focal * right + width / 2 * forward, focal * down + height / 2 * forward, forward, last)
    return torch.stack(rows, dim=1)
