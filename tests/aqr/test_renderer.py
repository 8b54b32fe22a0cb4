"""Render methods against loops over queries and cells, and post-processing."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cmt_aqr.aqr import METHODS, Placement, Renderer
from cmt_aqr.aqr.renderer import soft_clamp

SIZE = (9, 12)


def scattered(
    maps: int = 3, queries: int = 14, seed: int = 0, size: tuple[int, int] = SIZE
) -> tuple[Tensor, Placement]:
    """Weights (map, query) float64; queries in corners, on borders, in shared cells, and outside."""
    random = torch.Generator().manual_seed(seed)
    rows, columns = size
    last = torch.tensor((columns - 1.0, rows - 1.0), dtype=torch.float64)
    position = torch.rand(maps, queries, 2, generator=random, dtype=torch.float64) * last
    position[:, 0] = 0
    position[:, 1] = last
    position[:, 2] = torch.tensor((0.0, rows - 1.0))
    position[:, 4] = position[:, 3].round()  # two queries in one cell
    inside = torch.rand(maps, queries, generator=random) > 0.2
    inside[:, :5] = True
    weights = torch.rand(maps, queries, generator=random, dtype=torch.float64) * 0.9 + 0.05
    return weights, Placement(position, inside, size)


def slow_render(renderer: Renderer, weights: Tensor, placement: Placement) -> Tensor:
    """The formulas of the kernels' docstrings, one query at a time."""
    rows, columns = placement.map_size
    kernel: Any = renderer.kernel
    method = renderer.render_method
    row, column = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    result = torch.zeros(len(weights), rows, columns, dtype=torch.float64)
    total = torch.zeros_like(result)
    for m, q in placement.inside.nonzero().tolist():
        x, y = placement.position[m, q].tolist()
        dx, dy = column - math.floor(x + 0.5), row - math.floor(y + 0.5)
        if method == "direct":
            result[m] = torch.maximum(result[m], weights[m, q] * ((dx == 0) & (dy == 0)))
            continue
        if method == "bilinear":
            share = (1 - (column - x).abs()).clamp(min=0) * (1 - (row - y).abs()).clamp(min=0)
        elif method == "distance_weighted":
            distance, reach = torch.hypot(dx, dy), kernel.reach_fraction * min(rows, columns)
            share = torch.exp(-distance / (kernel.distance_decay * reach)) * (distance <= reach)
        else:
            radius = int(6 * kernel.gaussian_sigma + 1) // 2
            share = torch.exp(-(dx**2 + dy**2) / (2 * kernel.gaussian_sigma**2))
            share *= (dx.abs() <= radius) & (dy.abs() <= radius)
            if method == "gaussian" and kernel.kernel_normalization == "sum":
                steps = torch.exp(
                    -(torch.arange(-radius, radius + 1).double() ** 2) / (2 * kernel.gaussian_sigma**2)
                )
                share /= steps.sum() ** 2
        result[m] += weights[m, q] * share
        total[m] += share
    if method == "kernel_mean":
        return torch.where(total > 0, result / total, 1.0)
    return result


VARIANTS = [
    {"render_method": "gaussian"},
    {"render_method": "gaussian", "kernel_normalization": "peak", "gaussian_sigma": 0.7},
    {"render_method": "gaussian", "gaussian_sigma": 2.5},
    {"render_method": "bilinear"},
    {"render_method": "direct"},
    {"render_method": "distance_weighted"},
    {"render_method": "distance_weighted", "reach_fraction": 0.5, "distance_decay": 0.3},
    {"render_method": "distance_weighted", "reach_fraction": 1.0},
    {"render_method": "kernel_mean"},
    {"render_method": "kernel_mean", "gaussian_sigma": 0.6},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
@pytest.mark.parametrize("size", [SIZE, (5, 3), (1, 1)], ids=str)
def test_maps_equal_a_loop_also_at_borders(variant: dict, size: tuple[int, int]) -> None:
    renderer = Renderer(**variant)
    weights, placement = scattered(size=size)
    slow = slow_render(renderer, weights, placement)
    assert (renderer.render(weights, placement) - slow).abs().max() < 1e-9
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = renderer(weights.float(), placement)[0]
        assert renderer(weights.bfloat16(), placement)[1].dtype == single.dtype == torch.float32
    assert (single.double() - slow).abs().max() < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_queries_outside_change_no_bit(method: str) -> None:
    """Neither padding nor queries that no view sees are rendered."""
    renderer = Renderer(method)
    weights, placement = scattered()
    before = renderer(weights, placement)
    weights.requires_grad_()
    padding = 540
    more_weights = torch.cat((weights, torch.full((3, padding), 0.82, dtype=torch.float64)), 1)
    position = torch.cat((placement.position, torch.zeros(3, padding, 2, dtype=torch.float64)), 1)
    nowhere = torch.zeros(3, padding, dtype=torch.bool)
    outside = Placement(position, torch.cat((placement.inside, nowhere), 1), SIZE)
    masked = Placement(position, torch.cat((placement.inside, ~nowhere), 1), SIZE)
    valid = torch.cat((torch.ones_like(placement.inside), nowhere), 1)
    for after in (renderer(more_weights, outside), renderer(more_weights, masked, valid)):
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])


