"""Lays out what stands and moves in a street: traffic, parked vehicles, people, furniture, buildings."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cmt_aqr.scenes.scene import Road, Scene, advance
from cmt_aqr.scenes.settings import Settings
from cmt_aqr.scenes.shapes import KINDS, build_solids

Array = NDArray[np.float64]

# Metres left of the ego lane's centre. Traffic keeps to the right.
LANES = {"ego": 0.0, "right": -3.6, "opposite": 3.6, "opposite_left": 7.2}
BIKE_LANES = (-6.1, 9.7)
PARKING = (-8.3, 11.9)
SIDEWALKS = ((-14.3, -10.2), (13.8, 17.9))
YARDS = ((-30.0, -15.5), (19.0, 33.0))
FACADES = (-31.5, 34.5)

BLOCK = 25.0  # metres of street that are furnished together, so that every stretch has all classes
REACH = 62.0  # metres before and behind the ego vehicle that are furnished
EGO_SIZE = (4.8, 2.0)  # length and width in metres
_CLEARANCE = 0.3  # metres between objects
_CHECK_STEP = 0.25  # seconds between checks for collisions
_CAPACITY = 1024  # objects


class _Layout:
    """Objects added one after another that never collide with each other or with the ego vehicle."""

    def __init__(self, random: Generator, curvature: float, ego: Sequence[float], duration: float) -> None:
        self.random = random
        self.curvature = curvature
        self.times = np.arange(-_CHECK_STEP, duration + 2 * _CHECK_STEP, _CHECK_STEP)
        self.objects: list[tuple[str, str, Array, Array]] = []
        """Kind, attribute, size (3,) and motion (6,) of each, as in :class:`Scene`."""
        self._centres = np.empty((_CAPACITY, len(self.times), 2))
        self._halves = np.empty((_CAPACITY, 2))
        speed, acceleration, sway, _ = ego
        driven = speed * self.times + 0.5 * acceleration * self.times**2
        self._centres[0] = np.stack((driven, 0 * driven), axis=1)
        self._halves[0] = (EGO_SIZE[0] / 2 + 1.5, EGO_SIZE[1] / 2 + 0.4 + sway)

    def size_of(self, kind: str) -> Array:
        """Draw a size (3,) of a kind, within two standard deviations."""
        sample = np.clip(self.random.standard_normal(3), -2, 2)
        return np.array(KINDS[kind].size) * (1 + KINDS[kind].spread * sample)

    def add(
        self,
        kind: str,
        s: float,
        d: float,
        *,
        speed: float = 0.0,
        sideways: float = 0.0,
        acceleration: float = 0.0,
        heading: float = 0.0,
        attribute: str = "",
        size: Array | None = None,
    ) -> bool:
        """Add an object unless it would collide at any time; returns whether it was added."""
        size = self.size_of(kind) if size is None else size
        motion = np.array((s, d, speed, sideways, acceleration, heading))
        centres = np.stack(np.broadcast_arrays(*advance(motion[None], self.times)), axis=-1)[0]
        half = self._half_extent(size, d, heading)
        count = 1 + len(self.objects)  # with the ego vehicle
        reach = self._halves[:count, None] + half + _CLEARANCE
        if (np.abs(self._centres[:count] - centres) < reach).all(axis=-1).any():
            return False
        self._centres[count] = centres
        self._halves[count] = half
        self.objects.append((kind, attribute, size, motion))
        return True

    def add_first(self, kind: str, places: Sequence[tuple[float, float, float]], attribute: str) -> None:
        """Add an object at the first free one of the places (s, d, heading), if there is one."""
        size = self.size_of(kind)
        any(self.add(kind, s, d, heading=heading, attribute=attribute, size=size) for s, d, heading in places)

    def _half_extent(self, size: Array, d: float, heading: float) -> Array:
        """Half the extent in s and d of a box, including the street's bend."""
        cosine, sine = abs(math.cos(heading)), abs(math.sin(heading))
        along = 0.5 * (cosine * size[0] + sine * size[1])
        across = 0.5 * (sine * size[0] + cosine * size[1])
        sag = 0.5 * abs(self.curvature) * along**2
        # On the inside of a bend, a metre spans more than a metre of s.
        stretch = 1 - abs(self.curvature) * (abs(d) + across) if self.curvature * d > 0 else 1.0
        return np.array((along / stretch, across + sag))


