"""The sensors: their mounts, the LiDAR's measurements, the cameras' images.

The rig has nuScenes' arrangement: a 32-beam spinning LiDAR on the roof (x right, y forward, z up), three cameras
to the front and three to the back, of which the one straight back has a wider lens. Each camera fires when the
LiDAR sweeps past its axis, a little before the LiDAR's timestamp.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cmt_aqr.constants import CAMERAS, LIDAR
from cmt_aqr.scenes import raycast
from cmt_aqr.scenes.layout import BIKE_LANES, LANES, SIDEWALKS
from cmt_aqr.scenes.raycast import Array, Hits, Rays
from cmt_aqr.scenes.scene import Scene
from cmt_aqr.scenes.settings import RINGS, Settings

MAX_RANGE = 70.0  # of the LiDAR in metres (HDL-32E data sheet)
RANGE_NOISE = 0.02  # standard deviation of the LiDAR's ranges in metres
RENDER_RANGE = 110.0  # metres; the cameras see no objects beyond

ELEVATIONS = np.deg2rad(np.linspace(-30.67, 10.67, RINGS))
"""Elevations of the rings in radians, lowest first (HDL-32E data sheet: equally spaced)."""

_MOUNTS = {
    # x, y, z in metres, yaw and pitch (up) in degrees, focal length in pixels of a 1600 pixel wide image,
    # seconds from the LiDAR's timestamp.
    "CAM_FRONT": (1.70, 0.01, 1.51, 0.0, -0.4, 1266.0, -0.036),
    "CAM_FRONT_RIGHT": (1.55, -0.49, 1.50, -56.0, 0.3, 1262.0, -0.028),
    "CAM_FRONT_LEFT": (1.52, 0.49, 1.51, 55.0, 0.2, 1271.0, -0.043),
    "CAM_BACK": (0.03, 0.0, 1.58, 180.0, -0.6, 809.0, -0.010),
    "CAM_BACK_LEFT": (1.04, 0.48, 1.59, 108.5, 0.4, 1257.0, -0.001),
    "CAM_BACK_RIGHT": (1.01, -0.48, 1.56, -110.5, 0.5, 1259.0, -0.020),
}
_PRINCIPAL_POINT = (816.0, 492.0)
_FULL_WIDTH = 1600


@dataclass(frozen=True)
class Mount:
    """A calibrated sensor."""

    channel: str  # nuScenes' name of the sensor
    translation: Array  # (3,) of the sensor in the ego frame, metres
    quaternion: Array  # (4,) w, x, y, z: from the sensor frame to the ego frame
    intrinsic: Array | None  # (3, 3) of a camera in pixels of its image
    delay: float  # seconds from the LiDAR's timestamp to the sensor's, at most 0

    @property
    def rotation(self) -> Array:
        """Rotation (3, 3) from the sensor frame to the ego frame."""
        return Rotation.from_quat(np.roll(self.quaternion, -1)).as_matrix()


def _quaternion(matrix: Array) -> Array:
    return np.roll(Rotation.from_matrix(matrix).as_quat(), 1)


def build_rig(settings: Settings) -> dict[str, Mount]:
    """The LiDAR and the six cameras, by channel."""
    # The LiDAR's y axis points forward, and its mount leans a little, like real ones.
    lean = Rotation.from_euler("ZYX", (-90.6, 0.35, 0.9), degrees=True).as_matrix()
    rig = {LIDAR: Mount(LIDAR, np.array((0.94, 0.0, 1.84)), _quaternion(lean), None, 0.0)}
    scale = settings.image_width / _FULL_WIDTH
    # Camera axes: x right, y down, z forward; the ego's: x forward, y left, z up.
    optical = np.array(((0.0, 0.0, 1.0), (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)))
    u, v = _PRINCIPAL_POINT
    for channel in CAMERAS:
        x, y, z, yaw, pitch, focal, delay = _MOUNTS[channel]
        turn = Rotation.from_euler("ZY", (yaw, -pitch), degrees=True).as_matrix()
        intrinsic = np.array(((focal * scale, 0, u * scale), (0, focal * scale, v * scale), (0, 0, 1)), np.float64)
        rig[channel] = Mount(channel, np.array((x, y, z)), _quaternion(turn @ optical), intrinsic, delay)
    return rig


@dataclass(frozen=True)
class Pose:
    """Position and orientation of a sensor at a time."""

    position: Array  # (3,) global frame
    rotation: Array  # (3, 3) from the sensor frame to the global frame

    def to_sensor(self, points: Array) -> Array:
        """Global points (..., 3) in the sensor frame."""
        return (points - self.position) @ self.rotation

    def to_global(self, points: Array) -> Array:
        """Points (..., 3) of the sensor frame in the global frame."""
        return points @ self.rotation.T + self.position


def pose_of(scene: Scene, mount: Mount, time: float) -> Pose:
    """Pose of a sensor at a time in seconds after the first keyframe."""
    position, heading = scene.ego_at(time)
    cosine, sine = math.cos(heading), math.sin(heading)
    turn = np.array(((cosine, -sine, 0.0), (sine, cosine, 0.0), (0.0, 0.0, 1.0)))
    return Pose(turn @ mount.translation + position, turn @ mount.rotation)


@cache
def _lidar_rays(rings: tuple[int, ...], columns: int) -> Rays:
    """Unit directions (3, ring, column) in the LiDAR frame."""
    azimuth = 2 * np.pi * np.arange(columns) / columns
    elevation = ELEVATIONS[list(rings), None]
    flat = np.cos(elevation)
    directions = (flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation))
    return np.stack(np.broadcast_arrays(*directions)).astype(np.float32)


def _trace(
    scene: Scene,
    pose: Pose,
    time: float,
    beams: Rays,
    windows_of: Callable[[Array], NDArray[np.int64]],
    reach: float | Array,
) -> tuple[Rays, Hits]:
    """A sensor's rays (3, row, column) in the global frame, and their first hits.

    ``beams`` are the rays in the sensor frame. ``windows_of`` gives the rays in which boxes can be seen, from
    their corners (object, 8, 3) in the sensor frame. Objects whose centres are farther away than ``reach`` metres,
    a number or (object,), are ignored.
    """
    centres, headings = scene.boxes_at(time)
    windows = windows_of(pose.to_sensor(raycast.box_corners(centres, headings, scene.sizes)))
    near = np.hypot(*(centres - pose.position)[:, :2].T) < reach
    rays = np.einsum("ij,jrc->irc", pose.rotation.astype(np.float32), beams)
    return rays, raycast.cast(rays, pose.position, centres, headings, scene.solids, windows, near)


def scan(scene: Scene, mount: Mount, time: float, settings: Settings, random: Generator) -> NDArray[np.float32]:
    """One turn of the LiDAR, all at one instant, ``time`` seconds after the first keyframe.

    Returns:
        The returned points (point, 5), ring by ring: x, y, z in metres in the LiDAR frame, intensity 0..255, ring.
    """
    pose = pose_of(scene, mount, time)
    rings, columns = np.array(settings.rings), settings.columns
    beams = _lidar_rays(tuple(settings.rings), columns)
    windows_of = partial(raycast.lidar_windows, elevations=ELEVATIONS[rings], columns=columns)
    rays, hits = _trace(scene, pose, time, beams, windows_of, MAX_RANGE + scene.sizes[:, 0])
    ground = _ground_distance(rays, pose.position)
    on_ground = ground < hits.distance
    distance = np.where(on_ground, ground, hits.distance)
    part = np.where(on_ground, -1, hits.part)
    # The ground is hit at a grazing angle and returns fewer of the far rays.
    loss = np.where(on_ground, 0.05 + 0.6 * np.square(distance / MAX_RANGE), scene.solids.loss[part])
    returned = (distance < MAX_RANGE) & (random.random(distance.shape, np.float32) > loss)
    row, column = np.nonzero(returned)
    distance, part = distance[returned], part[returned]
    distance = distance + RANGE_NOISE * random.standard_normal(len(distance), np.float32)
    spread = random.standard_normal(len(distance), np.float32)
    mean = np.where(part < 0, np.float32(9), scene.solids.intensity[part])
    intensity = np.clip(mean * (1 + 0.25 * spread), 0, 255)
    return np.column_stack((*(beams[:, row, column] * distance), intensity, rings[row])).astype(np.float32)


def _ground_distance(rays: Rays, origin: Array) -> Rays:
    """Lengths (row, column) at which rays (3, row, column) hit z = 0; infinite for those that rise."""
    with np.errstate(divide="ignore"):
        return np.where(rays[2] < -1e-6, np.float32(-origin[2]) / rays[2], np.float32(np.inf))


@dataclass(frozen=True)
class CameraImage:
    """An image, with the object, depth and visibility behind its pixels."""

    image: NDArray[np.uint8]  # (row, column, 3) RGB
    owners: NDArray[np.int32]  # (row, column) object at each pixel, -1 for ground and sky
    depth: Rays  # (row, column) metres along the optical axis; infinite in the sky
    silhouette: NDArray[np.int64]  # (object,) pixels that an object would fill if it were alone
    seen: NDArray[np.int64]  # (object,) pixels that it fills


def render_image(
    scene: Scene, mount: Mount, time: float, image_size: tuple[int, int], random: Generator
) -> CameraImage:
    """A camera's image of a height and width in pixels, ``time`` seconds after the first keyframe."""
    assert mount.intrinsic is not None
    pose = pose_of(scene, mount, time)
    beams = _camera_rays(mount.intrinsic, image_size)
    windows_of = partial(raycast.camera_windows, intrinsic=mount.intrinsic, image_size=image_size)
    rays, hits = _trace(scene, pose, time, beams, windows_of, RENDER_RANGE)
    owners = hits.owners(scene.solids)
    ground = np.where(hits.part < 0, _ground_distance(rays, pose.position), np.float32(np.inf))
    image = _shade(scene, pose, scene.boxes_at(time)[1], rays, hits, owners, ground, random)
    seen = np.bincount(owners[owners >= 0], minlength=len(scene.kinds))
    return CameraImage(image, owners, np.minimum(hits.distance, ground), hits.silhouette, seen)


