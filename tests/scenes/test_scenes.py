"""A small synthetic data set, opened with the devkit: its format, and what is annotated."""

import itertools
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.eval.common.loaders import load_gt
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.geometry_utils import points_in_box
from pyquaternion import Quaternion
from shapely.geometry import Polygon
from shapely.strtree import STRtree

from cmt_aqr.constants import CAMERAS, CLASSES, LIDAR
from cmt_aqr.scenes import Settings, build_scene, sensors
from cmt_aqr.scenes.shapes import KINDS
from cmt_aqr.scenes.tables import Row
from tests.scenes.made import (
    SCENES,
    SMALL,
    annotations_of,
    attribute_of,
    object_index,
    points_in_global,
    read_points,
    scene_index,
    seconds,
)


def test_tokens_are_unique_and_foreign_keys_resolve(nusc: NuScenes) -> None:
    tables = {name: getattr(nusc, name) for name in nusc.table_names}
    for name, rows in tables.items():
        assert rows and len({row["token"] for row in rows}) == len(rows), name
        assert name == "visibility" or all(re.fullmatch("[0-9a-f]{32}", row["token"]) for row in rows)
    # Every field that is named after a table holds a token of it.
    for field, value in itertools.chain.from_iterable(row.items() for rows in tables.values() for row in rows):
        name = field.removesuffix("_token").removesuffix("_tokens")
        if field.endswith(("_token", "_tokens")) and name in tables:
            for key in [value] if isinstance(value, str) else value:
                nusc.get(name, key)


def chain(nusc: NuScenes, table: str, first: str) -> list[Row]:
    """Rows from the first one to the last, whose links agree in both directions."""
    rows = [nusc.get(table, first)]
    while rows[-1]["next"]:
        rows.append(nusc.get(table, rows[-1]["next"]))
    assert [row["prev"] for row in rows] == ["", *(row["token"] for row in rows[:-1])]
    return rows


def test_chains_run_from_first_to_last(nusc: NuScenes) -> None:
    for scene in nusc.scene:
        samples = chain(nusc, "sample", scene["first_sample_token"])
        assert samples[-1]["token"] == scene["last_sample_token"]
        assert len(samples) == scene["nbr_samples"] == SMALL.samples_per_scene
        assert set(np.diff([sample["timestamp"] for sample in samples])) == {500_000}
        for channel in CAMERAS:
            records = chain(nusc, "sample_data", samples[0]["data"][channel])
            assert [record["sample_token"] for record in records] == [sample["token"] for sample in samples]
    for instance in nusc.instance:
        annotations = chain(nusc, "sample_annotation", instance["first_annotation_token"])
        assert {annotation["instance_token"] for annotation in annotations} == {instance["token"]}
        assert annotations[-1]["token"] == instance["last_annotation_token"]
        assert len(annotations) == instance["nbr_annotations"]


def test_sweeps_lie_between_keyframes(nusc: NuScenes, root: Path) -> None:
    for scene in nusc.scene:
        sample = nusc.get("sample", scene["first_sample_token"])
        records = chain(nusc, "sample_data", sample["data"][LIDAR])
        assert set(np.diff([record["timestamp"] for record in records])) == {250_000}
        for number, record in enumerate(records):
            assert record["is_key_frame"] == (number % 2 == 0)
            folder = "samples" if record["is_key_frame"] else "sweeps"
            assert record["filename"].startswith(f"{folder}/{LIDAR}/")
            # A sweep belongs to the keyframe that follows it.
            lag = nusc.get("sample", record["sample_token"])["timestamp"] - record["timestamp"]
            assert lag == (0 if record["is_key_frame"] else 250_000)
    assert len(list((root / "sweeps" / LIDAR).iterdir())) == 4


def test_recordings_match_their_tables(nusc: NuScenes) -> None:
    for record in nusc.sample_data:
        if record["fileformat"] == "jpg":
            shape = cv2.imread(nusc.get_sample_data_path(record["token"])).shape
            assert shape == (record["height"], record["width"], 3) == (225, 400, 3)
            continue
        points = read_points(nusc, record)
        distance = np.linalg.norm(points[:, :3], axis=1)
        assert 8_000 < len(points) < 32 * SMALL.columns
        assert distance.min() > 1.5 and distance.max() < sensors.MAX_RANGE + 0.2
        assert points[:, 3].min() >= 0 and points[:, 3].max() <= 255


