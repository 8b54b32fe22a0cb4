"""What faults broke is measured where it was broken, and found again wherever augmentation moves the scene."""

import math

import pytest
import torch
from torch import Tensor

from cmt_aqr.damage import Damage
from cmt_aqr.data.augmentation import ImageProcessing, Transform, transform_scene
from cmt_aqr.data.collate import collate
from cmt_aqr.data.corruptions import mome, multicorrupt, nuscenes_c, nuscenes_r
from cmt_aqr.data.damage import MeasureDamage
from cmt_aqr.data.masking import MaskModality
from cmt_aqr.structures import Frame
from tests.helpers.struck import cameras_around, driving, generator, photograph


def frame(points: int = 8000) -> Frame:
    return driving(points).replace(images=photograph(), lidar2img=cameras_around(60, 90))


def places() -> Tensor:
    """(1, 12, 3), every 30 degrees, 20 m away: the middle of each camera's view and between two."""
    angle = torch.arange(12) * math.pi / 6 + 0.01
    return torch.stack((20 * angle.cos(), 20 * angle.sin(), torch.zeros(12)), dim=1)[None]


def found(struck: Frame, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    damage = collate([struck]).damage
    lidar, cameras, seen = damage.at(at)
    return lidar[0], cameras[0], seen[0]


def test_nothing_is_lost_without_a_fault() -> None:
    lidar, cameras, seen = found(MeasureDamage([])(frame(), generator()), places())
    assert lidar.eq(0).all() and cameras.eq(0).all() and seen.any(dim=1).all()


@pytest.mark.parametrize(
    "move", [(0.0, 1.0, 0.0, False, False), (0.7, 1.1, 2.0, True, False), (-2.0, 0.9, -1.0, False, True)]
)
def test_a_cut_field_of_view_is_lost_where_it_was_cut(move: tuple[float, float, float, bool, bool]) -> None:
    angle, scale, shift, flip_x, flip_y = move
    struck = MeasureDamage([nuscenes_r.fov(degrees=60.0)])(frame(), generator())
    moved = transform_scene(struck, angle, scale, (shift, shift, 0), flip_x, flip_y)
    at = places()[0]
    linear, offset = (moved.lidar2global.inverse()[:3, :3].float(), moved.lidar2global.inverse()[:3, 3].float())
    lidar, cameras, _ = found(moved, (at @ linear.T + offset)[None])
    kept = torch.atan2(at[:, 0], at[:, 1]).abs() < math.radians(60)
    assert kept.any() and (lidar[kept] < 0.2).all() and (lidar[~kept] > 0.8).all()
    assert cameras.eq(0).all()


@pytest.mark.parametrize("lost", [0, 2, 5])
def test_a_black_view_is_lost_and_no_other_also_after_image_augmentation(lost: int) -> None:
    names = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
    struck = MeasureDamage([MaskModality(cameras=1.0, lidar=0.0, views=[names[lost]])])(frame(), generator())
    black = [view for view in range(6) if not struck.images[view].any()]
    assert len(black) == 1
    cropped = ImageProcessing((30, 60))(struck, generator())
    for shown in (struck, cropped):
        lidar, cameras, seen = found(shown, places())
        dead = torch.zeros(6, dtype=torch.bool)
        dead[black] = True
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
def test_a_fault_is_told_by_how_much_it_broke(
    fault: Transform, lidar: tuple[float, float], camera: tuple[float, float]
) -> None:
    struck = MeasureDamage([fault])(frame(), generator())
    of_lidar, of_cameras, seen = found(struck, places())
    for value, (low, high) in ((of_lidar.mean(), lidar), (of_cameras[seen].mean(), camera)):
        assert low <= float(value) <= high


def test_frames_of_a_batch_keep_their_own_and_sensors_that_are_not_read_are_whole() -> None:
    without = frame().replace(images=None)
    first = MeasureDamage([nuscenes_r.fov(degrees=60.0)])(without, generator())
    second = MeasureDamage([])(without, generator())
    damage = collate([first, second]).damage
    assert isinstance(damage, Damage)
    lidar, cameras, _ = damage.at(places().expand(2, -1, -1))
    assert lidar[0].max() > 0.8 and lidar[1].eq(0).all() and cameras.eq(0).all()