def _camera_rays(intrinsic: Array, image_size: tuple[int, int]) -> Rays:
    """Directions (3, row, column) through the pixels' centres, depth 1, camera frame.

    The centre of the top-left pixel is at (0, 0), as in the devkit's projection.
    """
    v, u = np.mgrid[: image_size[0], : image_size[1]]
    x = (u - intrinsic[0, 2]) / intrinsic[0, 0]
    y = (v - intrinsic[1, 2]) / intrinsic[1, 1]
    return np.stack((x, y, np.ones_like(x))).astype(np.float32)


_NORMALS = np.array(((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)), np.float64)
_HAZE_LENGTH = 260.0
_GRAIN = 2.5


def _shade(
    scene: Scene,
    pose: Pose,
    headings: Array,
    rays: Rays,
    hits: Hits,
    owners: NDArray[np.int32],
    ground: Rays,
    random: Generator,
) -> NDArray[np.uint8]:
    """The image (row, column, 3): faces shaded by their angle to the sun, haze by distance, ground and sky."""
    height, width = owners.shape
    rays = rays.reshape(3, -1)
    on_ground = np.flatnonzero(np.isfinite(ground))
    on_object = np.flatnonzero(owners >= 0)
    in_sky = np.flatnonzero((owners.ravel() < 0) & np.isinf(ground.ravel()))
    image = np.empty((height * width, 3), np.float32)
    image[in_sky] = _sky(scene, rays[:, in_sky])
    distance = ground.ravel()[on_ground]
    image[on_ground] = _haze(scene, _ground_colour(scene, pose, rays[:, on_ground], distance), distance)
    part, face = hits.part.ravel()[on_object], hits.face.ravel()[on_object]
    distance = hits.distance.ravel()[on_object]
    shade = _face_shades(scene, headings)[scene.solids.owner[part], face]
    shade *= _facade(scene, pose, rays[:, on_object], distance, part, face)
    image[on_object] = _haze(scene, scene.solids.colour[part] * shade[:, None], distance)
    image *= np.float32(255 * scene.light)
    image += _GRAIN * random.standard_normal((height * width, 1), np.float32)
    return np.clip(image, 0, 255, out=image).astype(np.uint8).reshape(height, width, 3)


