"""Cameras that are not where their calibration says."""

from __future__ import annotations

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cmt_aqr.structures import Frame

EGO_IN_LIDAR = (0.0, -0.94, -1.84)
"""The ego frame's origin, below the rear axle, in nuScenes' LiDAR frame, metres."""


class MovedCameras:
    """The extrinsic calibration is off, the images are as they were.

    nuScenes-R: sensor to ego is R' = N R, t' = N t + n, with N a turn about an axis uniform on the sphere, and n a
    shift of random sign on each axis. Its angles of 1 to 5 degrees are halved by its code (/ 360 times pi), and so
    are these. N turns about the ego frame's origin. The axis has no preferred direction, so it is drawn in the
    LiDAR frame, and the shift along the LiDAR's axes, which are the ego frame's turned by 90 degrees.

    Args:
        degrees: least and greatest angle, as turned.
        shift: least and greatest shift along each axis, metres.
        together: one draw for all cameras; otherwise each has its own.
    """

    def __init__(
        self,
        degrees: tuple[float, float] = (0.5, 2.5),
        shift: tuple[float, float] = (0.005, 0.01),
        together: bool = True,
    ) -> None:
        self.degrees = degrees
        self.shift = shift
        self.together = together

    def __call__(self, frame: Frame, random: Generator) -> Frame:
        """Change ``lidar2img``."""
        views = len(frame.lidar2img)
        moves = self.draw(1 if self.together else views, random)
        inverse = torch.from_numpy(np.linalg.inv(moves)).expand(views, 4, 4)
        changed = frame.lidar2img.double() @ inverse
        return frame.replace(lidar2img=changed.to(frame.lidar2img.dtype))

    def draw(self, count: int, random: Generator) -> NDArray[np.float64]:
        """What N and n do to the LiDAR frame's points (count, 4, 4)."""
        axis = random.normal(size=(count, 3))
        axis /= np.linalg.norm(axis, axis=1, keepdims=True)
        angle = np.radians(random.uniform(*self.degrees, (count, 1))) * random.choice((-1, 1), (count, 1))
        shift = random.uniform(*self.shift, (count, 3)) * random.choice((-1, 1), (count, 3))
        moves = np.tile(np.eye(4), (count, 1, 1))
        moves[:, :3, :3] = Rotation.from_rotvec(angle * axis).as_matrix()
        centre = np.array(EGO_IN_LIDAR)
        moves[:, :3, 3] = centre - moves[:, :3, :3] @ centre + shift
        return moves