_LOW_TRAFFIC = ("car", "car", "motorcycle_ridden")
_TALL_TRAFFIC = ("truck", "bus", "trailer", "construction_vehicle")
# Metres from the ego vehicle at the start; nearer, a tall vehicle would hide half the street.
_TALL_DISTANCE = 20.0

_STREETS = (
    ("straight street", 0.0, (5.5, 8.0), (0.0, 0.0)),
    ("street bending left", 1.0, (4.0, 6.5), (0.0, 0.0)),
    ("standing in the lane", 0.3, (0.0, 0.0), (0.0, 0.0)),
    ("street bending right", -1.0, (4.0, 6.5), (0.0, 0.0)),
    ("setting off slowly", -0.3, (1.5, 3.0), (0.2, 0.45)),
)
"""Streets, which scenes take in turn: description, relative bend, ranges of the ego's speed and acceleration."""


def build_scene(settings: Settings, index: int) -> Scene:
    """The ``index``-th scene of a data set. It depends on the seed, the index and the duration alone."""
    random = np.random.default_rng((settings.seed, index, 0))
    name, bend, speeds, accelerations = _STREETS[index % len(_STREETS)]
    curvature = bend / random.uniform(130, 260)
    if abs(curvature) < 1e-4:
        curvature = math.copysign(1e-4, random.uniform(-1, 1))
    speed, acceleration = random.uniform(*speeds), random.uniform(*accelerations)
    sway = random.uniform(0.05, 0.25) if speed > 1 else 0.0
    ego = (speed, acceleration, sway, random.uniform(0.4, 0.9))
    layout = _Layout(random, curvature, ego, settings.duration)
    travel = speed * settings.duration + 0.5 * acceleration * settings.duration**2
    _add_traffic(layout, ego, travel, settings.duration)
    _furnish(layout, travel)
    kinds, attributes, box_sizes, motion = zip(*layout.objects, strict=True)
    sizes = np.stack(box_sizes)
    paints = _paint(random, kinds)
    x, y, heading = random.uniform((300, 300, -math.pi), (1500, 1500, math.pi)).tolist()
    elevation, azimuth = random.uniform(0.6, 1.2), random.uniform(-math.pi, math.pi)
    flat = math.cos(elevation)
    horizon = np.array((0.74, 0.8, 0.86)) + random.uniform(-0.05, 0.05, 3)
    return Scene(
        road=Road(curvature, x, y, heading),
        kinds=kinds,
        labels=tuple(KINDS[kind].detection_class for kind in kinds),
        attributes=attributes,
        sizes=sizes,
        motion=np.stack(motion),
        solids=build_solids(kinds, sizes, paints),
        ego_motion=ego,
        sun=np.array((flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation))),
        light=random.uniform(0.85, 1.1),
        sky=np.stack((horizon, np.array((0.36, 0.55, 0.82)))),
        description=f"Synthetic: {name}, {len(kinds)} objects",
    )


def _paint(random: Generator, kinds: Sequence[str]) -> Array:
    """Draw each object's colour (object, 3), RGB 0..1: a variation of a signature colour of its class."""
    choices = np.array([KINDS[kind].paints[random.integers(len(KINDS[kind].paints))] for kind in kinds])
    brightness = random.uniform(0.82, 1.08, (len(kinds), 1))
    tint = random.uniform(0.96, 1.04, (len(kinds), 3))
    return np.clip(choices / 255 * brightness * tint, 0, 1)


def _spread(random: Generator, low: float, high: float, gap: tuple[float, float]) -> Iterator[float]:
    """Positions from ``low`` to ``high`` with random gaps."""
    position = low + random.uniform(0, gap[1])
    while position < high:
        yield position
        position += random.uniform(*gap)


