"""A small synthetic data set, opened with the devkit and held against an independent reading of it."""

import filecmp
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from nuscenes import NuScenes
from nuscenes.eval.common.loaders import load_gt
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.geometry_utils import points_in_box, transform_matrix, view_points
from nuscenes.utils.splits import create_splits_scenes
from pyquaternion import Quaternion
from shapely.geometry import Polygon
from shapely.strtree import STRtree

from cmt_aqr.constants import CAMERAS, CLASSES, LIDAR
from cmt_aqr.errors import SettingError
from cmt_aqr.scenes import (
    DESCRIPTION_FILE,
    Scene,
    Settings,
    build_scene,
    make_dataset,
    recorder,
    sensors,
)
from cmt_aqr.scenes.sensors import Array
from cmt_aqr.scenes.shapes import GLASS, KINDS, METAL, SKIN, TYRE, WHITE
from cmt_aqr.scenes.tables import TABLE_NAMES, Row, Tables, token

SMALL = Settings(scenes=2, seed=5, samples_per_scene=3, sweep_rate=4)
VERSION = "v1.0-mini"
ROOT = Path(__file__).resolve().parents[2]


def make(out: Path, settings: Settings = SMALL, **more: Any) -> None:
    values = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    make_dataset(out, **{"workers": 1, "progress": False, **values, **more})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    make(out)
    return out


@pytest.fixture(scope="module")
def nusc(root: Path) -> NuScenes:
    return NuScenes(VERSION, str(root), verbose=False)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [build_scene(SMALL, index) for index in range(SMALL.scenes)]


def scene_index(nusc: NuScenes, sample: Row) -> int:
    return SMALL.scene_names().index(nusc.get("scene", sample["scene_token"])["name"])


def object_index(nusc: NuScenes, scenes: list[Scene], annotation: Row) -> tuple[int, int]:
    """Index of the scene, and of the object in it, that an annotation is of."""
    index = scene_index(nusc, nusc.get("sample", annotation["sample_token"]))
    for number in range(len(scenes[index].kinds)):
        if token(SMALL.seed, "instance", index, number) == annotation["instance_token"]:
            return index, number
    raise AssertionError(f"annotation {annotation['token']} is of no object")


def seconds(index: int, timestamp: int) -> float:
    return (timestamp - recorder.start_time(index)) / 1e6


def pose_matrix(nusc: NuScenes, record: Row) -> Array:
    """Sensor to global, by the devkit."""
    pose = nusc.get("ego_pose", record["ego_pose_token"])
    mount = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
    return transform_matrix(pose["translation"], Quaternion(pose["rotation"])) @ transform_matrix(
        mount["translation"], Quaternion(mount["rotation"])
    )


def read_points(nusc: NuScenes, record: Row) -> NDArray[np.float32]:
    return np.fromfile(nusc.get_sample_data_path(record["token"]), np.float32).reshape(-1, 5)


def move(matrix: Array, points: Array) -> Array:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


# --- the format -------------------------------------------------------------------------------------------


def test_tokens_are_unique_and_foreign_keys_resolve(nusc: NuScenes) -> None:
    tables = {name: getattr(nusc, name) for name in TABLE_NAMES}
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
            assert nusc.get("sample", record["sample_token"])["timestamp"] - record["timestamp"] in (
                0,
                250_000,
            )
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


