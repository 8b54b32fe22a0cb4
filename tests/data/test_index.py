"""The index against the devkit's own lookups, its cache, and its refusals."""

import json
import logging
import mmap
from pathlib import Path

import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.geometry_utils import transform_matrix
from pyquaternion import Quaternion

from cmt_aqr.constants import CAMERAS, CLASSES, LIDAR
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.index import FrameIndex, load_index
from cmt_aqr.data.table_files import read_pieces
from cmt_aqr.data.table_reading import read_tables
from tests.helpers.shared_data import KEYFRAME, needs_keyframe
from tests.helpers.small_data import edited, linked_copy


def sensor_pose(tables: NuScenes, token: str) -> np.ndarray:
    """Sensor to global by the devkit's transform_matrix."""
    record = tables.get("sample_data", token)
    matrices = []
    for table, key in (("ego_pose", "ego_pose_token"), ("calibrated_sensor", "calibrated_sensor_token")):
        pose = tables.get(table, record[key])
        matrices.append(transform_matrix(pose["translation"], Quaternion(pose["rotation"])))
    return matrices[0] @ matrices[1]


def check_against_devkit(tables: NuScenes, index: FrameIndex) -> None:
    velocities = 0
    for frame in range(len(index)):
        sample = tables.get("sample", index.token(frame))
        lidar = sensor_pose(tables, sample["data"][LIDAR])
        np.testing.assert_allclose(index.sweep_to_global[index.lidar[frame]], lidar, atol=1e-9)
        for view, camera in enumerate(CAMERAS):
            record = tables.get("sample_data", sample["data"][camera])
            assert index.image_files[frame, view].decode() == record["filename"]
            mount = tables.get("calibrated_sensor", record["calibrated_sensor_token"])
            intrinsics = np.eye(4)
            intrinsics[:3, :3] = mount["camera_intrinsic"]
            expected = intrinsics @ np.linalg.inv(sensor_pose(tables, sample["data"][camera])) @ lidar
            np.testing.assert_allclose(index.lidar2img[frame, view], expected, rtol=1e-6, atol=1e-6)

        # The devkit moves the boxes into the sensor frame itself.
        _, boxes, _ = tables.get_sample_data(sample["data"][LIDAR])
        boxes = [box for box in boxes if category_to_detection_name(box.name) is not None]
        start, end = index.box_offsets[frame : frame + 2]
        assert end - start == len(boxes)
        for row, box in zip(range(start, end), boxes, strict=True):
            ours = index.boxes[row]
            assert CLASSES[index.labels[row]] == category_to_detection_name(box.name)
            np.testing.assert_allclose(ours[:3], box.center, atol=1e-4)
            np.testing.assert_allclose(ours[[4, 3, 5]], box.wlh, rtol=1e-6)
            forward = box.rotation_matrix[:, 0]
            np.testing.assert_allclose(
                (np.cos(ours[6]), np.sin(ours[6])), forward[:2] / np.hypot(*forward[:2]), atol=1e-5
            )
            record = tables.get("sample_annotation", box.token)
            assert index.box_points[row] == record["num_lidar_pts"]
            velocity = tables.box_velocity(box.token)
            if np.isnan(velocity[0]):
                assert np.isnan(ours[7:]).all()
                continue
            velocities += bool(np.hypot(velocity[0], velocity[1]) > 0.5)
            moved = np.linalg.inv(lidar[:3, :3]) @ (velocity[0], velocity[1], 0)
            np.testing.assert_allclose(ours[7:], moved[:2], atol=1e-5)
    if len(index) > 1:
        assert velocities, "no box moves: the velocities were not tested"


@pytest.mark.parametrize(("keyframe", "frames"), [(False, 3), pytest.param(True, 1, marks=needs_keyframe)])
def test_agrees_with_devkit(small_root: Path, tmp_path: Path, keyframe: bool, frames: int) -> None:
    root = KEYFRAME if keyframe else small_root
    index = load_index(root, "v1.0-mini", "mini_train", tmp_path)
    assert len(index) == frames and (len(index.boxes) == 68 or not keyframe)
    check_against_devkit(NuScenes("v1.0-mini", str(root), verbose=False), index)


def test_sweeps_follow_the_devkit_back_in_time(small_root: Path, tmp_path: Path) -> None:
    index = load_index(small_root, "v1.0-mini", "mini_train", tmp_path)
    tables = NuScenes("v1.0-mini", str(small_root), verbose=False)
    longest = 0
    for frame in range(len(index)):
        expected = []
        token = tables.get("sample", index.token(frame))["data"][LIDAR]
        while token and len(expected) < 5:
            record = tables.get("sample_data", token)
            expected.append((record["filename"], record["timestamp"]))
            token = record["prev"]
        rows = index.sweeps_of(frame, 4)
        assert [(index.sweep_files[row].decode(), index.sweep_times[row]) for row in rows] == expected
        longest = max(longest, len(rows))
    assert longest == 5


def test_changed_table_makes_the_index_anew(small_root: Path, tmp_path: Path) -> None:
    root = linked_copy(small_root, tmp_path / "root")
    before = load_index(root, "v1.0-mini", "mini_val", tmp_path / "cache")
    with edited(root, "sample_annotation") as records:
        for record in records:
            record["num_lidar_pts"] += 1000
    after = load_index(root, "v1.0-mini", "mini_val", tmp_path / "cache")
    np.testing.assert_array_equal(after.box_points, before.box_points + 1000)


