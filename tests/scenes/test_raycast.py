"""The ray caster against the obvious way: every ray against every cuboid."""

import math

import numpy as np
import pytest
from numpy.random import Generator

from cmt_aqr.scenes import raycast
from cmt_aqr.scenes.raycast import Array, Hits
from cmt_aqr.scenes.sensors import ELEVATIONS, build_rig
from cmt_aqr.scenes.settings import Settings
from cmt_aqr.scenes.shapes import KINDS, build_solids

NAMES = ["car", "pedestrian", "traffic_cone", "bus", "construction_vehicle", "barrier", "car", "pole"]
SIZES = np.array([KINDS[name].size for name in NAMES])
SOLIDS = build_solids(NAMES, SIZES, np.full((len(NAMES), 3), 0.5))


def crowd(random: Generator) -> tuple[Array, Array]:
    """Centres and headings of objects all around the origin, some of which hide others."""
    angle = random.uniform(-math.pi, math.pi, len(NAMES))
    angle[[0, 1, 3]] = (math.pi - 0.05, -math.pi + 0.02, 0.01)  # across the ends of the LiDAR's columns
    distance = random.uniform(6, 18, len(NAMES)) + 0.5 * SIZES[:, 0]
    centres = np.stack((distance * np.cos(angle), distance * np.sin(angle), 0.5 * SIZES[:, 2]), axis=1)
    return centres, random.uniform(-math.pi, math.pi, len(NAMES))


def slow_cast(origin: Array, rays: Array, centres: Array, headings: Array) -> Array:
    """Distance (object, ray) at which rays (3, ray) enter objects: each clipped by the faces of each cuboid."""
    result = np.full((len(centres), rays.shape[1]), math.inf)
    for owner, low, high in zip(SOLIDS.owner, SOLIDS.low, SOLIDS.high, strict=True):
        cosine, sine = math.cos(headings[owner]), math.sin(headings[owner])
        turn = np.array(((cosine, sine, 0), (-sine, cosine, 0), (0, 0, 1)))
        start, direction = turn @ (origin - centres[owner]), turn @ rays
        ends = np.sort([(bound - start)[:, None] / direction for bound in (low, high)], axis=0)
        enters, leaves = ends[0].max(axis=0), ends[1].min(axis=0)
        hit = (enters > 0) & (enters <= leaves)
        result[owner, hit] = np.minimum(result[owner, hit], enters[hit])
    return result


def cast(rays: Array, origin: Array, centres: Array, headings: Array, windows: Array) -> Hits:
    visible = np.ones(len(centres), bool)
    return raycast.cast(rays.astype(np.float32), origin, centres, headings, SOLIDS, windows, visible)


def check(hits: Hits, slow: Array, at_least: int) -> None:
    """Compare all rays, of which ``at_least`` hit something, with the distances of :func:`slow_cast`."""
    nearest = slow.min(axis=0)
    expected = np.where(np.isfinite(nearest), slow.argmin(axis=0), -1)
    agree = expected == hits.owners(SOLIDS).ravel()
    assert agree.mean() > 0.998  # float32 may decide otherwise on a ray that grazes an edge
    assert (expected >= 0).sum() >= at_least
    met = agree & (expected >= 0)
    np.testing.assert_allclose(hits.distance.ravel()[met], nearest[met], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_lidar_rays_hit_what_the_slow_way_finds(seed: int) -> None:
    centres, headings = crowd(np.random.default_rng(seed))
    origin, columns = np.array((0.1, -0.2, 1.8)), 120
    azimuth, elevation = 2 * np.pi * np.arange(columns) / columns, ELEVATIONS[:, None]
    directions = (np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation))
    rays = np.stack(np.broadcast_arrays(*directions))
    windows = raycast.lidar_windows(raycast.box_corners(centres, headings, SIZES) - origin, ELEVATIONS, columns)
    hits = cast(rays, origin, centres, headings, windows)
    check(hits, slow_cast(origin, rays.reshape(3, -1), centres, headings), at_least=150)


@pytest.mark.parametrize("channel", ["CAM_FRONT", "CAM_BACK"])
def test_camera_rays_and_silhouettes_are_those_of_the_slow_way(channel: str) -> None:
    centres, headings = crowd(np.random.default_rng(3))
    # One object reaches from before the camera to behind it: its window is clipped at the image plane.
    centres[3], headings[3] = (0.0, 2.5, 1.7), 0.1
    mount, size = build_rig(Settings(image_width=160))[channel], (45, 80)
    intrinsic = mount.intrinsic * np.array(((0.5,), (0.5,), (1.0,)))
    v, u = np.mgrid[: size[0], : size[1]]
    pixels = np.stack((u, v, np.ones_like(u))).reshape(3, -1)
    rays = mount.rotation @ np.linalg.inv(intrinsic) @ pixels
    corners = (raycast.box_corners(centres, headings, SIZES) - mount.translation) @ mount.rotation
    windows = raycast.camera_windows(corners, intrinsic, size)
    hits = cast(rays.reshape(3, *size), mount.translation, centres, headings, windows)
    slow = slow_cast(mount.translation, rays, centres, headings)
    check(hits, slow, at_least=400)
    alone = np.isfinite(slow).sum(axis=1)
    np.testing.assert_allclose(hits.silhouette, alone, atol=2)
    assert (alone > 0).sum() >= 2


def test_faces_are_numbered_back_front_right_left_bottom_top() -> None:
    solids = build_solids(["pole"], np.array(((2.0, 2.0, 2.0),)), np.zeros((1, 3)))
    directions = np.eye(3)[[0, 0, 1, 1, 2, 2]] * np.array((1, -1, 1, -1, 1, -1))[:, None]
    box, window, visible = (np.zeros((1, 3)), np.zeros(1)), np.array(((0, 1, 0, 1),)), np.ones(1, bool)
    for face, direction in enumerate(directions):
        ray = (direction + 0.01).astype(np.float32).reshape(3, 1, 1)
        hits = raycast.cast(ray, -5 * direction, *box, solids, window, visible)
        assert hits.face[0, 0] == face and hits.distance[0, 0] == pytest.approx(4, rel=0.02)
