"""Values out of range are refused by whoever is built with them, by name."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cmt_aqr.data.augmentation import ImageAugmentation, SceneAugmentation
from cmt_aqr.data.corruptions import multicorrupt, nuscenes_c, nuscenes_r
from cmt_aqr.data.faults import Fog, Night, SomeFrames
from cmt_aqr.data.masking import GridMask, MaskModality
from cmt_aqr.data.sampling import Sampling
from cmt_aqr.errors import SettingError
from tests.helpers.small_data import datamodule

data = partial(datamodule, Path("absent"), Path("absent"))


@pytest.mark.parametrize(
    ("make", "settings", "sentence"),
    [
        (SceneAugmentation, {"rotation": (1, -1)}, r"rotation=\(1, -1\)"),
        (SceneAugmentation, {"scale": (0, 1)}, r"scale=\(0, 1\).*above 0"),
        (SceneAugmentation, {"translation_std": (1, 1, -1)}, "translation_std"),
        (SceneAugmentation, {"flip_x": 1.5}, "flip_x=1.5: must be a number from 0 to 1"),
        (ImageAugmentation, {"resize": (-1, 1)}, "resize"),
        (GridMask, {"ratio": 1.0}, "ratio=1.0"),
        (MaskModality, {"cameras": 0.7, "lidar": 0.7}, "at most 1 together with"),
        (MaskModality, {"views": 7}, "views=7"),
        (MaskModality, {"views": ["FRONT"]}, "views=.*CAM_FRONT"),
        (MaskModality, {"sector": 0}, "sector=0"),
        (Fog, {"visibility": 0}, "visibility=0: must be a number above 0"),
        (Fog, {"visibility": "thick"}, "visibility=thick"),
        (Fog, {"clutter": 1.2}, "clutter=1.2: must be a number from 0 to 1"),
        (Night, {"light": 0}, "light=0: must be a number above 0 and at most 1"),
        (Night, {"light": 2}, "light=2"),
        (Night, {"electrons": -5}, "electrons=-5"),
        (Night, {"read_noise": -1}, "read_noise=-1: must be a number of 0 or more"),
        (Night, {"gain": math.inf}, "gain=inf"),
        (Night, {"gamma": 0}, "gamma=0"),
        (SomeFrames, {"share": 1.5, "fog": Fog()}, "share=1.5"),
        (SomeFrames, {"share": 0.5}, "share=0.5: there is no fault"),
        (SomeFrames, {"share": 0.5, "rain": 3}, "rain=3: must be a fault"),
        (multicorrupt.fog, {"severity": 4}, "severity=4: must be a whole number from 1 to 3"),
        (nuscenes_c.density, {"severity": 0}, "severity=0: must be a whole number from 1 to 5"),
        (multicorrupt.dark, {"severity": "high"}, "severity=high"),
        (
            nuscenes_r.missing_cameras,
            {"cameras": ["CAM_TOP"]},
            "cameras=.*CAM_TOP.*: must be one or more of CAM_FRONT",
        ),
        (nuscenes_r.lidar_stuck, {"probability": 1.5}, "probability=1.5"),
        (nuscenes_r.fov, {"degrees": 0}, "degrees=0"),
        (Sampling, {"goals": {"tram": 2}}, "goals.tram"),
        (Sampling, {"goals": {"car": -1}}, "goals.car=-1"),
        (Sampling, {"rate": -1}, "rate=-1"),
        (Sampling, {"blend": 0.0}, "blend=0.0"),
        (Sampling, {"min_points": 0}, "min_points=0"),
        (Sampling, {"until_epoch": 1.5}, "until_epoch=1.5"),
        (Sampling, {"processes": 0}, "processes=0"),
        (Sampling, {"patch_camera": "first"}, "patch_camera=first: must be one of last, largest"),
        (Sampling, {"patch_behind": "no"}, "patch_behind=no"),
        (data, {"batch_size": 0}, "batch_size=0: must be a whole number of 1 or more"),
        (data, {"sweeps": "many"}, "sweeps=many"),
        (data, {"sweeps": -1}, "sweeps=-1"),
        (data, {"min_points": 0.5}, "min_points=0.5"),
        (data, {"limit_eval_frames": True}, "limit_eval_frames=true"),
        (data, {"limit_eval_frames": 0}, "limit_eval_frames=0"),
        (data, {"point_range": [1, 2]}, "point_range="),
        (data, {"image_mean": [1.0, 2.0]}, "image_mean="),
        (data, {"image_std": ["a", "b", "c"]}, "image_std="),
        (data, {"num_workers": -1}, "num_workers=-1"),
        (data, {"resampling": "some"}, "resampling=some"),
        (data, {"cameras": False, "lidar": False}, "at least one sensor"),
        (data, {"sampling": Sampling(), "lidar": False}, "data/sampling=none"),
    ],
)
def test_values_out_of_range_are_named(make: Callable[..., Any], settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        make(**settings)