def test_every_camera_has_its_own_time_and_pose(nusc: NuScenes) -> None:
    for sample in nusc.sample:
        assert set(sample["data"]) == {LIDAR, *CAMERAS}
        records = [nusc.get("sample_data", sample["data"][channel]) for channel in CAMERAS]
        delays = [sample["timestamp"] - record["timestamp"] for record in records]
        assert len(set(delays)) == 6 and min(delays) > 0 and max(delays) < 50_000
        index = scene_index(nusc, sample)
        for record in records:
            pose = nusc.get("ego_pose", record["ego_pose_token"])
            assert pose["timestamp"] == record["timestamp"]
            position, heading = SCENES[index].ego_at(seconds(index, record["timestamp"]))
            np.testing.assert_allclose(pose["translation"], position, atol=1e-9)
            yaw = Quaternion(pose["rotation"]).yaw_pitch_roll[0]
            assert math.remainder(yaw - heading, 2 * math.pi) == pytest.approx(0, abs=1e-9)


def test_sensors_are_mounted_as_in_nuscenes(nusc: NuScenes) -> None:
    def rotation(channel: str) -> Quaternion:
        record = nusc.get("sample_data", nusc.sample[0]["data"][channel])
        return Quaternion(nusc.get("calibrated_sensor", record["calibrated_sensor_token"])["rotation"])

    for channel, yaw in zip(CAMERAS, (0, -55, 55, 180, 110, -110), strict=True):
        forward, down = rotation(channel).rotate((0, 0, 1)), rotation(channel).rotate((0, 1, 0))
        off = math.degrees(math.atan2(forward[1], forward[0])) - yaw
        assert abs(math.remainder(off, 360)) < 4 and down[2] < -0.99
    np.testing.assert_allclose(rotation(LIDAR).rotate((0, 1, 0)), (1, 0, 0), atol=0.03)
    np.testing.assert_allclose(rotation(LIDAR).rotate((0, 0, 1)), (0, 0, 1), atol=0.03)


def test_point_counts_are_the_devkits(nusc: NuScenes) -> None:
    counts = []
    for sample in nusc.sample:
        _, boxes, _ = nusc.get_sample_data(sample["data"][LIDAR])
        points = read_points(nusc, nusc.get("sample_data", sample["data"][LIDAR]))[:, :3].T
        for box in boxes:
            counts.append(nusc.get("sample_annotation", box.token)["num_lidar_pts"])
            assert counts[-1] == points_in_box(box, points).sum()
    assert np.mean(np.array(counts) > 0) > 0.4


def test_velocities_are_the_objects_own(nusc: NuScenes) -> None:
    moving = 0
    for annotation in nusc.sample_annotation:
        velocity = nusc.box_velocity(annotation["token"])[:2]
        if np.isnan(velocity).any():
            assert not annotation["prev"] and not annotation["next"]
            continue
        index, number = object_index(nusc, annotation)
        time = seconds(index, nusc.get("sample", annotation["sample_token"])["timestamp"])
        (before, _), (after, _) = (SCENES[index].boxes_at(time + lag) for lag in (-1e-3, 1e-3))
        expected = ((after - before) / 2e-3)[number, :2]
        # The difference is one-sided at the ends of a track, where a bend or acceleration shows a little.
        ends = not annotation["prev"] or not annotation["next"]
        np.testing.assert_allclose(velocity, expected, atol=0.25 if ends else 0.02)
        speed, attribute = np.hypot(*expected), attribute_of(nusc, annotation)
        if attribute.endswith(".moving"):
            heading = Quaternion(annotation["rotation"]).rotate((1, 0, 0))[:2]
            assert speed > 0.5 and heading @ expected > 0.99 * speed
            moving += 1
        elif attribute and attribute != "cycle.with_rider":
            assert speed == pytest.approx(0, abs=1e-6)
    assert moving > 50


