"""Damaged data, or data with nothing to learn, are refused where they are read, by file, token and field."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from cmt_aqr.data.errors import DataError
from cmt_aqr.data.points import read_checked_points, read_points
from cmt_aqr.data.reading import read_image
from cmt_aqr.data.tables import open_tables
from cmt_aqr.evaluation.official import check_anything_to_find
from tests.helpers.shared_data import SHARED
from tests.helpers.small_data import RANGE, VERSION, datamodule, edited, linked_copy


@pytest.fixture
def root(small_root: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set that a test may damage; the files beside the tables are shared."""
    return linked_copy(small_root, tmp_path / "copy")


def change(root: Path, table: str, values: dict[str, Any] | None) -> None:
    """Set some fields of all of a table's records, or delete all records."""
    with edited(root, table) as records:
        if values is None:
            records.clear()
        for record in records:
            record.update(values)


ABSENT = object()
TOKEN = "0" * 32
NAN, INF = float("nan"), float("inf")
NUMBERS: list[Any] = [None, "3", True, [], {}, NAN, INF, 1e30]
"""Refused in place of a number."""
THREE: list[Any] = [None, 1.0, [], [1.0, 2.0], ["1", "2", "3"], [True, 1.0, 1.0], [[1.0, 2.0, 3.0]], [NAN, 0, 0]]
"""Refused in place of three numbers."""
LINKS: list[Any] = [None, 3, ["a"], TOKEN]
"""Refused in place of a token."""

LINKED = {
    "calibrated_sensor": ["sensor_token"],
    "sample_annotation": ["sample_token", "instance_token", "prev"],
    "sample": ["scene_token", "next"],
    "sample_data": ["sample_token", "ego_pose_token", "calibrated_sensor_token", "prev"],
    "instance": ["category_token"],
}
"""Fields with the token of a record, by table."""

FAULTS: dict[tuple[str, str], list[Any]] = {
    ("ego_pose", "translation"): [*THREE, [1e8, 0.0, 0.0], "here"],
    ("ego_pose", "rotation"): [None, [0] * 4, [1.0, 0.0, 0.0], [INF, 0, 0, 0], ["1", 0, 0, 0], [2.0, 0, 0, 0]],
    ("calibrated_sensor", "translation"): [*THREE, [1e3, 0.0, 0.0]],
    ("calibrated_sensor", "rotation"): [None, [0, 0, 0, 0], [NAN, 0, 0, 0]],
    ("calibrated_sensor", "camera_intrinsic"): [
        None,
        [[1.0, 0, 8], [0, 1.0, 5]],
        [[0.0, 0, 8], [0, 0.0, 5], [0, 0, 1]],
        [[NAN, 0, 8], [0, 9.0, 5], [0, 0, 1]],
        [[9.0, 0, 8], [0, 9.0, 5], [0, 0, 0]],
        [["9", 0, 8], [0, 9.0, 5], [0, 0, 1]],
    ],
    ("sample_annotation", "translation"): [*THREE, [0.0, 1e8, 0.0]],
    ("sample_annotation", "size"): [*THREE, [1.0, -1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 2e3]],
    ("sample_annotation", "rotation"): [None, [0, 0, 0, 0], [1, 0, 0]],
    ("sample_annotation", "num_lidar_pts"): [*NUMBERS, -1, 1.5],
    ("sample_annotation", "num_radar_pts"): [*NUMBERS, -1, 1.5],
    ("sample_annotation", "attribute_tokens"): [None, TOKEN, [None], [TOKEN], [3]],
    ("sample", "timestamp"): [*NUMBERS, "abc", -1, 1.5],
    ("sample_data", "timestamp"): [*NUMBERS, "abc", -1, 1.5],
    ("sample_data", "filename"): [None, 3, "", "/etc/passwd", "../a.bin", "a/../../a", "a\\b", "a\nb", ["a"]],
    ("sample_data", "is_key_frame"): [None, "false", 1],
    ("category", "name"): [None, 3, "", "vehicle.spaceship"],
    ("attribute", "name"): [None, 3, "", "vehicle.flying"],
    ("sensor", "channel"): [None, 3, ""],
    ("scene", "name"): [None, 3, ""],
    ("map", "log_tokens"): [None, "a", [3]],
    ("map", "filename"): [None, "/a.png"],
    **{(table, field): LINKS for table, fields in LINKED.items() for field in fields},
}
"""Values that are refused, by table and field."""


