"""Loading weights into a model: what is loaded, reported and refused."""

from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from torch import nn

from cmt_aqr.model.image import ImageBranch
from cmt_aqr.weights import WeightsError, load_weights


class Small(nn.Module):
    """A model with some of CMT's module names, small enough for a state dict by hand."""

    def __init__(self, aqr: bool = False) -> None:
        super().__init__()
        self.image = ImageBranch("resnet18", out_channels=8)
        self.head = nn.ModuleDict({"bev_embedding": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))})
        self.decoder = nn.ModuleDict({"norm": nn.LayerNorm(4)})
        if aqr:
            self.aqr = nn.Linear(2, 2)


RENAMED = (
    ("image.neck.lateral.0.", "img_neck.lateral_convs.0.conv."),
    ("image.neck.lateral.1.", "img_neck.lateral_convs.1.conv."),
    ("image.neck.output.", "img_neck.fpn_convs.0.conv."),
    ("image.backbone.", "img_backbone."),
    ("head.bev", "pts_bbox_head.bev"),
    ("decoder.norm.", "pts_bbox_head.transformer.decoder.post_norm."),
)


def official(seed: int = 0) -> dict[str, torch.Tensor]:
    """An official-looking checkpoint of :class:`Small`, named by hand, with other values."""
    torch.manual_seed(seed)
    state = {}
    for name, value in Small().state_dict().items():
        for ours, theirs in RENAMED:
            if name.startswith(ours):
                state[theirs + name.removeprefix(ours)] = torch.rand_like(value.float()).to(value.dtype)
    return state


def test_an_official_checkpoint_sets_everything() -> None:
    model, weights = Small(), official()
    report = load_weights(model, weights)
    assert report.naming == "official"
    assert not (report.missing or report.unexpected or report.wrong_shape)
    assert len(report.loaded) == len(model.state_dict()) == len(weights)
    assert torch.equal(model.image.neck.output.bias, weights["img_neck.fpn_convs.0.conv.bias"])
    assert torch.equal(model.image.backbone.bn1.running_var, weights["img_backbone.bn1.running_var"])


def test_only_aqr_starts_fresh() -> None:
    model = Small(aqr=True)
    before = model.aqr.weight.clone()
    report = load_weights(model, official())
    assert report.fresh == ("aqr",)
    assert report.missing == ("aqr.weight", "aqr.bias")
    assert torch.equal(model.aqr.weight, before)
    console = Console(record=True, width=120)
    console.print(report.table())
    text = console.export_text()
    assert "starts fresh" in text
    assert "official names" in text


REFUSED = {
    "a part of AQR": (
        lambda: without(Small(aqr=True).state_dict(), "aqr.bias"),
        r"of aqr, 1 .* found, 1 .* missing",
    ),
    "a part of a module": (
        lambda: without(official(), "pts_bbox_head.bev_embedding.2.bias"),
        r"head\.bev_embedding.*head\.bev_embedding\.2\.bias",
    ),
    "no images": (lambda: without(official(), "img_"), r"image\.backbone"),
    "another shape": (
        lambda: official() | {"pts_bbox_head.bev_embedding.0.weight": torch.zeros(4, 6)},
        r"head\.bev_embedding\.0\.weight \[4, 6\], the model \[4, 4\]",
    ),
    "a surplus parameter": (
        lambda: official() | {"pts_bbox_head.bev_embedding.4.weight": torch.zeros(2)},
        r"1 unknown, e\.g\. head\.bev_embedding\.4\.weight",
    ),
    "nothing that fits": (lambda: {"encoder.weight": torch.zeros(2)}, "fits the model"),
    "a deeper backbone": (lambda: timm.create_model("resnet34").state_dict(), r"image\.backbone"),
    "another backbone": (lambda: timm.create_model("resnet50").state_dict(), r"image\.backbone"),
}


def without(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(prefix)}


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(name: str) -> None:
    weights, message = REFUSED[name]
    model = Small(aqr=name == "a part of AQR")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_weights(model, weights())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_our_own_checkpoint() -> None:
    weights = {name: torch.rand_like(v.float()) for name, v in Small(aqr=True).state_dict().items()}
    model = Small(aqr=True)
    report = load_weights(model, {"state_dict": {f"model.{name}": value for name, value in weights.items()}})
    assert report.naming == "ours"
    assert torch.equal(model.aqr.weight, weights["aqr.weight"])


def test_the_second_file_adds_what_is_missing_from_the_first(tmp_path: Path) -> None:
    camera, lidar = Small().state_dict(), Small().state_dict()
    files = [tmp_path / "lidar.pth", tmp_path / "camera.pth"]
    torch.save(without(lidar, "image."), files[0])
    torch.save(without(camera, "head."), files[1])
    model = Small()
    report = load_weights(model, files)
    assert not report.missing and not report.unexpected
    for name, value in model.state_dict().items():
        assert torch.equal(value, (camera if name.startswith("image.") else lidar)[name]), name
    with pytest.raises(WeightsError, match=r"^weights=.*lidar\.pth: .*are missing"):
        load_weights(Small(), files[0])


def test_parameters_of_a_module_that_the_model_does_not_have_are_reported() -> None:
    report = load_weights(Small(), official() | {"pts_neck.deblocks.0.0.weight": torch.zeros(2)})
    assert report.unexpected == ("lidar.neck.blocks.0.0.weight",)


def test_bare_backbones() -> None:
    """timm's and torchvision's names are the same for a ResNet; mmdet-style files prepend backbone."""
    weights = timm.create_model("resnet18").state_dict()
    detector = {f"backbone.{name}": value for name, value in weights.items() if not name.startswith("fc.")}
    detector["rpn_head.rpn_cls.weight"] = torch.zeros(3)
    for state in (weights, detector, {"state_dict": detector}):
        model = Small()
        report = load_weights(model, state)
        assert report.naming == "backbone"
        assert set(report.fresh) == {"image.neck", "head.bev_embedding", "decoder"}
        assert torch.equal(model.image.backbone.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])
        assert torch.equal(model.image.backbone.bn1.running_mean, weights["bn1.running_mean"])
    assert report.unexpected == ("rpn_head.rpn_cls.weight",)


def test_a_backbone_that_timm_flattens() -> None:
    """Its feature extractor calls stages_0 what the file calls stages.0."""
    weights = timm.create_model("ese_vovnet19b_slim").state_dict()
    model = nn.ModuleDict({"image": ImageBranch("ese_vovnet19b_slim", out_channels=8)})
    report = load_weights(model, weights)
    assert report.fresh == ("image.neck",)
    loaded = model["image"].backbone.stages_2.blocks[0].conv_concat.conv.weight
    assert torch.equal(loaded, weights["stages.2.blocks.0.conv_concat.conv.weight"])


def test_half_precision_weights_are_cast() -> None:
    weights = {name: value.half() if value.is_floating_point() else value for name, value in official().items()}
    model = Small()
    load_weights(model, weights)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
