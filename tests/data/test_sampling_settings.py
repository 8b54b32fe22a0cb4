"""Each key of ``conf/data/sampling/cmt.yaml``: what it does to objects, and to frames they are pasted into."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmt_aqr.constants import CLASSES
from cmt_aqr.data.database import ObjectDatabase
from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.dataset import SampleKey
from cmt_aqr.data.paste import paste_patches
from cmt_aqr.data.sampling import GOALS, ObjectSampler, Sampling
from cmt_aqr.data.views import patches_of
from tests.helpers.composed import composed
from tests.helpers.small_data import ready

MANY = dict.fromkeys(CLASSES, 25)


def sampled(root: Path, cache: Path, **settings: Any) -> tuple[NuScenesDataModule, ObjectDatabase]:
    """Data with these settings of sampling, and the objects that they draw from."""
    module = ready("fit", root, cache, sampling=Sampling(MANY, processes=1, **settings), sweeps=1)
    sampler = module.dataset("train").sampler
    return module, sampler.database


def test_the_configuration_is_the_published_recipe() -> None:
    config = dict(composed("data=nuscenes", "data/sampling=cmt", "data.root=none").data.sampling)
    published = {name: setting.default for name, setting in inspect.signature(Sampling).parameters.items()}
    assert config == {
        "_target_": f"{Sampling.__module__}.{Sampling.__name__}",
        **published,
        "goals": GOALS,
        "until_epoch": 15,
    }


@pytest.mark.parametrize(("rate", "asked"), [(1.0, {0: 5, 9: 1}), (0.5, {0: 2}), (2.0, {0: 10, 9: 2}), (0.0, {})])
def test_a_share_of_what_lacks_is_asked_for(rate: float, asked: dict[int, int]) -> None:
    """Halves go to the even number, as in the release."""
    settings = Sampling({"car": 8, "bus": 1, "traffic_cone": 3}, rate=rate)
    assert settings.lacking(np.array([0, 3, 0, 9, 0, 9, 3])) == asked


def test_objects_have_points_enough(small_root: Path, cache: Path) -> None:
    fewest = [sampled(small_root, cache, min_points=least)[1].entries["points"].min() for least in (5, 30)]
    assert 5 <= fewest[0] < 30 <= fewest[1]


def test_without_images_points_and_boxes_alone_are_pasted(small_root: Path, cache: Path) -> None:
    module, database = sampled(small_root, cache, images=False)
    assert (database.entries["view"] == -1).all()
    dataset = module.dataset("train")
    before, after = dataset.reader.read(0), dataset.stored(SampleKey(0, 0))
    assert len(after.boxes) > len(before.boxes) and len(after.points) != len(before.points)
    assert torch.equal(after.images, before.images)


def test_a_share_of_a_pasted_picture_is_what_was_there(small_root: Path, cache: Path) -> None:
    module, database = sampled(small_root, cache)
    frame = module.dataset("train").reader.read(0)
    row = np.flatnonzero(database.entries["view"] >= 0)[:1]
    before, whole, half = (
        ObjectSampler(Sampling(blend=blend), database).paste(frame, row).images if blend else frame.images
        for blend in (0, 1.0, 0.5)
    )
    assert not torch.equal(whole, before)
    assert torch.equal(half, ((before.int() + whole.int()) // 2).to(torch.uint8))


@pytest.mark.parametrize(("camera", "behind"), [("largest", "any_corner"), ("last", "any_corner")])
def test_patches_are_cut_as_asked_for(small_root: Path, cache: Path, camera: str, behind: str) -> None:
    module, database = sampled(small_root, cache, patch_camera=camera, patch_behind=behind)
    others = dict.fromkeys((("last", "third_corner"), ("largest", "any_corner"), ("last", "any_corner")), False)
    del others[camera, behind]
    for number in range(len(module.dataset("train").reader)):
        frame = module.dataset("train").reader.read(number)
        entries = database.entries[database.entries["frame"] == number]
        boxes, size = np.ascontiguousarray(entries["box"]), (frame.images.shape[-2], frame.images.shape[-1])
        asked = patches_of(boxes, frame.lidar2img.numpy(), size, camera, behind)
        np.testing.assert_array_equal(entries["view"], asked.views)
        np.testing.assert_array_equal(entries["rectangle"][asked.views >= 0], asked.rectangles[asked.views >= 0])
        for other in others:
            others[other] |= (patches_of(boxes, frame.lidar2img.numpy(), size, *other).views != asked.views).any()
    assert all(others.values())


def test_which_camera_a_patch_is_from_may_be_put_right() -> None:
    """A box before two cameras, nearer to the first; and one whose third corner alone is off the picture."""
    ahead = np.array(((0, -100, 0, 0), (0, 0, -100, 0), (1, 0, 0, 0), (0, 0, 0, 1)), dtype=np.float64)
    ahead[:2] += np.outer((80, 45), ahead[2])
    far = ahead.copy()
    far[:, 3] += (80 * 10, 45 * 10, 10, 0)  # ten metres behind
    box = np.array([[8, 0, 0, 2, 2, 2, 0, 0, 0]], dtype=np.float32)
    cameras, size = np.stack((ahead, far)), (90, 160)
    assert patches_of(box, cameras, size).views.tolist() == [1]
    assert patches_of(box, cameras, size, camera="largest").views.tolist() == [0]
    box[0, 1] = 6.0  # its left side leaves the first picture
    assert patches_of(box, cameras[:1], size).views.tolist() == [-1]
    assert patches_of(box, cameras[:1], size, behind="any_corner").views.tolist() == [0]


def test_a_share_of_the_patch_is_seen() -> None:
    images = np.full((1, 90, 160, 3), 101, dtype=np.uint8)
    camera = np.array([((80, -100, 0, 0), (45, 0, -100, 0), (1, 0, 0, 0), (0, 0, 0, 1))], dtype=np.float64)
    box = np.array([[8, 0, 0, 2, 2, 2, 0, 0, 0]], dtype=np.float32)
    patch = np.full((5, 5, 3), 200, dtype=np.uint8)
    values = {
        blend: np.unique(paste_patches(images, camera, box, [patch], blend)).tolist() for blend in (0.25, 0.5, 1.0)
    }
    assert values == {0.25: [101, 125], 0.5: [101, 150], 1.0: [101, 200]}
    assert paste_patches(images, camera, box, [None]) is images
