import itertools

import numpy as np
import pytest
import torch

from cmt_aqr.geometry import encode_boxes
from cmt_aqr.outputs import QueryOutputs
from cmt_aqr.training.losses import CODE_WEIGHTS
from cmt_aqr.training.matching import match
from tests.helpers.builders import batch_of, box, outputs_of

WEIGHTS = torch.tensor(CODE_WEIGHTS)


def test_the_total_cost_is_the_lowest_of_all_assignments() -> None:
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
        lowest = min(
            sum(cost[q, j] for j, q in enumerate(chosen))
            for chosen in itertools.permutations(range(5), len(columns))
        )
        rows = (matches.layer == layer) & (matches.sample == sample)
        pairs = zip(matches.query[rows].tolist(), matches.box[rows].tolist(), strict=True)
        assert sum(cost[q, columns.index(b)] for q, b in pairs) == pytest.approx(lowest, abs=1e-4)


def test_a_frame_without_boxes_matches_nothing() -> None:
    matches = match(
        outputs_of(torch.zeros(2, 3, 10), torch.zeros(2, 3, 10)), batch_of([[], [box()]], [[], [1]]), WEIGHTS
    )
    assert matches.sample.tolist() == [1]


def test_diverged_outputs_are_refused() -> None:
    codes = torch.full((1, 2, 10), float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        match(outputs_of(codes, torch.zeros(1, 2, 10)), batch_of([[box()]], [[0]]), WEIGHTS)
