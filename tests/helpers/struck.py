"""Frames for tests of sensor failures, made by hand."""

import math

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from cmt_aqr.data.dataset import SampleKey, frame_generator
from cmt_aqr.structures import Frame, Returns


def generator(frame: int = 0, seed: int = 0) -> Generator:
    return frame_generator(seed, SampleKey(0, frame))


def driving(points: int = 400, sweeps: int = 3) -> Frame:
    """Points of several files of a car that drives and turns, with rings; no images; four boxes."""
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
    own = torch.stack((flat * azimuth.sin(), flat * azimuth.cos(), distance * elevation.sin()), dim=1)
    sweep = torch.repeat_interleave(torch.arange(sweeps, dtype=torch.uint8), points)
    moved = torch.einsum("pij,pj->pi", motions[sweep.long(), :3, :3], own) + motions[sweep.long(), :3, 3]
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
    """Positions (point, 3) in the frame of their file."""
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
    """lidar2img (6, 4, 4) of cameras in the middle, every 60 degrees, of which each sees so many degrees."""
    focal = width / 2 / math.tan(math.radians(sees) / 2)
    camera = torch.eye(4, dtype=torch.float64)
    camera[:2, :3] = torch.tensor(((focal, 0, width / 2), (0, focal, height / 2)))
    matrices = []
    for view in range(6):
        c, s = math.cos(view * math.pi / 3), math.sin(view * math.pi / 3)
        axes = torch.tensor(((s, -c, 0, 0), (0, 0, -1, 0), (c, s, 0, 0), (0, 0, 0, 1)), dtype=torch.float64)
        matrices.append(camera @ axes)
    return torch.stack(matrices)
