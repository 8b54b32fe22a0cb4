"""Some of the 27 corruptions of nuScenes-C (Dong et al., CVPR 2023, arXiv 2303.11040), at severities 1 to 5.

Parameters of thu-ml/3D_Corruptions_AD, ``LiDAR_corruptions.py`` and ``Camera_corruptions.py``. What strikes points
strikes those of all sweeps, merged.
"""

from cmt_aqr.data.corruptions import lidar
from cmt_aqr.data.corruptions.corruption import graded, over
from cmt_aqr.data.corruptions.pictures import add_normal, add_uniform, over_pictures, strew

_POINT_NOISE = (0.02, 0.04, 0.06, 0.08, 0.10)
_PICTURE_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)

fov_lost = graded("nuscenes_c/fov_lost", over(lidar.keep_sector, degrees=(105.0, 90.0, 75.0, 60.0, 45.0)))
"""The LiDAR sees so many degrees on either side of ahead."""

density = graded("nuscenes_c/density", over(lidar.drop_points, share=(0.06, 0.12, 0.18, 0.24, 0.30)))
"""A share of the points is lost."""

cutout = graded("nuscenes_c/cutout", over(lidar.cut_holes, holes=(2, 3, 5, 7, 10)))
"""So many holes of 2 % of the points."""

crosstalk = graded("nuscenes_c/crosstalk", over(lidar.disturb_points, share=(0.004, 0.008, 0.012, 0.016, 0.020)))
"""A share of the points is disturbed."""

gaussian_lidar = graded("nuscenes_c/gaussian_lidar", over(lidar.add_normal, std=_POINT_NOISE))
"""Normal noise on every column of the points."""

uniform_lidar = graded("nuscenes_c/uniform_lidar", over(lidar.add_uniform, size=_POINT_NOISE))
"""Uniform noise on every column of the points."""

impulse_lidar = graded("nuscenes_c/impulse_lidar", over(lidar.jolt_points, one_in=(30, 25, 20, 15, 10)))
"""One in so many points jumps by 0.1 on every column."""

gaussian_camera = graded("nuscenes_c/gaussian_camera", cameras=over_pictures(add_normal, std=_PICTURE_NOISE))
"""Normal noise on every pixel."""

uniform_camera = graded("nuscenes_c/uniform_camera", cameras=over_pictures(add_uniform, size=_PICTURE_NOISE))
"""Uniform noise on every pixel."""

impulse_camera = graded(
    "nuscenes_c/impulse_camera", cameras=over_pictures(strew, share=(0.03, 0.06, 0.09, 0.17, 0.27))
)
"""A share of the pixels' channels is white or black."""
