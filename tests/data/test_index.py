"""The index against the devkit's own lookups, its cache, and its errors."""

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
from cmt_aqr.data.fields import encoded
from cmt_aqr.data.index import FrameIndex, load_index
from cmt_aqr.data.table_files import read_chunks
from cmt_aqr.data.table_reading import TokenRows, read_tables
from tests.helpers.shared_data import KEYFRAME, needs_keyframe
from tests.helpers.small_data import VERSION, edited, linked_copy


def sensor_pose(tables: NuScenes, token: str) -> np.ndarray:
    """Sensor to global by the devkit's transform_matrix."""
    record = tables.get("sample_data", token)
    matrices = []
    for table, key in (("ego_pose", "ego_pose_token"), ("calibrated_sensor", "calibrated_sensor_token")):
        pose = tables.get(table, record[key])
        matrices.append(transform_matrix(pose["translation"], Quaternion(pose["rotation"])))
    return matrices[0] @ matrices[1]


def check_frame(tables: NuScenes, index: FrameIndex, frame: int) -> None:
    sample = tables.get("sample", index.token(frame))
    lidar = sensor_pose(tables, sample["data"][LIDAR])
    np.testing.assert_allclose(index.sweep_to_global[index.lidar[frame]], lidar, atol=1e-9)
    for view, camera in enumerate(CAMERAS):
        record = tables.get("sample_data", sample["data"][camera])
        assert index.image_files[frame, view].decode() == record["filename"]
        intrinsics = np.eye(4)
        mount = tables.get("calibrated_sensor", record["calibrated_sensor_token"])
        intrinsics[:3, :3] = mount["camera_intrinsic"]
        expected = intrinsics @ np.linalg.inv(sensor_pose(tables, sample["data"][camera])) @ lidar
        np.testing.assert_allclose(index.lidar2img[frame, view], expected, rtol=1e-6, atol=1e-6)

    sweeps, token = [], sample["data"][LIDAR]
    while token and len(sweeps) < 5:
        record = tables.get("sample_data", token)
        sweeps.append((record["filename"], record["timestamp"]))
        token = record["prev"]
    rows = index.sweeps_of(frame, 4)
    assert [(index.sweep_files[row].decode(), index.sweep_times[row]) for row in rows] == sweeps

    # The devkit moves the boxes into the sensor frame itself.
    _, boxes, _ = tables.get_sample_data(sample["data"][LIDAR])
    boxes = [box for box in boxes if category_to_detection_name(box.name) is not None]
    for row, box in zip(range(*index.box_offsets[frame : frame + 2]), boxes, strict=True):
        ours = index.boxes[row]
        assert CLASSES[index.labels[row]] == category_to_detection_name(box.name)
        np.testing.assert_allclose(ours[:3], box.center, atol=1e-4)
        np.testing.assert_allclose(ours[[4, 3, 5]], box.wlh, rtol=1e-6)
        forward = box.rotation_matrix[:2, 0]
        np.testing.assert_allclose((np.cos(ours[6]), np.sin(ours[6])), forward / np.hypot(*forward), atol=1e-5)
        assert index.box_points[row] == tables.get("sample_annotation", box.token)["num_lidar_pts"]
        velocity = np.linalg.inv(lidar[:3, :3]) @ (*tables.box_velocity(box.token)[:2], 0)
        np.testing.assert_allclose(ours[7:], velocity[:2], atol=1e-5)


@pytest.mark.parametrize(("keyframe", "frames"), [(False, 3), pytest.param(True, 1, marks=needs_keyframe)])
def test_agrees_with_devkit(small_root: Path, tmp_path: Path, keyframe: bool, frames: int) -> None:
    root = KEYFRAME if keyframe else small_root
    index = load_index(root, VERSION, "mini_train", tmp_path)
    assert len(index) == frames
    tables = NuScenes(VERSION, str(root), verbose=False)
    for frame in range(frames):
        check_frame(tables, index, frame)
    if keyframe:
        assert len(index.boxes) == 68
    else:
        assert len(index.sweeps_of(frames - 1, 4)) == 5 and (np.abs(index.boxes[:, 7:]) > 0.5).any()


