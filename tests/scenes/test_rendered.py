"""What is recorded, put back over the pictures: LiDAR points, boxes and visibility against the cameras' view."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.geometry_utils import points_in_box, view_points

from cmt_aqr.constants import CAMERAS, CLASSES, LIDAR
from cmt_aqr.scenes import Scene, sensors
from cmt_aqr.scenes.sensors import Array
from cmt_aqr.scenes.tables import Row
from tests.scenes.made import (
    SMALL,
    annotations_of,
    move,
    object_index,
    points_in_global,
    pose_matrix,
    scene_index,
    seconds,
)


class View:
    """A camera's view of a keyframe, by the devkit, and the maker's own picture of it."""

    def __init__(self, nusc: NuScenes, scenes: list[Scene], sample: Row, channel: str) -> None:
        self.nusc, self.sample = nusc, sample
        self.record = nusc.get("sample_data", sample["data"][channel])
        mount = nusc.get("calibrated_sensor", self.record["calibrated_sensor_token"])
        self.intrinsic = np.array(mount["camera_intrinsic"])
        self.from_global = np.linalg.inv(pose_matrix(nusc, self.record))
        self.delay = (self.record["timestamp"] - sample["timestamp"]) / 1e6
        self.jpeg = cv2.imread(nusc.get_sample_data_path(self.record["token"]))[..., ::-1]
        index = scene_index(nusc, sample)
        self.picture = sensors.render_image(
            scenes[index],
            sensors.build_rig(SMALL)[channel],
            seconds(index, self.record["timestamp"]),
            SMALL.image_size,
            np.random.default_rng(0),
        )

    def project(self, points: Array, annotation: Row) -> tuple[Array, Array]:
        """Pixels (point, 2) and depths of points (point, 3) in the global frame at the sample's time.

        An object moves on until the camera fires; its velocity comes from the devkit.
        """
        velocity = np.nan_to_num(self.nusc.box_velocity(annotation["token"]))
        camera = move(self.from_global, points + velocity * self.delay)
        pixels = view_points(camera.T, self.intrinsic, normalize=True)[:2].T
        return pixels, camera[:, 2]


def annotations_with_points(nusc: NuScenes, sample: Row) -> Iterator[tuple[Row, Array]]:
    """Each annotation with the LiDAR points (point, 3) in its box, global frame, the ground left out."""
    record = nusc.get("sample_data", sample["data"][LIDAR])
    points = points_in_global(nusc, record)
    points = points[points[:, 2] > 0.1]
    for annotation in annotations_of(nusc, sample):
        inside = points[points_in_box(nusc.get_box(annotation["token"]), points.T)]
        if len(inside):
            yield annotation, inside


@pytest.fixture(scope="module")
def views(nusc: NuScenes, scenes: list[Scene]) -> list[View]:
    return [View(nusc, scenes, sample, channel) for sample in nusc.sample[::2] for channel in CAMERAS]


def in_image(pixels: Array, depth: Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    height, width = SMALL.image_size
    nearest = np.rint(pixels).astype(int)
    inside = (depth > 0.3) & (nearest >= 0).all(axis=1) & (nearest < (width, height)).all(axis=1)
    return nearest, inside


def test_lidar_points_fall_on_the_pixels_of_their_object(
    nusc: NuScenes, scenes: list[Scene], views: list[View]
) -> None:
    right, total = dict.fromkeys(CLASSES, 0), dict.fromkeys(CLASSES, 0)
    for view in views:
        for annotation, points in annotations_with_points(nusc, view.sample):
            _, number = object_index(nusc, scenes, annotation)
            pixels, depth = view.project(points, annotation)
            nearest, inside = in_image(pixels, depth)
            column, row = nearest[inside].T
            # What stands a good way before the point hides it from the camera, which sits elsewhere.
            clear = view.picture.depth[row, column] > depth[inside] - 0.5
            name = category_to_detection_name(annotation["category_name"])
            right[name] += (view.picture.owners[row, column] == number)[clear].sum()
            total[name] += clear.sum()
    share = {name: right[name] / total[name] for name in CLASSES}
    assert min(total.values()) > 25, total
    assert sum(right.values()) / sum(total.values()) > 0.97, share
    assert min(share.values()) > 0.9, share


def test_projected_boxes_hold_the_pixels_of_their_object(
    nusc: NuScenes, scenes: list[Scene], views: list[View]
) -> None:
    checked, covered = 0, []
    height, width = SMALL.image_size
    for view in views:
        owners = view.picture.owners
        for key in view.sample["anns"]:
            annotation = nusc.get("sample_annotation", key)
            _, number = object_index(nusc, scenes, annotation)
            rows, columns = np.nonzero(owners == number)
            corners = nusc.get_box(key).corners().T
            pixels, depth = view.project(corners, annotation)
            if not len(rows) or depth.min() < 0.2:
                continue
            low, high = pixels.min(axis=0) - 0.6, pixels.max(axis=0) + 0.6
            assert columns.min() >= low[0] and columns.max() <= high[0]
            assert rows.min() >= low[1] and rows.max() <= high[1]
            checked += 1
            whole = view.picture.seen[number] == view.picture.silhouette[number]
            inside = (low > 0).all() and (high < (width, height)).all()
            if whole and inside and len(rows) > 40:
                size = high - low
                covered.append(((np.ptp(columns) + 1) / size[0], (np.ptp(rows) + 1) / size[1]))
    assert checked > 200
    # The other way round: an object that nothing hides nearly fills its box, so the scale is right too.
    assert len(covered) > 10
    assert np.median(covered, axis=0).min() > 0.8


def test_visibility_is_the_share_of_pixels_not_hidden(
    nusc: NuScenes, scenes: list[Scene], views: list[View]
) -> None:
    sample = nusc.sample[0]
    pictures = [view.picture for view in views if view.sample is sample]
    levels = set()
    for annotation in annotations_of(nusc, sample):
        _, number = object_index(nusc, scenes, annotation)
        # The depth buffer tells which pixels nothing else covers; the silhouette is the caster's own test.
        seen = sum((picture.owners == number).sum() for picture in pictures)
        whole = sum(picture.silhouette[number] for picture in pictures)
        share = seen / whole if whole else 0
        level = nusc.get("visibility", annotation["visibility_token"])["level"]
        low, high = (int(part) / 100 for part in level[1:].split("-"))
        assert low <= share <= high
        levels.add(level)
    assert len(levels) >= 3


def test_written_pictures_are_what_the_cameras_saw(views: list[View]) -> None:
    """Of this camera at this time, and with its colours in their order, but for noise and compression."""
    for view in views:
        off, swapped = (np.abs(view.jpeg[..., ::step] - view.picture.image.astype(int)) for step in (1, -1))
        assert off.mean() < 6 and off.mean() < 0.8 * swapped.mean()
