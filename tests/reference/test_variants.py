"""The official state dictionaries of all published variants load into the composed models."""

import pytest
import torch

from cmt_aqr.model.decoder import Decoder
from cmt_aqr.outputs import TokenBias
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
@pytest.mark.parametrize("form", ["default", "attention_bias"])
def test_only_aqr_is_missing_in_official_weights(form: str) -> None:
    detector = network("model=cmt_r50", f"aqr={form}")
    report = load_weights(detector, official_state_dict("cmt_voxel0100_r50_800x320"))
    assert report.fresh == ("aqr",)
    assert all(name.startswith("aqr.") for name in report.missing)
    assert not (report.unexpected or report.wrong_shape)
    if form == "attention_bias":
        assert_a_bias_of_zero_is_cmt(detector.decoder)


@torch.no_grad()
def assert_a_bias_of_zero_is_cmt(decoder: Decoder) -> None:
    """To the last bit, with 40 queries and 330 tokens, for any groups."""
    random = torch.Generator().manual_seed(0)
    embedding, memory, positions = (torch.randn(1, count, 256, generator=random) for count in (40, 330, 330))
    plain = decoder.eval()(embedding, memory, positions)
    for groups in (1, 6):
        members = (torch.arange(330)[:, None] // 50 == torch.arange(groups)).float()
        bias = TokenBias(torch.zeros(1, 40, groups), members)
        assert torch.equal(decoder(embedding, memory, positions, bias=bias), plain)
        moved = bias.replace(beta=bias.beta + 1)
        assert not torch.allclose(decoder(embedding, memory, positions, bias=moved), plain, atol=1e-3)
