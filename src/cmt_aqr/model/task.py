"""The task head, which predicts boxes and classes from every decoder layer."""

import math
from functools import partial

import torch
from torch import Tensor, nn

OUTPUTS = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "cls_logits": None}
"""Channels of each output of the task head; the logits have one per class."""


class GroupLayerNorm(nn.Module):
    """Layer norm over the channels of each group of (batch, group * channel, query), eps 1e-6."""

    def __init__(self, channels: int, groups: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise over each group's channels, with the biased variance."""
        grouped = hidden.unflatten(1, (self.groups, -1))
        variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
        normalised = ((grouped - mean) * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        return normalised * self.weight[:, None] + self.bias[:, None]


class TaskHead(nn.Module):
    """The outputs of all decoder layers in one pass, with one convolution group per layer.

    Args:
        embed_dims: channels of the decoder.
        layers: of the decoder.
        classes: number of classes.
        hidden: channels between the two convolutions per layer.
        kernel: width of the convolutions along the queries: 1, or 3 in the published LiDAR-only model.
        prior: initial class probability (focal loss, Lin et al., ICCV 2017).
    """

    def __init__(
        self,
        embed_dims: int,
        layers: int,
        classes: int = 10,
        hidden: int = 64,
        kernel: int = 1,
        prior: float = 0.1,
    ) -> None:
        super().__init__()
        self.layers = layers
        conv = partial(nn.Conv1d, kernel_size=kernel, padding=kernel // 2, groups=layers)
        for name, channels in OUTPUTS.items():
            out = classes if channels is None else channels
            branch = nn.Sequential(
                conv(layers * embed_dims, layers * hidden, bias=False),
                GroupLayerNorm(layers * hidden, layers),
                nn.ReLU(),
                conv(layers * hidden, layers * out),
            )
            self.add_module(name, branch)
        logits = self.get_submodule("cls_logits").get_submodule("3")
        nn.init.constant_(logits.get_parameter("bias"), -math.log((1 - prior) / prior))

    def forward(self, decoded: Tensor) -> dict[str, Tensor]:
        """Map (layer, batch, query, channel) to (layer, batch, query, output channel) for each output."""
        stacked = decoded.permute(1, 0, 3, 2).flatten(1, 2)
        return {
            name: self.get_submodule(name)(stacked).unflatten(1, (self.layers, -1)).permute(1, 0, 3, 2)
            for name in OUTPUTS
        }
