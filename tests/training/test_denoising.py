import torch

from cmt_aqr.geometry import to_metres
from cmt_aqr.training.denoising import Denoising, attention_mask
from tests.helpers.builders import RANGE, batch_of, box


def test_positions_and_padding() -> None:
    batch = batch_of([[box(10, 0), box(-10, 0)], [box(0, 20, size=4)]], [[0, 1], [2]])
    noise = torch.full((6, 3), 0.5)
    noise[5] = torch.tensor([0.75, 0.5, 0.25])  # second group, the lone box: + size/4 in x, - size/4 in z
    targets = Denoising(groups=2)(batch, 10, RANGE, noise)
    assert targets is not None
    points = targets.queries.reference_points
    assert points.shape == (2, 4, 3)
    metres = to_metres(points, RANGE)
    torch.testing.assert_close(metres[0, :, 0], torch.tensor([10.0, -10.0, 10.0, -10.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(metres[1, 0], torch.tensor([0.0, 20.0, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(metres[1, 2], torch.tensor([1.0, 20.0, -1.0]), atol=1e-4, rtol=0)
    assert (points[1, [1, 3]] == 0).all()
    assert targets.queries.padding.tolist() == [[False] * 4, [False, True, False, True]]
    assert targets.sample.tolist() == [0, 0, 1, 0, 0, 1]
    assert targets.position.tolist() == [0, 1, 0, 2, 3, 2]
    assert targets.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_the_fullest_frame_limits_the_groups() -> None:
    batch = batch_of([[box()] * 4], [[0] * 4])
    assert Denoising(groups=10)(batch, 9, RANGE).queries.reference_points.shape[1] == 8  # type: ignore[union-attr]
    assert Denoising(groups=10)(batch, 3, RANGE) is None


def test_large_noise_becomes_background_and_stays_in_range() -> None:
    batch = batch_of([[box(53.9, 0, size=10)]], [[7]])
    targets = Denoising(groups=2)(batch, 10, RANGE, torch.tensor([[1.0, 0.5, 0.5], [0.8, 0.5, 0.5]]))
    assert targets is not None
    assert targets.labels.tolist() == [10, 7]
    assert targets.queries.reference_points.max() <= 1


def test_no_boxes_no_queries() -> None:
    assert Denoising()(batch_of([[]], [[]]), 10, RANGE) is None


def test_attention_mask() -> None:
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[0:2, 2:4] = expected[2:4, 0:2] = True  # between groups
    expected[4:, :4] = True  # from matching to denoising queries
    assert torch.equal(attention_mask(2, 2, 3, torch.device("cpu")), expected)
