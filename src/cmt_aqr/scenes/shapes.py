"""What the objects look like: sizes, parts, colours, reflectance.

An object is a handful of cuboids in its annotated box, which they touch on all six sides: the box is the
shape's tight bound. Fronts differ from backs, so that a heading can be learnt. Typical sizes follow what
nuScenes' annotations show of each class; each class has signature colours of its own, so that pictures alone
tell classes apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Colour = tuple[int, int, int]

GLASS: Colour = (38, 48, 62)
TYRE: Colour = (26, 26, 28)
METAL: Colour = (95, 98, 104)
HEADLIGHT: Colour = (250, 248, 225)
TAILLIGHT: Colour = (150, 12, 18)
SKIN: Colour = (205, 150, 120)
WHITE: Colour = (238, 238, 234)

PAINT = "paint"
"""Stands for the object's own colour in a part."""


@dataclass(frozen=True)
class Part:
    """A cuboid of a shape, in fractions of the box: (-0.5, -0.5, -0.5) is back, right, bottom.

    Attributes:
        low: smallest x (along the heading), y (left), z (up).
        high: largest x, y, z.
        colour: RGB, or ``PAINT``.
        loss: share of the LiDAR's rays that do not come back from it.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    colour: Colour | str = PAINT
    loss: float = 0.05


@dataclass(frozen=True)
class Kind:
    """A detection class, or a variant of one.

    Attributes:
        detection_class: one of the ten, or "" for scenery, which is never annotated.
        category: nuScenes' category.
        size: typical length, width, height in metres.
        spread: relative standard deviation of the sizes.
        paints: signature colours, RGB; an object has one of them.
        intensity: mean of the LiDAR's intensity, 0..255.
        parts: what it is made of.
    """

    detection_class: str
    category: str
    size: tuple[float, float, float]
    spread: float
    paints: tuple[Colour, ...]
    intensity: float
    parts: tuple[Part, ...]


def _wheels(rear: float, front: float, half: float, top: float) -> tuple[Part, ...]:
    """Two axles as wide as the box, standing on the ground; ``half`` is half a wheel's length."""
    return (
        Part((rear - half, -0.5, -0.5), (rear + half, 0.5, top), TYRE, 0.2),
        Part((front - half, -0.5, -0.5), (front + half, 0.5, top), TYRE, 0.2),
    )


def _lamps(low: float, high: float, half_width: float = 0.44) -> tuple[Part, ...]:
    """A white bar at the very front and a red one at the very back, from height ``low`` to ``high``."""
    return (
        Part((0.485, -half_width, low), (0.5, half_width, high), HEADLIGHT, 0.1),
        Part((-0.5, -half_width, low), (-0.485, half_width, high), TAILLIGHT, 0.1),
    )


_CYCLE = (
    Part((-0.5, -0.09, -0.5), (-0.14, 0.09, 0.0), TYRE, 0.25),
    Part((0.18, -0.09, -0.5), (0.5, 0.09, 0.0), TYRE, 0.25),
    Part((-0.38, -0.16, -0.2), (0.3, 0.16, 0.2)),
    Part((0.2, -0.5, 0.3), (0.3, 0.5, 0.5), METAL, 0.2),
    Part((0.2, -0.1, 0.0), (0.3, 0.1, 0.3), METAL, 0.2),
    Part((-0.36, -0.22, 0.2), (-0.06, 0.22, 0.32), TYRE, 0.1),
)

_RIDDEN = (
    Part((-0.5, -0.09, -0.5), (-0.14, 0.09, -0.15), TYRE, 0.25),
    Part((0.18, -0.09, -0.5), (0.5, 0.09, -0.15), TYRE, 0.25),
    Part((-0.38, -0.2, -0.3), (0.3, 0.2, 0.0)),
    Part((0.2, -0.5, 0.02), (0.3, 0.5, 0.1), METAL, 0.2),
    Part((-0.3, -0.4, 0.0), (0.0, 0.4, 0.32), (70, 62, 56)),
    Part((-0.2, -0.2, 0.32), (0.02, 0.2, 0.5), SKIN),
)

