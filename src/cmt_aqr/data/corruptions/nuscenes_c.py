"""Ten of the 27 corruptions of nuScenes-C (Dong et al., CVPR 2023, arXiv 2303.11040), at severities 1 to 5.

Parameters are those of thu-ml/3D_Corruptions_AD, ``LiDAR_corruptions.py`` and ``Camera_corruptions.py``.
Corruptions of points treat all sweeps as one point cloud.
"""

from cmt_aqr.data.corruptions import images, lidar
from cmt_aqr.data.corruptions.corruption import by_severity, graded
from cmt_aqr.data.corruptions.images import images_by_severity

_POINT_NOISE = (0.02, 0.04, 0.06, 0.08, 0.10)
_IMAGE_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
_IMPULSES = (0.03, 0.06, 0.09, 0.17, 0.27)

fov_lost = graded("nuscenes_c/fov_lost", by_severity(lidar.keep_sector, degrees=(105.0, 90.0, 75.0, 60.0, 45.0)))
density = graded("nuscenes_c/density", by_severity(lidar.drop_points, share=(0.06, 0.12, 0.18, 0.24, 0.30)))
cutout = graded("nuscenes_c/cutout", by_severity(lidar.cutout, holes=(2, 3, 5, 7, 10)))
crosstalk = graded("nuscenes_c/crosstalk", by_severity(lidar.crosstalk, share=(0.004, 0.008, 0.012, 0.016, 0.020)))
gaussian_lidar = graded("nuscenes_c/gaussian_lidar", by_severity(lidar.gaussian_noise, std=_POINT_NOISE))
uniform_lidar = graded("nuscenes_c/uniform_lidar", by_severity(lidar.uniform_noise, size=_POINT_NOISE))
impulse_lidar = graded("nuscenes_c/impulse_lidar", by_severity(lidar.impulse_noise, one_in=(30, 25, 20, 15, 10)))
gaussian_camera = graded(
    "nuscenes_c/gaussian_camera", cameras=images_by_severity(images.gaussian_noise, std=_IMAGE_NOISE)
)
uniform_camera = graded(
    "nuscenes_c/uniform_camera", cameras=images_by_severity(images.uniform_noise, size=_IMAGE_NOISE)
)
impulse_camera = graded(
    "nuscenes_c/impulse_camera", cameras=images_by_severity(images.impulse_noise, share=_IMPULSES)
)
