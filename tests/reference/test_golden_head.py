"""The head, decoder, decoding, losses and gradients equal those of the published CMT."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cmt_aqr.evaluation.decoding import decode
from cmt_aqr.geometry import BEVGrid
from cmt_aqr.model.cmt import CMT
from cmt_aqr.model.decoder import Decoder
from cmt_aqr.model.head import Head
from cmt_aqr.structures import Batch
from cmt_aqr.training.denoising import Denoising
from cmt_aqr.training.losses import Criterion
from tests.helpers.shared_data import REFERENCE, needs_reference, official_state_dict

pytestmark = needs_reference

RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
GRADIENTS = {
    "reference_points.weight": "head.reference_points",
    "shared_conv.conv.weight": "head.shared_conv.0.weight",
    "rv_embedding.0.weight": "head.rv_embedding.0.weight",
    "bev_embedding.2.weight": "head.bev_embedding.2.weight",
    "transformer.decoder.layers.0.attentions.1.attn.in_proj_weight": (
        "decoder.layers.0.cross_attention.in_proj_weight"
    ),
    "task_heads.0.center.3.weight": "head.task.center.3.weight",
}


class Given(nn.Module):
    """A sensor branch that returns what it was given."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, *_: object) -> Tensor:
        return self.features


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(REFERENCE / "golden_head.npz"))


def close(ours: Tensor, theirs: np.ndarray, name: str) -> float:
    theirs_ = torch.from_numpy(np.asarray(theirs)).to(ours)
    deviation = (ours - theirs_).abs()
    excess = (deviation - 1e-3 * theirs_.abs()).max().item()
    assert excess <= 1e-4, f"{name}: off by {deviation.max().item():.2e}"
    return deviation.max().item()


def model_and_batch(golden: dict[str, np.ndarray]) -> tuple[CMT, Batch]:
    from cmt_aqr.weights import load_weights

    grid = BEVGrid(RANGE, (0.1, 0.1, 0.2), (41, 128, 128), 8)
    images = torch.from_numpy(golden["image_features"]).unflatten(0, (2, 6))
    model = CMT(
        head=Head(grid, queries=60),
        decoder=Decoder(dropout=0.0, attention_dropout=0.0),
        lidar=Given(torch.from_numpy(golden["bev_features"])),
        image=Given(images),
    )
    official = {k: v for k, v in official_state_dict("cmt_voxel0100_r50_800x320").items() if "pts_bbox_head" in k}
    rule = official["pts_bbox_head.reference_points.weight"]
    official["pts_bbox_head.reference_points.weight"] = _reference_points(60, rule)
    load_weights(model, official)  # the stand-ins for the branches have no weights
    boxes = [torch.from_numpy(golden[f"gt_boxes_{i}"]) for i in (0, 1)]
    height, width = golden["image_size_hw"]
    batch = Batch(
        tokens=("a", "b"),
        points=torch.zeros(0, 5),
        point_counts=(0, 0),
        images=torch.zeros(2, 6, 3, int(height), int(width)),
        lidar2img=torch.from_numpy(golden["lidar2img"]),
        boxes=torch.cat(boxes),
        labels=torch.cat([torch.from_numpy(golden[f"gt_labels_{i}"]) for i in (0, 1)]),
        box_counts=(len(boxes[0]), len(boxes[1])),
        lidar2global=torch.eye(4, dtype=torch.float64).expand(2, 4, 4),
    )
    return model.eval(), batch


def _reference_points(queries: int, like: Tensor) -> Tensor:
    import zlib

    name = "pts_bbox_head.reference_points.weight"
    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy(random.random((queries, 3)).astype(np.float32)).to(like)


def test_outputs_of_every_layer_and_decoded_boxes(golden: dict[str, np.ndarray]) -> None:
    model, batch = model_and_batch(golden)
    with torch.no_grad():
        outputs = model(batch).matching
    columns = {"center": (0, 2), "height": (2, 3), "dim": (3, 6), "rot": (6, 8), "vel": (8, 10)}
    for name, (start, stop) in columns.items():
        close(outputs.codes[..., start:stop], golden[f"eval_{name}"], name)
    close(outputs.logits, golden["eval_cls_logits"], "cls_logits")
    for i, found in enumerate(decode(outputs, max_detections=50)):
        close(found.boxes, golden[f"decoded_boxes_{i}"], f"boxes {i}")
        close(found.scores, golden[f"decoded_scores_{i}"], f"scores {i}")
        assert found.labels.tolist() == golden[f"decoded_labels_{i}"].tolist()


def test_losses_and_gradients(golden: dict[str, np.ndarray]) -> None:
    model, batch = model_and_batch(golden)
    noise = torch.from_numpy(golden["dn_uniform_noise"])
    denoising = Denoising()(batch, 60, RANGE, noise)
    assert denoising is not None
    losses = Criterion()(model(batch, denoising.queries), batch, denoising)
    expected = {k.removeprefix("loss."): v for k, v in golden.items() if k.startswith("loss.")}
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        close(losses[name].detach(), value, name)
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    for official, ours in GRADIENTS.items():
        gradient = parameters[ours].grad
        assert gradient is not None
        close(gradient.norm(), golden[f"gradnorm.{official}"], official)
