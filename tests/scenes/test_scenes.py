"""A small synthetic data set, opened with the devkit: its format, and what is annotated."""

import itertools
import math
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
from cmt_aqr.scenes import Scene, Settings, build_scene, sensors
from cmt_aqr.scenes.shapes import KINDS
from tests.scenes.made import (
    SMALL,
    annotations_of,
    attributes_of,
    object_index,
    points_in_global,
    read_points,
    scene_index,
    seconds,
)


def test_tokens_are_unique_and_foreign_keys_resolve(nusc: NuScenes) -> None:
    tables = {name: getattr(nusc, name) for name in nusc.table_names}
    for name, rows in tables.items():
        assert rows, f"table {name} is empty"
        if name != "visibility":
            assert all(len(row["token"]) == 32 and int(row["token"], 16) >= 0 for row in rows)
        assert len({row["token"] for row in rows}) == len(rows)
    # Every field that names a table holds a token of it.
    for rows in tables.values():
        for field, value in itertools.chain.from_iterable(row.items() for row in rows):
            name = field.removesuffix("_token").removesuffix("_tokens")
            if field.endswith(("_token", "_tokens")) and name in tables:
                for key in [value] if isinstance(value, str) else value:
                    nusc.get(name, key)


def test_chains_run_from_first_to_last(nusc: NuScenes) -> None:
    for name in ("sample", "sample_data", "sample_annotation"):
        rows = {row["token"]: row for row in getattr(nusc, name)}
        for row in rows.values():
            assert not row["next"] or rows[row["next"]]["prev"] == row["token"]
            assert not row["prev"] or rows[row["prev"]]["next"] == row["token"]
    for scene in nusc.scene:
        sample, times = nusc.get("sample", scene["first_sample_token"]), []
        while True:
            times.append(sample["timestamp"])
            if not sample["next"]:
                break
            sample = nusc.get("sample", sample["next"])
        assert sample["token"] == scene["last_sample_token"]
        assert len(times) == scene["nbr_samples"] == SMALL.samples_per_scene
        assert np.diff(times).tolist() == [500_000] * (len(times) - 1)
    for instance in nusc.instance:
        annotation = nusc.get("sample_annotation", instance["first_annotation_token"])
        count = 1
        while annotation["next"]:
            annotation = nusc.get("sample_annotation", annotation["next"])
            assert annotation["instance_token"] == instance["token"]
            count += 1
        assert annotation["token"] == instance["last_annotation_token"]
        assert count == instance["nbr_annotations"]


def test_sweeps_lie_between_keyframes(nusc: NuScenes, root: Path) -> None:
    for scene in nusc.scene:
        sample = nusc.get("sample", scene["first_sample_token"])
        record, chain = nusc.get("sample_data", sample["data"][LIDAR]), []
        assert record["prev"] == ""
        while record:
            chain.append(record)
            record = nusc.get("sample_data", record["next"]) if record["next"] else None
        assert np.diff([record["timestamp"] for record in chain]).tolist() == [250_000] * (len(chain) - 1)
        assert [record["is_key_frame"] for record in chain] == [True, False] * 2 + [True]
        for record in chain:
            folder = "samples" if record["is_key_frame"] else "sweeps"
            assert record["filename"].startswith(f"{folder}/{LIDAR}/")
            # A sweep belongs to the keyframe that follows it.
            lag = nusc.get("sample", record["sample_token"])["timestamp"] - record["timestamp"]
            assert lag in (0, 250_000)
    assert len(list((root / "sweeps" / LIDAR).iterdir())) == 4


