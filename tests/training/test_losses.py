import math

import pytest
import torch

from cmt_aqr.geometry import encode_boxes
from cmt_aqr.outputs import Predictions, QueryOutputs
from cmt_aqr.training.denoising import Denoising
from cmt_aqr.training.losses import Criterion
from tests.helpers.builders import RANGE, batch_of, box, outputs_of


def test_losses_by_hand() -> None:
    # One box, two queries with logits 0 everywhere. Query 0 lies 1 m off in x; query 1 is background.
    batch = batch_of([[box(0, 0)]], [[4]])
    codes = encode_boxes(torch.tensor([box(1, 0), box(20, 20)]))[None]
    losses = Criterion()(Predictions(outputs_of(codes, torch.zeros(1, 2, 10))), batch)
    positive, negative = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)
    focal = positive + 19 * negative
    assert losses["loss_cls"].item() == pytest.approx(2 * focal / (1 + 0.1 * 1), rel=1e-5)
    assert losses["loss_bbox"].item() == pytest.approx(0.25 * 2.0 * 1.0, rel=1e-5)


def test_a_batch_without_boxes_has_a_finite_loss() -> None:
    outputs = outputs_of(torch.zeros(1, 3, 10), torch.zeros(1, 3, 10).requires_grad_())
    losses = Criterion()(Predictions(outputs), batch_of([[]], [[]]))
    assert losses["loss_bbox"].item() == 0
    assert 0 < losses["loss_cls"].item() < 100


def test_denoising_losses_by_hand() -> None:
    # Two groups of one box. The second noise vector is longer than 0.75, so that query is background.
    batch = batch_of([[box(0, 0)]], [[2]])
    noise = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0.5, 0.5]])
    targets = Denoising(groups=2)(batch, 5, RANGE, noise)
    assert targets is not None and targets.labels.tolist() == [2, 10]
    codes = encode_boxes(torch.tensor([box(0, 0), box(0, 3)]))[None, None]
    denoising = QueryOutputs(codes=codes, logits=torch.zeros(1, 1, 2, 10))
    matching = outputs_of(torch.zeros(1, 5, 10), torch.zeros(1, 5, 10))
    losses = Criterion()(Predictions(matching, denoising), batch, targets)
    positive, negative = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)
    count = 2 * math.pi / 6 * 0.75**3
    expected = 2 * (positive + 19 * negative) / max(1, count)
    assert losses["dn_loss_cls"].item() == pytest.approx(expected, rel=1e-4)
    # Both are regressed, the one turned background, too: 3 m off in y, weight 2, over two queries.
    assert losses["dn_loss_bbox"].item() == pytest.approx(0.25 * 2 * 3 / 2, rel=1e-5)


def test_every_layer_has_its_losses() -> None:
    outputs = QueryOutputs(codes=torch.zeros(3, 1, 4, 10), logits=torch.zeros(3, 1, 4, 10))
    losses = Criterion()(Predictions(outputs), batch_of([[box()]], [[0]]))
    assert set(losses) == {f"{layer}{name}" for layer in ("d0.", "d1.", "") for name in ("loss_cls", "loss_bbox")}
