"""Data that are damaged, or hold nothing to learn, are refused where they are read, by file, token and field."""

import json
import logging
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmt_aqr.data.errors import DataError
from cmt_aqr.data.reading import read_checked_points, read_image, read_points
from cmt_aqr.data.table_reading import close_tables, open_tables
from cmt_aqr.errors import UserError
from cmt_aqr.evaluation.decoding import decode
from cmt_aqr.structures import QueryOutputs
from tests.shared_data import SHARED
from tests.small_data import RANGE, datamodule

VERSION = "v1.0-mini"


@pytest.fixture
def root(small_root: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set that may be damaged; the files beside the tables are shared."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in small_root.iterdir():
        if path.name == VERSION:
            shutil.copytree(path, copy / VERSION)
        else:
            (copy / path.name).symlink_to(path)
    return copy


def change(root: Path, table: str, edit: Callable[[list[dict[str, Any]]], Any]) -> str:
    """Edit a table's records; returns the first one's token."""
    path = root / VERSION / f"{table}.json"
    records = json.loads(path.read_text())
    edit(records)
    path.write_text(json.dumps(records))
    return records[0]["token"] if records else ""


def everywhere(field: str, value: Any) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda records: [record.update({field: value}) for record in records]


DAMAGES = [
    ("ego_pose", "translation", [float("nan"), 0.0, 0.0]),
    ("ego_pose", "translation", [1e30, 0.0, 0.0]),
    ("ego_pose", "translation", [0.0, 0.0]),
    ("ego_pose", "rotation", [0.0, 0.0, 0.0, 0.0]),
    ("ego_pose", "rotation", None),
    ("calibrated_sensor", "rotation", [float("inf"), 0.0, 0.0, 0.0]),
    ("calibrated_sensor", "translation", "here"),
    ("calibrated_sensor", "camera_intrinsic", []),
    ("calibrated_sensor", "camera_intrinsic", [[0.0, 0, 8], [0, 0.0, 5], [0, 0, 1]]),
    ("calibrated_sensor", "camera_intrinsic", [[float("nan"), 0, 8], [0, 9.0, 5], [0, 0, 1]]),
    ("sample_annotation", "size", [float("nan"), 1.0, 1.0]),
    ("sample_annotation", "size", [1.0, -1.0, 1.0]),
    ("sample_annotation", "rotation", [0.0, 0.0, 0.0, 0.0]),
    ("sample_annotation", "num_lidar_pts", None),
    ("sample_annotation", "num_lidar_pts", -1),
]


@pytest.mark.parametrize(("table", "field", "value"), DAMAGES)
def test_a_damaged_field_is_named_with_table_and_token(
    root: Path, tmp_path: Path, table: str, field: str, value: Any
) -> None:
    change(root, table, everywhere(field, value))
    tokens = {record["token"] for record in json.loads((root / VERSION / f"{table}.json").read_text())}
    with pytest.raises(DataError, match=rf"{table}.json, token (\w+): {field}=") as error:
        datamodule(root, tmp_path / "cache").prepare_data()
    assert any(token in str(error.value) for token in tokens)


def test_two_attributes_at_a_box(root: Path, tmp_path: Path) -> None:
    attributes = [record["token"] for record in json.loads((root / VERSION / "attribute.json").read_text())][:2]
    change(root, "sample_annotation", everywhere("attribute_tokens", attributes))
    with pytest.raises(DataError, match=r"sample_annotation.json, token \w+: attribute_tokens="):
        datamodule(root, tmp_path / "cache").prepare_data()


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("map", b"[]"),
        ("log", "[]".encode("utf-16")),
        ("sensor", b'{"a": 1}'),
        ("scene", b"[1, 2]"),
        ("sample_data", b"[{"),
        ("category", '[{"name": "Fu\xdfg\xe4nger"}]'.encode("latin-1")),
    ],
)
def test_a_table_that_is_none_is_named(root: Path, tmp_path: Path, table: str, content: bytes) -> None:
    (root / VERSION / f"{table}.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"{table}\.json"):
        datamodule(root, tmp_path / "cache").prepare_data()


def test_a_bug_in_the_index_keeps_its_traceback(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise TypeError("a bug")

    monkeypatch.setattr("cmt_aqr.data.index._index_sweeps", broken)
    with pytest.raises(TypeError, match="a bug"):
        datamodule(small_root, tmp_path / "cache").prepare_data()


def test_closed_tables_are_gone(small_root: Path) -> None:
    kept = weakref.ref(open_tables(small_root, VERSION))
    assert kept() is not None
    close_tables()
    assert kept() is None


NOTHING = [
    ("category", everywhere("name", "animal"), "animal"),
    ("sample_annotation", everywhere("num_lidar_pts", 0), "data.min_points=1"),
    ("sample_annotation", everywhere("translation", [9e4, 9e4, 0.0]), "data.point_range="),
]


@pytest.mark.parametrize(("table", "edit", "named"), NOTHING, ids=["categories", "points", "range"])
def test_training_on_nothing_is_refused(root: Path, tmp_path: Path, table: str, edit: Any, named: str) -> None:
    change(root, table, edit)
    data = datamodule(root, tmp_path / "cache")
    data.prepare_data()
    with pytest.raises(DataError, match=r"mini_train.*" + named):
        data.setup("fit")


def test_points_all_out_of_range_are_refused(small_root: Path, tmp_path: Path) -> None:
    far = (*RANGE[:2], 200.0, *RANGE[3:5], 210.0)
    with pytest.raises(DataError, match=r"no point of the first frame"):
        datamodule(small_root, tmp_path, point_range=far).setup("fit")


@pytest.mark.parametrize("column", range(5))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_point_that_is_not_finite_is_dropped_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, column: int, value: float
) -> None:
    points = np.random.default_rng(0).uniform(0, 30, (1000, 5)).astype(np.float32)
    points[400, column] = value
    path = tmp_path / f"{column}{value}.bin"
    points.tofile(path)
    with caplog.at_level(logging.WARNING):
        read = read_points(path), read_points(path)
    for cloud in read:
        np.testing.assert_array_equal(cloud, np.delete(points, 400, axis=0))
    (message,) = [record.getMessage() for record in caplog.records]
    assert str(path) in message and "1 of 1000" in message


def test_a_file_without_a_usable_point(tmp_path: Path) -> None:
    path = tmp_path / "nan.bin"
    np.full((10, 5), np.nan, dtype=np.float32).tofile(path)
    with pytest.raises(DataError, match=str(path)):
        read_points(path)


@pytest.mark.parametrize("columns", [3, 4, 6])
def test_points_of_other_columns_are_told_by_their_values(tmp_path: Path, columns: int) -> None:
    points = np.random.default_rng(0).uniform(-40, 40, (1000, columns)).astype(np.float32)
    points[:, 3:] = np.abs(points[:, 3:]) / 40
    path = tmp_path / "points.bin"
    points.tofile(path)
    with pytest.raises(DataError, match=rf"{path}.*five float32"):
        read_checked_points(path)


def test_real_and_embedded_points_are_what_is_expected(small_root: Path) -> None:
    files = sorted(small_root.glob("samples/LIDAR_TOP/*.bin"))[:1]
    files += sorted(SHARED.glob("nuscenes-keyframe/samples/LIDAR_TOP/*.bin"))
    assert files
    for path in files:
        read_checked_points(path)


def test_a_jpeg_damaged_in_its_middle_is_refused(small_root: Path, tmp_path: Path) -> None:
    source = next(iter(sorted(small_root.glob("samples/CAM_FRONT/*.jpg"))))
    raw = source.read_bytes()
    for name, damaged in {
        "zeros": raw[: len(raw) // 2] + bytes(300) + raw[len(raw) // 2 + 300 :],
        "missing": raw[: len(raw) // 2] + raw[len(raw) // 2 + 300 :],
    }.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=str(path)):
            read_image(path)


def test_whole_jpegs_are_decoded_as_opencv_does(small_root: Path) -> None:
    import cv2

    files = sorted(small_root.glob("samples/CAM_FRONT/*.jpg"))[:2]
    files += sorted(SHARED.glob("nuscenes-keyframe/samples/CAM_*/*.jpg"))
    for path in files:
        np.testing.assert_array_equal(read_image(path), cv2.imread(str(path)), err_msg=str(path))


@pytest.mark.parametrize("part", ["logits", "codes"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_stop_an_evaluation_with_the_sample(part: str, value: float) -> None:
    parts = {"logits": torch.zeros(1, 2, 20, 10), "codes": torch.zeros(1, 2, 20, 10)}
    assert len(decode(QueryOutputs(**parts), tokens=("good", "bad"))) == 2
    parts[part][0, 1, 3, 4] = value
    with pytest.raises(UserError, match=r"^sample bad: "):
        decode(QueryOutputs(**parts), tokens=("good", "bad"))
