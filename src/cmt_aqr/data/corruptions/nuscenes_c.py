"""Some of the 27 corruptions of nuScenes-C (Dong et al., CVPR 2023, arXiv 2303.11040), at severities 1 to 5.

Parameters of thu-ml/3D_Corruptions_AD, ``LiDAR_corruptions.py`` and ``Camera_corruptions.py``. What strikes points
strikes those of all sweeps, merged.
"""

from __future__ import annotations

from cmt_aqr.data.corruptions.corruption import Corruption, of_severity
from cmt_aqr.data.corruptions.lidar import KeepSector
from cmt_aqr.data.corruptions.noise import (
    Crosstalk,
    CutHoles,
    DropPoints,
    ImpulsePoints,
    NoisyPictures,
    NoisyPoints,
    SaltAndPepper,
)

NOISE = (0.02, 0.04, 0.06, 0.08, 0.10)
PICTURE_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)


def fov_lost(severity: int = 1) -> Corruption:
    """The LiDAR sees to 105, 90, 75, 60, 45 degrees on either side of ahead."""
    name = "nuscenes_c/fov_lost"
    return Corruption(name, lidar=KeepSector(of_severity(name, severity, (105.0, 90.0, 75.0, 60.0, 45.0))))


def density(severity: int = 1) -> Corruption:
    """6, 12, 18, 24, 30 % of the points are lost."""
    name = "nuscenes_c/density"
    return Corruption(name, lidar=DropPoints(of_severity(name, severity, (0.06, 0.12, 0.18, 0.24, 0.30))))


def cutout(severity: int = 1) -> Corruption:
    """2, 3, 5, 7, 10 holes of 2 % of the points."""
    name = "nuscenes_c/cutout"
    return Corruption(name, lidar=CutHoles(of_severity(name, severity, (2, 3, 5, 7, 10))))


def crosstalk(severity: int = 1) -> Corruption:
    """0.4 to 2 % of the points are disturbed."""
    name = "nuscenes_c/crosstalk"
    return Corruption(name, lidar=Crosstalk(of_severity(name, severity, (0.004, 0.008, 0.012, 0.016, 0.020))))


def gaussian_lidar(severity: int = 1) -> Corruption:
    """Normal noise on every column of the points."""
    name = "nuscenes_c/gaussian_lidar"
    return Corruption(name, lidar=NoisyPoints(of_severity(name, severity, NOISE)))


def uniform_lidar(severity: int = 1) -> Corruption:
    """Uniform noise on every column of the points."""
    name = "nuscenes_c/uniform_lidar"
    return Corruption(name, lidar=NoisyPoints(of_severity(name, severity, NOISE), uniform=True))


def impulse_lidar(severity: int = 1) -> Corruption:
    """One in 30, 25, 20, 15, 10 points jumps by 0.1 on every column."""
    name = "nuscenes_c/impulse_lidar"
    return Corruption(name, lidar=ImpulsePoints(of_severity(name, severity, (30, 25, 20, 15, 10))))


def gaussian_camera(severity: int = 1) -> Corruption:
    """Normal noise on every pixel."""
    name = "nuscenes_c/gaussian_camera"
    return Corruption(name, cameras=NoisyPictures(of_severity(name, severity, PICTURE_NOISE)))


def uniform_camera(severity: int = 1) -> Corruption:
    """Uniform noise on every pixel."""
    name = "nuscenes_c/uniform_camera"
    return Corruption(name, cameras=NoisyPictures(of_severity(name, severity, PICTURE_NOISE), uniform=True))


def impulse_camera(severity: int = 1) -> Corruption:
    """3, 6, 9, 17, 27 % of the pixels' channels are white or black."""
    name = "nuscenes_c/impulse_camera"
    return Corruption(name, cameras=SaltAndPepper(of_severity(name, severity, (0.03, 0.06, 0.09, 0.17, 0.27))))