def _haze(scene: Scene, colour: Rays, distance: Rays) -> Rays:
    """Colours (pixel, 3) blended with the horizon's by distance."""
    clear = np.exp(distance / -_HAZE_LENGTH)[:, None]
    return colour * clear + (1 - clear) * scene.sky[0].astype(np.float32)


def _sky(scene: Scene, rays: Rays) -> Rays:
    """Sky (pixel, 3), RGB, from the horizon's colour to the one overhead, along rays (3, pixel)."""
    rise = np.clip(rays[2] / np.sqrt(np.square(rays).sum(axis=0)) * 2.2, 0, 1)[:, None]
    low, high = scene.sky.astype(np.float32)
    return low + rise * (high - low)


def _face_shades(scene: Scene, headings: Array) -> Rays:
    """Brightness (object, face) of the six faces: Lambert's cosine law plus ambient light."""
    cosine, sine = np.cos(headings), np.sin(headings)
    x, y, z = scene.sun
    local = np.stack((cosine * x + sine * y, cosine * y - sine * x, np.full_like(cosine, z)), axis=1)
    return (0.58 + 0.46 * np.clip(local @ _NORMALS.T, 0, None)).astype(np.float32)


def _facade(
    scene: Scene, pose: Pose, rays: Rays, distance: Rays, part: NDArray[np.int32], face: NDArray[np.int8]
) -> Rays:
    """Brightness factor (pixel,) of object pixels: rows of dark windows on buildings, 1 elsewhere."""
    factor = np.ones(len(part), np.float32)
    is_building = np.array([kind == "building" for kind in scene.kinds])[scene.solids.owner[part]]
    wall = np.flatnonzero(is_building & (face < 4))
    x, y, z = pose.position[:, None] + rays[:, wall] * distance[wall]
    s, d = scene.road.locate(x, y)
    along = np.where(face[wall] < 2, d, s)
    window = ((along % 3.2) < 1.7) & ((z % 3.0) > 1.2) & ((z % 3.0) < 2.5)
    factor[wall] = np.where(window, 0.45, 1.0)
    return factor