def test_recordings_are_what_the_tables_say(nusc: NuScenes) -> None:
    for record in nusc.sample_data:
        path = Path(nusc.get_sample_data_path(record["token"]))
        if record["fileformat"] == "jpg":
            assert cv2.imread(str(path)).shape == (record["height"], record["width"], 3) == (225, 400, 3)
            continue
        points = read_points(nusc, record)
        distance = np.linalg.norm(points[:, :3], axis=1)
        assert 8_000 < len(points) < 32 * SMALL.columns
        assert distance.min() > 1.5
        assert distance.max() < sensors.MAX_RANGE + 0.2
        assert points[:, 3].min() >= 0 and points[:, 3].max() <= 255
        assert set(np.unique(points[:, 4])) == set(range(32))
        elevation = np.rad2deg(np.arcsin(points[:, 2] / distance))
        expected = np.linspace(-30.67, 10.67, 32)[points[:, 4].astype(int)]
        np.testing.assert_allclose(elevation, expected, atol=1e-3)


def test_every_camera_has_its_own_time_and_pose(nusc: NuScenes) -> None:
    for sample in nusc.sample:
        assert set(sample["data"]) == {LIDAR, *CAMERAS}
        records = [nusc.get("sample_data", sample["data"][channel]) for channel in CAMERAS]
        delays = [sample["timestamp"] - record["timestamp"] for record in records]
        assert len(set(delays)) == 6 and min(delays) > 0 and max(delays) < 50_000
        for record in records:
            index = scene_index(nusc, sample)
            pose = nusc.get("ego_pose", record["ego_pose_token"])
            assert pose["timestamp"] == record["timestamp"]
            position, heading = build_scene(SMALL, index).ego_at(seconds(index, record["timestamp"]))
            np.testing.assert_allclose(pose["translation"], position, atol=1e-9)
            yaw = Quaternion(pose["rotation"]).yaw_pitch_roll[0]
            assert math.remainder(yaw - heading, 2 * math.pi) == pytest.approx(0, abs=1e-9)


def test_cameras_look_where_nuscenes_cameras_look(nusc: NuScenes) -> None:
    yaws = {
        "CAM_FRONT": 0,
        "CAM_FRONT_LEFT": 55,
        "CAM_BACK_LEFT": 110,
        "CAM_BACK": 180,
        "CAM_BACK_RIGHT": -110,
        "CAM_FRONT_RIGHT": -55,
    }
    sample = nusc.sample[0]
    for channel, yaw in yaws.items():
        record = nusc.get("sample_data", sample["data"][channel])
        mount = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
        turn = Quaternion(mount["rotation"])
        forward, down = turn.rotate((0, 0, 1)), turn.rotate((0, 1, 0))
        off = math.degrees(math.atan2(forward[1], forward[0])) - yaw
        assert abs(math.remainder(off, 360)) < 4
        assert down[2] < -0.99
    record = nusc.get("sample_data", sample["data"][LIDAR])
    mount = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
    turn = Quaternion(mount["rotation"])
    np.testing.assert_allclose(turn.rotate((0, 1, 0)), (1, 0, 0), atol=0.03)
    np.testing.assert_allclose(turn.rotate((0, 0, 1)), (0, 0, 1), atol=0.03)


def test_point_counts_are_the_devkits(nusc: NuScenes) -> None:
    counts = []
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample["data"][LIDAR])
        points = np.fromfile(path, np.float32).reshape(-1, 5)[:, :3].T
        for box in boxes:
            annotation = nusc.get("sample_annotation", box.token)
            counts.append(annotation["num_lidar_pts"])
            assert counts[-1] == points_in_box(box, points).sum()
    assert np.mean(np.array(counts) > 0) > 0.4


