"""Augmentation keeps points, boxes, images and calibration consistent, and modifies nothing in place."""

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
SCENE = SceneAugmentation((-0.785, 0.785), (0.9, 1.1), (0.5, 0.5, 0.5), 0.5, 0.5)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def frame() -> Frame:
    """Boxes with points in and around them, and six cameras around the origin."""
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


def project(frame: Frame, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    height, width = frame.images.shape[-2:]
    pixels, depth, seen = project_to_images(points[None, :, :3], frame.lidar2img[None], (height, width))
    return pixels[0], depth[0], seen[0]


@pytest.mark.parametrize("seed", range(8))
def test_the_scene_moves_as_a_whole(frame: Frame, seed: int) -> None:
    moved = SCENE(frame, generator(seed))
    assert not torch.allclose(moved.points[:, :3], frame.points[:, :3], atol=0.01)
    # A scaled box contains the same points, except for rounding at its faces.
    inside = points_in_boxes(frame.points, frame.boxes)
    assert inside.sum() > 50
    assert (points_in_boxes(moved.points, moved.boxes) != inside).sum() <= 1
    before, depth, seen = project(frame, frame.points)
    after, moved_depth, _ = project(moved, moved.points)
    assert seen.sum() > 50
    torch.testing.assert_close(after[seen], before[seen], atol=0.02, rtol=1e-4)
    torch.testing.assert_close(moved_depth, depth, atol=1e-3, rtol=1e-4)
    homogeneous = torch.cat((moved.points[:, :3], torch.ones(len(moved.points), 1)), dim=1).double()
    original = (homogeneous @ moved.lidar2global.T)[:, :3].float()
    torch.testing.assert_close(original, frame.points[:, :3], atol=1e-4, rtol=1e-4)
    assert torch.equal(moved.points[:, 3:], frame.points[:, 3:])


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_headings_and_velocities_follow_the_motion(frame: Frame, flips: tuple[bool, bool]) -> None:
    def move(some: Frame) -> Frame:
        return transform_scene(some, 0.6, 1.07, (1.0, -2.0, 0.5), *flips)

    def fronts(boxes: torch.Tensor) -> torch.Tensor:
        return box_corners(boxes)[:, [0, 1, 4, 5]].mean(dim=1)

    moved = move(frame)
    as_points = torch.cat((fronts(frame.boxes), torch.zeros(12, 2)), dim=1)
    expected = move(frame.replace(points=as_points)).points[:, :3]
    torch.testing.assert_close(fronts(moved.boxes), expected, atol=1e-4, rtol=0)
    assert (moved.boxes[:, 6].abs() <= math.pi).all()
    # Where a box will be in half a second, moved, is where the moved box will be.
    later = frame.boxes.clone()
    later[:, :2] += 0.5 * later[:, 7:]
    expected = move(frame.replace(boxes=later)).boxes[:, :2]
    torch.testing.assert_close(moved.boxes[:, :2] + 0.5 * moved.boxes[:, 7:], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "axes", "signs"),
    [
        ({}, (0, 1), (1, 1)),
        ({"rotation": (math.pi / 2, math.pi / 2)}, (1, 0), (-1, 1)),
        ({"flip_x": 1.0}, (0, 1), (-1, 1)),
        ({"flip_y": 1.0}, (0, 1), (1, -1)),
    ],
)
def test_the_scene_is_augmented_as_configured(frame: Frame, settings: dict, axes: tuple, signs: tuple) -> None:
    moved = SceneAugmentation(**settings)(frame, generator())
    torch.testing.assert_close(moved.points[:, :2], frame.points[:, axes] * torch.tensor(signs))


