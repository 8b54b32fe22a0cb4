"""Augmentation keeps points, boxes, images and calibration together, and changes nothing in place."""

import math

import cv2
import numpy as np
import pytest
import torch

from cmt_aqr.data.augmentation import (
    ImageAugmentation,
    ImageProcessing,
    SceneAugmentation,
    TrainingFilter,
    Transform,
    apply_transforms,
    transform_scene,
)
from cmt_aqr.data.collate import collate
from cmt_aqr.data.finishing import Finishing
from cmt_aqr.data.masking import GridMask, MaskModality
from cmt_aqr.geometry import box_corners, points_in_boxes, project_to_images
from cmt_aqr.structures import Frame
from tests.helpers.small_data import RANGE
from tests.helpers.struck import cameras_around

SIZE = (90, 160)
FINISH = Finishing((103.53, 116.28, 123.675), (57.375, 57.12, 58.395))
SCENE = SceneAugmentation((-0.785, 0.785), (0.9, 1.1), (0.5, 0.5, 0.5), 0.5, 0.5)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def frame() -> Frame:
    """Boxes with points in and around them, and six cameras that look around from the origin."""
    random = torch.Generator().manual_seed(0)
    boxes = torch.rand(12, 9, generator=random)
    boxes[:, :2] = boxes[:, :2] * 80 - 40
    boxes[:, 2] = boxes[:, 2] * 2 - 1
    boxes[:, 3:6] = boxes[:, 3:6] * 4 + 1
    boxes[:, 6] = boxes[:, 6] * 6 - 3
    boxes[:, 7:] = boxes[:, 7:] * 20 - 10
    spread = torch.randn(12, 40, 3, generator=random) * 2
    points = torch.rand(480, 5, generator=random)
    points[:, :3] = (boxes[:, None, :3] + spread).reshape(-1, 3)
    return Frame(
        token="token",
        points=points,
        images=torch.randint(0, 256, (6, *SIZE, 3), generator=random, dtype=torch.uint8).permute(0, 3, 1, 2),
        lidar2img=cameras_around(*SIZE, sees=80.0),
        boxes=boxes,
        labels=torch.arange(12) % 10,
        box_points=torch.arange(12),
        lidar2global=torch.eye(4, dtype=torch.float64),
    )


