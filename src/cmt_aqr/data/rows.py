"""Boxes as rows of numbers in nuScenes' global frame, for the evaluation."""

ATTRIBUTES: tuple[str, ...] = (
    "",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.standing",
    "pedestrian.sitting_lying_down",
)
"""nuScenes' attributes; "" is none. Detections never have the last."""

TRANSLATION, SIZE, ROTATION, VELOCITY = slice(0, 3), slice(3, 6), slice(6, 10), slice(10, 12)
LABEL, SCORE, ATTRIBUTE = 12, 13, 14
COLUMNS = 15
"""Columns: metres, width length height, quaternion (w, x, y, z), m/s, class, score, attribute."""