@pytest.mark.parametrize("seed", range(12))
def test_pixels_move_as_lidar2img_does(frame: Frame, seed: int) -> None:
    size = (64, 160)
    point = torch.tensor([[12.0, 1.5, -1.5]])
    pixels, _, seen = project(frame, point)
    assert seen[0, 0]
    u, v = (int(value.round()) for value in pixels[0, 0])
    images = torch.zeros(6, *SIZE, 3, dtype=torch.uint8)
    images[0, v - 2 : v + 3, u - 2 : u + 3] = 255
    processing = ImageProcessing(size, ImageAugmentation(resize=(0.8, 1.6), flip=0.5))
    result = processing(frame.replace(images=images.permute(0, 3, 1, 2)), generator(seed))
    assert result.images.shape == (6, 3, *size) and result.images.dtype == torch.uint8
    light = result.images[0].float().sum(dim=0)
    moved, _, still_seen = project(result, point)
    if light.sum() < 20 * 3 * 255:
        assert not still_seen[0, 0] or light.sum() > 0  # outside, or at the border
        return
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    centre = torch.stack(((light * columns).sum(), (light * rows).sum())) / light.sum()
    assert (centre - moved[0, 0]).abs().max() < 2.0


@pytest.mark.parametrize("seed", range(12))
def test_pixels_are_those_of_complete_images_resized_cropped_and_padded(frame: Frame, seed: int) -> None:
    random = generator(seed)
    height, width = 64, 100
    rows, columns = int(random.integers(50, 150)), int(random.integers(80, 260))
    left, mirrored = int(random.integers(max(1, columns - width))), bool(seed % 2)
    crops = ImageProcessing((height, width)).resize(frame, 1.0, (rows, columns), left, mirrored).images
    for image, pixels in zip(frame.images, crops, strict=True):
        resized = cv2.resize(image.permute(1, 2, 0).numpy(), (columns, rows))
        part = resized[max(0, rows - height) :, left : left + width]
        expected = np.zeros((height, width, 3), dtype=np.uint8)
        expected[height - len(part) :, : part.shape[1]] = part
        np.testing.assert_array_equal(pixels.permute(1, 2, 0), expected[:, ::-1] if mirrored else expected)


@pytest.mark.parametrize("smallest", [0.7, 0.94, 1.0])
def test_no_pixel_depends_on_unseen_rows(frame: Frame, smallest: float) -> None:
    processing = ImageProcessing((40, 110), ImageAugmentation((smallest, 1.3)))
    marked = processing.mark_unseen(frame, generator())
    factor = smallest * 110 / 160
    assert 90 - 40 / factor - 6 <= marked.unseen_rows <= 90 - 40 / factor
    blank = marked.images.clone()
    blank[:, :, : marked.unseen_rows] = 0
    for seed in range(20):
        result = processing(marked.replace(images=blank), generator(seed))
        assert torch.equal(result.images, processing(frame, generator(seed)).images)
        assert result.unseen_rows == 0
    assert ImageProcessing((90, 100)).mark_unseen(frame, generator()).unseen_rows == 0


def test_at_test_time_the_bottom_and_the_middle_are_cropped(frame: Frame) -> None:
    wide = ImageProcessing((64, 160))(frame, generator())
    torch.testing.assert_close(wide.images, frame.images[:, :, 26:])
    tall = ImageProcessing((90, 100))(frame, generator())
    torch.testing.assert_close(tall.images, frame.images[:, :, :, 30:130])
    flipped = ImageProcessing((64, 160), ImageAugmentation(flip=1.0))(frame, generator())
    torch.testing.assert_close(flipped.images, wide.images.flip(-1))


def test_grid_mask_drops_squares(frame: Frame) -> None:
    mask, random = GridMask(probability=1.0, ratio=0.5), generator()
    dropped = [~mask.draw((64, 160), random) for _ in range(200)]
    for pixels in dropped:  # a product of rows and columns
        np.testing.assert_array_equal(pixels, pixels.any(axis=1)[:, None] & pixels.any(axis=0)[None, :])
    assert abs(np.mean(dropped) - 0.25) < 0.06
    masked = [GridMask(probability=0.7).draw((64, 160), random) is not None for _ in range(500)]
    assert abs(np.mean(masked) - 0.7) < 0.07
    processing = ImageProcessing((64, 160), augmentation=ImageAugmentation(grid_mask=mask))
    frames = [processing(frame, generator(seed)) for seed in range(2)]
    masks = torch.stack([processed.image_mask for processed in frames])
    assert not torch.equal(*masks)
    finish = Finishing((103.53, 116.28, 123.675), (57.375, 57.12, 58.395))
    for per_frame, expected in ((False, masks[[0, 0]]), (True, masks)):
        images = finish(collate(frames, mask_per_frame=per_frame)).images
        assert torch.equal((images == 0).all(dim=2), ~expected[:, None].expand(-1, 6, -1, -1))


