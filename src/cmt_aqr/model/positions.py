"""Position encodings shared by both sensors (CMT, Yan et al., ICCV 2023, section 3.2)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_aqr.ops.pointwise import PointwiseLinear


def sine_embedding(position: Tensor, features: int) -> Tensor:
    """Embed 2D positions by sines and cosines.

    CMT's release divides 2 pi p by ``2 * (i // 2) / features + 1``, a linear ramp rather than powers of a
    temperature. The embedding of y precedes that of x.

    Args:
        position: (..., 2) as (x, y) in [0, 1].
        features: size of the embedding per axis, even.

    Returns:
        (..., 2 * features) in float32 or better.
    """
    index = torch.arange(features, device=position.device, dtype=position.dtype)
    ramp = 2 * torch.div(index, 2, rounding_mode="floor") / features + 1
    phase = 2 * math.pi * position.flip(-1)[..., None] / ramp
    waves = torch.stack((phase[..., 0::2].sin(), phase[..., 1::2].cos()), dim=-1)
    return waves.flatten(-3)


def depth_bins(count: int, nearest: float, farthest: float) -> Tensor:
    """Depths (count,) in metres along a camera ray: nearest + k (farthest - nearest) / count."""
    return nearest + torch.arange(count, dtype=torch.float32) * ((farthest - nearest) / count)


def ray_points(rays: Tensor, img2lidar: Tensor, depths: Tensor) -> Tensor:
    """Points in the LiDAR frame along the rays through pixels.

    Args:
        rays: (..., pixel, 3) as (u, v, 1).
        img2lidar: (..., 4, 4), the inverse of lidar2img, with the leading dimensions of ``rays``.
        depths: (depth,) in metres.

    Returns:
        (..., pixel, depth, 3) in metres, LiDAR frame.
    """
    # M (u d, v d, d, 1) is d * M[:, :3] (u, v, 1) + M[:, 3]: one product per pixel instead of one per depth.
    direction = rays @ img2lidar[..., :3, :3].transpose(-1, -2)
    return direction[..., None, :] * depths[:, None] + img2lidar[..., None, None, :3, 3]


def position_embedding(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, ReLU, linear: from the channels of a position encoding to those of the decoder."""
    return nn.Sequential(PointwiseLinear(inputs, hidden), nn.ReLU(inplace=True), PointwiseLinear(hidden, outputs))


@torch.no_grad()
def initialise_apart(layers: nn.Sequential, inputs: Tensor, scale: float) -> None:
    """Initialise an embedding so that it distinguishes its inputs.

    Position encodings vary slowly over the range and share a large constant part. With PyTorch's default
    initialisation all cells look alike to attention, and training from scratch first spends thousands of steps on
    learning proximity. Here every hidden unit has mean 0 and standard deviation 1 over the inputs, and every
    output mean 0 and standard deviation ``scale`` (data-dependent initialisation, Krähenbühl et al., ICLR 2016).

    Args:
        layers: linear, ReLU, linear.
        inputs: (sample, channel), covering the inputs to be embedded.
        scale: standard deviation of the outputs.
    """
    for layer, deviation in ((layers[0], 1.0), (layers[2], scale)):
        if not isinstance(layer, nn.Linear):
            raise TypeError("expected linear, ReLU, linear")
        nn.init.kaiming_normal_(layer.weight)
        spread, mean = torch.std_mean(layer(inputs), dim=0)
        layer.weight.mul_(deviation / spread.clamp(min=1e-6)[:, None])
        layer.bias.copy_((layer.bias - mean) * deviation / spread.clamp(min=1e-6))
        inputs = functional.relu(layer(inputs))