@pytest.mark.parametrize(("table", "field"), FAULTS, ids=[".".join(names) for names in FAULTS])
def test_a_damaged_field_is_named_with_table_and_token(root: Path, table: str, field: str) -> None:
    path = root / VERSION / f"{table}.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    number = len(records) * 2 // 3
    token, before = records[number]["token"], records[number].pop(field)
    for value in (ABSENT, *FAULTS[table, field]):
        if value is not ABSENT:
            records[number][field] = value
        path.write_text(json.dumps(records), encoding="utf-8")
        with pytest.raises(DataError, match=rf"^{table}\.json, token {token}: {field}\b") as error:
            open_tables(root, VERSION)
        assert "\n" not in str(error.value), value
    records[number][field] = before
    path.write_text(json.dumps(records), encoding="utf-8")
    open_tables(root, VERSION)


@pytest.mark.parametrize("table", ["sample", "ego_pose", "sample_annotation", "category"])
@pytest.mark.parametrize("value", [None, 3, "", ["a"], "twice", ABSENT])
def test_a_token_that_is_invalid_or_repeated(root: Path, table: str, value: Any) -> None:
    with edited(root, table) as records:
        first = records[0]["token"]
        records[1]["token"] = first if value == "twice" else value
        if value is ABSENT:
            del records[1]["token"]
    where = f"token {first}" if value == "twice" else "record 1"
    with pytest.raises(DataError, match=rf"^{table}\.json, {where}: token"):
        open_tables(root, VERSION)


@pytest.mark.parametrize("table", ["sample", "sample_data", "sample_annotation"])
@pytest.mark.parametrize("field", ["prev", "next"])
@pytest.mark.parametrize("circle", ["self", "back"])
def test_a_chain_that_runs_in_a_circle(root: Path, table: str, field: str, circle: str) -> None:
    other = "next" if field == "prev" else "prev"
    with edited(root, table) as records:
        record = next(record for record in records if record[other])
        record[field] = record["token"] if circle == "self" else record[other]
    with pytest.raises(DataError, match=rf"^{table}\.json, token {record['token']}: {field}="):
        open_tables(root, VERSION)


def test_sweeps_of_another_sensor(root: Path, tmp_path: Path) -> None:
    with edited(root, "sample_data") as records:
        camera = next(record for record in records if "CAM_FRONT/" in record["filename"])
        sweeps = [record for record in records if "LIDAR" in record["filename"] and record["prev"]]
        late = next(sweep for sweep in sweeps if sweep["timestamp"] > camera["timestamp"])
        late["prev"] = camera["token"]
    with pytest.raises(DataError, match=rf"^sample_data\.json, token {camera['token']}: .*CAM_FRONT"):
        datamodule(root, tmp_path / "cache").prepare_data()


@pytest.mark.parametrize(
    ("table", "field", "message"),
    [
        ("calibrated_sensor", "camera_intrinsic", r"^calibrated_sensor\.json, token \w+: camera_intrinsic=\[\]"),
        ("map", "log_tokens", r"^log\.json, token \w+.*log_tokens"),
    ],
)
def test_a_camera_without_a_matrix_and_a_log_without_a_map(
    root: Path, tmp_path: Path, table: str, field: str, message: str
) -> None:
    change(root, table, {field: []})
    with pytest.raises(DataError, match=message):
        datamodule(root, tmp_path / "cache").prepare_data()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        ('{"mine": ["scene-0103"]}'.encode("utf-16"), "UTF-8"),
        (b"[]", "by split"),
        (b'[["scene-0103"]]', "by split"),
        (b"null", "by split"),
        (b'{"mine": "scene-0103"}', '"mine"'),
        (b'{"mine": null}', '"mine"'),
        (b'{"mine": [["scene-0103"]]}', '"mine"'),
        (b'{"mine": []}', '"mine"'),
        (b'{"mine": ["scene-0103", "scene-9999"]}', "scene-9999"),
        (None, "Is a directory"),
    ],
)
def test_invalid_splits_of_ones_own(root: Path, tmp_path: Path, content: bytes | None, named: str) -> None:
    path = root / VERSION / "splits.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"splits\.json.*{named}"):
        datamodule(root, tmp_path / "cache", train_split="mine").check()