KINDS: dict[str, Kind] = {
    "car": Kind(
        "car",
        "vehicle.car",
        (4.62, 1.95, 1.73),
        0.06,
        ((178, 30, 40), (36, 78, 185)),
        32,
        (
            Part((-0.485, -0.49, -0.34), (0.485, 0.49, 0.06)),
            Part((-0.4, -0.43, 0.06), (0.2, 0.43, 0.42), GLASS, 0.35),
            Part((-0.36, -0.42, 0.42), (0.1, 0.42, 0.5)),
            *_wheels(-0.3, 0.3, 0.07, -0.12),
            *_lamps(-0.12, 0.0),
        ),
    ),
    "truck": Kind(
        "truck",
        "vehicle.truck",
        (6.94, 2.52, 2.84),
        0.08,
        ((122, 66, 165),),
        40,
        (
            Part((-0.485, -0.5, -0.22), (0.16, 0.5, 0.5)),
            Part((0.22, -0.46, -0.3), (0.485, 0.46, 0.06)),
            Part((0.22, -0.44, 0.06), (0.46, 0.44, 0.26), GLASS, 0.35),
            Part((-0.48, -0.3, -0.32), (0.48, 0.3, -0.22), METAL),
            *_wheels(-0.3, 0.32, 0.07, -0.18),
            *_lamps(-0.28, -0.2),
        ),
    ),
    "construction_vehicle": Kind(
        "construction_vehicle",
        "vehicle.construction",
        (6.4, 2.75, 3.2),
        0.1,
        ((232, 188, 22),),
        46,
        (
            Part((-0.5, -0.5, -0.5), (0.12, -0.28, -0.2), TYRE, 0.15),
            Part((-0.5, 0.28, -0.5), (0.12, 0.5, -0.2), TYRE, 0.15),
            Part((-0.5, -0.42, -0.22), (0.1, 0.42, 0.12)),
            Part((-0.25, -0.1, 0.12), (0.08, 0.34, 0.44), GLASS, 0.3),
            Part((-0.1, -0.3, 0.1), (0.3, -0.14, 0.5)),
            Part((0.28, -0.3, -0.2), (0.4, -0.14, 0.42)),
            Part((0.32, -0.4, -0.5), (0.5, 0.4, -0.18), METAL),
        ),
    ),
    "bus": Kind(
        "bus",
        "vehicle.bus.rigid",
        (11.0, 2.94, 3.47),
        0.05,
        ((36, 150, 62),),
        38,
        (
            Part((-0.49, -0.48, -0.36), (0.49, 0.48, 0.5)),
            Part((-0.46, -0.5, 0.05), (0.42, 0.5, 0.34), GLASS, 0.35),
            Part((0.49, -0.44, -0.08), (0.5, 0.44, 0.36), GLASS, 0.35),
            Part((-0.5, -0.44, -0.3), (-0.49, 0.44, -0.16), TAILLIGHT, 0.1),
            *_wheels(-0.28, 0.32, 0.05, -0.22),
        ),
    ),
    "trailer": Kind(
        "trailer",
        "vehicle.trailer",
        (12.0, 2.9, 3.8),
        0.06,
        ((206, 206, 212),),
        42,
        (
            Part((-0.49, -0.5, -0.18), (0.4, 0.5, 0.5)),
            Part((-0.46, -0.3, -0.26), (0.5, 0.3, -0.18), METAL),
            Part((-0.42, -0.48, -0.5), (-0.18, 0.48, -0.22), TYRE, 0.2),
            Part((0.24, -0.3, -0.5), (0.27, 0.3, -0.24), METAL, 0.1),
            Part((-0.5, -0.44, -0.3), (-0.49, 0.44, -0.2), TAILLIGHT, 0.1),
        ),
    ),
    "barrier": Kind(
        "barrier",
        "movable_object.barrier",
        (0.52, 2.5, 1.0),
        0.06,
        ((52, 196, 204),),
        75,
        (
            Part((-0.5, -0.5, -0.5), (0.5, 0.5, -0.2)),
            Part((-0.25, -0.48, -0.2), (0.25, 0.48, 0.2)),
            Part((-0.18, -0.48, 0.2), (0.18, 0.48, 0.5), WHITE),
        ),
    ),
    "motorcycle": Kind(
        "motorcycle",
        "vehicle.motorcycle",
        (2.1, 0.78, 1.45),
        0.06,
        ((205, 36, 152),),
        28,
        _CYCLE,
    ),
    "motorcycle_ridden": Kind(
        "motorcycle",
        "vehicle.motorcycle",
        (2.1, 0.8, 1.72),
        0.06,
        ((205, 36, 152),),
        28,
        _RIDDEN,
    ),
    "bicycle": Kind(
        "bicycle",
        "vehicle.bicycle",
        (1.7, 0.6, 1.25),
        0.06,
        ((150, 222, 36),),
        22,
        _CYCLE,
    ),
    "bicycle_ridden": Kind(
        "bicycle",
        "vehicle.bicycle",
        (1.7, 0.62, 1.75),
        0.06,
        ((150, 222, 36),),
        22,
        _RIDDEN,
    ),
    "pedestrian": Kind(
        "pedestrian",
        "human.pedestrian.adult",
        (0.72, 0.67, 1.77),
        0.07,
        ((212, 150, 116),),
        18,
        (
            Part((-0.12, -0.3, -0.5), (0.16, -0.04, -0.05), (58, 54, 62)),
            Part((-0.3, 0.04, -0.5), (-0.02, 0.3, -0.05), (58, 54, 62)),
            Part((-0.24, -0.42, -0.05), (0.2, 0.42, 0.34)),
            Part((0.0, -0.5, 0.0), (0.5, -0.38, 0.12)),
            Part((-0.2, 0.38, -0.08), (0.1, 0.5, 0.28)),
            Part((-0.5, -0.26, 0.04), (-0.24, 0.26, 0.3), (84, 44, 40)),
            Part((-0.16, -0.18, 0.34), (0.18, 0.18, 0.5)),
        ),
    ),
    "traffic_cone": Kind(
        "traffic_cone",
        "movable_object.trafficcone",
        (0.42, 0.42, 1.05),
        0.08,
        ((245, 108, 16),),
        110,
        (
            Part((-0.5, -0.5, -0.5), (0.5, 0.5, -0.42)),
            Part((-0.36, -0.36, -0.42), (0.36, 0.36, -0.1)),
            Part((-0.27, -0.27, -0.1), (0.27, 0.27, 0.15), WHITE),
            Part((-0.18, -0.18, 0.15), (0.18, 0.18, 0.5)),
        ),
    ),
    "building": Kind(
        "",
        "",
        (22.0, 11.0, 9.0),
        0.0,
        ((146, 122, 100), (120, 118, 116), (132, 98, 84), (160, 150, 132)),
        24,
        (Part((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5)),),
    ),
    "pole": Kind(
        "",
        "",
        (0.22, 0.22, 6.5),
        0.1,
        (METAL,),
        30,
        (Part((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5), METAL),),
    ),
    "tree": Kind(
        "",
        "",
        (3.0, 3.0, 6.0),
        0.12,
        ((62, 92, 48), (74, 98, 58)),
        12,
        (
            Part((-0.06, -0.06, -0.5), (0.06, 0.06, 0.0), (88, 70, 56)),
            Part((-0.5, -0.4, -0.05), (0.5, 0.4, 0.3), loss=0.3),
            Part((-0.3, -0.5, 0.0), (0.3, 0.5, 0.5), loss=0.3),
        ),
    ),
}
"""Every kind of object, by name."""


