"""Data of one sensor, for a model that reads only that."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cmt_aqr.constants import CAMERAS, LIDAR
from cmt_aqr.data.errors import DataError
from tests.helpers.small_data import VERSION, datamodule, edited, ready

LIDAR_ONLY = {"cameras": False}
CAMERA_ONLY = {"lidar": False}


def without(root: Path, copy: Path, sensor: str, records: bool) -> Path:
    """A copy of a data set without the files, and optionally the records, of a sensor."""
    shutil.copytree(root / VERSION, copy / VERSION)
    (copy / "maps").symlink_to(root / "maps")
    for folder in root.glob("s*s/*"):  # samples and sweeps
        if sensor not in folder.name:
            (copy / folder.parent.name).mkdir(exist_ok=True)
            (copy / folder.parent.name / folder.name).symlink_to(folder)
    if records:
        with edited(copy, "sample_data") as held:
            held[:] = [record for record in held if sensor not in record["filename"]]
    return copy


@pytest.mark.parametrize("records", [False, True], ids=["files", "records"])
@pytest.mark.parametrize(
    ("sensor", "settings", "named"), [("CAM", LIDAR_ONLY, CAMERAS[0]), ("LIDAR", CAMERA_ONLY, LIDAR)]
)
def test_a_model_of_the_other_sensor_needs_neither_files_nor_records(
    small_root: Path, tmp_path: Path, sensor: str, settings: dict[str, bool], named: str, records: bool
) -> None:
    root = without(small_root, tmp_path / "data", sensor, records)
    data = ready("fit", root, tmp_path / "cache", **settings)
    for name in ("train", "val"):
        frame = data.dataset(name)[0]
        assert len(frame.boxes) and frame.lidar2img.isfinite().all() and frame.lidar2global.isfinite().all()
        assert (frame.images is None) == (sensor == "CAM")
        assert (len(frame.points) == 0) == (sensor == "LIDAR")
    assert len(data.ground_truth().rows) and np.isfinite(data.ground_truth().ego).all()
    both = datamodule(root, tmp_path / "cache")
    with pytest.raises(DataError, match=rf"{named}.*missing in" if records else rf"{named}.* cannot be read"):
        both.setup("fit")


def test_without_lidar_records_boxes_project_to_the_same_pixels(small_root: Path, tmp_path: Path) -> None:
    """Although the frame of reference is another, by the car's motion between the sensors."""
    root = without(small_root, tmp_path / "data", "LIDAR", records=True)
    both = datamodule(small_root, tmp_path / "both").index("mini_train")
    cameras = datamodule(root, tmp_path / "cache").index("mini_train")
    assert (both.boxes[:, :3] != cameras.boxes[:, :3]).any()
    for frame in range(len(both)):
        boxes = slice(int(both.box_offsets[frame]), int(both.box_offsets[frame + 1]))
        projected = []
        for index in (both, cameras):
            centres = np.c_[index.boxes[boxes, :3].astype(np.float64), np.ones(boxes.stop - boxes.start)]
            projected.append(np.einsum("vij,bj->vbi", index.lidar2img[frame], centres)[..., :3])
        np.testing.assert_allclose(*projected, rtol=1e-4, atol=0.02)


def test_a_sample_without_any_sensor_is_named(small_root: Path, tmp_path: Path) -> None:
    root = without(small_root, tmp_path / "data", "LIDAR", records=True)
    with edited(root, "sample") as samples, edited(root, "sample_data") as records:
        token = samples[0]["token"]
        for record in records:
            record["is_key_frame"] &= record["sample_token"] != token
    with pytest.raises(DataError, match=rf"^sample\.json, token {token}: no key frame"):
        datamodule(root, tmp_path / "cache").prepare_data()


def test_a_camera_that_is_missing_in_one_frame_is_named(small_root: Path, tmp_path: Path) -> None:
    root = without(small_root, tmp_path / "data", "nothing", records=True)
    with edited(root, "sample_data") as records:
        missing = next(record for record in records if "samples/CAM_BACK/" in record["filename"])
        missing["is_key_frame"] = False
    data = datamodule(root, tmp_path / "cache")
    data.prepare_data()
    with pytest.raises(DataError, match=rf"sample {missing['sample_token']} .*CAM_BACK .*1 of \d+ samples"):
        data.setup("fit")


def test_without_point_counts_a_camera_model_needs_min_points_0(small_root: Path, tmp_path: Path) -> None:
    """The published camera-only recipe drops boxes without LiDAR points, as data.min_points=1 does."""
    root = without(small_root, tmp_path / "data", "LIDAR", records=True)
    with edited(root, "sample_annotation") as records:
        for record in records:
            record["num_lidar_pts"] = 0
    data = datamodule(root, tmp_path / "cache", **CAMERA_ONLY)
    with pytest.raises(DataError, match=r"data\.min_points=1 .*data\.min_points=0"):
        data.setup("fit")
    all_boxes = ready("fit", root, tmp_path / "cache", min_points=0, **CAMERA_ONLY)
    assert len(all_boxes.dataset("train")[0].boxes)
