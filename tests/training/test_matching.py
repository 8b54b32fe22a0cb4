import itertools

import numpy as np
import pytest
import torch

from cmt_aqr.geometry import encode_boxes
from cmt_aqr.outputs import QueryOutputs
from cmt_aqr.training.losses import CODE_WEIGHTS
from cmt_aqr.training.matching import focal_cost, match
from tests.helpers.builders import batch_of, box, outputs_of

WEIGHTS = torch.tensor(CODE_WEIGHTS)


def test_focal_cost_by_hand() -> None:
    # p = 0.5: positive 0.25 * 0.25 * ln 2, negative 0.75 * 0.25 * ln 2, so the cost is -0.125 ln 2.
    cost = focal_cost(torch.zeros(1, 3), torch.tensor([2]))
    assert cost.item() == pytest.approx(-0.125 * np.log(2), abs=1e-6)


def test_nearest_queries_win_where_classes_are_equal() -> None:
    batch = batch_of([[box(0, 0), box(10, 0)]], [[0, 0]])
    codes = encode_boxes(torch.tensor([box(9, 0), box(1, 0), box(30, 30)]))[None]
    matches = match(outputs_of(codes, torch.zeros(1, 3, 10)), batch, WEIGHTS)
    assert {(q, b) for q, b in zip(matches.query.tolist(), matches.box.tolist(), strict=True)} == {(0, 1), (1, 0)}


def test_class_decides_between_queries_at_one_place() -> None:
    batch = batch_of([[box(0, 0), box(0, 0)]], [[3, 7]])
    codes = encode_boxes(torch.tensor([box(0, 0), box(0, 0)]))[None]
    logits = torch.full((1, 2, 10), -4.0)
    logits[0, 0, 7] = logits[0, 1, 3] = 4.0
    matches = match(outputs_of(codes, logits), batch, WEIGHTS)
    assert dict(zip(matches.query.tolist(), matches.box.tolist(), strict=True)) == {0: 1, 1: 0}


def test_velocity_does_not_count() -> None:
    batch = batch_of([[box(0, 0)]], [[0]])
    near = encode_boxes(torch.tensor([box(0.5, 0), box(0, 0)]))
    near[1, 8:] = 100.0
    matches = match(outputs_of(near[None], torch.zeros(1, 2, 10)), batch, WEIGHTS)
    assert matches.query.tolist() == [1]


def test_total_cost_is_least_over_all_assignments() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(2, 2, 5, 10, generator=generator)
    logits = torch.randn(2, 2, 5, 10, generator=generator)
    boxes = [[box(0, 1), box(2, 0), box(-1, -1)], [box(1, 1)]]
    batch = batch_of(boxes, [[0, 1, 2], [3]])
    matches = match(QueryOutputs(codes=codes, logits=logits), batch, WEIGHTS)
    target = encode_boxes(batch.boxes)
    for layer, sample, columns in ((0, 0, [0, 1, 2]), (1, 0, [0, 1, 2]), (0, 1, [3]), (1, 1, [3])):
        cost = np.zeros((5, len(columns)))
        for q, (j, b) in itertools.product(range(5), enumerate(columns)):
            p = torch.sigmoid(logits[layer, sample, q, batch.labels[b]]).item()
            focal = 0.25 * (1 - p) ** 2 * -np.log(p) - 0.75 * p**2 * -np.log(1 - p)
            l1 = ((codes[layer, sample, q] - target[b]).abs() * WEIGHTS)[:8].sum().item()
            cost[q, j] = 2 * focal + 0.25 * l1
        least = min(
            sum(cost[q, j] for j, q in enumerate(chosen))
            for chosen in itertools.permutations(range(5), len(columns))
        )
        mine = (matches.layer == layer) & (matches.sample == sample)
        pairs = zip(matches.query[mine].tolist(), matches.box[mine].tolist(), strict=True)
        assert sum(cost[q, columns.index(b)] for q, b in pairs) == pytest.approx(least, abs=1e-4)


def test_a_frame_without_boxes_matches_nothing() -> None:
    matches = match(
        outputs_of(torch.zeros(2, 3, 10), torch.zeros(2, 3, 10)), batch_of([[], [box()]], [[], [1]]), WEIGHTS
    )
    assert matches.sample.tolist() == [1]


def test_diverged_outputs_are_refused() -> None:
    codes = torch.full((1, 2, 10), float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        match(outputs_of(codes, torch.zeros(1, 2, 10)), batch_of([[box()]], [[0]]), WEIGHTS)
