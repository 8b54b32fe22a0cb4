"""What is recorded, projected onto the images: LiDAR points, boxes and visibility against the cameras' view."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.geometry_utils import points_in_box, view_points

from cmt_aqr.constants import CAMERAS, CLASSES, LIDAR
from cmt_aqr.scenes import sensors
from cmt_aqr.scenes.sensors import Array
from cmt_aqr.scenes.tables import Row
from tests.scenes.made import (
    SCENES,
    SMALL,
    annotations_of,
    move,
    object_index,
    points_in_global,
    pose_matrix,
    scene_index,
    seconds,
)

HEIGHT, WIDTH = SMALL.image_size


class View:
    """A camera's view of a keyframe, by the devkit, and the maker's rendering of it."""

    def __init__(self, nusc: NuScenes, sample: Row, channel: str) -> None:
        self.nusc, self.sample = nusc, sample
        record = nusc.get("sample_data", sample["data"][channel])
        mount = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
        self.intrinsic = np.array(mount["camera_intrinsic"])
        self.from_global = np.linalg.inv(pose_matrix(nusc, record))
        self.delay = (record["timestamp"] - sample["timestamp"]) / 1e6
        self.jpeg = cv2.imread(nusc.get_sample_data_path(record["token"]))[..., ::-1]
        index = scene_index(nusc, sample)
        time, rig = seconds(index, record["timestamp"]), sensors.build_rig(SMALL)
        random = np.random.default_rng(0)
        self.rendered = sensors.render_image(SCENES[index], rig[channel], time, SMALL.image_size, random)

    def project(self, points: Array, annotation: Row) -> tuple[Array, Array]:
        """Pixels (point, 2) and depths of points (point, 3) in the global frame at the sample's time.

        An object moves until the camera fires; its velocity is the devkit's.
        """
        velocity = np.nan_to_num(self.nusc.box_velocity(annotation["token"]))
        camera = move(self.from_global, points + velocity * self.delay)
        return view_points(camera.T, self.intrinsic, normalize=True)[:2].T, camera[:, 2]


@pytest.fixture(scope="module")
def views(nusc: NuScenes) -> list[View]:
    return [View(nusc, sample, channel) for sample in nusc.sample[::2] for channel in CAMERAS]


def annotations_with_points(nusc: NuScenes, sample: Row) -> Iterator[tuple[Row, Array]]:
    """Each annotation with the LiDAR points (point, 3) in its box, global frame, without the ground."""
    points = points_in_global(nusc, nusc.get("sample_data", sample["data"][LIDAR]))
    points = points[points[:, 2] > 0.1]
    for annotation in annotations_of(nusc, sample):
        inside = points[points_in_box(nusc.get_box(annotation["token"]), points.T)]
        if len(inside):
            yield annotation, inside


def test_lidar_points_fall_on_the_pixels_of_their_object(nusc: NuScenes, views: list[View]) -> None:
    right, total = dict.fromkeys(CLASSES, 0), dict.fromkeys(CLASSES, 0)
    for view in views:
        for annotation, points in annotations_with_points(nusc, view.sample):
            pixels, depth = view.project(points, annotation)
            nearest = np.rint(pixels).astype(int)
            inside = (depth > 0.3) & (nearest >= 0).all(axis=1) & (nearest < (WIDTH, HEIGHT)).all(axis=1)
            column, row = nearest[inside].T
            # An object well before the point hides it from the camera, which is not where the LiDAR is.
            clear = view.rendered.depth[row, column] > depth[inside] - 0.5
            name = category_to_detection_name(annotation["category_name"])
            owners = view.rendered.owners[row, column][clear]
            right[name] += (owners == object_index(nusc, annotation)[1]).sum()
            total[name] += clear.sum()
    share = {name: right[name] / total[name] for name in CLASSES}
    assert min(total.values()) > 25, total
    assert sum(right.values()) / sum(total.values()) > 0.97, share
    assert min(share.values()) > 0.9, share


def test_projected_boxes_hold_the_pixels_of_their_object(nusc: NuScenes, views: list[View]) -> None:
    checked, covered = 0, []
    for view in views:
        for annotation in annotations_of(nusc, view.sample):
            _, number = object_index(nusc, annotation)
            rows, columns = np.nonzero(view.rendered.owners == number)
            pixels, depth = view.project(nusc.get_box(annotation["token"]).corners().T, annotation)
            if not len(rows) or depth.min() < 0.2:
                continue
            low, high = pixels.min(axis=0) - 0.6, pixels.max(axis=0) + 0.6
            assert columns.min() >= low[0] and columns.max() <= high[0]
            assert rows.min() >= low[1] and rows.max() <= high[1]
            checked += 1
            unoccluded = view.rendered.seen[number] == view.rendered.silhouette[number]
            if unoccluded and (low > 0).all() and (high < (WIDTH, HEIGHT)).all() and len(rows) > 40:
                covered.append((np.array((np.ptp(columns), np.ptp(rows))) + 1) / (high - low))
    assert checked > 200
    # Conversely, an object that nothing hides almost fills its box, so the scale is right, too.
    assert len(covered) > 10 and np.median(covered, axis=0).min() > 0.8


def test_visibility_is_the_share_of_pixels_not_hidden(nusc: NuScenes, views: list[View]) -> None:
    images = [view.rendered for view in views if view.sample is nusc.sample[0]]
    levels = set()
    for annotation in annotations_of(nusc, nusc.sample[0]):
        _, number = object_index(nusc, annotation)
        seen = sum((image.owners == number).sum() for image in images)
        silhouette = sum(image.silhouette[number] for image in images)
        level = nusc.get("visibility", annotation["visibility_token"])["level"]
        low, high = (int(part) / 100 for part in level[1:].split("-"))
        assert low <= seen / max(silhouette, 1) <= high
        levels.add(level)
    assert len(levels) >= 3


def test_written_images_are_what_the_cameras_saw(views: list[View]) -> None:
    """The image of this camera at this time, with its colours in order, up to noise and compression."""
    for view in views:
        off, swapped = (np.abs(view.jpeg[..., ::step] - view.rendered.image.astype(int)) for step in (1, -1))
        assert off.mean() < 6 and off.mean() < 0.8 * swapped.mean()