def pixels_of(frame: Frame, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    height, width = frame.images.shape[-2:]
    pixels, depth, seen = project_to_images(points[None, :, :3], frame.lidar2img[None], (height, width))
    return pixels[0], depth[0], seen[0]


@pytest.mark.parametrize("seed", range(8))
def test_scene_moves_as_one(frame: Frame, seed: int) -> None:
    moved = SCENE(frame, generator(seed))
    assert not torch.allclose(moved.points[:, :3], frame.points[:, :3], atol=0.01)
    # A box a little larger or smaller than before has no other points in it, but for rounding at its faces.
    inside = points_in_boxes(frame.points, frame.boxes)
    assert inside.sum() > 50
    assert (points_in_boxes(moved.points, moved.boxes) != inside).sum() <= 1
    before, depth, seen = pixels_of(frame, frame.points)
    after, moved_depth, _ = pixels_of(moved, moved.points)
    assert seen.sum() > 50
    torch.testing.assert_close(after[seen], before[seen], atol=0.02, rtol=1e-4)
    torch.testing.assert_close(moved_depth, depth, atol=1e-3, rtol=1e-4)
    homogeneous = torch.cat((moved.points[:, :3], torch.ones(len(moved.points), 1)), dim=1).double()
    home = homogeneous @ moved.lidar2global.T
    torch.testing.assert_close(home[:, :3].float(), frame.points[:, :3], atol=1e-4, rtol=1e-4)
    assert torch.equal(moved.points[:, 3:], frame.points[:, 3:])


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_headings_and_velocities_follow_the_motion(frame: Frame, flips: tuple[bool, bool]) -> None:
    def move(some: Frame) -> Frame:
        return transform_scene(some, 0.6, 1.07, (1.0, -2.0, 0.5), *flips)

    moved = move(frame)
    # The point in the middle of the front face must still be there.
    front = box_corners(frame.boxes)[:, [0, 1, 4, 5]].mean(dim=1)
    as_points = torch.cat((front, torch.zeros(len(front), 2)), dim=1)
    expected = move(frame.replace(points=as_points)).points[:, :3]
    torch.testing.assert_close(box_corners(moved.boxes)[:, [0, 1, 4, 5]].mean(dim=1), expected, atol=1e-4, rtol=0)
    assert (moved.boxes[:, 6].abs() <= math.pi).all()
    # Where a box will be in half a second, moved, is where the moved box will be.
    later = frame.boxes.clone()
    later[:, :2] += 0.5 * later[:, 7:]
    expected = move(frame.replace(boxes=later)).boxes[:, :2]
    torch.testing.assert_close(moved.boxes[:, :2] + 0.5 * moved.boxes[:, 7:], expected, atol=1e-4, rtol=0)


def test_scene_draws_what_is_configured(frame: Frame) -> None:
    still = SceneAugmentation()(frame, generator())
    torch.testing.assert_close(still.points, frame.points)
    torch.testing.assert_close(still.boxes, frame.boxes)
    turned = SceneAugmentation(rotation=(math.pi / 2, math.pi / 2))(frame, generator())
    torch.testing.assert_close(turned.points[:, 0], -frame.points[:, 1])
    torch.testing.assert_close(turned.points[:, 1], frame.points[:, 0])
    mirrored = SceneAugmentation(flip_x=1.0)(frame, generator())
    torch.testing.assert_close(mirrored.points[:, 0], -frame.points[:, 0])
    torch.testing.assert_close(mirrored.points[:, 1], frame.points[:, 1])


@pytest.mark.parametrize("seed", range(12))
def test_marked_pixels_move_as_lidar2img_says(frame: Frame, seed: int) -> None:
    random = generator(seed)
    size = (64, 160)
    augmentation = ImageAugmentation(resize=(0.8, 1.6), flip=0.5)
    point = torch.tensor([[12.0, 1.5, -1.5]])
    pixels, _, seen = pixels_of(frame, point)
    assert seen[0, 0]
    u, v = (int(value.round()) for value in pixels[0, 0])
    images = torch.zeros(6, *SIZE, 3, dtype=torch.uint8)
    images[0, v - 2 : v + 3, u - 2 : u + 3] = 255
    processing = ImageProcessing(size, augmentation=augmentation)
    result = processing(frame.replace(images=images.permute(0, 3, 1, 2)), random)
    assert result.images.shape == (6, 3, *size)
    assert result.images.dtype == torch.uint8
    light = result.images[0].float().sum(dim=0)
    moved, _, still_seen = pixels_of(result, point)
    if light.sum() < 20 * 3 * 255:
        assert not still_seen[0, 0] or light.sum() > 0  # cut off, or at the border
        return
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    centre = torch.stack(((light * columns).sum(), (light * rows).sum())) / light.sum()
    assert (centre - moved[0, 0]).abs().max() < 2.0


@pytest.mark.parametrize("seed", range(12))
def test_pixels_are_those_of_whole_pictures_resized_and_cropped(frame: Frame, seed: int) -> None:
    random = generator(seed)
    height, width = 64, 100
    rows, columns = int(random.integers(50, 150)), int(random.integers(80, 260))
    left, mirrored = int(random.integers(max(1, columns - width))), bool(seed % 2)
    cut = ImageProcessing((height, width)).resize(frame, 1.0, (rows, columns), left, mirrored).images
    assert cut is not None and frame.images is not None
    for image, pixels in zip(frame.images, cut, strict=True):
        whole = cv2.resize(image.permute(1, 2, 0).numpy(), (columns, rows))
        part = whole[max(0, rows - height) :, left : left + width]
        expected = np.zeros((height, width, 3), dtype=np.uint8)
        expected[height - len(part) :, : part.shape[1]] = part
        np.testing.assert_array_equal(pixels.permute(1, 2, 0), expected[:, ::-1] if mirrored else expected)


@pytest.mark.parametrize("least", [0.7, 0.94, 1.0])
def test_no_pixel_is_made_of_unseen_rows(frame: Frame, least: float) -> None:
    assert frame.images is not None
    processing = ImageProcessing((40, 110), ImageAugmentation((least, 1.3)))
    marked = processing.mark_unseen(frame, generator())
    assert marked.images is not None
    factor = least * 110 / 160
    assert 90 - 40 / factor - 6 <= marked.unseen_rows <= 90 - 40 / factor
    blank = marked.images.clone()
    blank[:, :, : marked.unseen_rows] = 0
    for seed in range(20):
        seen = processing(marked.replace(images=blank), generator(seed))
        torch.testing.assert_close(seen.images, processing(frame, generator(seed)).images, rtol=0, atol=0)
        assert seen.unseen_rows == 0
    smallest = ImageProcessing((40, 110), ImageAugmentation((least, least)))
    blank[:, :, : marked.unseen_rows + 6] = 0  # not many rows are missed
    assert not torch.equal(
        smallest(marked.replace(images=blank), generator()).images, smallest(frame, generator()).images
    )
    assert ImageProcessing((90, 100)).mark_unseen(frame, generator()).unseen_rows == 0


def test_flip_and_zoom_are_drawn_and_cropped_pictures_filled_up(frame: Frame) -> None:
    plain = ImageProcessing((64, 160))(frame, generator())
    flipped = ImageProcessing((64, 160), ImageAugmentation(flip=1.0))(frame, generator())
    torch.testing.assert_close(flipped.images, plain.images.flip(-1))
    smaller = ImageAugmentation(resize=(0.5, 0.5))
    small = ImageProcessing((64, 160), smaller)(frame, generator())
    assert (small.images[:, :, :, 80:] == 0).all()  # right
    assert (small.images[:, :, :19] == 0).all()  # top
    assert small.images[:, :, 19:, :80].float().std() > 10


def test_test_time_crop_is_the_bottom_and_the_middle(frame: Frame) -> None:
    wide = ImageProcessing((64, 160))(frame, generator())
    torch.testing.assert_close(wide.images, frame.images[:, :, 26:])
    tall = ImageProcessing((90, 100))(frame, generator())
    torch.testing.assert_close(tall.images, frame.images[:, :, :, 30:130])


def test_grid_mask_drops_squares(frame: Frame) -> None:
    mask = GridMask(probability=1.0, ratio=0.5)
    random = generator()
    shares = []
    for _ in range(200):
        keep = mask.draw((64, 160), random)
        # Dropped pixels are a product of rows and columns: squares on a regular grid.
        dropped = ~keep
        np.testing.assert_array_equal(dropped, dropped.any(axis=1)[:, None] & dropped.any(axis=0)[None, :])
        shares.append(dropped.mean())
    assert abs(np.mean(shares) - 0.25) < 0.06
    draws = [GridMask(probability=0.7).draw((64, 160), random) is not None for _ in range(500)]
    assert abs(np.mean(draws) - 0.7) < 0.07
    processing = ImageProcessing((64, 160), augmentation=ImageAugmentation(grid_mask=mask))
    frames = [processing(frame, generator(seed)) for seed in range(2)]
    masks = torch.stack([processed.image_mask for processed in frames])
    assert not torch.equal(*masks)
    for per_frame, expected in ((False, masks[[0, 0]]), (True, masks)):
        images = FINISH(collate(frames, mask_per_frame=per_frame)).images
        assert torch.equal((images == 0).all(dim=2), ~expected[:, None].expand(-1, 6, -1, -1))


def test_filter_keeps_what_can_be_trained_on(frame: Frame) -> None:
    boxes = frame.boxes.clone()
    boxes[3, 0] = 60.0
    points = frame.points.clone()
    points[5, :3] = torch.tensor((0.0, 0.0, 5.0))
    kept = TrainingFilter(RANGE, min_points=2)(frame.replace(boxes=boxes, points=points), generator())
    expected = [number for number in range(12) if number >= 2 and number != 3]
    torch.testing.assert_close(kept.boxes, boxes[expected])
    assert kept.box_points.tolist() == expected
    assert kept.labels.tolist() == frame.labels[expected].tolist()
    low, high = torch.tensor(RANGE[:3]), torch.tensor(RANGE[3:])
    inside = ((points[:, :3] >= low) & (points[:, :3] < high)).all(dim=1)
    assert not inside.all()
    assert torch.equal(kept.points, points[inside])
    assert kept.shuffle is not None and kept.shuffle != TrainingFilter(RANGE)(frame, generator(1)).shuffle
    nothing = TrainingFilter(RANGE)(frame.replace(points=points[:0]), generator())
    assert nothing.points.shape == (0, 5)
    untouched = TrainingFilter(RANGE, 0, crop_points=False, shuffle_points=False)(frame, generator())
    assert untouched.points is frame.points and untouched.shuffle is None


def test_mask_modality_loses_one_sensor_at_a_time(frame: Frame) -> None:
    mask = MaskModality(cameras=0.25, lidar=0.25)
    random = generator()
    lost = {"cameras": 0, "lidar": 0, "none": 0}
    for _ in range(400):
        result = mask(frame, random)
        cameras, lidar = not result.images.any(), not result.points.any()
        assert not (cameras and lidar)
        assert result.points.shape == frame.points.shape
        lost["cameras" if cameras else "lidar" if lidar else "none"] += 1
    assert abs(lost["cameras"] - 100) < 40
    assert abs(lost["lidar"] - 100) < 40
    always = MaskModality(cameras=1.0, lidar=0.0)(frame, random)
    assert not always.images.any()
    # Black pictures are not the same as nothing: they are normalised like any picture.
    seen = Finishing((10, 20, 30), (1, 1, 1))(collate([ImageProcessing((64, 160))(always, random)]))
    assert seen.images[0, :, 2].unique().tolist() == [-30.0]


def test_a_sensor_may_be_lost_in_part(frame: Frame) -> None:
    random = generator()
    lost = []
    for _ in range(40):
        images = MaskModality(cameras=1.0, lidar=0.0, views=2)(frame, random).images
        black = [view for view in range(6) if not images[view].any()]
        lost.append(tuple(black))
        assert len(black) == 2
    assert len(set(lost)) > 8
    named = MaskModality(cameras=1.0, lidar=0.0, views=["CAM_BACK", "CAM_FRONT"])(frame, random).images
    assert [bool(view.any()) for view in named] == [False, True, True, False, True, True]

    azimuth = torch.atan2(frame.points[:, 1], frame.points[:, 0])
    starts = set()
    for _ in range(10):
        kept = MaskModality(cameras=0.0, lidar=1.0, sector=90)(frame, random).points
        gone = torch.tensor([not (kept == point).all(dim=1).any() for point in frame.points])
        # There is a direction from which on 90 degrees hold all that is gone, and nothing else.
        turned = (azimuth[:, None] - torch.linspace(-math.pi, math.pi, 3600)).remainder(2 * math.pi)
        fits = ((turned < math.pi / 2) == gone[:, None]).all(dim=0)
        assert fits.any()
        starts.add(int(fits.float().argmax()))
    assert len(starts) > 5


TRANSFORMS: list[Transform] = [
    SCENE,
    TrainingFilter(RANGE),
    MaskModality(0.5, 0.5),
    ImageProcessing((64, 160), augmentation=ImageAugmentation((0.9, 1.3), 0.5, GridMask(1.0))),
]


def test_one_generator_decides_everything(frame: Frame) -> None:
    first, again, other = (apply_transforms(frame, TRANSFORMS, generator(seed)) for seed in (1, 1, 2))
    for name in ("points", "images", "lidar2img", "boxes"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.lidar2img, other.lidar2img)