def _add_traffic(layout: _Layout, ego: Sequence[float], travel: float, duration: float) -> None:
    """Vehicles in the four lanes and riders on the bicycle lanes, with one speed per lane."""
    random = layout.random
    speed, acceleration = ego[:2]

    def reach(velocity: float) -> tuple[float, float]:
        """Positions from which traffic comes near the ego vehicle."""
        relative = travel - velocity * duration
        return -REACH + min(0.0, relative), REACH + max(0.0, relative)

    _fill_lane(layout, LANES["ego"], (-REACH, REACH), speed, acceleration, (18, 36), 0.3)
    for lane, velocity in (
        ("right", max(3.0, speed) * random.uniform(0.8, 1.25)),
        ("opposite", -random.uniform(4, 8)),
        ("opposite_left", -random.uniform(3, 7)),
    ):
        tall_share = 0.5 if lane == "opposite_left" else 0.15
        _fill_lane(layout, LANES[lane], reach(velocity), velocity, 0.0, (18, 40), tall_share)
    for d, velocity in zip(BIKE_LANES, (random.uniform(2.5, 4.5), -random.uniform(2.5, 4.5)), strict=True):
        for s in _spread(random, *reach(velocity), (10, 22)):
            kind = random.choice(("bicycle_ridden", "bicycle_ridden", "motorcycle_ridden"))
            layout.add(kind, s, d, speed=velocity, heading=_along(velocity), attribute="cycle.with_rider")


def _along(velocity: float) -> float:
    """Heading relative to the street of something that moves with or against its direction."""
    return 0.0 if velocity >= 0 else math.pi


def _fill_lane(
    layout: _Layout,
    d: float,
    reach: tuple[float, float],
    speed: float,
    acceleration: float,
    gap: tuple[float, float],
    tall_share: float,
) -> None:
    """Vehicles of one speed along a lane; each trailer is pulled by a truck."""
    random = layout.random
    moving = abs(speed) + abs(acceleration) > 0
    state = "vehicle.moving" if moving else "vehicle.stopped"
    direction = 1.0 if speed >= 0 else -1.0
    motion: dict[str, Any] = {"speed": speed, "acceleration": acceleration, "heading": _along(speed)}
    for s in _spread(random, *reach, gap):
        tall = abs(s) > _TALL_DISTANCE and random.random() < tall_share
        kind = str(random.choice(_TALL_TRAFFIC if tall else _LOW_TRAFFIC))
        offset = d + random.uniform(-0.2, 0.2)
        attribute = "cycle.with_rider" if kind == "motorcycle_ridden" else state
        size = layout.size_of(kind)
        if layout.add(kind, s, offset, attribute=attribute, size=size, **motion) and kind == "trailer":
            truck = layout.size_of("truck")
            ahead = s + direction * (0.5 * (size[0] + truck[0]) + _CLEARANCE + 0.15)
            layout.add("truck", ahead, offset, attribute=state, size=truck, **motion)


def _count(random: Generator, mean: float) -> int:
    """An integer with the expected value ``mean``: it is rounded up or down at random."""
    return int(mean + random.random())


_LARGE = (("trailer", 1.0, 0.85), ("bus", 1.0, 0.8), ("construction_vehicle", 1.5, 0.75), ("truck", 1.2, 0.75))


def _furnish(layout: _Layout, travel: float) -> None:
    """Standing and walking objects along the street, block by block."""
    starts = np.arange(-REACH, travel + REACH, BLOCK)
    for start in starts:
        _add_buildings(layout, start)
        _park(layout, start, _LARGE)
    for start in starts:
        _add_row(layout, "barrier", start, _count(layout.random, 3.5), 2.95)
        _add_row(layout, "traffic_cone", start, _count(layout.random, 4.5), layout.random.uniform(1.6, 3.2))
    for start in starts:
        _park(layout, start, (("car", 2.5, 0.55),))
        _park_cycles(layout, start)
        _add_pedestrians(layout, start)
        _add_poles(layout, start)


def _add_buildings(layout: _Layout, start: float) -> None:
    random = layout.random
    for front in FACADES:
        size = np.array((random.uniform(14, 22), random.uniform(8, 11), random.uniform(5, 14)))
        layout.add("building", start + BLOCK / 2, front + math.copysign(0.5 * size[1], front), size=size)