@pytest.mark.parametrize("damage", ["truncated", "pickle", "empty"])
def test_damaged_cache_is_made_anew(
    small_root: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = load_index(small_root, "v1.0-mini", "mini_val", tmp_path)
    (path,) = tmp_path.glob("*.npz")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        with path.open("wb") as file:
            np.savez(file, stamp=np.array([object()], dtype=object))
    with caplog.at_level(logging.WARNING):
        after = load_index(small_root, "v1.0-mini", "mini_val", tmp_path)
    assert "damaged" in caplog.text
    np.testing.assert_array_equal(before.boxes, after.boxes)


def test_first_keeps_frames_and_boxes_together(small_root: Path, tmp_path: Path) -> None:
    index = load_index(small_root, "v1.0-mini", "mini_train", tmp_path)
    two = index.first(2)
    assert len(two) == 2
    assert len(two.boxes) == index.box_offsets[2] == two.box_offsets[-1]
    assert index.first(None) is index
    assert index.first(99) is index


def test_boxes_of_other_categories_are_kept_apart(small_root: Path, tmp_path: Path) -> None:
    whole = load_index(small_root, "v1.0-mini", "mini_train", tmp_path / "whole")
    assert not len(whole.others)
    root = linked_copy(small_root, tmp_path / "root")
    with edited(root, "category") as records:
        for record in records:
            if record["name"] == "vehicle.car":
                record["name"] = "vehicle.emergency.police"
    index = load_index(root, "v1.0-mini", "mini_train", tmp_path / "cache")
    cars = whole.labels == 0
    np.testing.assert_array_equal(index.others, whole.boxes[cars])
    np.testing.assert_array_equal(index.other_points, whole.box_points[cars])
    np.testing.assert_array_equal(index.boxes, whole.boxes[~cars])
    np.testing.assert_array_equal(index.box_radar_points, whole.box_radar_points[~cars])
    two = index.first(2)
    assert two.other_offsets[-1] == len(two.others) == cars[: whole.box_offsets[2]].sum() > 0


@pytest.mark.parametrize(
    ("version", "split", "sentence"),
    [
        ("v1.0-mini", "mini_trian", "split mini_trian is unknown: it must be one of train, val"),
        ("v1.0-mini", "val", "split val belongs to a version that ends in 'trainval', not to v1.0-mini"),
        ("v1.0-trainval", "val", "data.version=v1.0-trainval has no folder .*: there is v1.0-mini"),
    ],
)
def test_wrong_request_is_one_sentence(
    small_root: Path, tmp_path: Path, version: str, split: str, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        load_index(small_root, version, split, tmp_path)
    assert "\n" not in str(caught.value)


@needs_keyframe
def test_split_without_frames_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"split mini_val has no frame in .*none of its 2 scenes is there"):
        load_index(KEYFRAME, "v1.0-mini", "mini_val", tmp_path)


def test_custom_split(small_root: Path, tmp_path: Path) -> None:
    root = linked_copy(small_root, tmp_path / "root")
    (root / "v1.0-mini" / "splits.json").write_text(json.dumps({"mine": ["scene-0103"]}), encoding="utf-8")
    mine = load_index(root, "v1.0-mini", "mine", tmp_path / "cache")
    assert {scene.decode() for scene in mine.scenes} == {"scene-0103"}


def test_pieces_are_the_whole_however_they_are_cut(tmp_path: Path) -> None:
    """Records may hold what looks like the end of a record, and any layout of JSON."""
    odd = [
        {"token": "a}, {b", "list": [{"x": 1}, {"y": '\\"'}], "é": [1.5, None]},
        {"token": "c"},
        {},
        {"z": [[]]},
    ]
    path = tmp_path / "table.json"
    for records in (odd * 5, [], odd[1:2]):
        for layout in ({"indent": 0}, {"indent": None}, {"separators": (",", ":")}, {"ensure_ascii": False}):
            path.write_text(json.dumps(records, **layout), encoding="utf-8")
            for size in (1, 7, 40, 1000):
                pieces = list(read_pieces(path, size))
                assert [record for _, piece in pieces for record in piece] == records
                assert pieces
    path.write_text(json.dumps([{"token": str(number)} for number in range(100)]), encoding="utf-8")
    assert len(list(read_pieces(path, 200))) > 3


def test_velocities_are_the_devkits(small_root: Path, tmp_path: Path) -> None:
    """Neighbours on one side or both, too long ago, and none; on both sides 3 s may lie between, else 1.5 s."""
    root = linked_copy(small_root, tmp_path / "root")
    with edited(root, "sample") as samples:
        for number, sample in enumerate(samples):
            sample["timestamp"] = 1_500_000_000_000_000 + number * 1_400_000 + 300_000 * (number > 1)
    ours = read_tables(root / "v1.0-mini").annotations.velocities
    devkit = NuScenes("v1.0-mini", str(root), verbose=False)
    expected = [devkit.box_velocity(record["token"])[:2] for record in devkit.sample_annotation]
    np.testing.assert_array_equal(ours, expected)
    assert 0.1 < np.isnan(ours).mean() < 0.9


def test_a_cached_index_is_mapped_not_read(small_root: Path, tmp_path: Path) -> None:
    made = load_index(small_root, "v1.0-mini", "mini_train", tmp_path)
    mapped = load_index(small_root, "v1.0-mini", "mini_train", tmp_path)
    for name, array in vars(mapped).items():
        assert array.dtype == getattr(made, name).dtype and array.flags.c_contiguous
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        assert isinstance(owner.base, mmap.mmap) or not array.size, name
        assert not (array.size and array.flags.writeable)
