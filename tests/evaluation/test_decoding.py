import pytest
import torch

from cmt_aqr.errors import UserError
from cmt_aqr.evaluation.decoding import decode
from cmt_aqr.geometry import encode_boxes
from cmt_aqr.outputs import QueryOutputs
from tests.helpers.builders import box, outputs_of


def test_the_best_pairs_of_query_and_class_inside_the_range() -> None:
    codes = encode_boxes(torch.tensor([box(1, 2), box(70, 0), box(-3, 4)]))[None]
    logits = torch.full((1, 3, 10), -8.0)
    logits[0, 0, 4], logits[0, 1, 0], logits[0, 2, 8], logits[0, 2, 7] = 1.0, 3.0, 2.0, -1.0
    found = decode(outputs_of(codes, logits), max_detections=4)[0]
    assert found.labels.tolist() == [8, 4, 7]  # without the box at 70 m; two classes of the same query
    torch.testing.assert_close(found.boxes[1, :2], torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(found.scores, torch.tensor([2.0, 1.0, -1.0]).sigmoid())


def test_only_the_last_layer_counts_and_low_scores_can_be_dropped() -> None:
    codes = encode_boxes(torch.tensor([[[box(1, 1)]], [[box(2, 2)]]]))
    logits = torch.full((2, 1, 1, 10), -8.0)
    logits[0, 0, 0, 1] = logits[1, 0, 0, 2] = 1.0
    found = decode(QueryOutputs(codes=codes, logits=logits), score_threshold=0.5)[0]
    assert found.labels.tolist() == [2] and found.boxes[0, 0] == 2


@pytest.mark.parametrize("what", ["a score", "a code", "a size"])
def test_values_that_are_not_finite_are_refused(what: str) -> None:
    """A code of 100 is finite, but its size, exp(100), is not in float32."""
    logits, codes = torch.zeros(1, 2, 3, 10), torch.zeros(1, 2, 3, 10)
    if what == "a score":
        logits[0, 1, 2, 4] = float("nan")
    else:
        codes[0, 1, 2, 2 if what == "a size" else 0] = 100.0 if what == "a size" else float("inf")
    decode(QueryOutputs(logits=logits[:, :1], codes=codes[:, :1]))
    with pytest.raises(UserError, match=r"^sample second: the model's (scores|boxes) are not finite"):
        decode(QueryOutputs(logits=logits, codes=codes), tokens=("first", "second"))
