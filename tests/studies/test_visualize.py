"""What is rendered of a model's output for a frame."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from cmt_aqr.data.errors import DataError
from cmt_aqr.data.selection import frame_numbers
from cmt_aqr.errors import UserError
from cmt_aqr.geometry import project_to_images
from cmt_aqr.structures import Frame
from cmt_aqr.studies.pictures import bev_picture, camera_picture
from cmt_aqr.studies.visualize import PictureSettings, make_scene, render
from tests.helpers.small_data import ready, small_root
from tests.helpers.small_detector import small_module

__all__ = ["small_root"]


@pytest.mark.parametrize(
    ("overrides", "cameras", "lidar", "maps"),
    [
        ([], True, True, {"bev", "camera"}),
        (["aqr=none"], True, True, set()),
        (["model=tiny_lidar"], False, True, {"bev"}),
        (["model=tiny_camera"], True, False, {"camera"}),
    ],
)
def test_pictures_of_each_kind_of_model(
    small_root: Path, tmp_path: Path, overrides: list[str], cameras: bool, lidar: bool, maps: set[str]
) -> None:
    data = ready("validate", small_root, tmp_path / "cache", cameras=cameras, lidar=lidar)
    scene = make_scene(small_module(*overrides).eval(), data, 1, min_score=0.0)
    pairs = {name: getattr(scene, name) for name in ("bev", "camera") if getattr(scene, name) is not None}
    assert pairs.keys() == maps
    assert all(pair.clamp == 2.0 and pair.after.max() <= 2.0 for pair in pairs.values())
    assert (len(scene.points) > 0) == lidar and (scene.images is not None) == cameras
    written = render(scene, tmp_path / "mini_val_0001", dpi=40)
    assert [path.stem for path in written] == ["mini_val_0001_bev", "mini_val_0001_cameras"][: 1 + cameras]
    for path in written:
        with Image.open(path) as picture:
            assert picture.width > 300 and picture.height > 200
            assert np.asarray(picture.convert("L")).std() > 10


@pytest.mark.parametrize("groups", ["sensors", "views"])
def test_beta_is_rendered_beside_the_damage(small_root: Path, tmp_path: Path, groups: str) -> None:
    def blinded(frame: Frame, _: np.random.Generator) -> Frame:
        """Without points on the right, and with one camera black."""
        assert frame.images is not None
        images = frame.images.clone()
        images[2] = 0
        return frame.replace(points=frame.points[frame.points[:, 0] < 0], images=images)

    module = small_module("aqr=attention_bias", f"aqr.groups={groups}").eval()
    bias = cast(Any, module.model.aqr).beta_head.bias
    torch.nn.init.constant_(bias, 3.0 if groups == "sensors" else -3.0)  # the LiDAR is preferred
    intact = make_scene(module, ready("validate", small_root, tmp_path / "cache"), 1, min_score=0.0)
    assert intact.beta is not None and not intact.beta.lost and intact.beta.image_damage is None

    data = ready("validate", small_root, tmp_path / "cache", eval_fault=blinded, damage=True)
    scene = make_scene(module, data, 1, min_score=0.0)
    queries = scene.beta
    assert queries is not None and queries.image_damage is not None
    used = queries.beta != 0
    assert used.any() and (queries.beta[used] > 2.9).all()
    right = queries.positions[:, 0]
    assert queries.lost["LiDAR"][right > 6].min() > 0.9 and queries.lost["LiDAR"][right < -6].max() < 0.1
    assert queries.image_damage[2].min() > 0.9 and queries.image_damage[[0, 1, 3, 4, 5]].max() == 0
    assert {float(value) for value in queries.lost["cameras"].round()} == {0.0, 1.0}

    assert [len(bev_picture(one).axes) for one in (intact, scene)] == [2, 6]  # each with a colour bar
    without = replace(scene, beta=replace(queries, image_damage=None))
    layers = [[len(axis.images) for axis in camera_picture(one).axes] for one in (without, scene)]
    assert layers == [[1] * 6, [2] * 6]


def test_stored_images_are_aligned_with_the_pixels_of_the_network(small_root: Path, tmp_path: Path) -> None:
    data = ready("validate", small_root, tmp_path / "cache")
    scene = make_scene(small_module().eval(), data, 0, min_score=0.0)
    stored = data.dataset("val").reader.read(0)
    assert scene.images is not None and stored.images is not None and scene.image_extent is not None
    # Of 160 x 90 pixels, the bottom 64 rows remain.
    assert scene.image_extent == pytest.approx((-0.5, 159.5, 63.5, -26.5), abs=1e-2)
    assert np.array_equal(scene.images[2, 5, 7], stored.images[2, :, 5, 7].numpy()[::-1])
    boxes = scene.truth[None, :, :3]
    now, _, seen = project_to_images(boxes, scene.lidar2img[None], (64, 160))
    before, _, _ = project_to_images(boxes, stored.lidar2img[None], (90, 160))
    assert seen.any()
    left, right, bottom, top = scene.image_extent
    size = torch.tensor(((right - left) / 160, (bottom - top) / 90))
    moved = (before + 0.5) * size + torch.tensor((left, top))
    torch.testing.assert_close(now[seen], moved[seen], rtol=0, atol=0.02)


def test_frames_are_named_by_number_or_token(small_root: Path, tmp_path: Path) -> None:
    data = ready("validate", small_root, tmp_path)
    tokens = [data.index("mini_val").token(number) for number in range(3)]
    assert frame_numbers(data, [2, tokens[1], 0]) == [2, 1, 0]
    assert frame_numbers(data, None) == [0, 1, 2]
    assert frame_numbers(data, None, few=2) == [0, 2]
    for frame, message in (("nowhere", "sample token"), (3, "0 to 2")):
        with pytest.raises(DataError, match=rf"frame {frame}: split mini_val of .*{message}"):
            frame_numbers(data, [frame])


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"frames": []}, r"frames=\[\]: must be numbers from 0 or sample tokens"),
        ({"frames": [0.5]}, r"frames=\[0.5\]: must be numbers from 0 or sample tokens"),
        ({"min_score": 2}, "min_score=2: must be a number from 0 to 1"),
        ({"dpi": 5}, "dpi=5: must be a whole number from 20 to 600"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict, sentence: str) -> None:
    plain = {"frames": [0], "split": None, "min_score": 0.3, "dpi": 100, "out": None}
    with pytest.raises(UserError, match=sentence):
        PictureSettings.from_config(OmegaConf.create({**plain, **setting}), Path())
