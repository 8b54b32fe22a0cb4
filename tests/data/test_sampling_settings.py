"""Each key of ``conf/data/sampling/cmt.yaml``: its effect on objects, and on frames they are pasted into."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from cmt_aqr.data.dataset import SampleKey
from cmt_aqr.data.paste import paste_patches
from cmt_aqr.data.sampling import GOALS, ObjectSampler, Sampling
from cmt_aqr.data.views import patches_of
from tests.data.test_sampling import MANY, sampled
from tests.helpers.composed import composed

AHEAD = np.array(((80, -100, 0, 0), (45, 0, -100, 0), (1, 0, 0, 0), (0, 0, 0, 1)), dtype=np.float64)
"""lidar2img of a camera at the origin that looks along x, with images of 90 x 160 pixels."""
BOX = np.array([[8, 0, 0, 2, 2, 2, 0, 0, 0]], dtype=np.float32)


def test_the_configuration_is_the_published_recipe() -> None:
    config = dict(composed("data=nuscenes", "data/sampling=cmt", "data.root=none").data.sampling)
    published = {name: setting.default for name, setting in inspect.signature(Sampling).parameters.items()}
    target = f"{Sampling.__module__}.{Sampling.__name__}"
    assert config == {"_target_": target, **published, "goals": GOALS, "until_epoch": 15}


@pytest.mark.parametrize(
    ("rate", "expected"), [(1.0, {0: 5, 9: 1}), (0.5, {0: 2}), (2.0, {0: 10, 9: 2}), (0.0, {})]
)
def test_rate(rate: float, expected: dict[int, int]) -> None:
    """Halves are rounded to the even number, as in the release."""
    settings = Sampling({"car": 8, "bus": 1, "traffic_cone": 3}, rate=rate)
    assert settings.shortfall(np.array([0, 3, 0, 9, 0, 9, 3])) == expected


def test_min_points(small_root: Path, cache: Path) -> None:
    fewest = []
    for low in (5, 30):
        module = sampled(small_root, cache, Sampling(MANY, processes=1, min_points=low), sweeps=1)
        fewest.append(module.dataset("train").sampler.database.entries["points"].min())
    assert 5 <= fewest[0] < 30 <= fewest[1]


def test_without_images_only_points_and_boxes_are_pasted(small_root: Path, cache: Path) -> None:
    dataset = sampled(small_root, cache, Sampling(MANY, processes=1, images=False), sweeps=1).dataset("train")
    assert (dataset.sampler.database.entries["view"] == -1).all()
    before, after = dataset.reader.read(0), dataset.stored(SampleKey(0, 0))
    assert len(after.boxes) > len(before.boxes) and len(after.points) != len(before.points)
    assert torch.equal(after.images, before.images)


def test_blend(small_root: Path, cache: Path) -> None:
    dataset = sampled(small_root, cache, sweeps=1).dataset("train")
    database, frame = dataset.sampler.database, dataset.reader.read(0)
    row = np.flatnonzero(database.entries["view"] >= 0)[:1]
    opaque, half = (
        ObjectSampler(Sampling(blend=blend), database).paste(frame, row).images for blend in (1.0, 0.5)
    )
    assert not torch.equal(opaque, frame.images)
    assert torch.equal(half, ((frame.images.int() + opaque.int()) // 2).to(torch.uint8))

    images = np.full((1, 90, 160, 3), 101, dtype=np.uint8)
    patch = np.full((5, 5, 3), 200, dtype=np.uint8)
    for blend, blended in ((0.25, 125), (0.5, 150), (1.0, 200)):
        assert np.unique(paste_patches(images, AHEAD[None], BOX, [patch], blend)).tolist() == [101, blended]
    assert paste_patches(images, AHEAD[None], BOX, [None]) is images


@pytest.mark.parametrize(("camera", "behind"), [("largest", "any_corner"), ("last", "any_corner")])
def test_patch_camera_and_behind(small_root: Path, cache: Path, camera: str, behind: str) -> None:
    sampling = Sampling(MANY, processes=1, patch_camera=camera, patch_behind=behind)
    dataset = sampled(small_root, cache, sampling, sweeps=1).dataset("train")
    frame, entries = dataset.reader.read(0), dataset.sampler.database.entries
    entries = entries[entries["frame"] == 0]
    boxes, size = np.ascontiguousarray(entries["box"]), frame.images.shape[-2:]
    patches, published = (
        patches_of(boxes, frame.lidar2img.numpy(), size, *rule)
        for rule in ((camera, behind), ("last", "third_corner"))
    )
    np.testing.assert_array_equal(entries["view"], patches.views)
    np.testing.assert_array_equal(entries["rectangle"][patches.views >= 0], patches.rectangles[patches.views >= 0])
    assert (patches.views != published.views).any()


def test_the_better_rules_for_patches() -> None:
    """A box in front of two cameras, nearer to the first; and one with only its third corner outside the image."""
    far = AHEAD.copy()
    far[:, 3] += (80 * 10, 45 * 10, 10, 0)  # ten metres behind
    box, cameras, size = BOX.copy(), np.stack((AHEAD, far)), (90, 160)
    assert patches_of(box, cameras, size).views.tolist() == [1]
    assert patches_of(box, cameras, size, camera="largest").views.tolist() == [0]
    box[0, 1] = 6.0  # its left side leaves the first image
    assert patches_of(box, cameras[:1], size).views.tolist() == [-1]
    assert patches_of(box, cameras[:1], size, behind="any_corner").views.tolist() == [0]
