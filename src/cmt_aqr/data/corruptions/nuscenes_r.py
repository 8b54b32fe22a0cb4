"""nuScenes-R (Yu et al., arXiv 2205.14951): fields of view, lost, dirty, late and moved sensors.

Parameters of ADLab-AutoDrive/lidar-camera-robust-benchmark, ``create_noise_data_nuscenes.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from cmt_aqr.checks import require_fraction, require_number
from cmt_aqr.constants import CAMERAS
from cmt_aqr.data.corruptions.calibration import MovedCameras
from cmt_aqr.data.corruptions.corruption import Corruption
from cmt_aqr.data.corruptions.lidar import EmptyBoxes, KeepSector
from cmt_aqr.data.corruptions.occlusion import Occluded
from cmt_aqr.data.corruptions.pictures import BlackViews
from cmt_aqr.data.corruptions.times import Stuck
from cmt_aqr.errors import SettingError

BURST = 4
"""Samples that a start makes stuck, where sensors are stuck consecutively."""


def fov(degrees: float = 60.0) -> Corruption:
    """The LiDAR sees to ``degrees`` on either side of ahead: 90 or 60."""
    limit = require_number("degrees", degrees, above=0, high=180)
    return Corruption(f"nuscenes_r/fov{limit:g}", lidar=KeepSector(limit))


def missing_cameras(cameras: Sequence[str]) -> Corruption:
    """The cameras that are named are black, always."""
    unknown = [camera for camera in cameras if camera not in CAMERAS]
    if unknown or not cameras:
        raise SettingError(f"cameras={list(cameras)}: must name some of {', '.join(CAMERAS)}")
    views = tuple(CAMERAS.index(camera) for camera in cameras)
    return Corruption("nuscenes_r/missing_cameras", cameras=BlackViews(views=views))


def lens_occlusion(masks: str | None = None) -> Corruption:
    """Every image has mud on the lens; ``masks`` is the folder of nuScenes-R's, ``None`` takes our own."""
    return Corruption("nuscenes_r/lens_occlusion", cameras=Occluded(masks))


def object_failure(probability: float = 0.5) -> Corruption:
    """In a share of the frames, points in annotated boxes are lost. Needs annotations."""
    return Corruption("nuscenes_r/object_failure", lidar=EmptyBoxes(require_fraction("probability", probability)))


def lidar_stuck(probability: float = 0.5, consecutive: bool = False) -> Corruption:
    """The LiDAR, with its sweeps, shows an earlier keyframe of the scene."""
    name = "nuscenes_r/lidar_stuck"
    return Corruption(
        name, lidar=Stuck(name, require_fraction("probability", probability), BURST if consecutive else 1)
    )


def camera_stuck(probability: float = 0.5, consecutive: bool = False) -> Corruption:
    """Each camera, on its own, shows an earlier keyframe of the scene."""
    name = "nuscenes_r/camera_stuck"
    return Corruption(
        name,
        cameras=Stuck(
            name, require_fraction("probability", probability), BURST if consecutive else 1, cameras=True
        ),
    )


def extrinsics(together: bool = True) -> Corruption:
    """The cameras' calibration is off: one error for all six, or one each."""
    return Corruption("nuscenes_r/extrinsics", cameras=MovedCameras(together=bool(together)))
