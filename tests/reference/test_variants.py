"""The official state dicts of all four published variants fit the models that the configuration composes."""

import pytest
import torch

from cmt_aqr.weights import load_weights, to_official
from tests.helpers.composed import network
from tests.helpers.shared_data import needs_reference, official_state_dict

VARIANTS = {
    "cmt_r50": "cmt_voxel0100_r50_800x320",
    "cmt_r50_aligned": "cmt_voxel0100_r50_800x320",
    "cmt_vov99": "cmt_voxel0075_vov_1600x640",
    "cmt_lidar": "cmt_lidar_voxel0075",
    "cmt_camera": "cmt_camera_vov_1600x640",
}


@needs_reference
@pytest.mark.parametrize(("model", "variant"), VARIANTS.items())
def test_state_dict_loads_completely(model: str, variant: str) -> None:
    official = official_state_dict(variant)
    detector = network(f"model={model}", "aqr=none")
    report = load_weights(detector, official)
    print(f"{variant}: {len(report.loaded)} names loaded")
    assert report.naming == "official"
    assert not (report.missing or report.unexpected or report.wrong_shape or report.fresh)
    assert len(report.loaded) == len(official) == len(detector.state_dict())
    back = to_official(detector.state_dict())
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], value) for name, value in official.items())


@needs_reference
def test_of_an_aqr_model_only_aqr_starts_fresh() -> None:
    detector = network("model=cmt_r50", "aqr=default")
    report = load_weights(detector, official_state_dict("cmt_voxel0100_r50_800x320"))
    assert report.fresh == ("aqr",)
    assert all(name.startswith("aqr.") for name in report.missing)
    assert not (report.unexpected or report.wrong_shape)
