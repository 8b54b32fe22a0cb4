"""Names and layouts, both ways, over every name of the published models."""

import pytest
import torch
from torch import nn

from cmt_aqr.geometry.grid import BEVGrid
from cmt_aqr.model.image import ImageBranch
from cmt_aqr.model.lidar import LidarBranch
from cmt_aqr.weights import WeightsError, convert, naming_of, to_official, to_ours
from cmt_aqr.weights.convert import RULES, our_name, renamed
from tests.helpers.shared_data import needs_reference, official_state_dict, parameter_shapes

VARIANTS = (
    "cmt_voxel0100_r50_800x320",
    "cmt_voxel0075_vov_1600x640",
    "cmt_lidar_voxel0075",
    "cmt_camera_vov_1600x640",
)
GRID = BEVGrid((-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), (0.1, 0.1, 0.2), (41, 1024, 1024), 8)


@needs_reference
@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_is_exact(variant: str) -> None:
    official = official_state_dict(variant)
    ours = to_ours(official)
    assert len(ours) == len(official), "no two names become one"
    back = to_official(ours)
    assert list(back) == list(official)
    assert all(torch.equal(back[name], official[name]) for name in official)
    assert naming_of(official) == "official"
    assert naming_of(ours) == "ours"


@needs_reference
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_name_is_translated_by_one_rule(variant: str) -> None:
    for name in parameter_shapes(variant):
        (ours,) = filter(None, (renamed(name, official, ours) for official, ours in RULES))
        assert list(filter(None, (renamed(ours, known, official) for official, known in RULES))) == [name]


@needs_reference
@pytest.mark.parametrize(
    ("variant", "prefix", "build"),
    [
        (VARIANTS[0], "lidar.", lambda: LidarBranch(GRID)),
        (VARIANTS[0], "image.", lambda: ImageBranch("resnet50")),
        (VARIANTS[1], "lidar.", lambda: LidarBranch(GRID)),
        (VARIANTS[1], "image.", lambda: ImageBranch("vovnet99_ese")),
        (VARIANTS[2], "lidar.", lambda: LidarBranch(GRID)),
        (VARIANTS[3], "image.", lambda: ImageBranch("vovnet99_ese")),
    ],
)
def test_names_and_shapes_are_those_of_the_branches(variant: str, prefix: str, build: type[nn.Module]) -> None:
    with torch.device("meta"):
        expected = {prefix + name: tuple(value.shape) for name, value in build().state_dict().items()}
    ours = to_ours(official_state_dict(variant))
    assert {name: tuple(value.shape) for name, value in ours.items() if name.startswith(prefix)} == expected


def test_sparse_kernels_change_layout() -> None:
    official = torch.randn(8, 3, 1, 2, 5)  # out, kz, ky, kx, in
    ours = to_ours({"pts_middle_encoder.conv_out.0.weight": official})["lidar.encoder.output.conv.weight"]
    assert ours.shape == (3, 1, 2, 5, 8)
    assert ours[2, 0, 1, 4, 7] == official[7, 2, 0, 1, 4]


def test_names_by_hand() -> None:
    """A few, written out, of the kinds that carry numbers."""
    encoder, decoder = "pts_middle_encoder.encoder_layers.", "pts_bbox_head.transformer.decoder."
    vovnet = "img_backbone.stage4.OSA4_9.layers.3.OSA4_9_3/norm.bias"
    expected = {
        encoder + "encoder_layer2.1.bn2.bias": "lidar.encoder.stages.1.blocks.1.norm2.bias",
        encoder + "encoder_layer3.2.0.weight": "lidar.encoder.stages.2.down.conv.weight",
        decoder + "layers.5.norms.2.weight": "decoder.layers.5.norm3.weight",
        decoder + "layers.0.ffns.0.layers.1.bias": "decoder.layers.0.linear2.bias",
        decoder + "post_norm.bias": "decoder.norm.bias",
        "pts_bbox_head.reference_points.weight": "head.reference_points",
        "pts_bbox_head.task_heads.0.cls_logits.3.bias": "head.task.cls_logits.3.bias",
        vovnet: "image.backbone.stages_2.blocks.8.conv_mid.3.bn.bias",
        "img_neck.fpn_convs.0.conv.weight": "image.neck.output.weight",
    }
    assert {name: our_name(name) for name in expected} == expected


def test_names_that_no_model_has_are_refused() -> None:
    with pytest.raises(WeightsError, match="pts_bbox_head\\.surprise"):
        to_ours({"pts_bbox_head.surprise": torch.zeros(1)})
    with pytest.raises(WeightsError, match="aqr\\.generator"):
        to_official({"aqr.generator.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match="neither"):
        convert({"conv1.weight": torch.zeros(1)})
    # OSA4_1 in stage 5 contradicts itself.
    assert our_name("img_backbone.stage5.OSA4_1.ese.fc.bias") is None


def test_convert_picks_the_other_naming() -> None:
    official = {"pts_bbox_head.bev_embedding.0.bias": torch.ones(2)}
    ours = {"head.bev_embedding.0.bias": torch.ones(2)}
    assert list(convert(official)) == list(ours) == list(convert(ours, "ours")) == list(convert(official, "ours"))
    assert list(convert(ours)) == list(official)