def test_velocities_are_the_objects_own(nusc: NuScenes, scenes: list[Scene]) -> None:
    moving = 0
    for annotation in nusc.sample_annotation:
        velocity = nusc.box_velocity(annotation["token"])[:2]
        if np.isnan(velocity).any():
            assert not annotation["prev"] and not annotation["next"]
            continue
        index, number = object_index(nusc, scenes, annotation)
        time = seconds(index, nusc.get("sample", annotation["sample_token"])["timestamp"])
        (before, _), (after, _) = (scenes[index].boxes_at(time + lag) for lag in (-1e-3, 1e-3))
        expected = ((after - before) / 2e-3)[number, :2]
        # Differences look ahead or behind at the ends of a track: a bend or acceleration shows a little.
        ends = not annotation["prev"] or not annotation["next"]
        np.testing.assert_allclose(velocity, expected, atol=0.25 if ends else 0.02)
        speed = np.hypot(*expected)
        names = attributes_of(nusc, annotation)
        if names and names[0].endswith(".moving"):
            assert speed > 0.5
            heading = Quaternion(annotation["rotation"]).rotate((1, 0, 0))[:2]
            assert heading @ expected > 0.99 * speed
            moving += 1
        elif names and names[0] != "cycle.with_rider":
            assert speed == pytest.approx(0, abs=1e-6)
    assert moving > 50


def test_attributes_fit_their_classes(nusc: NuScenes) -> None:
    allowed = {
        "barrier": {""},
        "traffic_cone": {""},
        "pedestrian": {"pedestrian.moving", "pedestrian.standing"},
        "bicycle": {"cycle.with_rider", "cycle.without_rider"},
        "motorcycle": {"cycle.with_rider", "cycle.without_rider"},
    }
    vehicle = {"vehicle.moving", "vehicle.parked", "vehicle.stopped"}
    ground_truth = load_gt(nusc, "mini_val", DetectionBox)
    for box in itertools.chain.from_iterable(ground_truth.boxes.values()):
        assert box.attribute_name in allowed.get(box.detection_name, vehicle)


def test_every_class_is_in_every_scene_within_its_range(nusc: NuScenes) -> None:
    ranges = config_factory("detection_cvpr_2019").class_range
    for scene in nusc.scene:
        seen = dict.fromkeys(CLASSES, 0)
        for sample in (sample for sample in nusc.sample if sample["scene_token"] == scene["token"]):
            ego = nusc.get("ego_pose", nusc.get("sample_data", sample["data"][LIDAR])["ego_pose_token"])
            for annotation in annotations_of(nusc, sample):
                name = category_to_detection_name(annotation["category_name"])
                offset = np.subtract(annotation["translation"], ego["translation"])
                assert np.hypot(*offset[:2]) < 60
                if np.hypot(*offset[:2]) < ranges[name] and annotation["num_lidar_pts"]:
                    seen[name] += 1
        assert min(seen.values()) >= SMALL.samples_per_scene, seen


def test_boxes_do_not_overlap_and_stand_on_the_ground(nusc: NuScenes) -> None:
    for sample in nusc.sample:
        boxes = nusc.get_boxes(sample["data"][LIDAR])
        for box in boxes:
            assert box.corners()[2].min() == pytest.approx(0, abs=1e-6)
        shapes = [Polygon(box.bottom_corners()[:2].T) for box in boxes]
        tree = STRtree(shapes)
        for number, shape in enumerate(shapes):
            touched = [other for other in tree.query(shape) if other != number]
            assert all(shape.intersection(shapes[other]).area == 0 for other in touched)


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
    assert np.allclose(slope, -30.67 + ring * (10.67 + 30.67) / 31, atol=1e-3)


def test_sweeps_see_standing_objects_where_they_stand(nusc: NuScenes) -> None:
    then, now = [], []
    for record in nusc.sample_data:
        if record["is_key_frame"]:
            continue
        points = points_in_global(nusc, record).T
        sample = nusc.get("sample", record["sample_token"])
        for annotation in annotations_of(nusc, sample):
            names = attributes_of(nusc, annotation)
            if names == ["vehicle.parked"] and annotation["num_lidar_pts"] > 60:
                box = nusc.get_box(annotation["token"])
                then.append(points_in_box(box, points).sum())
                now.append(annotation["num_lidar_pts"])
    assert len(now) > 15
    # Traffic may pass between, so a single object may differ more.
    assert min(np.array(then) / now) > 0.1
    assert 0.8 < sum(then) / sum(now) < 1.2