def test_description_tells_how_it_was_made(root: Path) -> None:
    description = json.loads((root / VERSION / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    assert description["settings"]["seed"] == 5
    assert description["splits"] == ["mini_train", "mini_val"]
    assert description["generator_version"] >= 1


# --- what is annotated ------------------------------------------------------------------------------------


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
        expected = scenes[index].velocities_at(time)[number]
        # Differences look ahead or behind at the ends of a track: a bend or acceleration shows a little.
        ends = not annotation["prev"] or not annotation["next"]
        np.testing.assert_allclose(velocity, expected, atol=0.25 if ends else 0.02)
        speed = np.hypot(*expected)
        names = [nusc.get("attribute", key)["name"] for key in annotation["attribute_tokens"]]
        if names and names[0].endswith(".moving"):
            assert speed > 0.5
            heading = Quaternion(annotation["rotation"]).rotate((1, 0, 0))[:2]
            assert heading @ expected > 0.99 * speed
            moving += 1
        elif names and names[0] != "cycle.with_rider":
            assert speed == 0
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
            for annotation in (nusc.get("sample_annotation", key) for key in sample["anns"]):
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


def test_sizes_are_usual(nusc: NuScenes) -> None:
    for annotation in nusc.sample_annotation:
        name = category_to_detection_name(annotation["category_name"])
        sizes = [kind.size for kind in KINDS.values() if kind.detection_class == name]
        width, length, height = annotation["size"]
        ratio = np.min(np.abs(np.log(np.array((length, width, height)) / sizes)).max(axis=1))
        assert ratio < 0.25


def test_shapes_fill_their_boxes() -> None:
    for kind in KINDS.values():
        assert np.min([part.low for part in kind.parts], axis=0).tolist() == [-0.5] * 3
        assert np.max([part.high for part in kind.parts], axis=0).tolist() == [0.5] * 3
        assert all(low < high for part in kind.parts for low, high in zip(part.low, part.high, strict=True))


def test_sweeps_see_standing_objects_where_they_stand(nusc: NuScenes) -> None:
    then, now = [], []
    for record in nusc.sample_data:
        if record["is_key_frame"]:
            continue
        points = move(pose_matrix(nusc, record), read_points(nusc, record)[:, :3].astype(float)).T
        sample = nusc.get("sample", record["sample_token"])
        for annotation in (nusc.get("sample_annotation", key) for key in sample["anns"]):
            names = [nusc.get("attribute", key)["name"] for key in annotation["attribute_tokens"]]
            if names == ["vehicle.parked"] and annotation["num_lidar_pts"] > 60:
                box = nusc.get_box(annotation["token"])
                then.append(points_in_box(box, points).sum())
                now.append(annotation["num_lidar_pts"])
    assert len(now) > 15
    # Traffic may pass between, so a single object may differ more.
    assert min(np.array(then) / now) > 0.1
    assert 0.8 < sum(then) / sum(now) < 1.2


# --- drawn back over itself -------------------------------------------------------------------------------


class Drawing:
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
        self.picture = sensors.take_picture(
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
    points = move(pose_matrix(nusc, record), read_points(nusc, record)[:, :3].astype(float))
    points = points[points[:, 2] > 0.1]
    for annotation in (nusc.get("sample_annotation", key) for key in sample["anns"]):
        inside = points[points_in_box(nusc.get_box(annotation["token"]), points.T)]
        if len(inside):
            yield annotation, inside


@pytest.fixture(scope="module")
def drawings(nusc: NuScenes, scenes: list[Scene]) -> list[Drawing]:
    return [Drawing(nusc, scenes, sample, channel) for sample in nusc.sample[::2] for channel in CAMERAS]


def in_image(pixels: Array, depth: Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    height, width = SMALL.image_size
    nearest = np.rint(pixels).astype(int)
    inside = (depth > 0.3) & (nearest >= 0).all(axis=1) & (nearest < (width, height)).all(axis=1)
    return nearest, inside


def test_lidar_points_fall_on_the_pixels_of_their_object(
    nusc: NuScenes, scenes: list[Scene], drawings: list[Drawing]
) -> None:
    right, total = dict.fromkeys(CLASSES, 0), dict.fromkeys(CLASSES, 0)
    for drawing in drawings:
        for annotation, points in annotations_with_points(nusc, drawing.sample):
            _, number = object_index(nusc, scenes, annotation)
            pixels, depth = drawing.project(points, annotation)
            nearest, inside = in_image(pixels, depth)
            column, row = nearest[inside].T
            # What stands a good way before the point hides it from the camera, which sits elsewhere.
            clear = drawing.picture.depth[row, column] > depth[inside] - 0.5
            name = category_to_detection_name(annotation["category_name"])
            right[name] += (drawing.picture.owners[row, column] == number)[clear].sum()
            total[name] += clear.sum()
    share = {name: right[name] / total[name] for name in CLASSES}
    assert min(total.values()) > 25, total
    assert sum(right.values()) / sum(total.values()) > 0.97, share
    assert min(share.values()) > 0.9, share


def chroma(colours: Any) -> Array:
    colours = np.asarray(colours, float) + 1e-3
    return colours / np.linalg.norm(colours, axis=-1, keepdims=True)


def test_written_pictures_show_the_class_colour_at_the_objects_points(
    nusc: NuScenes, drawings: list[Drawing]
) -> None:
    """Looks at the JPEG files, the tables and the point files alone, not at what the maker says of them."""
    names = [
        (kind.detection_class, paint) for kind in KINDS.values() if kind.detection_class for paint in kind.paints
    ]
    others = [("", colour) for colour in (TYRE, GLASS, METAL, WHITE, (70, 62, 56), (84, 44, 40), (110, 110, 112))]
    palette = [item for item in names + others if not (item[0] == "" and item[1] == SKIN)]
    reference = chroma([colour for _, colour in palette])
    right = total = 0
    for drawing in drawings:
        for annotation, points in annotations_with_points(nusc, drawing.sample):
            name = category_to_detection_name(annotation["category_name"])
            if annotation["visibility_token"] != "4" or name == "trailer":
                continue  # trailers are grey, as asphalt and buildings are
            nearest, inside = in_image(*drawing.project(points, annotation))
            if inside.sum() < 12:
                continue
            column, row = nearest[inside].T
            pixels = drawing.jpeg[row, column]
            vivid = pixels.max(axis=1) - pixels.min(axis=1).astype(int) > 25
            likeness = chroma(pixels[vivid]) @ reference.T
            votes = [palette[best][0] for best in likeness.argmax(axis=1)]
            votes = [vote for vote in votes if vote]
            if len(votes) >= 4:
                total += 1
                right += max(set(votes), key=votes.count) == name
    assert total > 60
    assert right / total > 0.9


def test_projected_boxes_hold_the_pixels_of_their_object(
    nusc: NuScenes, scenes: list[Scene], drawings: list[Drawing]
) -> None:
    checked, covered = 0, []
    height, width = SMALL.image_size
    for drawing in drawings:
        owners = drawing.picture.owners
        for key in drawing.sample["anns"]:
            annotation = nusc.get("sample_annotation", key)
            _, number = object_index(nusc, scenes, annotation)
            rows, columns = np.nonzero(owners == number)
            corners = nusc.get_box(key).corners().T
            pixels, depth = drawing.project(corners, annotation)
            if not len(rows) or depth.min() < 0.2:
                continue
            low, high = pixels.min(axis=0) - 0.6, pixels.max(axis=0) + 0.6
            assert columns.min() >= low[0] and columns.max() <= high[0]
            assert rows.min() >= low[1] and rows.max() <= high[1]
            checked += 1
            whole = drawing.picture.seen[number] == drawing.picture.silhouette[number]
            inside = (low > 0).all() and (high < (width, height)).all()
            if whole and inside and len(rows) > 40:
                size = high - low
                covered.append(((np.ptp(columns) + 1) / size[0], (np.ptp(rows) + 1) / size[1]))
    assert checked > 200
    # The other way round: an object that nothing hides nearly fills its box, so the scale is right too.
    assert len(covered) > 10
    assert np.median(covered, axis=0).min() > 0.8


def test_visibility_is_the_share_of_pixels_not_hidden(nusc: NuScenes, scenes: list[Scene]) -> None:
    sample = nusc.sample[0]
    rig = sensors.build_rig(SMALL)
    pictures = [
        sensors.take_picture(scenes[0], rig[name], rig[name].delay, SMALL.image_size, np.random.default_rng(0))
        for name in CAMERAS
    ]
    levels = set()
    for annotation in (nusc.get("sample_annotation", key) for key in sample["anns"]):
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


# --- how it is made ---------------------------------------------------------------------------------------


def files_of(root: Path) -> list[Path]:
    return sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers(root: Path, tmp_path: Path) -> None:
    make(tmp_path / "again", workers=2)
    files = files_of(root)
    assert files == files_of(tmp_path / "again")
    _, differ, missing = filecmp.cmpfiles(root, tmp_path / "again", map(str, files), shallow=False)
    assert not differ and not missing


def test_another_seed_gives_another_world() -> None:
    first, second = build_scene(Settings(seed=1), 0), build_scene(Settings(seed=2), 0)
    assert first.kinds != second.kinds
    assert abs(first.road.x - second.road.x) > 1e-3


def test_scene_names_come_from_the_devkits_splits() -> None:
    splits = create_splits_scenes()
    for scenes in (2, 3, 7, 10, 11, 50, 750):
        settings = Settings(scenes=scenes)
        train, val = settings.split_names()
        names = settings.scene_names()
        assert len(set(names)) == scenes
        assert settings.version == ("v1.0-mini" if scenes <= 10 else "v1.0-trainval")
        held_out = [name for name in names if name in splits[val]]
        assert len(held_out) == max(1, round(scenes / 5))
        assert [name for name in names if name in splits[train]] == names[: -len(held_out)]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorder.Recorder.run

    def fail_on_the_second(self: recorder.Recorder) -> Tables:
        if self.index == 1:
            raise OSError("no space left")
        return run(self)

    monkeypatch.setattr(recorder.Recorder, "run", fail_on_the_second)
    with pytest.raises(OSError, match="no space left"):
        make(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_replaced_only_on_demand(tmp_path: Path, root: Path) -> None:
    out = tmp_path / "set"
    tiny = {"samples_per_scene": 2, "sweep_rate": 2, "azimuth_resolution": 4.0, "image_width": 160}
    make(out, **tiny)
    with pytest.raises(SettingError, match="overwrite=true"):
        make(out, **tiny)
    before = json.loads((out / VERSION / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    make(out, **tiny, seed=6, overwrite=True)
    after = json.loads((out / VERSION / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    assert (before["settings"]["seed"], after["settings"]["seed"]) == (5, 6)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(SettingError, match="not a synthetic data set"):
        make(tmp_path / "mine", **tiny, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8") == "years of work"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scenes", 1),
        ("scenes", 751),
        ("scenes", "many"),
        ("scenes", 2.5),
        ("seed", -1),
        ("samples_per_scene", 1),
        ("sweep_rate", 5),
        ("sweep_rate", 22),
        ("azimuth_resolution", 0.0),
        ("azimuth_resolution", "fine"),
        ("image_width", 401),
        ("jpeg_quality", 0),
        ("workers", 0),
        ("overwrite", "maybe"),
    ],
)
def test_a_setting_out_of_range_is_named(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}: must be"):
        make_dataset(tmp_path / "set", **{name: value})
    assert list(tmp_path.iterdir()) == []


def run_script(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_dataset.py"), *overrides],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.system
def test_the_script_writes_the_set_and_nothing_else(tmp_path: Path) -> None:
    small = ("scenes=2", "samples_per_scene=2", "sweep_rate=2", "image_width=160", "workers=1")
    done = run_script(tmp_path, "out=made/here", *small)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert len(NuScenes(VERSION, str(tmp_path / "made" / "here"), verbose=False).sample) == 4
    for name in CLASSES:
        assert name in done.stdout
    assert "2 scenes, 4 keyframes" in done.stdout
    wrong = run_script(tmp_path, "out=other", "sweep_rate=3")
    assert wrong.returncode == 1
    assert wrong.stderr.strip() == "error: sweep_rate=3: must be a multiple of 2 from 2 to 20"
