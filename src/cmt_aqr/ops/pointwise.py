"""Matrix products and 1 x 1 convolutions through oneDNN on a CPU.

On a CPU, PyTorch dispatches float32 products and 1 x 1 convolutions to MKL, which is limited to AVX2 on processors
other than Intel's. oneDNN, which PyTorch uses for 3 x 3 convolutions, uses AVX-512 where available: 210 instead of
90 GFLOP/s on an AMD Zen 5 server core, and half of a ResNet-50 is 1 x 1 convolutions. Values are equal up to
rounding. On other devices, with other dtypes and under autocast, PyTorch's own functions are called.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


def _applies(x: Tensor) -> bool:
    """Whether to use oneDNN: float32 on a CPU, outside autocast."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``functional.linear`` through oneDNN where possible: (..., in) and (out, in) give (..., out)."""
    if not _applies(x):
        return functional.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    image = rows.view(1, len(rows), 1, -1).permute(0, 3, 1, 2)  # channels-last by its strides
    result = _PointwiseConvolution.apply(image, weight[:, :, None, None], bias)
    return result.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


class PointwiseLinear(nn.Linear):
    """A linear layer that uses oneDNN where possible."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return linear(input, self.weight, self.bias)


def convolve_pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> Tensor:
    """``functional.conv2d`` with a 1 x 1 kernel, through oneDNN where possible."""
    if not _applies(x) or x.dim() != 4:
        return functional.conv2d(x, weight, bias, stride)
    x = x[:, :, :: stride[0], :: stride[1]].contiguous(memory_format=torch.channels_last)
    return _PointwiseConvolution.apply(x, weight, bias)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    weight = weight.contiguous(memory_format=torch.channels_last)
    return torch.mkldnn_convolution(x, weight, bias, (0, 0), (1, 1), (1, 1), 1)


class _PointwiseConvolution(torch.autograd.Function):
    """1 x 1 convolution of stride 1, channels-last; so is its backward pass with respect to the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        x_gradient = weight_gradient = bias_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = _convolve(gradient, weight.transpose(0, 1), None)
        rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        if ctx.needs_input_grad[1]:
            weight_gradient = (rows.T @ x.permute(0, 2, 3, 1).flatten(0, 2))[:, :, None, None]
        if ctx.needs_input_grad[2]:
            bias_gradient = rows.sum(0)
        return x_gradient, weight_gradient, bias_gradient