def test_a_folder_in_place_of_a_cache(small_root: Path, tmp_path: Path) -> None:
    data = datamodule(small_root, tmp_path)
    data.prepare_data()
    caches = sorted(tmp_path.glob("*.npy"))
    assert len(caches) == 3
    for path in caches:
        content = path.read_bytes()
        path.unlink()
        path.mkdir()
        with pytest.raises(DataError, match=f"{path} is a folder"):
            data.prepare_data()
        path.rmdir()
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("map", b"[]"),
        ("log", "[]".encode("utf-16")),
        ("sensor", b'{"a": 1}'),
        ("scene", b"[1, 2]"),
        ("sample_data", b"[{"),
        ("visibility", b"[" * 100_000),
        ("log", b'[{"token": ' + b"1" * 5000 + b"}]"),
        ("category", '[{"name": "Fu\xdfg\xe4nger"}]'.encode("latin-1")),
    ],
)
def test_an_invalid_table_is_named(root: Path, tmp_path: Path, table: str, content: bytes) -> None:
    (root / VERSION / f"{table}.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"{table}\.json"):
        datamodule(root, tmp_path / "cache").prepare_data()


FAR = {"translation": [9e4, 9e4, 0.0]}


@pytest.mark.parametrize(
    ("table", "values", "named"),
    [
        ("category", {"name": "animal"}, "animal"),
        ("sample_annotation", {"num_lidar_pts": 0}, "data.min_points=1"),
        ("sample_annotation", FAR, "data.point_range="),
    ],
)
def test_training_on_nothing_is_refused(
    root: Path, tmp_path: Path, table: str, values: dict[str, Any], named: str
) -> None:
    change(root, table, values)
    data = datamodule(root, tmp_path / "cache")
    data.prepare_data()
    with pytest.raises(DataError, match=r"mini_train.*" + named):
        data.setup("fit")


@pytest.mark.parametrize("values", [{"num_lidar_pts": 0, "num_radar_pts": 0}, FAR, None])
def test_an_evaluation_with_nothing_to_find_is_refused(
    root: Path, tmp_path: Path, values: dict[str, Any] | None
) -> None:
    change(root, "sample_annotation", values)
    data = datamodule(root, tmp_path / "cache", train_split=None, val_split="mini_val")
    with pytest.raises(DataError, match=r"mini_val"):
        data.prepare_data()
        data.setup("validate")
        check_anything_to_find(data.ground_truth(), np.arange(len(data.dataset("val"))))


def test_points_all_out_of_range_are_refused(small_root: Path, tmp_path: Path) -> None:
    far = (*RANGE[:2], 200.0, *RANGE[3:5], 210.0)
    with pytest.raises(DataError, match=r"no point of the first frame"):
        datamodule(small_root, tmp_path, point_range=far).setup("fit")


UNUSABLE = [(column, value) for column in range(5) for value in (NAN, INF, -INF, 1e30)]
UNUSABLE += [(column, value) for column in range(3) for value in (6e3, -6e3)]
UNUSABLE += [(column, value) for column in (3, 4) for value in (-2.0, 600.0, 65535.0)]


@pytest.mark.parametrize(("column", "value"), UNUSABLE)
def test_a_point_that_is_not_finite_or_absurd_is_dropped_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, column: int, value: float
) -> None:
    points = np.random.default_rng(0).uniform(0, 30, (1000, 5)).astype(np.float32)
    points[:2] = [[-4e3, 4e3, 100, 0, 0], [4e3, -4e3, -100, 255, 255]]
    points[400, column] = value
    path = tmp_path / "points.bin"
    points.tofile(path)
    with caplog.at_level(logging.WARNING):
        read = read_points(path), read_points(path)
    for cloud in read:
        np.testing.assert_array_equal(cloud, np.delete(points, 400, axis=0))
    (message,) = [record.getMessage() for record in caplog.records]
    assert str(path) in message and "1 of 1000" in message


def cloud(columns: int, count: int = 1000, dtype: type = np.float32) -> np.ndarray:
    """Points of some columns, intensities from 0 to 1, as bytes."""
    points = np.random.default_rng(0).uniform(-40, 40, (count, columns))
    points[:, 3:] = np.abs(points[:, 3:]) / 40
    return np.frombuffer(points.astype(dtype).tobytes(), dtype=np.uint8)


