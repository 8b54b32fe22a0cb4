"""Names and layouts in both directions; tests/reference/test_variants.py converts the published state dicts."""

from pathlib import Path

import pytest
import torch

from cmt_aqr.errors import UserError
from cmt_aqr.weights import WeightsError, convert, naming_of, read_state_dict, to_official, to_ours
from cmt_aqr.weights.convert import RULES, our_name, renamed
from scripts.convert_checkpoint import convert_file
from tests.helpers.commands import finished
from tests.helpers.shared_data import needs_reference, parameter_shapes

VARIANTS = (
    "cmt_voxel0100_r50_800x320",
    "cmt_voxel0075_vov_1600x640",
    "cmt_lidar_voxel0075",
    "cmt_camera_vov_1600x640",
)


@needs_reference
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_name_is_translated_by_one_rule(variant: str) -> None:
    for name in parameter_shapes(variant):
        (ours,) = filter(None, (renamed(name, official, ours) for official, ours in RULES))
        assert list(filter(None, (renamed(ours, source, official) for official, source in RULES))) == [name]


def test_sparse_kernels_change_layout() -> None:
    official = torch.randn(8, 3, 1, 2, 5)  # out, kz, ky, kx, in
    ours = to_ours({"pts_middle_encoder.conv_out.0.weight": official})["lidar.encoder.output.conv.weight"]
    assert ours.shape == (3, 1, 2, 5, 8)
    assert ours[2, 0, 1, 4, 7] == official[7, 2, 0, 1, 4]


def test_names_by_hand() -> None:
    """One of each kind that contains numbers."""
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
    assert (naming_of(official), naming_of(ours)) == ("official", "ours")
    assert list(convert(official)) == list(ours) == list(convert(ours, "ours")) == list(convert(official, "ours"))
    assert list(convert(ours)) == list(official)


@pytest.mark.system
def test_the_command_converts_a_file_there_and_back(tmp_path: Path) -> None:
    official = {
        "pts_middle_encoder.conv_out.0.weight": torch.randn(4, 3, 1, 1, 2),
        "pts_bbox_head.reference_points.weight": torch.rand(5, 3),
    }
    torch.save({"state_dict": official}, tmp_path / "epoch_20.pth")
    finished(tmp_path, "convert_checkpoint", "source=epoch_20.pth", "target=ours.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"epoch_20.pth", "ours.safetensors"}, "no log, no folder"
    assert "head.reference_points" in read_state_dict(tmp_path / "ours.safetensors")
    convert_file(tmp_path / "ours.safetensors", tmp_path / "official.pth", None)
    back = read_state_dict(tmp_path / "official.pth")
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], official[name]) for name in back)


@pytest.mark.parametrize(("target", "to"), [("x.onnx", None), ("x.pth", "theirs")])
def test_an_unknown_target_is_refused(tmp_path: Path, target: str, to: str | None) -> None:
    with pytest.raises(UserError, match=r"^(target|to)=\S+: must be"):
        convert_file(tmp_path / "a.pth", tmp_path / target, to)