def test_the_filter_keeps_what_training_uses(frame: Frame) -> None:
    boxes, points = frame.boxes.clone(), frame.points.clone()
    boxes[3, 0] = 60.0
    points[5, :3] = torch.tensor((0.0, 0.0, 5.0))
    kept = TrainingFilter(RANGE, min_points=2)(frame.replace(boxes=boxes, points=points), generator())
    expected = [2, *range(4, 12)]
    torch.testing.assert_close(kept.boxes, boxes[expected])
    assert kept.box_points.tolist() == expected
    assert kept.labels.tolist() == frame.labels[expected].tolist()
    low, high = torch.tensor(RANGE[:3]), torch.tensor(RANGE[3:])
    inside = ((points[:, :3] >= low) & (points[:, :3] < high)).all(dim=1)
    assert not inside.all() and torch.equal(kept.points, points[inside])
    assert kept.shuffle is not None and kept.shuffle != TrainingFilter(RANGE)(frame, generator(1)).shuffle
    assert TrainingFilter(RANGE)(frame.replace(points=points[:0]), generator()).points.shape == (0, 5)
    untouched = TrainingFilter(RANGE, 0, crop_points=False, shuffle_points=False)(frame, generator())
    assert untouched.points is frame.points and untouched.shuffle is None


def test_mask_modality_drops_one_sensor_at_a_time(frame: Frame) -> None:
    mask, random = MaskModality(cameras=0.25, lidar=0.25), generator()
    results = [mask(frame, random) for _ in range(400)]
    dropped = np.array([(not result.images.any(), not result.points.any()) for result in results])
    assert not dropped.all(axis=1).any()
    assert (abs(dropped.sum(axis=0) - 100) < 40).all()
    assert {result.points.shape for result in results} == {frame.points.shape}
    black = MaskModality(cameras=1.0, lidar=0.0)(frame, random)
    # Black images are normalised like any other.
    finished = Finishing((10, 20, 30), (1, 1, 1))(collate([ImageProcessing((64, 160))(black, random)]))
    assert finished.images[0, :, 2].unique().tolist() == [-30.0]


def test_a_sensor_may_be_dropped_in_part(frame: Frame) -> None:
    random = generator()
    black = set()
    for _ in range(40):
        images = MaskModality(cameras=1.0, lidar=0.0, views=2)(frame, random).images
        black.add(tuple(view for view in range(6) if not images[view].any()))
    assert set(map(len, black)) == {2} and len(black) > 8
    named = MaskModality(cameras=1.0, lidar=0.0, views=["CAM_BACK", "CAM_FRONT"])(frame, random).images
    assert [bool(view.any()) for view in named] == [False, True, True, False, True, True]

    azimuth = torch.atan2(frame.points[:, 1], frame.points[:, 0])
    turned = (azimuth[:, None] - torch.linspace(-math.pi, math.pi, 3600)).remainder(2 * math.pi)
    starts = set()
    for _ in range(10):
        kept = MaskModality(cameras=0.0, lidar=1.0, sector=90)(frame, random).points
        dropped = torch.tensor([not (kept == point).all(dim=1).any() for point in frame.points])
        # For some start, exactly the dropped points are within 90 degrees.
        fits = ((turned < math.pi / 2) == dropped[:, None]).all(dim=0)
        assert fits.any()
        starts.add(int(fits.float().argmax()))
    assert len(starts) > 5


TRANSFORMS: list[Transform] = [
    SCENE,
    TrainingFilter(RANGE),
    MaskModality(0.5, 0.5),
    ImageProcessing((64, 160), augmentation=ImageAugmentation((0.9, 1.3), 0.5, GridMask(1.0))),
]


def test_the_generator_decides_everything(frame: Frame) -> None:
    first, again, other = (apply_transforms(frame, TRANSFORMS, generator(seed)) for seed in (1, 1, 2))
    for name in ("points", "images", "lidar2img", "boxes"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.lidar2img, other.lidar2img)
