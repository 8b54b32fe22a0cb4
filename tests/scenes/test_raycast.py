"""The ray caster against the obvious way: every ray against every cuboid, one at a time."""

import math

import numpy as np
import pytest
from numpy.random import Generator

from cmt_aqr.scenes import raycast
from cmt_aqr.scenes.raycast import Array, Hits
from cmt_aqr.scenes.sensors import ELEVATIONS, build_rig
from cmt_aqr.scenes.settings import Settings
from cmt_aqr.scenes.shapes import KINDS, Solids, build_solids

KINDS_USED = ["car", "pedestrian", "traffic_cone", "bus", "construction_vehicle", "barrier", "car", "pole"]


def crowd(random: Generator) -> tuple[Array, Array, Array, Solids]:
    """A handful of objects all around the origin, some hiding others."""
    sizes = np.array([KINDS[kind].size for kind in KINDS_USED])
    angle = random.uniform(-math.pi, math.pi, len(KINDS_USED))
    angle[:2] = (math.pi - 0.05, -math.pi + 0.02)
    distance = random.uniform(6, 18, len(KINDS_USED)) + 0.5 * sizes[:, 0]
    centres = np.stack((distance * np.cos(angle), distance * np.sin(angle), 0.5 * sizes[:, 2]), axis=1)
    headings = random.uniform(-math.pi, math.pi, len(KINDS_USED))
    return centres, headings, sizes, build_solids(KINDS_USED, sizes, np.full((len(KINDS_USED), 3), 0.5))


def slow_hit(origin: Array, ray: Array, centre: Array, heading: float, low: Array, high: Array) -> float:
    """Distance at which one ray enters one cuboid, by clipping it against the six faces in turn."""
    cosine, sine = math.cos(heading), math.sin(heading)
    turn = np.array(((cosine, sine, 0), (-sine, cosine, 0), (0, 0, 1)))
    start, direction = turn @ (origin - centre), turn @ ray
    first, last = -math.inf, math.inf
    for axis in range(3):
        if direction[axis] == 0:
            if not low[axis] <= start[axis] <= high[axis]:
                return math.inf
            continue
        ends = sorted((bound - start[axis]) / direction[axis] for bound in (low[axis], high[axis]))
        first, last = max(first, ends[0]), min(last, ends[1])
    return first if 0 < first <= last else math.inf


def slow_cast(origin: Array, rays: Array, centres: Array, headings: Array, solids: Solids) -> Array:
    """For every ray: (distance to every object) as an array (object, ray)."""
    result = np.full((len(centres), rays.shape[1]), math.inf)
    for ray in range(rays.shape[1]):
        for part, owner in enumerate(solids.owner):
            hit = slow_hit(
                origin, rays[:, ray], centres[owner], headings[owner], solids.low[part], solids.high[part]
            )
            result[owner, ray] = min(result[owner, ray], hit)
    return result


def compare(
    rays: Array,
    hits: Hits,
    origin: Array,
    centres: Array,
    headings: Array,
    solids: Solids,
    random: Generator,
    at_least: int,
) -> None:
    """Compare a sample of rays, of which ``at_least`` meet something, and the whole depth order."""
    owners = hits.owners(solids)
    chosen = random.choice(owners.size, min(1500, owners.size), replace=False)
    slow = slow_cast(origin, rays.reshape(3, -1)[:, chosen].astype(float), centres, headings, solids)
    nearest = slow.min(axis=0)
    expected = np.where(np.isfinite(nearest), slow.argmin(axis=0), -1)
    agree = expected == owners.ravel()[chosen]
    # float32 may decide otherwise on a ray that grazes an edge.
    assert agree.mean() > 0.998
    assert (expected >= 0).sum() >= at_least
    met = agree & (expected >= 0)
    np.testing.assert_allclose(hits.distance.ravel()[chosen][met], nearest[met], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_lidar_rays_meet_what_the_slow_way_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    centres, headings, sizes, solids = crowd(random)
    origin, columns = np.array((0.1, -0.2, 1.8)), 120
    azimuth, elevation = 2 * np.pi * np.arange(columns) / columns, ELEVATIONS[:, None]
    rays = np.stack(
        np.broadcast_arrays(
            np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
        )
    ).astype(np.float32)
    windows = raycast.lidar_windows(raycast.box_corners(centres, headings, sizes) - origin, ELEVATIONS, columns)
    hits = raycast.cast(rays, origin, centres, headings, solids, windows, np.ones(len(centres), bool))
    compare(rays, hits, origin, centres, headings, solids, random, at_least=60)


@pytest.mark.parametrize("channel", ["CAM_FRONT", "CAM_BACK"])
def test_camera_rays_and_silhouettes_are_those_of_the_slow_way(channel: str) -> None:
    random = np.random.default_rng(3)
    centres, headings, sizes, solids = crowd(random)
    # One object reaches from before the camera to behind it: its window is cut at the image plane.
    centres[3] = (0.0, 2.5, 1.7)
    headings[3] = 0.1
    mount, size = build_rig(Settings(image_width=160))[channel], (45, 80)
    intrinsic = mount.intrinsic * np.array(((0.5,), (0.5,), (1.0,)))
    v, u = np.mgrid[: size[0], : size[1]]
    pixels = np.stack((u, v, np.ones_like(u))).reshape(3, -1)
    rays = (mount.rotation @ np.linalg.inv(intrinsic) @ pixels).reshape(3, *size).astype(np.float32)
    origin = mount.translation
    corners = (raycast.box_corners(centres, headings, sizes) - origin) @ mount.rotation
    windows = raycast.camera_windows(corners, intrinsic, size)
    hits = raycast.cast(rays, origin, centres, headings, solids, windows, np.ones(len(centres), bool))
    compare(rays, hits, origin, centres, headings, solids, random, at_least=200)
    alone = np.isfinite(slow_cast(origin, rays.reshape(3, -1).astype(float), centres, headings, solids))
    np.testing.assert_allclose(hits.silhouette, alone.sum(axis=1), atol=2)
    assert (alone.sum(axis=1) > 0).sum() >= 2


def test_faces_are_numbered_back_front_right_left_bottom_top() -> None:
    solids = build_solids(["pole"], np.array(((2.0, 2.0, 2.0),)), np.zeros((1, 3)))
    directions = np.eye(3)[[0, 0, 1, 1, 2, 2]] * np.array((1, -1, 1, -1, 1, -1))[:, None]
    for face, direction in enumerate(directions):
        ray = (direction + 0.01).astype(np.float32).reshape(3, 1, 1)
        hits = raycast.cast(
            ray,
            -5 * direction,
            np.zeros((1, 3)),
            np.zeros(1),
            solids,
            np.array(((0, 1, 0, 1),)),
            np.ones(1, bool),
        )
        assert hits.face[0, 0] == face
        assert hits.distance[0, 0] == pytest.approx(4, rel=0.02)
