"""Head, decoder, decoding, losses and gradients against the published CMT."""

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
from cmt_aqr.weights import load_weights
from tests.helpers.builders import RANGE
from tests.helpers.shared_data import needs_reference, official_state_dict
from tests.reference.golden import COLUMNS, close, golden

pytestmark = needs_reference

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


class Fixed(nn.Module):
    """A sensor branch with fixed features."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, *_: object) -> Tensor:
        return self.features


def model_and_batch() -> tuple[CMT, Batch]:
    values = golden("head")
    grid = BEVGrid(RANGE, (0.1, 0.1, 0.2), (41, 128, 128), 8)
    images = torch.from_numpy(values["image_features"]).unflatten(0, (2, 6))
    model = CMT(
        head=Head(grid, queries=60),
        decoder=Decoder(dropout=0.0, attention_dropout=0.0),
        lidar=Fixed(torch.from_numpy(values["bev_features"])),
        image=Fixed(images),
    )
    official = {k: v for k, v in official_state_dict("cmt_voxel0100_r50_800x320").items() if "pts_bbox_head" in k}
    name = "pts_bbox_head.reference_points.weight"
    official[name] = official[name][:60]
    load_weights(model, official)
    boxes = [torch.from_numpy(values[f"gt_boxes_{i}"]) for i in (0, 1)]
    height, width = values["image_size_hw"]
    batch = Batch(
        tokens=("a", "b"),
        points=torch.zeros(0, 5),
        point_counts=(0, 0),
        images=torch.zeros(2, 6, 3, int(height), int(width)),
        lidar2img=torch.from_numpy(values["lidar2img"]),
        boxes=torch.cat(boxes),
        labels=torch.cat([torch.from_numpy(values[f"gt_labels_{i}"]) for i in (0, 1)]),
        box_counts=(len(boxes[0]), len(boxes[1])),
        lidar2global=torch.eye(4, dtype=torch.float64).expand(2, 4, 4),
    )
    return model.eval(), batch


def test_outputs_of_every_layer_and_decoded_boxes() -> None:
    model, batch = model_and_batch()
    values = golden("head")
    with torch.no_grad():
        outputs = model(batch).matching
    for name, (start, stop) in COLUMNS.items():
        close(outputs.codes[..., start:stop], values[f"eval_{name}"], name, relative=1e-3)
    close(outputs.logits, values["eval_cls_logits"], "cls_logits", relative=1e-3)
    for i, detections in enumerate(decode(outputs, max_detections=50)):
        close(detections.boxes, values[f"decoded_boxes_{i}"], f"boxes {i}", relative=1e-3)
        close(detections.scores, values[f"decoded_scores_{i}"], f"scores {i}", relative=1e-3)
        assert detections.labels.tolist() == values[f"decoded_labels_{i}"].tolist()


def test_losses_and_gradients() -> None:
    model, batch = model_and_batch()
    values = golden("head")
    noise = torch.from_numpy(values["dn_uniform_noise"])
    denoising = Denoising()(batch, 60, RANGE, noise)
    assert denoising is not None
    losses = Criterion()(model(batch, denoising.queries), batch, denoising)
    expected = {k.removeprefix("loss."): v for k, v in values.items() if k.startswith("loss.")}
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        close(losses[name].detach(), value, name, relative=1e-3)
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    for official, ours in GRADIENTS.items():
        gradient = parameters[ours].grad
        assert gradient is not None
        close(gradient.norm(), values[f"gradnorm.{official}"], official, relative=1e-3)
