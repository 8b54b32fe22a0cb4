"""AQR's maps in training leak neither boxes nor padding."""

import pytest
import torch
from torch import Tensor

from cmt_aqr.aqr import METHODS
from cmt_aqr.outputs import AQROutput
from cmt_aqr.structures import Batch, DenoisingQueries
from cmt_aqr.training.module import DetectorModule
from tests.helpers.small_detector import small_batch, small_module


def aqr_in_a_step(module: DetectorModule, batch: Batch) -> AQROutput:
    """AQR's output in a training step, with dropout, seeded as in a run."""
    module.on_train_batch_start(batch, 0)
    return AQROutput(**module.training_step(batch, 0)["aqr"])


def tensors_of(output: AQROutput) -> dict[str, Tensor]:
    names = ("weights", "bev_map_raw", "bev_map", "image_map_raw", "image_map", "bev_features", "image_features")
    return {name: getattr(output, name) for name in names}


def assert_same_bits(one: AQROutput, other: AQROutput) -> None:
    for (name, left), right in zip(tensors_of(one).items(), tensors_of(other).values(), strict=True):
        assert torch.equal(left, right), name


@pytest.mark.parametrize("method", METHODS)
def test_maps_do_not_depend_on_boxes_or_denoising(method: str) -> None:
    overrides = (f"renderer.render_method={method}", "aqr.generator.dropout=0.1", "model.queries=150")
    module = small_module(*overrides)
    expected = aqr_in_a_step(module, small_batch(5, 2))
    assert expected.weights.shape == (2, 150, 2)
    for batch in (small_batch(7, 1, truth_seed=1), small_batch(40, 60, truth_seed=2), small_batch(0, 0)):
        assert_same_bits(aqr_in_a_step(module, batch), expected)
    without = small_module("training.denoising.groups=0", *overrides)
    assert_same_bits(aqr_in_a_step(without, small_batch(3, 3, truth_seed=3)), expected)


def test_with_draw_all_maps_depend_on_the_boxes() -> None:
    """Otherwise the test above would prove nothing."""
    module = small_module("aqr.draw=all")
    one = aqr_in_a_step(module, small_batch(7, 5, truth_seed=1))
    other = aqr_in_a_step(module, small_batch(7, 5, truth_seed=2))
    assert one.weights.shape == (2, 2 * 7 + 20, 2)
    assert (one.bev_map_raw - other.bev_map_raw).abs().max() > 0.01  # type: ignore[operator]


def padded(queries: DenoisingQueries, count: int) -> DenoisingQueries:
    """Denoising queries with ``count`` more of padding, at the corner of the range."""
    batch, denoising = queries.padding.shape
    matching = len(queries.attention_mask) - denoising
    points = queries.reference_points
    order = [*range(denoising), *range(denoising + count, denoising + count + matching)]
    mask = torch.zeros(denoising + count + matching, denoising + count + matching, dtype=torch.bool)
    mask[torch.tensor(order)[:, None], torch.tensor(order)] = queries.attention_mask
    return DenoisingQueries(
        torch.cat((points, points.new_zeros(batch, count, 3)), dim=1),
        mask,
        torch.cat((queries.padding, queries.padding.new_ones(batch, count)), dim=1),
    )


@pytest.mark.parametrize("draw", ["matching", "all"])
def test_540_padding_queries_change_no_map(draw: str) -> None:
    module = small_module(f"aqr.draw={draw}", "renderer.max_weight_clamp=null").eval()
    batch = small_batch(4, 4)
    targets = module.denoising(batch, 20, tuple(module.model.head.point_range))  # type: ignore[misc]
    assert targets is not None and not targets.queries.padding.any()
    with_padding = padded(targets.queries, 540)
    unmasked = with_padding.replace(padding=torch.zeros_like(with_padding.padding))
    with torch.no_grad():
        expected, masked, piled = (
            module.model(batch, queries).aqr.maps() for queries in (targets.queries, with_padding, unmasked)
        )
    for name, (rendered, _) in expected.items():
        if draw == "matching":
            assert torch.equal(masked[name][0], rendered), name
        else:  # the number of queries changes the last bits of their weights
            torch.testing.assert_close(masked[name][0], rendered, rtol=1e-5, atol=1e-6)
    if draw == "all":
        assert masked["bev"][0].max() < 5 < 50 < piled["bev"][0].max()