def test_a_changed_table_or_format_rebuilds_the_index(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = linked_copy(small_root, tmp_path / "root")
    before = load_index(root, VERSION, "mini_val", tmp_path / "cache")
    with edited(root, "sample_annotation") as records:
        for record in records:
            record["num_lidar_pts"] += 1000
    after = load_index(root, VERSION, "mini_val", tmp_path / "cache")
    np.testing.assert_array_equal(after.box_points, before.box_points + 1000)
    (path,) = (tmp_path / "cache").glob("*.npy")
    written = path.stat().st_ino
    load_index(root, VERSION, "mini_val", tmp_path / "cache")
    assert path.stat().st_ino == written
    monkeypatch.setattr("cmt_aqr.data.index.FORMAT", -1)
    load_index(root, VERSION, "mini_val", tmp_path / "cache")
    assert path.stat().st_ino != written


@pytest.mark.parametrize("damage", ["truncated", "zeros", "pickle", "other", "empty"])
def test_a_damaged_cache_is_rebuilt(
    small_root: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = load_index(small_root, VERSION, "mini_val", tmp_path)
    (path,) = tmp_path.glob("*.npy")
    if damage in ("pickle", "other"):
        np.save(path, np.array([object()] if damage == "pickle" else [0.0]), allow_pickle=True)
    else:
        content = path.read_bytes()
        kept = {"truncated": 1000, "zeros": 64, "empty": 0}[damage]
        path.write_bytes(content[:kept] + (b"\0" * (len(content) - kept) if damage == "zeros" else b""))
    with caplog.at_level(logging.WARNING):
        after = load_index(small_root, VERSION, "mini_val", tmp_path)
    assert "damaged" in caplog.text
    np.testing.assert_array_equal(before.boxes, after.boxes)


def test_a_cached_index_is_mapped_not_read(small_root: Path, tmp_path: Path) -> None:
    built, mapped = (load_index(small_root, VERSION, "mini_train", tmp_path) for _ in range(2))
    for name, array in vars(mapped).items():
        assert array.dtype == getattr(built, name).dtype and array.flags.c_contiguous and array.flags.aligned
        np.testing.assert_array_equal(array, getattr(built, name))
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        assert isinstance(owner.base, mmap.mmap) and not array.flags.writeable, name


def test_first_keeps_frames_and_boxes_together(small_root: Path, tmp_path: Path) -> None:
    index = load_index(small_root, VERSION, "mini_train", tmp_path)
    two = index.first(2)
    assert len(two) == 2
    assert len(two.boxes) == index.box_offsets[2] == two.box_offsets[-1]
    assert index.first(None) is index.first(99) is index


def test_boxes_of_other_categories_are_separate(small_root: Path, tmp_path: Path) -> None:
    complete = load_index(small_root, VERSION, "mini_train", tmp_path / "complete")
    assert not len(complete.others)
    root = linked_copy(small_root, tmp_path / "root")
    with edited(root, "category") as records:
        for record in records:
            if record["name"] == "vehicle.car":
                record["name"] = "vehicle.emergency.police"
    index = load_index(root, VERSION, "mini_train", tmp_path / "cache")
    cars = complete.labels == 0
    np.testing.assert_array_equal(index.others, complete.boxes[cars])
    np.testing.assert_array_equal(index.other_points, complete.box_points[cars])
    np.testing.assert_array_equal(index.boxes, complete.boxes[~cars])
    np.testing.assert_array_equal(index.box_radar_points, complete.box_radar_points[~cars])
    two = index.first(2)
    assert two.other_offsets[-1] == len(two.others) == cars[: complete.box_offsets[2]].sum() > 0


@pytest.mark.parametrize(
    ("version", "split", "sentence"),
    [
        (VERSION, "mini_trian", "split mini_trian is unknown: .*train, val"),
        (VERSION, "val", "split val belongs to a version that ends in 'trainval', not to v1.0-mini"),
        ("v1.0-trainval", "val", "data.version=v1.0-trainval has no folder .*v1.0-mini"),
        pytest.param(
            VERSION, "mini_val", "split mini_val has no frame in .* none of the 2 scenes", marks=needs_keyframe
        ),
    ],
)
def test_a_wrong_request_is_one_sentence(
    small_root: Path, tmp_path: Path, version: str, split: str, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        load_index(KEYFRAME if split == "mini_val" else small_root, version, split, tmp_path)
    assert "\n" not in str(caught.value)


def test_custom_split(small_root: Path, tmp_path: Path) -> None:
    root = linked_copy(small_root, tmp_path / "root")
    (root / VERSION / "splits.json").write_text(json.dumps({"mine": ["scene-0103"]}), encoding="utf-8")
    mine = load_index(root, VERSION, "mine", tmp_path / "cache")
    assert set(mine.scenes.tolist()) == {b"scene-0103"}


def test_chunks_are_the_records_whatever_their_layout(tmp_path: Path) -> None:
    """Records may contain what looks like the end of a record, and JSON has many layouts."""
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
                chunks = list(read_chunks(path, size))
                assert chunks and [record for _, chunk in chunks for record in chunk] == records
    path.write_text(json.dumps([{"token": str(number)} for number in range(100)]), encoding="utf-8")
    assert len(list(read_chunks(path, 200))) > 3


def test_velocities_are_the_devkits(small_root: Path, tmp_path: Path) -> None:
    """Neighbours on one side or both, too long ago, and none; the limits are 1.5 s and 3 s."""
    root = linked_copy(small_root, tmp_path / "root")
    with edited(root, "sample") as samples:
        for number, sample in enumerate(samples):
            sample["timestamp"] = 1_500_000_000_000_000 + number * 1_400_000 + 300_000 * (number > 1)
    ours = read_tables(root / VERSION).annotations.velocities
    devkit = NuScenes(VERSION, str(root), verbose=False)
    expected = [devkit.box_velocity(record["token"])[:2] for record in devkit.sample_annotation]
    np.testing.assert_array_equal(ours, expected)
    assert 0.1 < np.isnan(ours).mean() < 0.9


@pytest.mark.parametrize("length", [1, 3, 40])
def test_token_rows_are_those_of_a_dictionary(length: int) -> None:
    random = np.random.default_rng(0)

    def words(count: int, longest: int) -> list[str]:
        letters = (random.choice(list("abé0"), random.integers(1, longest + 1)) for _ in range(count))
        return list(dict.fromkeys(map("".join, letters)))

    tokens = words(200, length)
    row_of = {token: row for row, token in enumerate(tokens)}
    queries = [*random.permutation(tokens), "", "other", "a" * 50, *words(50, length + 5)]
    rows = TokenRows(encoded(tokens))
    np.testing.assert_array_equal(rows.find(encoded(queries)), [row_of.get(query, -1) for query in queries])
    assert rows.duplicate() is None
    assert TokenRows(encoded([*tokens, tokens[0]])).duplicate() == len(tokens)
    assert TokenRows(encoded([])).find(encoded(queries)).tolist() == [-1] * len(queries)
