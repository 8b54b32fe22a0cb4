"""The world: a street, the ego vehicle and everything around it, as functions of time.

Street coordinates are s, metres along the ego lane, and d, metres to its left. A street of constant curvature maps
them to global coordinates in closed form: positions and velocities are exact at any time, and two boxes that do
not overlap in (s, d) do not overlap in the world.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmt_aqr.scenes.shapes import Solids

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Road:
    """A street of constant curvature in the global frame."""

    curvature: float  # 1 / radius in 1/m, positive to the left; never 0, a straight street has a tiny one
    x: float  # global position of s = 0, d = 0
    y: float
    heading: float  # of the street at s = 0, radians

    def place(self, s: Array, d: Array) -> tuple[Array, Array, Array]:
        """Global x, y and the street's heading at street coordinates."""
        angle = self.curvature * s
        radius = 1 / self.curvature
        along = np.sin(angle) * (radius - d)
        across = radius - np.cos(angle) * (radius - d)
        cosine, sine = math.cos(self.heading), math.sin(self.heading)
        x = self.x + cosine * along - sine * across
        y = self.y + sine * along + cosine * across
        return x, y, self.heading + angle

    def locate(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Street coordinates of global positions: the inverse of :meth:`place`."""
        cosine, sine = math.cos(self.heading), math.sin(self.heading)
        along = cosine * (x - self.x) + sine * (y - self.y)
        across = cosine * (y - self.y) - sine * (x - self.x)
        radius = 1 / self.curvature
        side = math.copysign(1, radius)
        angle = np.arctan2(side * along, side * (radius - across))
        return angle * radius, radius - side * np.hypot(along, radius - across)


@dataclass(frozen=True)
class Scene:
    """Objects, scenery included, as arrays, and their positions by time in seconds after the first keyframe."""

    road: Road
    kinds: tuple[str, ...]
    labels: tuple[str, ...]  # detection class of every object, "" for scenery
    attributes: tuple[str, ...]  # nuScenes attribute of every object, "" for none
    sizes: Array  # (object, 3) length, width, height in metres
    motion: Array  # (object, 6) s, d at time 0, their speeds, acceleration of s, heading relative to the street
    solids: Solids
    ego_motion: tuple[float, float, float, float]  # speed, acceleration, sway in the lane (m), its frequency (1/s)
    sun: Array  # unit vector towards the sun, global frame
    light: float  # brightness of the day, around 1
    sky: Array  # (2, 3) RGB 0..1 at the horizon and overhead
    description: str  # one sentence for the scene table

    def boxes_at(self, time: float) -> tuple[Array, Array]:
        """Box centres (object, 3) and headings (object,) in the global frame."""
        s, d = advance(self.motion, np.array(time))
        x, y, heading = self.road.place(s, d)
        return np.stack((x, y, 0.5 * self.sizes[:, 2]), axis=1), heading + self.motion[:, 5]

    def ego_at(self, time: float) -> tuple[Array, float]:
        """Position (3,) and heading of the ego vehicle in the global frame."""
        speed, acceleration, sway, frequency = self.ego_motion
        s = speed * time + 0.5 * acceleration * time**2
        d = sway * math.sin(frequency * time)
        x, y, heading = self.road.place(np.array(s), np.array(d))
        drift = sway * frequency * math.cos(frequency * time)
        turn = math.atan2(drift, speed + acceleration * time) if sway else 0.0
        return np.array((float(x), float(y), 0.0)), float(heading) + turn


def advance(motion: Array, time: Array) -> tuple[Array, Array]:
    """Street coordinates (object, ...) at times (...) of motions (object, 6)."""
    columns = motion.T.reshape(6, -1, *(1,) * time.ndim)
    return columns[0] + columns[2] * time + 0.5 * columns[4] * time**2, columns[1] + columns[3] * time