PCD = b"# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z\n"
FORMATS = [
    (cloud(3), ""),
    (cloud(4), "KITTI"),
    (cloud(4, 1001), "KITTI|no multiple"),
    (cloud(6), ""),
    (cloud(4, 1000, np.float64), ""),
    (cloud(5, 1001, np.float64), ""),
    (cloud(5)[:-3], "4997 bytes are no multiple|no multiple.*copy a truncated one again"),
    (np.zeros(0, dtype=np.uint8), "0 bytes"),
    (np.frombuffer(PCD + bytes(7), dtype=np.uint8), "PCD"),
    (np.frombuffer(PCD.ljust(100, b" "), dtype=np.uint8), "PCD"),
    (np.frombuffer(b"ply\nformat ascii 1.0\n", dtype=np.uint8), "PLY"),
    (np.frombuffer(b"LASF" + bytes(200), dtype=np.uint8), "LAS"),
    (np.frombuffer(b"<html>no such file</html>", dtype=np.uint8), "web page"),
    (np.frombuffer(b"version https://git-lfs.github.com/spec/v1\n", dtype=np.uint8), "Git LFS"),
    (np.frombuffer(b"\x93NUMPY" + bytes(100), dtype=np.uint8), "NumPy"),
]


@pytest.mark.parametrize(("content", "named"), FORMATS, ids=range(len(FORMATS)))
def test_files_of_other_points_are_recognised_by_header_length_or_values(
    tmp_path: Path, content: np.ndarray, named: str
) -> None:
    path = tmp_path / "points.bin"
    content.tofile(path)
    with pytest.raises(DataError, match=rf"^{path} .*five float32.*({named})"):
        read_checked_points(path)


def test_intensities_from_0_to_1_give_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    points = np.random.default_rng(0).uniform(0, 1, (100, 5)).astype(np.float32)
    points[:, 4] = 3
    path = tmp_path / "points.bin"
    points.tofile(path)
    assert len(read_checked_points(path)) == len(read_checked_points(path)) == 100
    (message,) = [record.getMessage() for record in caplog.records]
    assert str(path) in message and "255" in message


@pytest.mark.parametrize(("kind", "reason"), [("folder", "directory"), ("loop", "symbolic links")])
@pytest.mark.parametrize("sensor", ["LIDAR_TOP", "CAM_FRONT"])
def test_a_folder_or_a_link_to_itself_in_place_of_a_file(
    root: Path, small_root: Path, tmp_path: Path, kind: str, reason: str, sensor: str
) -> None:
    (root / "samples").unlink()
    shutil.copytree(small_root / "samples", root / "samples")
    for path in (root / "samples" / sensor).iterdir():
        path.unlink()
        path.mkdir() if kind == "folder" else path.symlink_to(path)
    for read in (read_points, read_image):
        with pytest.raises(DataError, match=rf"^{path} .*({reason})"):
            read(path)
    data = datamodule(root, tmp_path / "cache")
    data.prepare_data()
    with pytest.raises(DataError, match=rf"{sensor}/.*({reason})"):
        data.setup("fit")


def test_an_orientation_in_exif_is_ignored(small_root: Path, tmp_path: Path) -> None:
    source = next(iter(sorted(small_root.glob("samples/CAM_FRONT/*.jpg"))))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    with Image.open(source) as picture:
        stored = np.asarray(picture)
        picture.save(tmp_path / "rotated.png", exif=exif)
    segment, raw = exif.tobytes(), source.read_bytes()
    marked = raw[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + raw[2:]
    (tmp_path / "rotated.jpg").write_bytes(marked)
    np.testing.assert_array_equal(read_image(tmp_path / "rotated.jpg"), read_image(source))
    np.testing.assert_array_equal(read_image(tmp_path / "rotated.png")[:, :, ::-1], stored)


def test_intact_jpegs_are_decoded_as_by_opencv(small_root: Path) -> None:
    files = sorted(small_root.glob("samples/CAM_FRONT/*.jpg"))[:2]
    files += sorted(SHARED.glob("nuscenes-keyframe/samples/CAM_*/*.jpg"))
    for path in files:
        np.testing.assert_array_equal(read_image(path), cv2.imread(str(path)), err_msg=str(path))
