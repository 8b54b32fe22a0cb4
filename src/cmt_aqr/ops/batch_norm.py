"""Batch norms that learn, with exact statistics on a CPU.

PyTorch (seen in 2.14) adds up the values of a channels-last map, or of rows of features, one after another in
float32 there. The variance that comes out is right to about 2e-4, and the gradients of a whole step are some 6 %
off in the median. Its plain sums keep partial sums and are exact to 1e-7, so the statistics are made with those,
and PyTorch's own kernels do the rest, forward and backward.
"""

from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class _Normalise(torch.autograd.Function):
    """Normalise with the mean and variance of the input, which are differentiated through, too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.eps = eps
        return functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, scale, True, ctx.eps, [True, True, True]
        )
        return of_x, None, None, of_weight, of_bias, None


def batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What ``norm`` makes of ``x`` in training mode; its running statistics are kept up to date.

    Args:
        norm: in training mode.
        x: (image, channel, h, w), or rows of features (row, channel).
    """
    learns = norm.affine and norm.track_running_stats and norm.momentum is not None
    # The values of a position lie side by side, and of one position alone there is no variance.
    side_by_side = x.dim() == 2 or x.is_contiguous(memory_format=torch.channels_last)
    several = x.numel() > x.shape[1]
    if not (learns and several and side_by_side and x.device.type == "cpu" and x.dtype == torch.float32):
        return _BatchNorm.forward(norm, x)  # without what a class of ours or timm's adds
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    with torch.no_grad():
        rows = x.movedim(1, -1).flatten(0, -2)  # (row, channel)
        mean = rows.sum(0) / len(rows)
        variance = (rows - mean).square_().sum(0) / len(rows)
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (len(rows) / (len(rows) - 1)), norm.momentum)
    result: Tensor = _Normalise.apply(x, mean, variance, norm.weight, norm.bias, norm.eps)
    return result


class BatchNorm2d(nn.BatchNorm2d):
    """A batch norm over maps (image, channel, h, w)."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise."""
        return batch_norm(self, input) if self.training else super().forward(input)


class BatchNormAct(BatchNormAct2d):
    """timm's batch norm with its activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate."""
        result: Tensor = self.act(self.drop(batch_norm(self, x))) if self.training else super().forward(x)
        return result
