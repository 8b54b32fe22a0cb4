"""The steps of a batch on the device, and images at half size."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cmt_aqr.data.collate import collate
from cmt_aqr.data.finishing import Finishing, shuffle
from cmt_aqr.data.reading import read_image
from cmt_aqr.structures import Frame
from tests.helpers.shared_data import KEYFRAME, needs_keyframe
from tests.helpers.small_data import ready

MEAN, STD = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)
FINISH = Finishing(MEAN, STD)


def frame(token: str, points: int, seed: int | None = None, mask: bool = False) -> Frame:
    """A frame whose points contain its token and their position."""
    cloud = torch.full((points, 5), float(ord(token)))
    cloud[:, 1] = torch.arange(points)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 8, 12, 3), generator=random, dtype=torch.uint8).permute(0, 3, 1, 2)
    kept = torch.rand(8, 12, generator=random) < 0.5 if mask else None
    eye = torch.eye(4, dtype=torch.float64)
    boxes, none = torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64)
    return Frame(token, cloud, images, eye.expand(6, 4, 4), boxes, none, none, eye, image_mask=kept, shuffle=seed)


def test_images_are_normalised_then_masked() -> None:
    frames = [frame("a", 5, mask=True), frame("b", 0)]
    batch = collate(frames, mask_per_frame=True)
    assert batch.images.dtype == torch.uint8
    assert batch.images.permute(0, 1, 3, 4, 2).is_contiguous()  # as decoded, not moved
    finished = FINISH(batch)
    assert finished.images.is_contiguous()
    for image, source in zip(finished.images, frames, strict=True):
        expected = (source.images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        kept = 1.0 if source.image_mask is None else source.image_mask.float()
        torch.testing.assert_close(image, expected * kept)
    torch.testing.assert_close(finished.points, batch.points)
    assert FINISH(finished) is finished


def test_the_seed_of_a_frame_decides_the_order_of_its_points() -> None:
    frames = [frame("a", 200, 7), frame("b", 100), frame("c", 200, 7)]
    points = FINISH(collate(frames)).points.split([200, 100, 200])
    for cloud, source in zip(points, frames, strict=True):
        assert (cloud[:, 0] == ord(source.token)).all()
        torch.testing.assert_close(cloud[:, 1].sort().values, source.points[:, 1])
    assert torch.equal(points[1], frames[1].points)
    assert not torch.equal(points[0], frames[0].points)
    assert torch.equal(points[0][:, 1], points[2][:, 1])
    assert not torch.equal(shuffle(frames[0].points, 8), points[0])


def test_half_precision_ends_on_the_device() -> None:
    exact = frame("a", 50, 3)
    batch = collate([exact.replace(points=(exact.points + 1e-3).half())])
    assert batch.points.dtype == torch.float16
    points = FINISH(batch).points
    assert points.dtype == torch.float32 and torch.equal(points.half().float(), points)


@needs_keyframe
def test_half_size_images_show_the_same_in_the_same_places(tmp_path: Path) -> None:
    settings = {"train_split": None, "val_split": "mini_train", "image_size": (160, 400)}
    datasets = [
        ready("validate", KEYFRAME, tmp_path, half_size_images=half, **settings).dataset("val")
        for half in (False, True)
    ]
    full, half = (dataset.reader.read(0) for dataset in datasets)
    assert half.images.shape == (6, 3, 450, 800)
    blocks = full.images.reshape(6, 3, 450, 2, 800, 2).float().mean(dim=(3, 5))
    assert (blocks - half.images.float()).abs().mean() < 1.0
    np.testing.assert_allclose(half.lidar2img[:, :2], 0.5 * full.lidar2img[:, :2])
    torch.testing.assert_close(half.lidar2img[:, 2:], full.lidar2img[:, 2:])
    full, half = (dataset[0] for dataset in datasets)
    torch.testing.assert_close(full.lidar2img, half.lidar2img)
    assert (full.images.float() - half.images.float()).abs().mean() < 6


@pytest.mark.parametrize("size", [(9, 16), (8, 15)])
def test_odd_sides_are_rounded_up(tmp_path: Path, size: tuple[int, int]) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), np.full((*size, 3), 90, dtype=np.uint8))
    assert read_image(tmp_path / "a.jpg", half_size=True).shape[:2] == tuple((side + 1) // 2 for side in size)
