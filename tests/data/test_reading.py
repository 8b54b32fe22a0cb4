"""Frames read from disk, against the devkit's point clouds and projection; and damaged files."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from PIL import Image

from cmt_aqr.constants import CAMERAS, LIDAR
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.index import load_index
from cmt_aqr.data.reading import FrameReader, read_image
from cmt_aqr.geometry import project_to_images
from tests.helpers.shared_data import KEYFRAME, needs_keyframe
from tests.helpers.small_data import VERSION


def reader_of(root: Path, cache: Path, split: str = "mini_train", **settings: object) -> FrameReader:
    return FrameReader(root, load_index(root, VERSION, split, cache), **settings)


@pytest.mark.parametrize(("keyframe", "sweeps"), [(False, 5), pytest.param(True, 1, marks=needs_keyframe)])
def test_points_and_projection_agree_with_devkit(
    small_root: Path, tmp_path: Path, keyframe: bool, sweeps: int
) -> None:
    root = KEYFRAME if keyframe else small_root
    tables, reader = NuScenes(VERSION, str(root), verbose=False), reader_of(root, tmp_path, sweeps=4)
    for number in range(len(reader)):
        frame = reader.read(number)
        sample = tables.get("sample", frame.token)
        # min_distance 0: by default the devkit removes points near the sensor, which CMT keeps.
        cloud, lags = LidarPointCloud.from_file_multisweep(
            tables, sample, LIDAR, LIDAR, nsweeps=reader.sweeps + 1, min_distance=0.0
        )
        np.testing.assert_allclose(frame.points[:, :3].numpy(), cloud.points[:3].T, atol=5e-5)
        np.testing.assert_array_equal(frame.points[:, 3].numpy(), cloud.points[3])
        np.testing.assert_allclose(frame.points[:, 4].numpy(), lags[0], atol=1e-6)

        height, width = frame.images.shape[-2:]
        own = frame.points[frame.points[:, 4] == 0][None, :, :3]
        pixels, depth, _ = project_to_images(own, frame.lidar2img[None], (height, width))
        for view, camera in enumerate(CAMERAS):
            expected, depths, _ = tables.explorer.map_pointcloud_to_image(
                sample["data"][LIDAR], sample["data"][camera], min_dist=1.0
            )
            u, v = pixels[0, view].T
            seen = (depth[0, view] > 1) & (u > 1) & (u < width - 1) & (v > 1) & (v < height - 1)
            assert seen.sum() > 50
            assert abs(int(seen.sum()) - len(depths)) <= 2  # float32 at the very border
            if int(seen.sum()) == len(depths):
                np.testing.assert_allclose(pixels[0, view][seen].T.numpy(), expected[:2], atol=0.05)
    assert len(np.unique(lags)) == sweeps  # of the last frame


def test_images_are_bgr_in_camera_order(small_root: Path, tmp_path: Path) -> None:
    frame = reader_of(small_root, tmp_path).read(0)
    assert frame.images.dtype == torch.uint8
    tables = NuScenes(VERSION, str(small_root), verbose=False)
    sample = tables.get("sample", frame.token)
    for view, camera in enumerate(CAMERAS):
        path = small_root / tables.get("sample_data", sample["data"][camera])["filename"]
        rgb = np.asarray(Image.open(path).convert("RGB"))
        difference = frame.images[view].permute(1, 2, 0).numpy()[:, :, ::-1].astype(int) - rgb
        assert np.abs(difference).max() <= 2  # two decoders


def test_unknown_velocity_is_zero_and_sensors_can_be_off(small_root: Path, tmp_path: Path) -> None:
    reader = reader_of(small_root, tmp_path, cameras=False, lidar=False)
    reader.index.boxes[0, 7:] = np.nan
    frame = reader.read(0)
    assert frame.images is None
    assert frame.points.shape == (0, 5)
    assert frame.boxes[0, 7:].tolist() == [0, 0]
    assert len(frame.boxes) == len(frame.labels) == len(frame.box_points) > 0


def test_reading_gives_copies(small_root: Path, tmp_path: Path) -> None:
    reader = reader_of(small_root, tmp_path)
    first = reader.read(0)
    expected = first.boxes.clone()
    for tensor in (first.points, first.lidar2img, first.boxes, first.labels, first.lidar2global):
        tensor.zero_()
    assert torch.equal(reader.read(0).boxes, expected)


def test_missing_and_mismatched_files_are_named(small_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(small_root, root)
    reader = reader_of(root, tmp_path / "cache", "mini_val")
    small, image = (root / reader.index.image_files[0, view].decode() for view in (2, 3))
    sweep = root / reader.index.sweep_files[reader.index.lidar[0]].decode()
    cv2.imwrite(str(small), np.zeros((45, 80, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=f"{small.name} is 80 x 45 pixels"):
        reader.read(0)
    shutil.copy(small_root / small.relative_to(root), small)
    image.unlink()
    for read in (lambda: reader.read(0), reader.check_first):
        with pytest.raises(DataError, match=f"{image.name} cannot be read .No such file") as caught:
            read()
        assert "\n" not in str(caught.value)
    sweep.unlink()
    with pytest.raises(DataError, match=f"{sweep.name} cannot be read"):
        reader.read(0)


def test_unreadable_images_are_refused(small_root: Path, tmp_path: Path) -> None:
    raw = next(iter(sorted(small_root.glob("samples/CAM_FRONT/*.jpg")))).read_bytes()
    middle, path = len(raw) // 2, tmp_path / "picture.jpg"
    for content, problem in (
        (raw[:middle], "is truncated"),
        (b"", "is not a readable image"),
        (b"not a picture", "is not a readable image"),
        (raw[:middle] + bytes(300) + raw[middle + 300 :], "is a damaged JPEG"),
        (raw[:middle] + raw[middle + 300 :], "is a damaged JPEG"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"picture\.jpg {problem}"):
            read_image(path)
