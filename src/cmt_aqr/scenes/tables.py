"""nuScenes' thirteen tables, as lists of rows, and the tokens that link them.

The fields are those of the nuScenes schema (nuscenes-devkit, docs/schema_nuscenes.md).
"""

import hashlib
from typing import Any

from cmt_aqr.constants import CAMERAS, LIDAR
from cmt_aqr.scenes.shapes import DETECTION_CLASSES

Row = dict[str, Any]
Tables = dict[str, list[Row]]

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


def token(seed: int, table: str, *key: object) -> str:
    """A token of 32 hexadecimal digits that depends on the seed, the table and the row's key."""
    text = "/".join(map(str, (seed, table, *key)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def visibility_token(share: float) -> str:
    """Token of the visibility level of an object, from the share 0..1 of its pixels that is visible."""
    return str(1 + (share > 0.4) + (share > 0.6) + (share > 0.8))


def common_tables(seed: int, log_tokens: list[str]) -> Tables:
    """Rows that belong to no scene: categories, attributes, visibility levels, sensors and the blank map."""

    def row(table: str, key: str | None = None, **fields: Any) -> Row:
        return {"token": token(seed, table, *([] if key is None else [key])), **fields}

    return {
        "category": [
            row("category", name, name=name, description=f"Detection class {label}.", index=index)
            for index, (name, label) in enumerate(sorted(DETECTION_CLASSES.items()), start=1)
        ],
        "attribute": [row("attribute", name, name=name, description=text) for name, text in ATTRIBUTES.items()],
        "visibility": [
            {
                "token": key,
                "level": level,
                "description": f"{share} % of the object's pixels in the six pictures are in view.",
            }
            for key, (level, share) in _VISIBILITY.items()
        ],
        "sensor": [
            row("sensor", channel, channel=channel, modality="lidar" if channel == LIDAR else "camera")
            for channel in (LIDAR, *CAMERAS)
        ],
        "map": [row("map", log_tokens=log_tokens, category="semantic_prior", filename=MAP_FILE)],
    }
