"""Names and orders fixed by nuScenes and CMT."""

CLASSES: tuple[str, ...] = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""The ten detection classes in CMT's order; a label is an index into this tuple."""

CAMERAS: tuple[str, ...] = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
"""The six cameras in CMT's order; a view is an index into this tuple."""

LIDAR = "LIDAR_TOP"

POINT_FEATURES = 5
"""x, y, z (m, LiDAR frame of the keyframe), intensity (0..255), time lag (s, 0 for the keyframe's sweep)."""

BOX_SIZE = 9
"""x, y, z, l, w, h, yaw, vx, vy: see :mod:`cmt_aqr.geometry.boxes`."""

ERRORS: dict[str, str] = {
    "trans_err": "ATE",
    "scale_err": "ASE",
    "orient_err": "AOE",
    "vel_err": "AVE",
    "attr_err": "AAE",
}
"""The devkit's true-positive errors and their usual names: translation (m), scale (1 - IoU), orientation
(rad), velocity (m/s), attribute (1 - accuracy). The mean over classes is prefixed with an m."""
