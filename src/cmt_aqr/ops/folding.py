"""Fast convolutions on a CPU: batch norms in eval mode folded into them, 1 x 1 kernels through oneDNN.

A norm in eval mode is a scale and a shift per channel, which can be folded into the kernel and bias of the
preceding convolution. That saves a pass over the map, and in training, where a backbone's norms are often kept in
eval mode, the copy of the map for the norm's gradient. Gradients reach kernel, scale and shift as before.
Parameters keep their names and their modules.
"""

from itertools import pairwise
from typing import Any

from timm.layers import BatchNormAct2d, ConvNormAct
from timm.models._features import FeatureListNet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn
from torch.nn import functional

from cmt_aqr.ops.batch_norm import BatchNorm2d, BatchNormAct
from cmt_aqr.ops.pointwise import convolve_pointwise

PAIRS = {
    ConvNormAct: [("conv", "bn")],
    BasicBlock: [("conv1", "bn1"), ("conv2", "bn2")],
    Bottleneck: [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")],
    ResNet: [("conv1", "bn1")],
    FeatureListNet: [("conv1", "bn1")],
}
"""Convolutions and the norms that directly follow them, by type of their parent module.

In a ``Sequential``, adjacent children form the pairs.
"""


class Conv2d(nn.Conv2d):
    """A convolution that applies the norm folded into it, through oneDNN if its kernel is 1 x 1."""

    norm: tuple[nn.Module, str] | None
    """Parent and name of the folded norm; a tuple, so that the parent is not registered as a child."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight, bias = _with_norm(self.norm, weight, bias)
        if _is_pointwise(self):
            return convolve_pointwise(input, weight, bias, (self.stride[0], self.stride[1]))
        return super()._conv_forward(input, weight, bias)


class ConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution that applies the norm folded into it; without padding, groups or dilation."""

    norm: tuple[nn.Module, str] | None

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Apply the transposed convolution; ``output_size`` is ignored."""
        weight, bias = _with_norm(self.norm, self.weight, self.bias, dim=1)
        return functional.conv_transpose2d(input, weight, bias, self.stride)


NORMS: dict[type, type] = {nn.BatchNorm2d: BatchNorm2d, BatchNormAct2d: BatchNormAct}
CONVOLUTIONS: dict[type, type] = {nn.Conv2d: Conv2d, nn.ConvTranspose2d: ConvTranspose2d}


def speed_up(model: nn.Module) -> None:
    """Replace the classes of a model's norms and convolutions, in place, by those of this module.

    A batch norm that directly follows a convolution without bias (:data:`PAIRS`) is folded into it. All norms,
    folded or not, get accurate statistics in training mode. Subclasses of the known types are left alone.
    """
    for parent in list(model.modules()):
        names = [name for name, _ in parent.named_children()] if type(parent) is nn.Sequential else []
        for conv_name, norm_name in PAIRS.get(type(parent), pairwise(names)):
            conv: Any = getattr(parent, conv_name, None)
            norm: Any = getattr(parent, norm_name, None)
            if type(norm) in NORMS and norm.affine and type(conv) in CONVOLUTIONS and conv.bias is None:
                norm.folded = True
                conv.__class__ = CONVOLUTIONS[type(conv)]
                conv.norm = (parent, norm_name)
    for module in model.modules():
        if type(module) in NORMS:
            module.__class__ = NORMS[type(module)]
        elif type(module) is nn.Conv2d and _is_pointwise(module):
            module.__class__ = Conv2d
            module.norm = None  # type: ignore[assignment]  # its class has just changed


def _with_norm(
    reference: tuple[nn.Module, str] | None, weight: Tensor, bias: Tensor | None, dim: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Kernel and bias, including the scale and shift of a folded norm in eval mode.

    Args:
        reference: parent and name of the norm. If the norm has been replaced, by a SyncBatchNorm for example, its
            replacement normalises by itself.
        weight: kernel, output channels along ``dim``.
        bias: of the convolution.
        dim: 0 for a convolution, 1 for a transposed one.
    """
    norm = None if reference is None else getattr(*reference)
    if not isinstance(norm, BatchNorm2d | BatchNormAct) or not norm.folded or norm.training:
        return weight, bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shape = [-1 if axis == dim else 1 for axis in range(weight.dim())]
    return weight * scale.view(shape), norm.bias - norm.running_mean * scale


def _is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution is 1 x 1, without padding, dilation or groups."""
    settings = (conv.kernel_size, conv.padding, conv.dilation, conv.groups)
    return settings == ((1, 1), (0, 0), (1, 1), 1)
