"""Mixed precision against float32: the published sizes on a small grid, with generated weights."""

import pytest
import torch

from cmt_aqr.training.denoising import Denoising
from cmt_aqr.training.losses import Criterion
from cmt_aqr.weights import load_weights
from tests.helpers.composed import network
from tests.helpers.shared_data import needs_reference, official_state_dict
from tests.model.test_composed import batch

SMALL = ("model.grid.sparse_shape=[41,128,128]", "model.image_size=[64,160]")
BOXES = torch.tensor(
    [[-50.0, -50, -1, 4, 2, 2, 0.3, 1, 0], [-46, -48, -1, 1, 1, 2, 0, 0, 0], [9, 9, 0, 8, 3, 3, 1, 0, 0]]
)


@needs_reference
@pytest.mark.parametrize("aqr", ["none", "default"])
@pytest.mark.parametrize(("dtype", "metres", "logit"), [(torch.bfloat16, 0.4, 0.25), (torch.float16, 0.06, 0.05)])
def test_autocast_stays_near_float32(dtype: torch.dtype, metres: float, logit: float, aqr: str) -> None:
    torch.manual_seed(0)
    model = network("model=cmt_r50", f"aqr={aqr}", *SMALL)
    load_weights(model, official_state_dict("cmt_voxel0100_r50_800x320"))
    frames = batch()
    with torch.no_grad():
        exact = model(frames).matching
        with torch.autocast("cpu", dtype=dtype):
            mixed = model(frames).matching
    assert mixed.codes.dtype == mixed.logits.dtype == torch.float32
    centres = (mixed.codes - exact.codes)[-1, ..., :2].norm(dim=-1)
    logits = (mixed.logits - exact.logits)[-1].abs()
    print(f"{dtype}, aqr={aqr}: centres {centres.median():.3f} m in the median, {centres.max():.2f} m at most, ")
    print(f"logits {logits.max():.3f} at most")
    assert centres.median() < metres
    assert logits.max() < logit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    smaller = (
        "model.layers=1",
        "model.queries=60",
        "model.attention_dropout=0",
        "model.network.image.backbone=resnet10t",
    )
    model = network("model=cmt_r50", *SMALL, *smaller).train()
    frames = batch().replace(boxes=BOXES, labels=torch.tensor([0, 8, 3]), box_counts=(2, 1))
    targets = Denoising()(frames, 60, tuple(model.head.point_range))
    assert targets is not None
    with torch.autocast("cpu", dtype=dtype):
        losses = Criterion()(model(frames, targets.queries), frames, targets)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
