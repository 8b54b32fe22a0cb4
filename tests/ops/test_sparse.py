"""Sparse convolution against dense convolution."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cmt_aqr.ops import rulebook
from cmt_aqr.ops.rulebook import Rulebook, sparse_convolution
from cmt_aqr.ops.sparse import (
    Sites,
    SparseBatchNorm,
    SparseTensor,
    StridedSparseConv3d,
    SubmanifoldConv3d,
)

STRIDED = [
    ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ((3, 3, 3), (2, 2, 2), (0, 1, 1)),
    ((3, 1, 1), (2, 1, 1), (0, 0, 0)),
]


def random_sites(shape: tuple[int, int, int], batch: int, share: float, seed: int = 0) -> Sites:
    generator = torch.Generator().manual_seed(seed)
    occupied = torch.rand(batch, *shape, generator=generator) < share
    return Sites(occupied.nonzero(), shape, batch)


def to_dense(values: Tensor, sites: Sites) -> Tensor:
    """Reference implementation: (batch, channel, z, y, x)."""
    result = values.new_zeros(sites.batch_size, values.shape[1], *sites.shape)
    b, z, y, x = sites.coords.unbind(1)
    return result.index_put(
        (b[:, None], torch.arange(values.shape[1]), z[:, None], y[:, None], x[:, None]), values
    )


def at_sites(dense: Tensor, sites: Sites) -> Tensor:
    b, z, y, x = sites.coords.unbind(1)
    return dense.permute(0, 2, 3, 4, 1)[b, z, y, x]


def conv3d_weight(weight: Tensor) -> Tensor:
    return weight.permute(4, 3, 0, 1, 2)


def compare_with_dense(features: Tensor, weight: Tensor, sites: Sites, mode: Any, tolerance: float) -> None:
    """Compare values and gradients of a sparse convolution with conv3d at the output sites."""
    if mode == "submanifold":
        out_sites, rulebook, dense_args = sites, sites.submanifold, {"padding": 1}
    else:
        kernel, stride, padding = mode
        out_sites, rulebook = sites.strided(kernel, stride, padding)
        dense_args = {"stride": stride, "padding": padding}
    inputs = [value.clone().requires_grad_() for value in (features, weight) * 2]
    result = sparse_convolution(inputs[0], inputs[1], rulebook)
    dense = functional.conv3d(to_dense(inputs[2], sites), conv3d_weight(inputs[3]), **dense_args)
    assert out_sites.shape == dense.shape[2:]
    expected = at_sites(dense, out_sites)
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)
    upstream = torch.randn(result.shape, dtype=result.dtype, generator=torch.Generator().manual_seed(3))
    result.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(inputs[0].grad, inputs[2].grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(inputs[1].grad, inputs[3].grad, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=["pairs", "neighbours"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations on the CPU, with several chunks."""
    monkeypatch.setattr(rulebook, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(rulebook, "BLOCK_BYTES", 10_000)
    monkeypatch.setattr(rulebook, "masks_are_free", lambda device: request.param == "pairs")
    return request.param


@pytest.mark.parametrize("mode", ["submanifold", *STRIDED])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_equals_dense_convolution(
    path: str, mode: Any, dtype: torch.dtype, tolerance: float, share: float
) -> None:
    sites = random_sites((7, 6, 9), 2, share)
    generator = torch.Generator().manual_seed(1)
    kernel = (3, 3, 3) if mode == "submanifold" else mode[0]
    features = torch.randn(len(sites), 4, dtype=dtype, generator=generator)
    weight = torch.randn(*kernel, 4, 5, dtype=dtype, generator=generator) / 10
    compare_with_dense(features, weight, sites, mode, tolerance)


@pytest.mark.parametrize("mode", STRIDED)
def test_strided_outputs_are_the_sites_reached(mode: tuple) -> None:
    kernel, stride, padding = mode
    for seed in range(5):
        sites = random_sites((6, 9, 8), 2, 0.02, seed)
        out_sites, _ = sites.strided(kernel, stride, padding)
        ones = to_dense(torch.ones(len(sites), 1), sites)
        reached = functional.conv3d(ones, torch.ones(1, 1, *kernel), stride=stride, padding=padding) > 0
        assert torch.equal(out_sites.coords, reached[:, 0].nonzero())


def test_no_site_at_all(path: str) -> None:
    sites = Sites(torch.zeros(0, 4, dtype=torch.int64), (5, 8, 8), 2)
    x = SparseTensor(torch.zeros(0, 3, requires_grad=True), sites)
    submanifold, strided = SubmanifoldConv3d(3, 4), StridedSparseConv3d(4, 6)
    result = strided(submanifold(x))
    assert result.features.shape == (0, 6)
    dense = result.dense()
    assert dense.shape == (2, 6, 3, 4, 4)
    (dense.sum() + result.features.sum()).backward()
    assert submanifold.weight.grad is not None and not submanifold.weight.grad.any()


@pytest.mark.parametrize("mode", ["submanifold", STRIDED[1]])
def test_gradcheck(path: str, mode: Any) -> None:
    sites = random_sites((3, 4, 4), 2, 0.15)
    rulebook: Rulebook = sites.submanifold if mode == "submanifold" else sites.strided(*mode)[1]
    features = torch.randn(len(sites), 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 3, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, w: sparse_convolution(f, w, rulebook), (features, weight))


def test_float32_under_autocast_and_dense_layout() -> None:
    sites = random_sites((5, 8, 8), 1, 0.2)
    features, weight = torch.randn(len(sites), 4), torch.randn(3, 3, 3, 4, 4, requires_grad=True)
    expected = sparse_convolution(features, weight, sites.submanifold)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sparse_convolution(features, weight, sites.submanifold), expected)
    dense = SparseTensor(features, sites).dense()
    assert torch.equal(dense, to_dense(features, sites))
    assert dense.flatten(1, 2).is_contiguous(memory_format=torch.channels_last)


def test_initial_scale_keeps_the_variance_of_conv3d() -> None:
    torch.manual_seed(0)
    ours = SubmanifoldConv3d(16, 32).weight
    theirs = torch.nn.Conv3d(16, 32, 3).weight
    assert math.isclose(ours.std().item(), theirs.std().item(), rel_tol=0.05)


@pytest.mark.parametrize("sites", [0, 1])
def test_batch_norm_of_fewer_than_two_sites_uses_running_statistics(sites: int) -> None:
    norm = SparseBatchNorm(3).train()
    norm.running_mean += 1.0
    x = torch.randn(sites, 3)
    torch.testing.assert_close(norm(x), (x - 1) / math.sqrt(1 + norm.eps))
    assert torch.equal(norm.running_mean, torch.ones(3))
    x = torch.randn(50, 3) * 3 + 2
    torch.testing.assert_close(norm(x), torch.nn.BatchNorm1d(3)(x))
