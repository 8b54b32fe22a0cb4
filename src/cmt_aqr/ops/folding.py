"""Batch norms in eval mode folded into the convolutions before them.

Such a norm is a scale and a shift for each channel, which go into the kernel and the bias: that spares a pass
over the map, and in training, where a backbone's norms are often kept in eval mode, the copy of the map that
the norm's gradient would need. Gradients reach the kernel, the scale and the shift as before. Parameters keep
their names and places.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from timm.layers import BatchNormAct2d, ConvNormAct
from timm.models._features import FeatureListNet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from cmt_aqr.ops.batch_norm import BatchNorm2d, BatchNormAct
from cmt_aqr.ops.pointwise import convolve_pointwise, is_plain_pointwise

PAIRS = {
    ConvNormAct: [("conv", "bn")],
    BasicBlock: [("conv1", "bn1"), ("conv2", "bn2")],
    Bottleneck: [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")],
    ResNet: [("conv1", "bn1")],
    FeatureListNet: [("conv1", "bn1")],
}
"""Where a norm is known to follow a convolution directly, by the type of the module that holds both.

In a ``Sequential`` it is any that stands behind one.
"""


def folded(weight: Tensor, norm: _BatchNorm, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Kernel and bias that convolve and normalise at once.

    Args:
        weight: kernel of a convolution without bias, output channels along ``dim``.
        norm: batch norm with learnt scale and shift and running statistics.
        dim: 0 for a convolution, 1 for a transposed one.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shape = [-1 if axis == dim else 1 for axis in range(weight.dim())]
    return weight * scale.view(shape), norm.bias - norm.running_mean * scale


class FoldedBatchNorm2d(BatchNorm2d):
    """A batch norm whose scale and shift, in eval mode, the convolution before it has applied."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise in training mode, else nothing."""
        return super().forward(input) if self.training else input


class FoldedBatchNormAct2d(BatchNormAct):
    """The same for timm's norm with its activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise in training mode; activate."""
        result: Tensor = super().forward(x) if self.training else self.act(self.drop(x))
        return result


FOLDED = {nn.BatchNorm2d: FoldedBatchNorm2d, BatchNormAct2d: FoldedBatchNormAct2d}
EXACT = {nn.BatchNorm2d: BatchNorm2d, BatchNormAct2d: BatchNormAct}


class _Normalised:
    """A convolution that applies the batch norm after it as well while that norm is in eval mode."""

    _parent: tuple[nn.Module, str]

    @classmethod
    def of(cls, conv: Any, parent: nn.Module, norm: str) -> None:
        """Take over a convolution's class and parameters; ``norm`` names the batch norm within ``parent``."""
        conv._pointwise = isinstance(conv, nn.Conv2d) and is_plain_pointwise(conv)
        conv._parent = (parent, norm)  # a tuple, so that the parent is not registered as a child
        conv.__class__ = cls

    def _kernel(self, weight: Tensor, bias: Tensor | None, dim: int = 0) -> tuple[Tensor, Tensor | None]:
        """Kernel and bias, with the norm's scale and shift where it leaves them to the convolution."""
        parent, name = self._parent
        norm = getattr(parent, name)
        # Any other module there, a SyncBatchNorm say, normalises by itself.
        if isinstance(norm, FoldedBatchNorm2d | FoldedBatchNormAct2d) and not norm.training:
            return folded(weight, norm, dim)
        return weight, bias


class NormalisedConv2d(_Normalised, nn.Conv2d):
    """See :class:`_Normalised`."""

    _pointwise: bool

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight, bias = self._kernel(weight, bias)
        if self._pointwise:
            return convolve_pointwise(input, weight, bias, (self.stride[0], self.stride[1]))
        return super()._conv_forward(input, weight, bias)


class NormalisedConvTranspose2d(_Normalised, nn.ConvTranspose2d):
    """See :class:`_Normalised`; one without padding, groups or dilation."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve, transposed; the size follows from the input's."""
        weight, bias = self._kernel(self.weight, self.bias, dim=1)
        return functional.conv_transpose2d(input, weight, bias, self.stride)


NORMALISED: dict[type, Any] = {nn.Conv2d: NormalisedConv2d, nn.ConvTranspose2d: NormalisedConvTranspose2d}


def fold_batch_norms(model: nn.Module) -> None:
    """Fold every batch norm that is known to follow a convolution directly, see :data:`PAIRS`.

    All norms, folded or not, have exact statistics in training mode afterwards.
    """
    for parent in list(model.modules()):
        names = [name for name, _ in parent.named_children()] if type(parent) is nn.Sequential else []
        for conv_name, norm_name in PAIRS.get(type(parent), pairwise(names)):
            conv: Any = getattr(parent, conv_name, None)
            norm: Any = getattr(parent, norm_name, None)
            if type(norm) not in FOLDED or not norm.affine:
                continue
            if type(conv) in NORMALISED and conv.bias is None:
                norm.__class__ = FOLDED[type(norm)]
                NORMALISED[type(conv)].of(conv, parent, norm_name)
    for module in model.modules():
        if type(module) in EXACT:
            module.__class__ = EXACT[type(module)]
