"""Images, scene augmentation, masked-modal training and GridMask against the published functions."""

import numpy as np
import pytest
import torch

from cmt_aqr.data.augmentation import ImageAugmentation, ImageProcessing, TrainingFilter, transform_scene
from cmt_aqr.data.finishing import Finishing
from cmt_aqr.data.masking import GridMask, MaskModality
from cmt_aqr.runs.configuration import build
from cmt_aqr.training.optimization import OneCycle
from tests.helpers.builders import RANGE
from tests.helpers.composed import composed
from tests.helpers.shared_data import needs_reference
from tests.reference.golden import close, close_boxes, frame, golden

pytestmark = needs_reference
SIZE = (32, 80)
MEAN, STD = (103.530, 116.280, 123.675), (57.375, 57.120, 58.395)


@pytest.mark.parametrize("number", range(5))
def test_training_images(number: int) -> None:
    factor, left, flip = golden()["image_resize_left_flip"][number]
    images, lidar2img = golden()["image_inputs"], golden()["image_input_lidar2img"]
    processing = ImageProcessing(SIZE, augmentation=ImageAugmentation(), exact_lidar2img=False)
    before = frame(images=images, lidar2img=lidar2img)
    resized = int(images.shape[1] * factor), int(images.shape[2] * factor)
    after = processing.resize(before, factor, resized, int(left), bool(flip))
    assert after.images is not None
    pixels = after.images.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(pixels, golden()[f"image_pixels_{number}"])
    normal = Finishing(MEAN, STD).normalize(after.images).permute(0, 2, 3, 1).numpy()
    close(normal, golden()[f"image_normalised_{number}"], "normalised")
    close(after.lidar2img, golden()[f"image_lidar2img_{number}"], "lidar2img", most=2e-3)
    matrix = golden()[f"image_matrix_{number}"]
    close(matrix @ lidar2img, after.lidar2img.numpy(), "matrix", most=2e-3)


def test_images_at_test_time() -> None:
    before = frame(images=golden()["image_inputs"], lidar2img=golden()["image_input_lidar2img"])
    processing = ImageProcessing(SIZE, exact_lidar2img=False)
    after = processing(before, np.random.default_rng(0))
    assert after.images is not None
    np.testing.assert_array_equal(after.images.permute(0, 2, 3, 1).numpy(), golden()["image_test_pixels"])
    close(after.lidar2img, golden()["image_test_lidar2img"], "lidar2img", most=2e-3)


@pytest.mark.parametrize("number", range(4))
def test_scene_and_filter(number: int) -> None:
    angle, scale, *shift, across, along = golden()["bev_angle_scale_shift_hflip_vflip"][number]
    before = frame(*(golden()[f"bev_in_{name}"] for name in ("points", "boxes", "labels")))
    before = before.replace(lidar2img=torch.from_numpy(golden()["bev_in_lidar2img"]))
    moved = transform_scene(before, angle, scale, shift, flip_x=bool(along), flip_y=bool(across))

    close(moved.points, golden()[f"bev_points_{number}"], "points")
    close(moved.lidar2img, golden()[f"bev_lidar2img_{number}"], "lidar2img", most=2e-3)
    close_boxes(moved.boxes, golden()[f"bev_boxes_{number}"], "boxes")
    # Our frames never hold boxes of other categories.
    known = moved.labels >= 0
    moved = moved.replace(boxes=moved.boxes[known], labels=moved.labels[known], box_points=moved.box_points[known])
    kept = TrainingFilter(RANGE, shuffle_points=False)(moved, np.random.default_rng(0))
    close(kept.points, golden()[f"bev_filtered_points_{number}"], "points in range")
    close_boxes(kept.boxes, golden()[f"bev_filtered_boxes_{number}"], "boxes in range")
    np.testing.assert_array_equal(kept.labels.numpy(), golden()[f"bev_filtered_labels_{number}"])


def test_half_points() -> None:
    exact = frame(points=golden()["bev_filtered_points_1"])
    rounded = TrainingFilter(RANGE, shuffle_points=False, half_points=True)(exact, np.random.default_rng(0))
    np.testing.assert_array_equal(rounded.points.numpy(), golden()["half_points_out"])


def test_masked_modal() -> None:
    mask = MaskModality()
    lost = [mask.lost(draw) for draw in golden()["mask_draw"]]
    np.testing.assert_array_equal(
        [[what == sensor for sensor in ("cameras", "lidar")] for what in lost],
        golden()["mask_images_lost_points_lost"],
    )
    five = frame(points=golden()["bev_in_points"][:5], images=np.full((6, 4, 8, 3), 90, np.uint8))
    random = np.random.default_rng(0)
    without_points = MaskModality(0.0, 1.0)(five, random)
    angle, scale, *shift, across, along = golden()["bev_angle_scale_shift_hflip_vflip"][1]
    moved = transform_scene(without_points, angle, scale, shift, flip_x=bool(along), flip_y=bool(across))
    close(moved.points, golden()["mask_points_after_bev_draw_1"], "lost points")
    without_images = ImageProcessing((4, 8))(MaskModality(1.0, 0.0)(five, random), random)
    assert without_images.images is not None
    normal = Finishing(MEAN, STD).normalize(without_images.images)
    close(normal[0, :, 0, 0], golden()["mask_image_value_normalised"], "lost pixels")


@pytest.mark.parametrize("number", range(9))
def test_grid_mask(number: int) -> None:
    height, width, period, row, column = (int(value) for value in golden()["gridmask_h_w_d_sth_stw"][number])
    ours = GridMask().mask((height, width), period, row, column)
    np.testing.assert_array_equal(np.packbits(ours), golden()[f"gridmask_keep_{number}"])


def test_grid_mask_drops_the_same_share_on_average() -> None:
    random, mask = np.random.default_rng(0), GridMask(probability=1.0)
    dropped = [1 - keep.mean() for _ in range(2000) if (keep := mask.draw((320, 800), random)) is not None]
    assert abs(np.mean(dropped) - 0.262) < 0.006


def test_the_camera_only_recipe_turns_boxes_and_images_in_opposite_directions() -> None:
    """With rc5, boxes and images of the release differ by twice the angle; ours agree."""
    angle, scale = golden()["camera_only_angle_scale"]
    before = frame(boxes=golden()["bev_in_boxes"], lidar2img=golden()["bev_in_lidar2img"])
    with_images, with_boxes = (
        transform_scene(before, sign * angle, scale, (0, 0, 0), flip_x=False, flip_y=False) for sign in (1, -1)
    )
    close(with_images.lidar2img, golden()["camera_only_lidar2img"], "lidar2img", most=2e-3)
    close_boxes(with_boxes.boxes, golden()["camera_only_boxes"], "boxes")


def test_schedule() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0, betas=(0.9, 0.999))
    settings = build(composed("optimizer=one_cycle", "optimizer.peak=6").optimizer)
    schedule = OneCycle(optimizer, 20 * 8007, settings.peak, settings.final, settings.warmup, settings.lowest_beta)
    factors, betas = [], []
    for step in golden()["schedule_iteration"].tolist():
        schedule.last_epoch = step
        factors += schedule.get_lr()
        betas.append(optimizer.param_groups[0]["betas"][0])
    close(factors, golden()["schedule_lr_factor_peak6"], "learning rate")
    close(betas, golden()["schedule_beta1"], "beta1")