def _parking_places(layout: _Layout, start: float, yard_share: float) -> list[tuple[float, float, float]]:
    """Random places for a parked vehicle: along either kerb, or at any angle in a yard."""
    random = layout.random
    places = []
    for _ in range(24):
        s = start + random.uniform(0, BLOCK)
        if random.random() < yard_share:
            yard = YARDS[random.integers(2)]
            places.append((s, random.uniform(*yard), random.uniform(-math.pi, math.pi)))
        else:
            side = int(random.integers(2))
            heading = side * math.pi + random.normal(0, 0.04)
            places.append((s, PARKING[side] + random.uniform(-0.15, 0.15), heading))
    return places


def _park(layout: _Layout, start: float, kinds: Sequence[tuple[str, float, float]]) -> None:
    """Parked vehicles, given by kind, mean number and share in a yard."""
    for kind, mean, yard_share in kinds:
        for _ in range(_count(layout.random, mean)):
            layout.add_first(kind, _parking_places(layout, start, yard_share), "vehicle.parked")


def _park_cycles(layout: _Layout, start: float) -> None:
    random = layout.random
    for kind in ("motorcycle", "bicycle"):
        for _ in range(_count(random, 1.6)):
            places = []
            for _ in range(16):
                zone = (*SIDEWALKS, *YARDS)[random.integers(4)]
                s, heading = start + random.uniform(0, BLOCK), random.uniform(-math.pi, math.pi)
                places.append((s, random.uniform(*zone), heading))
            layout.add_first(kind, places, "cycle.without_rider")


def _add_row(layout: _Layout, kind: str, start: float, count: int, spacing: float) -> None:
    """A row of barriers or cones along the kerb, a parking strip or the sidewalk's edge."""
    random = layout.random
    edges = [*PARKING, SIDEWALKS[0][1] - 0.6, SIDEWALKS[1][0] + 0.6]
    if kind == "traffic_cone":
        # Cones are small enough for the lines between lanes.
        edges += [-1.8, 5.4, -1.8, 5.4, -7.1, 10.7]
    turn = 0.5 * math.pi if kind == "barrier" else random.uniform(-math.pi, math.pi)
    added = 0
    for _ in range(12):
        s = start + random.uniform(0, BLOCK)
        d = edges[random.integers(len(edges))] + random.uniform(-0.3, 0.3)
        slant = random.uniform(-0.08, 0.08)
        flip = math.pi * random.integers(2)
        for place in range(count - added):
            position = s + place * spacing
            jitter = random.normal(0, 0.05)
            if not layout.add(kind, position, d + slant * place, heading=turn + slant + jitter + flip):
                break
            added += 1
        if added >= count:
            return


def _add_pedestrians(layout: _Layout, start: float) -> None:
    random = layout.random
    for _ in range(_count(random, 4.5)):
        sidewalk = (*SIDEWALKS, (-9.8, -7.2), (10.8, 13.4))[random.integers(4)]
        for _ in range(8):
            s, d = start + random.uniform(0, BLOCK), random.uniform(*sidewalk)
            way, speed, sideways = random.random(), 0.0, 0.0
            if way < 0.35:
                heading = random.uniform(-math.pi, math.pi)
            elif way < 0.9:
                speed = random.uniform(0.8, 1.6) * random.choice((-1, 1))
                heading = _along(speed)
            else:
                # Across the street, from this sidewalk towards the other one.
                sideways = random.uniform(1.0, 1.6) * (1 if d < 0 else -1)
                heading = math.copysign(0.5 * math.pi, sideways)
            state = "pedestrian.standing" if way < 0.35 else "pedestrian.moving"
            if layout.add("pedestrian", s, d, speed=speed, sideways=sideways, heading=heading, attribute=state):
                break


def _add_poles(layout: _Layout, start: float) -> None:
    random = layout.random
    for edge in (SIDEWALKS[0][0] - 0.6, SIDEWALKS[1][1] + 0.6):
        kind = "tree" if random.random() < 0.6 else "pole"
        d = edge + (0.0 if kind == "pole" else math.copysign(1.2, edge))
        any(layout.add(kind, start + random.uniform(0, BLOCK), d) for _ in range(6))
