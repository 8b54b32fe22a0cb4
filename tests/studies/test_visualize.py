"""From a model and a frame to what is rendered of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from cmt_aqr.data.datamodule import NuScenesDataModule
from cmt_aqr.data.errors import DataError
from cmt_aqr.data.selection import frame_numbers
from cmt_aqr.errors import UserError
from cmt_aqr.geometry import project_to_images
from cmt_aqr.structures import Frame
from cmt_aqr.studies.pictures import bev_picture, camera_picture
from cmt_aqr.studies.visualize import PictureSettings, make_scene, render
from tests.helpers.small_data import datamodule, small_root
from tests.helpers.small_detector import small_module

__all__ = ["small_root"]


def prepared(root: Path, cache: Path, cameras: bool = True, lidar: bool = True) -> NuScenesDataModule:
    data = datamodule(root, cache, cameras=cameras, lidar=lidar)
    data.prepare_data()
    data.setup("validate")
    return data


@pytest.mark.parametrize(
    ("overrides", "cameras", "lidar", "maps", "pictures"),
    [
        ([], True, True, {"bev", "camera"}, ["bev", "cameras"]),
        (["aqr=none"], True, True, set(), ["bev", "cameras"]),
        (["aqr=attention_bias"], True, True, set(), ["bev", "cameras"]),
        (["aqr=attention_bias", "aqr.groups=views"], True, True, set(), ["bev", "cameras"]),
        (["model=tiny_lidar"], False, True, {"bev"}, ["bev"]),
        (["model=tiny_camera"], True, False, {"camera"}, ["bev", "cameras"]),
    ],
)
def test_pictures_of_each_kind_of_model(
    small_root: Path,
    tmp_path: Path,
    overrides: list[str],
    cameras: bool,
    lidar: bool,
    maps: set[str],
    pictures: list[str],
) -> None:
    data = prepared(small_root, tmp_path / "cache", cameras, lidar)
    module = small_module(*overrides).eval()
    scene = make_scene(module, data, 1, min_score=0.0)
    assert {name for name in ("bev", "camera") if getattr(scene, name) is not None} == maps
    assert (len(scene.points) > 0) == lidar and (scene.images is not None) == cameras
    assert (scene.beta is not None) == ("aqr=attention_bias" in overrides)
    for name in maps:
        rendered = getattr(scene, name)
        assert rendered.clamp == 2.0 and rendered.after.max() <= 2.0
    written = render(scene, tmp_path / "mini_val_0001", dpi=40)
    assert [path.name for path in written] == [f"mini_val_0001_{name}.png" for name in pictures]
    for path in written:
        with Image.open(path) as picture:
            assert picture.width > 300 and picture.height > 200
            assert np.asarray(picture.convert("L")).std() > 10


@pytest.mark.parametrize("groups", ["sensors", "views"])
def test_what_queries_say_is_rendered_beside_what_is_broken(small_root: Path, tmp_path: Path, groups: str) -> None:
    def blinded(frame: Frame, _: np.random.Generator) -> Frame:
        """Without points on the right, and with one camera black."""
        assert frame.images is not None
        images = frame.images.clone()
        images[2] = 0
        return frame.replace(points=frame.points[frame.points[:, 0] < 0], images=images)

    data = datamodule(small_root, tmp_path / "cache", eval_fault=blinded, damage=True)
    data.prepare_data()
    data.setup("validate")
    module = small_module("aqr=attention_bias", f"aqr.groups={groups}").eval()
    bias = cast(Any, module.model.aqr).beta_head.bias
    torch.nn.init.constant_(bias, 3.0 if groups == "sensors" else -3.0)  # the LiDAR is preferred
    said = make_scene(module, data, 1, min_score=0.0).beta
    assert said is not None and said.image_damage is not None
    looking = said.beta != 0
    assert looking.any() and (said.beta[looking] > 2.9).all()
    right = said.positions[:, 0]
    assert said.lost["LiDAR"][right > 6].min() > 0.9 and said.lost["LiDAR"][right < -6].max() < 0.1
    assert said.image_damage[2].min() > 0.9 and said.image_damage[[0, 1, 3, 4, 5]].max() == 0
    assert {float(value) for value in said.lost["cameras"].round()} == {0.0, 1.0}

    plain = make_scene(module, prepared(small_root, tmp_path / "cache"), 1, min_score=0.0)
    assert plain.beta is not None and not plain.beta.lost and plain.beta.image_damage is None
    shown = make_scene(module, data, 1, min_score=0.0)
    assert [len(bev_picture(one).axes) for one in (plain, shown)] == [2, 6]  # each with its colours
    one, other = (
        camera_picture(replace(shown, beta=replace(said, image_damage=damage)))
        for damage in (None, said.image_damage)
    )
    assert [len(axis.images) for axis in one.axes] == [1] * 6 and [len(axis.images) for axis in other.axes] == [
        2
    ] * 6


def test_images_as_stored_lie_under_the_pixels_of_the_network(small_root: Path, tmp_path: Path) -> None:
    data = prepared(small_root, tmp_path / "cache")
    scene = make_scene(small_module().eval(), data, 0, min_score=0.0)
    stored = data.dataset("val").reader.read(0)
    assert scene.images is not None and stored.images is not None and scene.image_extent is not None
    # 160 x 90 becomes 160 x 90, of which the bottom 64 rows remain.
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
    data = prepared(small_root, tmp_path)
    tokens = [data.index("mini_val").token(number) for number in range(3)]
    assert frame_numbers(data, [2, tokens[1], 0]) == [2, 1, 0]
    assert frame_numbers(data, None) == [0, 1, 2]
    assert frame_numbers(data, None, few=2) == [0, 2]
    with pytest.raises(DataError, match=r"frame nowhere: split mini_val of .* has none with this sample token"):
        frame_numbers(data, ["nowhere"])
    with pytest.raises(DataError, match=r"frame 3: split mini_val of .* has frames 0 to 2"):
        frame_numbers(data, [3])


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"frames": []}, "frames=.*must be numbers from 0 or sample tokens"),
        ({"frames": [0.5]}, "frames=.*must be numbers from 0 or sample tokens"),
        ({"min_score": 2}, "min_score=2: must be a number from 0 to 1"),
        ({"dpi": 5}, "dpi=5: must be a whole number from 20 to 600"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict, sentence: str) -> None:
    plain = {"frames": [0], "split": None, "min_score": 0.3, "dpi": 100, "out": None}
    config = OmegaConf.create({**plain, **setting})
    with pytest.raises(UserError, match=sentence):
        PictureSettings.from_config(config, Path())
