"""1 x 1 convolutions and linear layers through oneDNN against PyTorch's."""

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from cmt_aqr.ops.folding import Conv2d, speed_up
from cmt_aqr.ops.pointwise import linear


def fast(conv: nn.Conv2d) -> nn.Conv2d:
    own = copy.deepcopy(conv)
    speed_up(own)
    assert type(own) is Conv2d
    return own


def compare(theirs: nn.Module, ours: Callable[[Tensor], Tensor], parameters: Iterable[Tensor], x: Tensor) -> None:
    """Compare values and gradients."""
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    expected, result = theirs(inputs[0]), ours(inputs[1])
    torch.testing.assert_close(result, expected)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, [inputs[0], *theirs.parameters()], upstream)
    for own, other in zip(torch.autograd.grad(result, [inputs[1], *parameters], upstream), gradients, strict=True):
        assert own.shape == other.shape
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolution(bias: bool, stride: int, memory_format: torch.memory_format) -> None:
    conv = nn.Conv2d(6, 10, 1, stride=stride, bias=bias)
    own = fast(conv)
    compare(conv, own, own.parameters(), torch.randn(2, 6, 7, 9).contiguous(memory_format=memory_format))


@pytest.mark.parametrize("shape", [(0, 6), (1, 6), (37, 6), (2, 3, 5, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(6, 8, bias=bias)
    compare(layer, lambda x: linear(x, layer.weight, layer.bias), layer.parameters(), torch.randn(shape))


def test_other_dtypes_and_autocast() -> None:
    own = fast(nn.Conv2d(6, 10, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert own(torch.randn(1, 6, 4, 4)).dtype == torch.bfloat16
    x = torch.randn(1, 6, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(own.double()(x), nn.functional.conv2d(x, own.weight, own.bias))
    assert own.float()(torch.zeros(0, 6, 4, 4)).shape == (0, 10, 4, 4)


def test_only_plain_convolutions_are_replaced() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 1, padding=1),
    )
    before = dict(model.named_parameters())
    speed_up(model)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is before[name] for name in before)
    assert [name for name, module in model.named_modules() if isinstance(module, Conv2d)] == ["0.0", "1"]
