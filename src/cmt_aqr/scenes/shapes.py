"""Shapes of the objects: sizes, parts, colours, reflectance.

An object is a few cuboids inside its annotated box, which is their tight bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

Array = NDArray[np.float64]

PAINT = "paint"  # colour of a part that has the object's own colour


@dataclass(frozen=True)
class Part:
    """A cuboid of a shape, in fractions of the box: (-0.5, -0.5, -0.5) is back, right, bottom."""

    low: Sequence[float]  # smallest x (along the heading), y (left), z (up)
    high: Sequence[float]  # largest
    colour: Sequence[int] | str  # RGB, or PAINT
    loss: float  # share of the LiDAR's rays that do not return


@dataclass(frozen=True)
class Kind:
    """A detection class, or a variant of one."""

    size: Sequence[float]  # typical length, width, height in metres
    paints: Sequence[Sequence[int]]  # signature colours, RGB; an object has one of them
    intensity: float  # mean of the LiDAR's intensity, 0..255
    parts: Sequence[Part]
    spread: float = 0.06  # relative standard deviation of the sizes
    detection_class: str = ""  # one of the ten, or "" for scenery, which is never annotated
    category: str = ""  # nuScenes' category


_CONTENT = yaml.safe_load(Path(__file__).with_name("kinds.yaml").read_text(encoding="utf-8"))

KINDS = {
    name: Kind(**values | {"parts": [Part(*part) for part in values["parts"]]})
    for name, values in _CONTENT["kinds"].items()
}
"""Every kind of object in ``kinds.yaml``, by name."""

DETECTION_CLASSES = {kind.category: kind.detection_class for kind in KINDS.values() if kind.category}
"""Detection class by nuScenes category."""


@dataclass(frozen=True)
class Solids:
    """The cuboids of many objects, object after object.

    The object frame has its origin at the box centre, x along the heading, y left, z up.
    """

    low: Array  # (part, 3) smallest x, y, z in metres, object frame
    high: Array  # (part, 3) largest
    start: NDArray[np.int64]  # (object + 1,) object i owns parts start[i] to start[i + 1]
    colour: NDArray[np.float32]  # (part, 3) RGB, 0..1
    intensity: NDArray[np.float32]  # (part,) mean LiDAR intensity
    loss: NDArray[np.float32]  # (part,) share of LiDAR rays lost
    owner: NDArray[np.int32]  # (part,) object


def build_solids(kinds: Sequence[str], sizes: Array, paints: Array) -> Solids:
    """The cuboids of objects of these kinds, with sizes (object, 3) in metres and paints (object, 3), RGB 0..1."""
    counts = [len(KINDS[kind].parts) for kind in kinds]
    owner = np.repeat(np.arange(len(kinds)), counts)
    parts = [part for kind in kinds for part in KINDS[kind].parts]
    painted = np.array([part.colour == PAINT for part in parts])
    fixed = np.array([(0, 0, 0) if part.colour == PAINT else part.colour for part in parts])
    return Solids(
        low=np.array([part.low for part in parts]) * sizes[owner],
        high=np.array([part.high for part in parts]) * sizes[owner],
        start=np.concatenate(([0], np.cumsum(counts))),
        colour=np.where(painted[:, None], paints[owner], fixed / 255).astype(np.float32),
        intensity=np.array([KINDS[kind].intensity for kind in kinds], np.float32)[owner],
        loss=np.array([part.loss for part in parts], np.float32),
        owner=owner.astype(np.int32),
    )
