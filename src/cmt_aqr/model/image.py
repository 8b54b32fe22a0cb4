"""The image branch: a timm backbone and a feature pyramid's stride-16 level (FPN, Lin et al., CVPR 2017)."""

from collections.abc import Sequence
from typing import Any, Self

import timm
import torch
from timm.layers import create_attn
from timm.models.vovnet import OsaBlock
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from cmt_aqr.errors import SettingError
from cmt_aqr.ops.folding import speed_up

VOVNET = "vovnet99_ese"
"""Name of VoVNet V2-99 as published."""


class ImageNeck(nn.Module):
    """Feature pyramid that outputs its finest level: 1 x 1 laterals, added top-down, and a 3 x 3 convolution."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        """Build laterals for maps of ``in_channels``, finest first."""
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for width in in_channels)
        self.output = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Merge maps, finest first, to (image, channel, h, w) at the finest one's resolution.

        A coarser map is resized to the size of the finer one by nearest neighbour.
        """
        laterals = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        merged = laterals[-1]
        for finer in reversed(laterals[:-1]):
            merged = finer + functional.interpolate(merged, size=finer.shape[-2:], mode="nearest")
        return self.output(merged)


class ImageBranch(nn.Module):
    """Images to feature maps at the stride of the finest selected level, 16 by default.

    Args:
        backbone: a timm model with ``features_only``, or ``vovnet99_ese`` (VoVNet V2-99 as published).
        out_indices: feature levels, finest first; 3 and 4 have strides 16 and 32 in ResNets.
        out_channels: channels of the result.
        pretrained: download timm's weights.
        norm_eval: keep the backbone's batch norms in eval mode in training, as the published recipes do.
        checkpointing: recompute the backbone's activations in the backward pass to save memory.

    Raises:
        SettingError: timm has no such backbone, or ``checkpointing`` is given without ``norm_eval``.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        out_indices: Sequence[int] = (3, 4),
        out_channels: int = 256,
        pretrained: bool = False,
        norm_eval: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if checkpointing and not norm_eval:
            raise SettingError(
                "checkpointing=true with norm_eval=false would update the batch norms' running "
                "statistics twice a step; set norm_eval=true or checkpointing=false"
            )
        network = create_backbone(backbone, tuple(out_indices), pretrained)
        network.set_grad_checkpointing(checkpointing)
        self.backbone: nn.Module = network
        self.neck = ImageNeck(network.feature_info.channels(), out_channels)
        speed_up(self)
        self.norm_eval = norm_eval
        self.out_channels = out_channels
        self.stride: int = network.feature_info.reduction()[0]
        self.to(memory_format=torch.channels_last)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the backbone's batch norms stay in eval mode if ``norm_eval``."""
        super().train(mode)
        if self.norm_eval:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: (batch, view, 3, height, width), normalised.

        Returns:
            (batch, view, out_channels, h, w) with h and w = height and width over :attr:`stride`, rounded up.
        """
        batch, views = images.shape[:2]
        flat = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.neck(self.backbone(flat)).unflatten(0, (batch, views))


def create_backbone(name: str, out_indices: tuple[int, ...], pretrained: bool = False) -> Any:
    """Create a timm ``FeatureListNet``, which returns a list of feature maps, finest first.

    VoVNet V2-99-eSE is that of CenterMask (Lee and Park, CVPR 2020), as used by CMT with levels 3 and 4. timm's
    ``ese_vovnet99b`` has an eSE gate only in the last block of a stage; the published checkpoints have one in
    every block.

    Raises:
        SettingError: there is no such model, or it has no weights to download.
    """
    published = name == VOVNET
    if published and pretrained:
        raise SettingError(
            f"backbone={name}: has no pretrained weights to download; set pretrained=false and load weights"
        )
    if not published and not timm.is_model(name):
        raise SettingError(f"backbone={name}: must be {VOVNET!r} or a model of timm.list_models()")
    timm_name = "ese_vovnet99b" if published else name
    model = timm.create_model(timm_name, pretrained=pretrained, features_only=True, out_indices=out_indices)
    for block in model.modules() if published else ():
        if isinstance(block, OsaBlock) and block.attn is None:
            block.attn = create_attn("ese", block.conv_concat.conv.out_channels)
    return model
