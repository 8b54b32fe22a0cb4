"""What is done to a batch on the device."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cmt_aqr.data.collate import collate
from cmt_aqr.data.dataset import SampleKey
from cmt_aqr.data.finishing import Finishing, shuffle
from cmt_aqr.structures import Frame
from tests.helpers.shared_data import KEYFRAME, needs_keyframe
from tests.helpers.small_data import datamodule, ready

MEAN, STD = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)


def frame(token: str, points: int, seed: int | None, mask: bool) -> Frame:
    """Points that tell their frame and place, and noise for images, the channel last in memory."""
    cloud = torch.full((points, 5), float(ord(token)))
    cloud[:, 1] = torch.arange(points)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 8, 12, 3), generator=random, dtype=torch.uint8).permute(0, 3, 1, 2)
    kept = torch.rand(8, 12, generator=random) < 0.5 if mask else None
    eye = torch.eye(4, dtype=torch.float64)
    boxes = torch.zeros(0, 9)
    none = torch.zeros(0, dtype=torch.int64)
    return Frame(token, cloud, images, eye.expand(6, 4, 4), boxes, none, none, eye, image_mask=kept, shuffle=seed)


def test_images_are_normalised_then_masked() -> None:
    frames = [frame("a", 5, None, mask=True), frame("b", 0, None, mask=False)]
    batch = collate(frames, mask_per_frame=True)
    assert batch.images.dtype == torch.uint8
    assert batch.images.permute(0, 1, 3, 4, 2).is_contiguous()  # as it was decoded: nothing was moved
    finished = Finishing(MEAN, STD)(batch)
    assert finished.images.is_contiguous()
    for got, source in zip(finished.images, frames, strict=True):
        expected = (source.images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        kept = 1.0 if source.image_mask is None else source.image_mask.float()
        torch.testing.assert_close(got, expected * kept)
    torch.testing.assert_close(finished.points, batch.points)
    assert Finishing(MEAN, STD)(finished) is finished


def test_points_of_each_frame_come_in_the_order_of_its_seed() -> None:
    finish = Finishing(MEAN, STD)
    frames = [frame("a", 200, 7, mask=False), frame("b", 100, None, mask=False), frame("c", 200, 7, mask=False)]
    points = finish(collate(frames)).points.split([200, 100, 200])
    for cloud, source in zip(points, frames, strict=True):
        assert (cloud[:, 0] == ord(source.token)).all()
        torch.testing.assert_close(cloud[:, 1].sort().values, source.points[:, 1])
    assert torch.equal(points[1], frames[1].points)
    assert not torch.equal(points[0], frames[0].points)
    assert torch.equal(points[0][:, 1], points[2][:, 1])  # the seed alone decides
    assert not torch.equal(shuffle(frames[0].points, 8), points[0])


def test_half_precision_ends_on_the_device() -> None:
    halves = frame("a", 50, 3, mask=False)
    halves = halves.replace(points=(halves.points + 1e-3).half())
    batch = collate([halves])
    assert batch.points.dtype == torch.float16
    finished = Finishing(MEAN, STD)(batch).points
    assert finished.dtype == torch.float32 and torch.equal(finished.half().float(), finished)


def test_shuffles_are_drawn_from_seed_epoch_and_frame(small_root: Path, tmp_path: Path) -> None:
    data = ready("fit", small_root, tmp_path, cameras=False)
    seeds = {data.dataset("train")[SampleKey(epoch, number)].shuffle for epoch in range(2) for number in range(3)}
    assert len(seeds) == 6 and None not in seeds
    data.setup("validate")
    assert data.dataset("val")[0].shuffle is None


@needs_keyframe
def test_half_size_images_show_the_same_in_the_same_places(tmp_path: Path) -> None:
    whole, half = (
        datamodule(KEYFRAME, tmp_path, val_split="mini_train", image_size=(160, 400), half_size_images=half)
        for half in (False, True)
    )
    for data in (whole, half):
        data.setup("validate")
    read, small = (data.dataset("val").reader.read(0) for data in (whole, half))
    assert small.images.shape == (6, 3, 450, 800)
    blocks = read.images.reshape(6, 3, 450, 2, 800, 2).float().mean(dim=(3, 5))
    assert (blocks - small.images.float()).abs().mean() < 1.0
    np.testing.assert_allclose(small.lidar2img[:, :2], 0.5 * read.lidar2img[:, :2])
    torch.testing.assert_close(small.lidar2img[:, 2:], read.lidar2img[:, 2:])
    seen, small_seen = (data.dataset("val")[0] for data in (whole, half))
    torch.testing.assert_close(seen.lidar2img, small_seen.lidar2img)
    assert (seen.images.float() - small_seen.images.float()).abs().mean() < 6


@pytest.mark.parametrize("side", [(9, 16), (8, 15)])
def test_odd_sides_are_rounded_up(tmp_path: Path, side: tuple[int, int]) -> None:
    import cv2

    from cmt_aqr.data.reading import read_image

    picture = np.full((*side, 3), 90, dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.jpg"), picture)
    assert read_image(tmp_path / "a.jpg", half_size=True).shape[:2] == tuple((n + 1) // 2 for n in side)
