"""nuScenes' thirteen tables, as lists of rows, and the tokens that tie them together.

The fields are those of the nuScenes schema (nuscenes-devkit, docs/schema_nuscenes.md).
"""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

from cmt_aqr.constants import LIDAR
from cmt_aqr.scenes.sensors import Mount
from cmt_aqr.scenes.shapes import KINDS

Row = dict[str, Any]
Tables = dict[str, list[Row]]

TABLE_NAMES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)

ATTRIBUTES = {
    "vehicle.moving": "Vehicle is moving.",
    "vehicle.stopped": "Vehicle is standing in its lane.",
    "vehicle.parked": "Vehicle is parked.",
    "cycle.with_rider": "Somebody rides the bicycle or motorcycle.",
    "cycle.without_rider": "Nobody is on the bicycle or motorcycle.",
    "pedestrian.sitting_lying_down": "The human is sitting or lying down.",
    "pedestrian.standing": "The human is standing.",
    "pedestrian.moving": "The human is moving.",
}

_VISIBILITY = {
    "1": ("v0-40", "Up to 40"),
    "2": ("v40-60", "40 to 60"),
    "3": ("v60-80", "60 to 80"),
    "4": ("v80-100", "80 to 100"),
}

MAP_FILE = "maps/blank.png"


def token(seed: int, kind: str, *key: object) -> str:
    """A token of 32 hexadecimal digits that depends on the seed, the table and the row's own key."""
    text = "/".join(map(str, (seed, kind, *key)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def visibility_token(share: float) -> str:
    """Token of the visibility level of an object, of whose pixels the share 0..1 is not hidden."""
    return str(1 + (share > 0.4) + (share > 0.6) + (share > 0.8))


def common_tables(seed: int, rig: dict[str, Mount], log_tokens: list[str]) -> Tables:
    """Rows that no scene owns: categories, attributes, visibility levels, sensors and the blank map."""
    kinds = {kind.category: kind.detection_class for kind in KINDS.values() if kind.category}
    return {
        "category": [
            {
                "token": token(seed, "category", name),
                "name": name,
                "description": f"Detection class {kinds[name]}.",
                "index": index,
            }
            for index, name in enumerate(sorted(kinds), start=1)
        ],
        "attribute": [
            {"token": token(seed, "attribute", name), "name": name, "description": text}
            for name, text in ATTRIBUTES.items()
        ],
        "visibility": [
            {
                "token": key,
                "level": level,
                "description": f"{share} % of the object's pixels in the six pictures are in view.",
            }
            for key, (level, share) in _VISIBILITY.items()
        ],
        "sensor": [
            {
                "token": token(seed, "sensor", channel),
                "channel": channel,
                "modality": "lidar" if channel == LIDAR else "camera",
            }
            for channel in rig
        ],
        "map": [
            {
                "token": token(seed, "map"),
                "log_tokens": log_tokens,
                "category": "semantic_prior",
                "filename": MAP_FILE,
            }
        ],
    }


def calibration_rows(seed: int, scene: int, rig: dict[str, Mount]) -> list[Row]:
    """A scene's calibrated sensors."""
    return [
        {
            "token": token(seed, "calibrated_sensor", scene, channel),
            "sensor_token": token(seed, "sensor", channel),
            "translation": mount.translation.tolist(),
            "rotation": mount.quaternion.tolist(),
            "camera_intrinsic": [] if mount.intrinsic is None else mount.intrinsic.tolist(),
        }
        for channel, mount in rig.items()
    ]


def link(rows: list[Row]) -> None:
    """Chain rows of one track or channel, in order, by their ``prev`` and ``next`` tokens."""
    for row, after in itertools.pairwise(rows):
        row["next"] = after["token"]
        after["prev"] = row["token"]