@pytest.mark.parametrize("method", METHODS)
def test_maps_without_any_query(method: str) -> None:
    weights, placement = scattered()
    nobody = Placement(placement.position, torch.zeros_like(placement.inside), SIZE)
    rendered, processed = Renderer(method)(weights, nobody)
    background = 1.0 if method == "kernel_mean" else 0.0
    assert (rendered == background).all() and (processed == background).all()
    none_at_all = Placement(placement.position[:, :0], placement.inside[:, :0], SIZE)
    assert (Renderer(method).render(weights[:, :0], none_at_all) == background).all()


@pytest.mark.parametrize("method", METHODS)
def test_kernels_cached_in_evaluation_serve_training(method: str) -> None:
    """Tensors created in ``inference_mode`` cannot be saved for a backward pass."""
    weights, placement = scattered()
    renderer = Renderer(method, gaussian_sigma=0.77, distance_decay=0.77, max_weight_clamp=None)
    with torch.inference_mode():
        evaluated = renderer.render(weights, placement)
    trained = renderer.render(weights.requires_grad_(), placement)
    trained.square().sum().backward()
    assert weights.grad is not None and weights.grad.abs().sum() > 0
    assert torch.equal(evaluated, trained)


def test_weights_broadcast_over_views() -> None:
    weights, placement = scattered(maps=6)
    views = Placement(placement.position.view(2, 3, 14, 2), placement.inside.view(2, 3, 14), SIZE)
    rendered = Renderer().render(weights[:2, None], views)
    assert rendered.shape == (2, 3, *SIZE)
    for frame in range(2):
        for view in range(3):
            number = frame * 3 + view
            alone = Placement(placement.position[number], placement.inside[number], SIZE)
            torch.testing.assert_close(rendered[frame, view], Renderer().render(weights[frame], alone))


def test_threshold_and_clamp() -> None:
    rendered = torch.tensor([0.0, 0.0099, 0.01, 0.5, 3.0])
    processed = torch.tensor([0.0, 0.0, 0.01, 0.5, 3.0])
    assert torch.equal(Renderer(max_weight_clamp=None).post_process(rendered), processed)
    assert torch.equal(Renderer(max_weight_clamp=None, clamp_mode="soft").post_process(rendered), processed)
    assert torch.equal(Renderer(normalize_weights=False, max_weight_clamp=1.0).post_process(rendered), processed)
    assert torch.equal(
        Renderer(min_weight_threshold=0.0, max_weight_clamp=2.0).post_process(rendered), rendered.clamp(max=2.0)
    )


def test_soft_clamp_keeps_low_values_the_limit_and_a_gradient() -> None:
    value = torch.tensor([0.0, 0.3, 1.0, 1.5, 2.0, 10.0, 70.83], dtype=torch.float64, requires_grad=True)
    limit = torch.tensor(2.0, dtype=torch.float64)
    result = soft_clamp(value, limit)
    (gradient,) = torch.autograd.grad(result.sum(), value)
    assert torch.equal(result[:3], value[:3])
    assert (result < limit).all() and (result.diff() > 0).all()
    slope = [1.0, 1.0, 1.0, (1 / 1.5) ** 2, (1 / 2) ** 2, (1 / 10) ** 2, (1 / 70.83) ** 2]
    torch.testing.assert_close(gradient, torch.tensor(slope, dtype=torch.float64))
    (of_hard,) = torch.autograd.grad(Renderer(max_weight_clamp=2.0).post_process(value).sum(), value)
    assert of_hard[-1] == 0
    unlimited = soft_clamp(value, torch.tensor(math.inf))
    (gradient,) = torch.autograd.grad(unlimited.sum(), value)
    assert torch.equal(unlimited, value) and (gradient == 1).all()


def test_the_limit_can_be_set_and_is_not_in_checkpoints() -> None:
    renderer = Renderer(max_weight_clamp=2.5)
    assert renderer.max_weight_clamp == 2.5
    renderer.set_clamp(1.5)
    assert renderer.max_weight_clamp == 1.5
    assert renderer.post_process(torch.tensor([9.0])) == 1.5
    assert not renderer.state_dict()
    renderer.load_state_dict({"clamp_limit": torch.tensor(9.0)})  # saved by older versions
    assert renderer.max_weight_clamp == 1.5
    renderer.set_clamp(None)
    assert renderer.max_weight_clamp is None
    assert renderer.post_process(torch.tensor([9.0])) == 9.0
    with pytest.raises(ValueError, match=r"^max_weight_clamp=0: must be above 0, or null"):
        renderer.set_clamp(0)


def test_settings_without_effect_are_listed() -> None:
    assert set(Renderer().unread()) == {"distance_decay", "reach_fraction"}
    assert set(Renderer("bilinear").unread()) > {"gaussian_sigma", "kernel_normalization"}
    assert {"clamp_mode", "max_weight_clamp"} <= set(Renderer(normalize_weights=False).unread())
