"""Resampling, objects and how they are pasted, against the published functions."""

import numpy as np
import pytest
import torch

from cmt_aqr.data.collision import find_room
from cmt_aqr.data.paste import paste_patches, without_points_inside
from cmt_aqr.data.reading import join_sweeps
from cmt_aqr.data.resampling import balanced_frames
from cmt_aqr.data.views import paste_rectangles, patches_of
from cmt_aqr.geometry import box_corners
from tests.helpers.shared_data import needs_reference
from tests.reference.golden import about_middle, close, golden

pytestmark = needs_reference


def test_class_balanced_frames() -> None:
    present = golden()["cbgs_present"]
    ours = balanced_frames(present, np.random.RandomState(0))
    np.testing.assert_array_equal(ours, golden()["cbgs_indices_seed0"])
    assert len(ours) == golden()["cbgs_total"]
    parts = np.split(balanced_frames(present, np.random.default_rng(5)), golden()["cbgs_draws_per_class"].cumsum())
    assert not len(parts[-1])
    for label, frames in enumerate(parts[:-1]):
        assert present[frames, label].all()


@pytest.mark.parametrize("kind", ["train", "database"])
@pytest.mark.parametrize("sweeps", [3, 0])
def test_sweeps(kind: str, sweeps: int) -> None:
    motions = np.tile(np.eye(4), (4, 1, 1))
    motions[1:, :3, :3], motions[1:, :3, 3] = golden()["sweeps_rotation"], golden()["sweeps_translation"]
    count, making = sweeps + 1, kind == "database"
    clouds = [cloud.copy() for cloud in (golden()["sweeps_key"], *golden()["sweeps_clouds"])][:count]
    joined, _ = join_sweeps(
        clouds,
        motions[:count],
        np.array([0, *golden()["sweeps_lag"]])[:count],
        capacity=sum(map(len, clouds)),
        remove_close=making,
        pad_to=10 if making else 0,
    )
    close(joined, golden()[f"sweeps_{kind}" + ("" if sweeps else "_empty")], f"{kind}, {sweeps} sweeps")


def test_patches() -> None:
    boxes = about_middle(golden()["crop_boxes"])
    corners = box_corners(torch.from_numpy(boxes)).numpy()
    # Ours begin at the front, theirs at the rear.
    close(corners[:, [2, 6, 7, 3, 1, 5, 4, 0]], golden()["crop_corners"], "corners")
    patches = patches_of(boxes, golden()["crop_lidar2img"], tuple(golden()["crop_image_size"]))
    theirs = golden()["crop_view_x0_y0_x1_y1_depth"]
    has = theirs[:, 0] >= 0
    np.testing.assert_array_equal(patches.views, theirs[:, 0])
    np.testing.assert_array_equal(patches.rectangles[has], theirs[has, 1:5])
    close(patches.depths[has], theirs[has, 5], "depth")
    largest = patches_of(boxes, golden()["crop_lidar2img"], tuple(golden()["crop_image_size"]), camera="largest")
    assert (largest.views != patches.views).sum() == 3


def test_collisions() -> None:
    candidates = about_middle(golden()["collide_candidates"].reshape(-1, 9)).reshape(10, 8, 9)
    drawn = golden()["collide_drawn"]
    offered = np.concatenate([candidates[label, :count] for label, count in enumerate(drawn)])
    accepted = find_room(
        about_middle(golden()["collide_existing_boxes"]), offered, np.repeat(np.arange(10), drawn)
    )
    theirs = [golden()["collide_accepted"][label, :count] for label, count in enumerate(drawn)]
    np.testing.assert_array_equal(accepted, np.concatenate(theirs))
    close(offered[accepted], about_middle(golden()["collide_result_boxes"]), "accepted boxes")


def pasted_patches() -> list[np.ndarray | None]:
    patches = [golden()[f"paste_patch_{number:02d}"] for number in range(11)]
    return [patch if patch.size else None for patch in patches]


@pytest.mark.parametrize(("blend", "result"), [(0.5, "images"), (1.0, "images_mixup_off")])
def test_pasted_images(blend: float, result: str) -> None:
    boxes = about_middle(golden()["paste_sampled_boxes"])
    images = golden()["paste_images"].copy()
    pasted = paste_patches(images, golden()["paste_lidar2img"], boxes, pasted_patches(), blend)
    np.testing.assert_array_equal(pasted, golden()[f"paste_result_{result}"])
    np.testing.assert_array_equal(images, golden()["paste_images"])


def test_where_patches_are_pasted() -> None:
    boxes = about_middle(golden()["paste_sampled_boxes"])
    size = golden()["paste_images"].shape[1:3]
    rectangles, _ = paste_rectangles(boxes, golden()["paste_lidar2img"], size)
    np.testing.assert_array_equal(rectangles, golden()["paste_rectangles"])


def test_points_that_make_room() -> None:
    boxes = about_middle(golden()["paste_sampled_boxes"])
    stays = without_points_inside(golden()["paste_points"], boxes)
    np.testing.assert_array_equal(stays, golden()["paste_points_kept"])
