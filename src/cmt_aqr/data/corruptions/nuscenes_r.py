"""nuScenes-R (Yu et al., arXiv 2205.14951): limited, lost, dirty, delayed and miscalibrated sensors.

Parameters are those of ADLab-AutoDrive/lidar-camera-robust-benchmark, ``create_noise_data_nuscenes.py``.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cmt_aqr.checks import require_fraction
from cmt_aqr.constants import CAMERAS
from cmt_aqr.data.corruptions import mome
from cmt_aqr.data.corruptions.corruption import Corruption
from cmt_aqr.data.corruptions.delays import Stuck
from cmt_aqr.data.corruptions.images import black_out
from cmt_aqr.errors import SettingError
from cmt_aqr.structures import Frame

BURST = 4  # samples that a start makes stuck, where sensors are stuck consecutively

EGO_IN_LIDAR = (0.0, -0.94, -1.84)
"""Origin of the ego frame, below the rear axle, in nuScenes' LiDAR frame, metres."""


def fov(degrees: float = 60.0) -> Corruption:
    """As :func:`mome.fov`, with 90 or 60 degrees."""
    return mome.fov_of("nuscenes_r", degrees)


def missing_cameras(cameras: Sequence[str]) -> Corruption:
    """The images of some cameras, given by channel, are always black."""
    if not cameras or not set(cameras) <= set(CAMERAS):
        raise SettingError(f"cameras={list(cameras)}: must be one or more of {', '.join(CAMERAS)}")
    views = [CAMERAS.index(camera) for camera in cameras]
    return Corruption("nuscenes_r/missing_cameras", cameras=partial(black_out, views=views))


def lens_occlusion(masks: str | None = None) -> Corruption:
    """As :func:`mome.occlusion`."""
    return mome.occlusion_of("nuscenes_r/lens_occlusion", masks)


def object_failure(probability: float = 0.5) -> Corruption:
    """As :func:`mome.object_failure`."""
    return mome.object_failure_of("nuscenes_r", probability)


def lidar_stuck(probability: float = 0.5, consecutive: bool = False) -> Corruption:
    """The LiDAR, with its sweeps, repeats an earlier keyframe of the scene."""
    name, share = "nuscenes_r/lidar_stuck", require_fraction("probability", probability)
    return Corruption(name, lidar=Stuck(name, share, BURST if consecutive else 1))


def camera_stuck(probability: float = 0.5, consecutive: bool = False) -> Corruption:
    """Each camera, independently, repeats an earlier keyframe of the scene."""
    name, share = "nuscenes_r/camera_stuck", require_fraction("probability", probability)
    return Corruption(name, cameras=Stuck(name, share, BURST if consecutive else 1, cameras=True))


def extrinsics(together: bool = True) -> Corruption:
    """The cameras' extrinsic calibration is wrong: by the same error, or by an independent one per camera."""
    return Corruption("nuscenes_r/extrinsics", cameras=partial(perturb_extrinsics, together=bool(together)))


def perturb_extrinsics(frame: Frame, random: Generator, together: bool) -> Frame:
    """The frame with a wrong lidar2img, by one error for all cameras or one per camera; images are unchanged."""
    views = len(frame.lidar2img)
    errors = draw_extrinsic_errors(1 if together else views, random)
    changed = frame.lidar2img.double() @ torch.from_numpy(np.linalg.inv(errors)).expand(views, 4, 4)
    return frame.replace(lidar2img=changed.to(frame.lidar2img.dtype))


def draw_extrinsic_errors(count: int, random: Generator) -> NDArray[np.float64]:
    """Rigid transforms (count, 4, 4) that calibration errors apply to points in the LiDAR frame.

    Sensor to ego becomes R' = N R, t' = N t + n, with N a rotation about an axis uniform on the sphere, and n a
    shift of random sign on each axis, in metres. nuScenes-R's angles of 1 to 5 degrees are halved by its code (/
    360 times pi), and so are these. N rotates about the ego frame's origin. The axis has no preferred direction,
    so it is drawn in the LiDAR frame, as is the shift: the LiDAR's axes are the ego frame's rotated by 90 degrees.
    """
    axis = random.normal(size=(count, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = np.radians(random.uniform(0.5, 2.5, (count, 1))) * random.choice((-1, 1), (count, 1))
    shifts = random.uniform(0.005, 0.01, (count, 3)) * random.choice((-1, 1), (count, 3))
    errors = np.tile(np.eye(4), (count, 1, 1))
    errors[:, :3, :3] = Rotation.from_rotvec(angle * axis).as_matrix()
    centre = np.array(EGO_IN_LIDAR)
    errors[:, :3, 3] = centre - errors[:, :3, :3] @ centre + shifts
    return errors