_ASPHALT, _STRIP = (0.30, 0.30, 0.315), (0.36, 0.355, 0.36)
_WALK, _YARD = (0.56, 0.545, 0.52), (0.40, 0.42, 0.34)
_LINE, _YELLOW = (0.82, 0.82, 0.80), (0.78, 0.64, 0.22)
_LEFT_KERB, _RIGHT_KERB = SIDEWALKS[1][0] - 0.3, SIDEWALKS[0][1] + 0.3


def _ground_colour(scene: Scene, pose: Pose, rays: Rays, distance: Rays) -> Rays:
    """Ground (pixel, 3), RGB: asphalt with lane lines, parking strips, tiled sidewalks, yards."""
    x, y = (pose.position[:2, None] + rays[:2] * distance).astype(np.float64)
    s, d = scene.road.locate(x, y)
    strip = (d < BIKE_LANES[0] - 0.6) | (d > BIKE_LANES[1] + 0.6)
    walk = (d < _RIGHT_KERB) | (d > _LEFT_KERB)
    yard = (d < SIDEWALKS[0][0] - 0.2) | (d > SIDEWALKS[1][1] + 0.2)
    kind = strip.astype(np.int64) + walk + yard
    colour = np.array((_ASPHALT, _STRIP, _WALK, _YARD), np.float32)[kind]
    tiles = (kind == 2) & (((s % 1.5) < 0.08) | ((d % 1.5) < 0.08))
    colour[tiles] *= 0.82
    half = 0.5 * (LANES["opposite"] - LANES["ego"])
    dashed = (np.abs(d + half) < 0.08) | (np.abs(d - 3 * half) < 0.08)
    solid = (np.abs(d + 3 * half) < 0.08) | (np.abs(d - 5 * half) < 0.08)
    bays = strip & ~walk & ((s % 6.0) < 0.12)
    colour[(dashed & ((s % 9.0) < 3.0)) | solid | bays] = _LINE
    colour[np.abs(np.abs(d - half) - 0.12) < 0.06] = _YELLOW
    # Patches, so that the ground is not uniform.
    colour *= (1 + 0.035 * np.sin(0.9 * s + 1.7 * d) * np.sin(0.37 * s - 0.8 * d)).astype(np.float32)[:, None]
    return colour * np.float32(0.58 + 0.46 * scene.sun[2])


def visible_shares(images: list[CameraImage]) -> Array:
    """Share (object,) of an object's pixels in all images that are not occluded; 0 for an object in none."""
    silhouette = np.sum([image.silhouette for image in images], axis=0)
    seen = np.sum([image.seen for image in images], axis=0)
    return seen / np.maximum(silhouette, 1)
