"""VoVNet V2-99-eSE as the published CMT uses it (CenterMask, Lee and Park, CVPR 2020)."""

from __future__ import annotations

import timm
from timm.layers import create_attn
from timm.models.vovnet import OsaBlock
from torch import nn

NAME = "vovnet99_ese"
"""What ``ImageBranch`` calls this backbone."""


def vovnet99_ese(out_indices: tuple[int, ...]) -> nn.Module:
    """Create the backbone as a list of feature maps, finest first; indices 3 and 4 are stages 4 and 5.

    timm's ``ese_vovnet99b`` is the same but for the eSE gates: it has one in the last block of a stage only,
    the published checkpoints one in every block.
    """
    model = timm.create_model("ese_vovnet99b", pretrained=False, features_only=True, out_indices=out_indices)
    for block in model.modules():
        if isinstance(block, OsaBlock) and block.attn is None:
            block.attn = create_attn("ese", block.conv_concat.conv.out_channels)
    return model