def test_attributes_fit_their_classes(nusc: NuScenes) -> None:
    cycle = ("cycle.with_rider", "cycle.without_rider")
    vehicle = ("vehicle.moving", "vehicle.parked", "vehicle.stopped")
    allowed = {"barrier": ("",), "traffic_cone": ("",), "bicycle": cycle, "motorcycle": cycle}
    allowed["pedestrian"] = ("pedestrian.moving", "pedestrian.standing")
    for box in itertools.chain.from_iterable(load_gt(nusc, "mini_val", DetectionBox).boxes.values()):
        assert box.attribute_name in allowed.get(box.detection_name, vehicle)


def test_every_class_is_in_every_scene_within_its_range(nusc: NuScenes) -> None:
    ranges = config_factory("detection_cvpr_2019").class_range
    for scene in nusc.scene:
        seen = dict.fromkeys(CLASSES, 0)
        for sample in chain(nusc, "sample", scene["first_sample_token"]):
            ego = nusc.get("ego_pose", nusc.get("sample_data", sample["data"][LIDAR])["ego_pose_token"])
            for annotation in annotations_of(nusc, sample):
                name = category_to_detection_name(annotation["category_name"])
                distance = math.dist(annotation["translation"][:2], ego["translation"][:2])
                assert distance < 60
                seen[name] += distance < ranges[name] and annotation["num_lidar_pts"] > 0
        assert min(seen.values()) >= SMALL.samples_per_scene, seen


def test_boxes_do_not_overlap_and_stand_on_the_ground(nusc: NuScenes) -> None:
    for sample in nusc.sample:
        boxes = nusc.get_boxes(sample["data"][LIDAR])
        assert all(box.corners()[2].min() == pytest.approx(0, abs=1e-6) for box in boxes)
        shapes = [Polygon(box.bottom_corners()[:2].T) for box in boxes]
        tree = STRtree(shapes)
        for number, shape in enumerate(shapes):
            others = [shapes[other] for other in tree.query(shape) if other != number]
            assert all(shape.intersection(other).area == 0 for other in others)


def test_shapes_fill_their_boxes() -> None:
    for kind in KINDS.values():
        assert np.min([part.low for part in kind.parts], axis=0).tolist() == [-0.5] * 3
        assert np.max([part.high for part in kind.parts], axis=0).tolist() == [0.5] * 3
        assert all(low < high for part in kind.parts for low, high in zip(part.low, part.high, strict=True))


@pytest.mark.parametrize(("beams", "rings"), [(32, list(range(32))), (8, [0, 4, 9, 13, 18, 22, 27, 31])])
def test_a_lidar_of_fewer_beams_keeps_the_numbers_and_slopes_of_its_rings(beams: int, rings: list[int]) -> None:
    settings = Settings(beams=beams, azimuth_resolution=4.0)
    mount = sensors.build_rig(settings)[LIDAR]
    x, y, z, _, ring = sensors.scan(build_scene(settings, 0), mount, 0.0, settings, np.random.default_rng(0)).T
    assert np.unique(ring).tolist() == rings
    slope = np.rad2deg(np.arctan2(z, np.hypot(x, y)))
    np.testing.assert_allclose(slope, -30.67 + ring * (10.67 + 30.67) / 31, atol=1e-3)


def test_sweeps_see_standing_objects_where_they_stand(nusc: NuScenes) -> None:
    counts = []
    for record in (record for record in nusc.sample_data if not record["is_key_frame"]):
        points = points_in_global(nusc, record).T
        for annotation in annotations_of(nusc, nusc.get("sample", record["sample_token"])):
            if attribute_of(nusc, annotation) == "vehicle.parked" and annotation["num_lidar_pts"] > 60:
                before = points_in_box(nusc.get_box(annotation["token"]), points).sum()
                counts.append((before, annotation["num_lidar_pts"]))
    before, now = np.array(counts).T
    # Traffic may pass between, so a single object may differ more.
    assert len(counts) > 15 and min(before / now) > 0.1 and 0.8 < before.sum() / now.sum() < 1.2
