"""Boxes and their regression codes.

A box is (x, y, z, l, w, h, yaw, vx, vy): gravity centre in metres, length along the heading, width, height,
yaw counter-clockwise about z from the x axis in radians, velocity in metres per second; all in one frame,
usually the LiDAR frame (x right, y forward, z up for nuScenes' LIDAR_TOP).
"""

import math

import torch
from torch import Tensor

_CORNER_SIGNS = (
    (1, 1, -1),
    (1, -1, -1),
    (-1, -1, -1),
    (-1, 1, -1),
    (1, 1, 1),
    (1, -1, 1),
    (-1, -1, 1),
    (-1, 1, 1),
)


def wrap_angle(angle: Tensor) -> Tensor:
    """Wrap angles in radians to [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def encode_boxes(boxes: Tensor) -> Tensor:
    """Turn boxes (..., 9) into regression codes (..., 10).

    The code's order is cx, cy, log l, log w, cz, log h, sin yaw, cos yaw, vx, vy (CMT's release).
    """
    x, y, z, length, width, height, yaw, vx, vy = boxes.unbind(-1)
    return torch.stack((x, y, length.log(), width.log(), z, height.log(), yaw.sin(), yaw.cos(), vx, vy), dim=-1)


def decode_boxes(codes: Tensor) -> Tensor:
    """Turn regression codes (..., 10) back into boxes (..., 9): the inverse of :func:`encode_boxes`."""
    x, y, log_l, log_w, z, log_h, sine, cosine, vx, vy = codes.unbind(-1)
    return torch.stack((x, y, z, log_l.exp(), log_w.exp(), log_h.exp(), torch.atan2(sine, cosine), vx, vy), dim=-1)


def box_corners(boxes: Tensor) -> Tensor:
    """Corners (box, 8, 3) of boxes (box, 9): bottom before top, each starting at the front left."""
    signs = boxes.new_tensor(_CORNER_SIGNS)
    local = 0.5 * boxes[:, None, 3:6] * signs
    cosine, sine = boxes[:, 6, None].cos(), boxes[:, 6, None].sin()
    rotated = torch.stack(
        (
            cosine * local[..., 0] - sine * local[..., 1],
            sine * local[..., 0] + cosine * local[..., 1],
            local[..., 2],
        ),
        dim=-1,
    )
    return rotated + boxes[:, None, :3]


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points (point, >= 3) lie inside boxes (box, >= 7): (point, box) bool."""
    offset = points[:, None, :3] - boxes[None, :, :3]
    cosine, sine = boxes[:, 6].cos(), boxes[:, 6].sin()
    along = offset[..., 0] * cosine + offset[..., 1] * sine
    across = offset[..., 1] * cosine - offset[..., 0] * sine
    half = 0.5 * boxes[:, 3:6]
    return (along.abs() <= half[:, 0]) & (across.abs() <= half[:, 1]) & (offset[..., 2].abs() <= half[:, 2])
