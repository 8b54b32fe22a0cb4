"""The fields of the nuScenes tables that the devkit and we read, and what each must hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES
from nuscenes.utils.color_map import get_colormap

from cmt_aqr.data.columns import Kind

Holds = Callable[[NDArray[np.float64]], NDArray[np.bool_]]


def _numbers(what: str, shape: tuple[int, ...], below: float, holds: Holds = np.isfinite) -> Kind:
    """Numbers, read as (record, *shape) float64.

    Args:
        what: they must be.
        shape: of a value; () for a single number.
        below: no magnitude may reach this.
        holds: from values (record, *shape) to what must be true of all; false for NaN.
    """

    def read(column: Sequence[Any]) -> NDArray[np.float64] | None:
        flat = column
        for size in shape:
            if not (_all_are(list, flat) and set(map(len, flat)) <= {size}):
                return None
            flat = list(itertools.chain.from_iterable(flat))
        if not set(map(type, flat)) <= {int, float}:  # neither texts nor true and false
            return None
        try:
            values = np.array(flat, dtype=np.float64).reshape(len(column), *shape)
        except OverflowError:
            return None
        good = (np.abs(values) < below).all() and holds(values).all()
        return values if good else None

    return Kind(what, read)


def _texts(what: str, fit: Callable[[Sequence[Any]], bool]) -> Kind:
    """Values that are read as they are, if they fit."""
    return Kind(what, lambda column: column if fit(column) else None)


def _all_are(kind: type, column: Sequence[Any]) -> bool:
    return set(map(type, column)) <= {kind}


def _are_paths(column: Sequence[Any]) -> bool:
    """Seen in one text, which finds what must not be far faster than a look at each."""
    if not _all_are(str, column):
        return False
    lines = "\n".join(["", *column, ""])
    forbidden = ("\n\n", "\n/", "\\", "\0", "\n../", "/../", "/..\n", "\n..\n")
    return lines.count("\n") == len(column) + 1 and not any(part in lines for part in forbidden)


def _are_lists_of_texts(column: Sequence[Any]) -> bool:
    return _all_are(list, column) and _all_are(str, list(itertools.chain.from_iterable(column)))


def _first_of_lists(column: Sequence[Any]) -> list[str] | None:
    if not _are_lists_of_texts(column) or max(map(len, column), default=0) > 1:
        return None
    return [texts[0] if texts else "" for texts in column]


def _whole(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (values >= 0) & (values == np.floor(values))


def _is_camera_matrix(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    focal = (values[:, 0, 0] > 0) & (values[:, 1, 1] > 0)
    return focal & np.isclose(values[:, 2], (0, 0, 1)).all(axis=1)


def _one_of(what: str, names: Collection[str]) -> Kind:
    return _texts(
        f"one of nuScenes' {what} ({', '.join(names)})",
        lambda column: _all_are(str, column) and set(column) <= set(names),
    )


def _link(target: str) -> Kind:
    """The token of a record of a table."""
    return Kind(TEXT.what, TEXT.read, target)


def _neighbour(table: str) -> Kind:
    """``prev`` or ``next``."""
    fits = _texts('the token of a record, or ""', lambda column: _all_are(str, column))
    return Kind(fits.what, fits.read, table, may_end=True)


TEXT = _texts("a text that is not empty", lambda column: _all_are(str, column) and "" not in column)
POSITION = _numbers("three numbers in metres, each below 1e7", (3,), 1e7)
MOUNT = _numbers("three numbers in metres, each below 100: where the sensor sits on the car", (3,), 100)
SIZE = _numbers("width, length and height in metres, each above 0 and below 1000", (3,), 1e3, lambda v: v > 0)
ROTATION = _numbers(
    "a unit quaternion (w, x, y, z)", (4,), 2, lambda v: np.abs(np.linalg.norm(v, axis=-1) - 1) < 0.01
)
COUNT = _numbers("a whole number of points, 0 or more", (), 1e9, _whole)
TIME = _numbers("a whole number of microseconds, from 0 to 9e15", (), 2.0**53, _whole)
INTRINSIC = _numbers(
    "a 3 x 3 camera matrix with focal lengths above 0 pixels and the last row 0 0 1",
    (3, 3),
    1e6,
    _is_camera_matrix,
)
INTRINSICS = _texts(
    f"{INTRINSIC.what}, or [] for a sensor that is no camera",
    lambda column: INTRINSIC.read([value for value in column if value != []]) is not None,
)

FIELDS: dict[str, dict[str, Kind]] = {
    "category": {"name": _one_of("categories", get_colormap())},
    "attribute": {"name": _one_of("attributes", ATTRIBUTE_NAMES)},
    "visibility": {},
    "instance": {"category_token": _link("category")},
    "sensor": {"channel": TEXT, "modality": TEXT},
    "calibrated_sensor": {
        "sensor_token": _link("sensor"),
        "translation": MOUNT,
        "rotation": ROTATION,
        "camera_intrinsic": INTRINSICS,
    },
    "ego_pose": {"translation": POSITION, "rotation": ROTATION},
    "log": {},
    "scene": {"name": TEXT},
    "sample": {
        "timestamp": TIME,
        "scene_token": _link("scene"),
        "prev": _neighbour("sample"),
        "next": _neighbour("sample"),
    },
    "sample_data": {
        "sample_token": _link("sample"),
        "ego_pose_token": _link("ego_pose"),
        "calibrated_sensor_token": _link("calibrated_sensor"),
        "timestamp": TIME,
        "is_key_frame": _texts("true or false", lambda column: _all_are(bool, column)),
        "filename": _texts("a path below data.root, without .. and backslash", _are_paths),
        "prev": _neighbour("sample_data"),
        "next": _neighbour("sample_data"),
    },
    "sample_annotation": {
        "sample_token": _link("sample"),
        "instance_token": _link("instance"),
        "attribute_tokens": Kind(
            "a list of one token of attribute.json, or none", _first_of_lists, "attribute", may_end=True
        ),
        "translation": POSITION,
        "size": SIZE,
        "rotation": ROTATION,
        "num_lidar_pts": COUNT,
        "num_radar_pts": COUNT,
        "prev": _neighbour("sample_annotation"),
        "next": _neighbour("sample_annotation"),
    },
    "map": {
        "log_tokens": _texts("a list of tokens", _are_lists_of_texts),
        "filename": _texts("a path below data.root, without .. and backslash", _are_paths),
    },
}
"""By table, in the order of nuScenes."""

MAY_LACK = ("category", "attribute", "visibility", "instance", "sample_annotation")
"""Tables without which a split without annotations can be read."""

MAY_BE_EMPTY = ("sample_annotation", "instance", "attribute", "visibility")
