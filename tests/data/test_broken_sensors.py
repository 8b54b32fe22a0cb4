"""Damage is measured where a fault caused it, and stays there when augmentation moves the scene."""

import math

import pytest
import torch
from torch import Tensor

from cmt_aqr.constants import CAMERAS
from cmt_aqr.data.augmentation import ImageProcessing, Transform, transform_scene
from cmt_aqr.data.collate import collate
from cmt_aqr.data.corruptions import mome, multicorrupt, nuscenes_c, nuscenes_r
from cmt_aqr.data.damage import MeasureDamage
from cmt_aqr.data.masking import MaskModality
from cmt_aqr.structures import Frame
from tests.helpers.struck import cameras_around, driving, generator, photograph

FRAME = driving(8000).replace(images=photograph(), lidar2img=cameras_around(60, 90))
ANGLES = torch.arange(12) * math.pi / 6 + 0.01
PLACES = torch.stack((20 * ANGLES.cos(), 20 * ANGLES.sin(), torch.zeros(12)), dim=1)
"""Every 30 degrees, 20 m away: the middle of each camera's view, and between two."""


def struck(*faults: Transform, frame: Frame = FRAME) -> Frame:
    return MeasureDamage(faults)(frame, generator())


def damage(frame: Frame, places: Tensor = PLACES) -> tuple[Tensor, Tensor, Tensor]:
    """Damage of LiDAR (place,) and cameras (place, view), and which cameras see the place."""
    lidar, cameras, seen = collate([frame]).damage.at(places[None])
    return lidar[0], cameras[0], seen[0]


def test_nothing_is_lost_without_a_fault() -> None:
    lidar, cameras, seen = damage(struck())
    assert lidar.eq(0).all() and cameras.eq(0).all() and seen.any(dim=1).all()


@pytest.mark.parametrize(
    ("angle", "scale", "shift", "flips"),
    [(0.0, 1.0, 0.0, (False, False)), (0.7, 1.1, 2.0, (True, False)), (-2.0, 0.9, -1.0, (False, True))],
)
def test_a_limited_view_is_lost_where_it_ends(
    angle: float, scale: float, shift: float, flips: tuple[bool, bool]
) -> None:
    moved = transform_scene(struck(nuscenes_r.fov(degrees=60.0)), angle, scale, (shift, shift, 0), *flips)
    inverse = moved.lidar2global.inverse().float()
    lidar, cameras, _ = damage(moved, PLACES @ inverse[:3, :3].T + inverse[:3, 3])
    kept = torch.atan2(PLACES[:, 0], PLACES[:, 1]).abs() < math.radians(60)
    assert kept.any() and (lidar[kept] < 0.2).all() and (lidar[~kept] > 0.8).all()
    assert cameras.eq(0).all()


@pytest.mark.parametrize("view", [0, 2, 5])
def test_a_black_view_is_lost_and_no_other_also_after_image_augmentation(view: int) -> None:
    frame = struck(MaskModality(cameras=1.0, lidar=0.0, views=[CAMERAS[view]]))
    dead = torch.arange(6) == view
    assert not frame.images[view].any()
    for shown in (frame, ImageProcessing((30, 60))(frame, generator())):
        lidar, cameras, seen = damage(shown)
        assert lidar.eq(0).all()
        assert (cameras[:, dead][seen[:, dead]] > 0.95).all() and cameras[:, ~dead].eq(0).all()


@pytest.mark.parametrize(
    ("fault", "lidar", "camera"),
    [
        (mome.lidar_drop(), (0.95, 1), (0, 0)),
        (mome.view_drop(), (0, 0), (0.95, 1)),
        (mome.occlusion(), (0, 0), (0.05, 1)),
        (multicorrupt.pointsreducing(severity=3), (0.8, 0.95), (0, 0)),
        (multicorrupt.dark(severity=3), (0, 0), (0.02, 0.9)),
        (nuscenes_c.density(severity=5), (0.2, 0.4), (0, 0)),
        (nuscenes_r.extrinsics(together=True), (0, 0), (0.02, 1)),
    ],
)
def test_damage_is_in_proportion(
    fault: Transform, lidar: tuple[float, float], camera: tuple[float, float]
) -> None:
    of_lidar, of_cameras, seen = damage(struck(fault))
    for value, (low, high) in ((of_lidar.mean(), lidar), (of_cameras[seen].mean(), camera)):
        assert low <= float(value) <= high


def test_each_frame_of_a_batch_has_its_own_damage_and_absent_cameras_have_none() -> None:
    lidar_only = FRAME.replace(images=None)
    frames = [struck(nuscenes_r.fov(degrees=60.0), frame=lidar_only), struck(frame=lidar_only)]
    lidar, cameras, _ = collate(frames).damage.at(PLACES.expand(2, -1, -1))
    assert lidar[0].max() > 0.8 and lidar[1].eq(0).all() and cameras.eq(0).all()
