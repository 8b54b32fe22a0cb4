"""nuScenes-R (Yu et al., arXiv 2205.14951): fields of view, lost, dirty, late and moved sensors.

Parameters of ADLab-AutoDrive/lidar-camera-robust-benchmark, ``create_noise_data_nuscenes.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cmt_aqr.checks import require_fraction, require_number
from cmt_aqr.constants import CAMERAS
from cmt_aqr.data.corruptions import lidar
from cmt_aqr.data.corruptions.corruption import Corruption
from cmt_aqr.data.corruptions.occlusion import masks_of, occlude
from cmt_aqr.data.corruptions.pictures import black_views, each_picture
from cmt_aqr.data.corruptions.times import Stuck
from cmt_aqr.errors import SettingError
from cmt_aqr.structures import Frame

BURST = 4
"""Samples that a start makes stuck, where sensors are stuck consecutively."""

EGO_IN_LIDAR = (0.0, -0.94, -1.84)
"""The ego frame's origin, below the rear axle, in nuScenes' LiDAR frame, metres."""


def fov(degrees: float = 60.0) -> Corruption:
    """The LiDAR sees to ``degrees`` on either side of ahead: 90 or 60."""
    limit = require_number("degrees", degrees, above=0, high=180)
    return Corruption(f"nuscenes_r/fov{limit:g}", partial(lidar.keep_sector, degrees=limit))


def missing_cameras(cameras: Sequence[str]) -> Corruption:
    """The cameras that are named are black, always."""
    if not cameras or not set(cameras) <= set(CAMERAS):
        raise SettingError(f"cameras={list(cameras)}: must name some of {', '.join(CAMERAS)}")
    views = [CAMERAS.index(camera) for camera in cameras]
    return Corruption("nuscenes_r/missing_cameras", cameras=partial(black_views, views=views))


def lens_occlusion(masks: str | None = None) -> Corruption:
    """Every image has mud on the lens; ``masks`` is the folder of nuScenes-R's, ``None`` takes our own."""
    change = partial(occlude, masks=masks_of(masks))
    return Corruption("nuscenes_r/lens_occlusion", cameras=partial(each_picture, change=change))


def object_failure(probability: float = 0.5) -> Corruption:
    """In a share of the frames, points in annotated boxes are lost. Needs annotations."""
    share = require_fraction("probability", probability)
    return Corruption("nuscenes_r/object_failure", partial(lidar.empty_boxes, probability=share))


def lidar_stuck(probability: float = 0.5, consecutive: bool = False) -> Corruption:
    """The LiDAR, with its sweeps, shows an earlier keyframe of the scene."""
    name, share = "nuscenes_r/lidar_stuck", require_fraction("probability", probability)
    return Corruption(name, lidar=Stuck(name, share, BURST if consecutive else 1))


def camera_stuck(probability: float = 0.5, consecutive: bool = False) -> Corruption:
    """Each camera, on its own, shows an earlier keyframe of the scene."""
    name, share = "nuscenes_r/camera_stuck", require_fraction("probability", probability)
    return Corruption(name, cameras=Stuck(name, share, BURST if consecutive else 1, cameras=True))


def extrinsics(together: bool = True) -> Corruption:
    """The cameras' calibration is off: one error for all six, or one each."""
    return Corruption("nuscenes_r/extrinsics", cameras=partial(move_cameras, together=bool(together)))


def move_cameras(frame: Frame, random: Generator, together: bool) -> Frame:
    """The extrinsic calibration is off, the images are as they were; one draw for all cameras, or one each."""
    views = len(frame.lidar2img)
    moves = draw_moves(1 if together else views, random)
    changed = frame.lidar2img.double() @ torch.from_numpy(np.linalg.inv(moves)).expand(views, 4, 4)
    return frame.replace(lidar2img=changed.to(frame.lidar2img.dtype))


def draw_moves(
    count: int,
    random: Generator,
    degrees: tuple[float, float] = (0.5, 2.5),
    shift: tuple[float, float] = (0.005, 0.01),
) -> NDArray[np.float64]:
    """What wrong calibrations do to the LiDAR frame's points (count, 4, 4).

    Sensor to ego is R' = N R, t' = N t + n, with N a turn about an axis uniform on the sphere, and n a shift of
    random sign on each axis, in metres. nuScenes-R's angles of 1 to 5 degrees are halved by its code (/ 360 times
    pi), and
    so are these. N turns about the ego frame's origin. The axis has no preferred direction, so it is drawn in the
    LiDAR frame, and the shift along the LiDAR's axes, which are the ego frame's turned by 90 degrees.
    """
    axis = random.normal(size=(count, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = np.radians(random.uniform(*degrees, (count, 1))) * random.choice((-1, 1), (count, 1))
    shifts = random.uniform(*shift, (count, 3)) * random.choice((-1, 1), (count, 3))
    moves = np.tile(np.eye(4), (count, 1, 1))
    moves[:, :3, :3] = Rotation.from_rotvec(angle * axis).as_matrix()
    centre = np.array(EGO_IN_LIDAR)
    moves[:, :3, 3] = centre - moves[:, :3, :3] @ centre + shifts
    return moves