@dataclass(frozen=True)
class Solids:
    """The cuboids of many objects, object after object.

    Attributes:
        low: (part, 3) smallest x, y, z in metres, in the object's own frame: origin at the box centre, x
            along the heading, y left, z up.
        high: (part, 3) largest x, y, z.
        start: (object + 1,) object i owns parts start[i] to start[i + 1].
        colour: (part, 3) RGB, 0..1.
        intensity: (part,) mean LiDAR intensity.
        loss: (part,) share of LiDAR rays lost.
        owner: (part,) object.
    """

    low: Array
    high: Array
    start: NDArray[np.int64]
    colour: NDArray[np.float32]
    intensity: NDArray[np.float32]
    loss: NDArray[np.float32]
    owner: NDArray[np.int32]


def build_solids(kinds: list[str], sizes: Array, paints: Array) -> Solids:
    """Put the parts of objects together.

    Args:
        kinds: name of every object's kind.
        sizes: (object, 3) length, width, height in metres.
        paints: (object, 3) RGB, 0..1.

    Returns:
        The cuboids of all objects.
    """
    counts = [len(KINDS[kind].parts) for kind in kinds]
    owner = np.repeat(np.arange(len(kinds)), counts)
    parts = [part for kind in kinds for part in KINDS[kind].parts]
    painted = np.array([part.colour == PAINT for part in parts])
    fixed = np.array([part.colour if isinstance(part.colour, tuple) else (0, 0, 0) for part in parts])
    return Solids(
        low=np.array([part.low for part in parts]) * sizes[owner],
        high=np.array([part.high for part in parts]) * sizes[owner],
        start=np.concatenate(([0], np.cumsum(counts))),
        colour=np.where(painted[:, None], paints[owner], fixed / 255).astype(np.float32),
        intensity=np.array([KINDS[kind].intensity for kind in kinds], np.float32)[owner],
        loss=np.array([part.loss for part in parts], np.float32),
        owner=owner.astype(np.int32),
    )
