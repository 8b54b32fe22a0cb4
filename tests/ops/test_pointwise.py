"""1 x 1 convolutions and matrix products through oneDNN against PyTorch's own."""

import copy

import pytest
import torch
from torch import nn

from cmt_aqr.ops.folding import Conv2d, speed_up
from cmt_aqr.ops.pointwise import linear


def fast(conv: nn.Conv2d) -> nn.Conv2d:
    own = copy.deepcopy(conv)
    speed_up(own)
    assert type(own) is Conv2d
    return own


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients(bias: bool, stride: int, memory_format: torch.memory_format) -> None:
    conv = nn.Conv2d(6, 10, 1, stride=stride, bias=bias)
    own = fast(conv)
    x = torch.randn(2, 6, 7, 9).contiguous(memory_format=memory_format)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    results = [module(value) for module, value in zip((conv, own), inputs, strict=True)]
    torch.testing.assert_close(results[1], results[0])
    upstream = torch.randn_like(results[0])
    for result in results:
        result.backward(upstream)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    for theirs, ours in zip(conv.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
        assert ours.grad.shape == ours.shape


def test_other_types_and_autocast_go_the_usual_way() -> None:
    own = fast(nn.Conv2d(6, 10, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert own(torch.randn(1, 6, 4, 4)).dtype == torch.bfloat16
    x = torch.randn(1, 6, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(own.double()(x), nn.functional.conv2d(x, own.weight, own.bias))
    assert own.float()(torch.zeros(0, 6, 4, 4)).shape == (0, 10, 4, 4)


def test_plain_convolutions_alone_are_sped_up_and_keep_names_and_parameters() -> None:
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


@pytest.mark.parametrize("shape", [(0, 6), (1, 6), (37, 6), (2, 3, 5, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(6, 8, bias=bias)
    x = torch.randn(shape)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    expected = layer(inputs[0])
    result = linear(inputs[1], layer.weight, layer.bias)
    torch.testing.assert_close(result, expected)
    upstream = torch.randn(expected.shape)
    theirs = torch.autograd.grad(expected, [inputs[0], *layer.parameters()], upstream)
    ours = torch.autograd.grad(result, [inputs[1], *layer.parameters()], upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
