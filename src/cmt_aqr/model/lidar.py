"""The LiDAR branch: points to a BEV feature map (sparse encoder and SECOND, Yan et al., Sensors 2018)."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from cmt_aqr.constants import POINT_FEATURES
from cmt_aqr.errors import SettingError
from cmt_aqr.geometry.grid import BEVGrid
from cmt_aqr.ops.folding import speed_up
from cmt_aqr.ops.sparse import (
    Sites,
    SparseBatchNorm,
    SparseTensor,
    StridedSparseConv3d,
    SubmanifoldConv3d,
    Triple,
    strided_shape,
)
from cmt_aqr.ops.voxels import Voxels, hard_voxelize

STAGE_KERNEL: Triple = (3, 3, 3)
STAGE_STRIDE: Triple = (2, 2, 2)
OUTPUT_KERNEL: Triple = (3, 1, 1)
OUTPUT_STRIDE: Triple = (2, 1, 1)


class SparseConvNormAct(nn.Module):
    """Sparse convolution, batch norm, ReLU."""

    def __init__(self, conv: SubmanifoldConv3d | StridedSparseConv3d, norm: SparseBatchNorm) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve, normalise and rectify."""
        x = self.conv(x)
        return x.replace(torch.relu(self.norm(x.features)))


class SparseBasicBlock(nn.Module):
    """ResNet's basic block with submanifold convolutions."""

    def __init__(self, channels: int, norm: Callable[[int], SparseBatchNorm]) -> None:
        super().__init__()
        self.conv1 = SubmanifoldConv3d(channels, channels)
        self.norm1 = norm(channels)
        self.conv2 = SubmanifoldConv3d(channels, channels)
        self.norm2 = norm(channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Return ReLU(x + f(x)) at the same sites."""
        inner = self.conv1(x)
        inner = self.conv2(inner.replace(torch.relu(self.norm1(inner.features))))
        return x.replace(torch.relu(self.norm2(inner.features) + x.features))


class SparseEncoder(nn.Module):
    """Voxels to a dense BEV map, in float32 even under autocast."""

    def __init__(
        self,
        shape: Triple,
        input_channels: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        paddings: Sequence[Sequence[int]],
        output_channels: int,
        norm: Callable[[int], SparseBatchNorm],
    ) -> None:
        """Build the encoder; the arguments are those of :class:`LidarBranch` without the prefix ``encoder_``.

        Raises:
            SettingError: the sequences do not fit each other, or z runs out of cells.
        """
        super().__init__()
        if len(blocks) != len(channels) or len(paddings) != len(channels) - 1:
            raise SettingError(
                f"encoder_channels={list(channels)}: {len(channels)} stages need as many "
                f"encoder_blocks (given {list(blocks)}) and one encoder_paddings fewer "
                f"(given {[list(p) for p in paddings]})"
            )
        self.input = SparseConvNormAct(SubmanifoldConv3d(input_channels, channels[0]), norm(channels[0]))
        self.stages = nn.ModuleList()
        for stage, (width, depth) in enumerate(zip(channels, blocks, strict=True)):
            down = {}
            if stage < len(paddings):  # to the next stage's resolution
                z, y, x = paddings[stage]
                following = channels[stage + 1]
                conv = StridedSparseConv3d(width, following, STAGE_KERNEL, STAGE_STRIDE, (z, y, x))
                down = {"down": SparseConvNormAct(conv, norm(following))}
                shape = strided_shape(shape, STAGE_KERNEL, STAGE_STRIDE, (z, y, x))
            residual = nn.Sequential(*(SparseBasicBlock(width, norm) for _ in range(depth)))
            self.stages.append(nn.Sequential(OrderedDict(blocks=residual, **down)))
        self.output = SparseConvNormAct(
            StridedSparseConv3d(channels[-1], output_channels, OUTPUT_KERNEL, OUTPUT_STRIDE, (0, 0, 0)),
            norm(output_channels),
        )
        self.output_shape = strided_shape(shape, OUTPUT_KERNEL, OUTPUT_STRIDE, (0, 0, 0))
        self.out_channels = output_channels * self.output_shape[0]

    def forward(self, features: Tensor, sites: Sites) -> Tensor:
        """Encode voxel features (voxel, channel) to (batch, channel * z, y, x)."""
        with torch.autocast(features.device.type, enabled=False):
            x = self.input(SparseTensor(features.to(self.input.conv.weight.dtype), sites))
            for stage in self.stages:
                x = stage(x)
            return self.output(x).dense().flatten(1, 2)


class SECOND(nn.Module):
    """SECOND's 2D backbone: per level a strided 3 x 3 convolution and several of stride 1."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        layers: Sequence[int],
        strides: Sequence[int],
        norm: Callable[[int], nn.BatchNorm2d],
    ) -> None:
        """Build the levels; ``layers`` are the numbers of convolutions after each level's first."""
        super().__init__()
        self.blocks = nn.ModuleList()
        for width, depth, stride in zip(channels, layers, strides, strict=True):
            modules: list[nn.Module] = []
            for step in (stride, *[1] * depth):
                conv = nn.Conv2d(in_channels, width, 3, stride=step, padding=1, bias=False)
                modules += [conv, norm(width), nn.ReLU(inplace=True)]
                in_channels = width
            self.blocks.append(nn.Sequential(*modules))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of all levels, finest first."""
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps


class SECONDFPN(nn.Module):
    """Upsamples SECOND's levels to the resolution of the first and concatenates them."""

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: Sequence[int],
        scales: Sequence[int],
        norm: Callable[[int], nn.BatchNorm2d],
    ) -> None:
        """Build a transposed convolution of stride ``scale`` per level, or a 1 x 1 convolution if it is 1."""
        super().__init__()
        self.blocks = nn.ModuleList()
        for width_in, width, scale in zip(in_channels, channels, scales, strict=True):
            conv: nn.Module
            if scale == 1:
                conv = nn.Conv2d(width_in, width, 1, bias=False)
            else:
                conv = nn.ConvTranspose2d(width_in, width, scale, stride=scale, bias=False)
            self.blocks.append(nn.Sequential(conv, norm(width), nn.ReLU(inplace=True)))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return (batch, sum of channels, y, x)."""
        return torch.cat([block(x) for block, x in zip(self.blocks, maps, strict=True)], dim=1)


class LidarBranch(nn.Module):
    """Points to a BEV feature map: hard voxels, sparse encoder, SECOND, FPN.

    The defaults are the published sizes.

    Args:
        grid: range, voxels and BEV stride.
        input_channels: features of a point.
        max_points: maximum number of points averaged per voxel.
        max_voxels: maximum number of voxels per sample, in training and in evaluation.
        encoder_channels: of each sparse stage; each stage but the last halves the resolution at its end.
        encoder_blocks: residual blocks of each sparse stage.
        encoder_paddings: (z, y, x) padding of each strided convolution.
        encoder_output_channels: per remaining z cell.
        backbone_channels: of each SECOND level.
        backbone_layers: convolutions of each SECOND level after its first.
        backbone_strides: of each SECOND level.
        neck_channels: of each level in the output.
        norm_eps: of all batch norms.
        norm_momentum: of all batch norms; the published 0.01 is slow for short runs.

    Raises:
        SettingError: the sizes do not fit each other or the grid.
    """

    def __init__(
        self,
        grid: BEVGrid,
        input_channels: int = POINT_FEATURES,
        max_points: int = 10,
        max_voxels: Sequence[int] = (120_000, 160_000),
        encoder_channels: Sequence[int] = (16, 32, 64, 128),
        encoder_blocks: Sequence[int] = (2, 2, 2, 2),
        encoder_paddings: Sequence[Sequence[int]] = ((1, 1, 1), (1, 1, 1), (0, 1, 1)),
        encoder_output_channels: int = 128,
        backbone_channels: Sequence[int] = (128, 256),
        backbone_layers: Sequence[int] = (5, 5),
        backbone_strides: Sequence[int] = (1, 2),
        neck_channels: Sequence[int] = (256, 256),
        norm_eps: float = 1e-3,
        norm_momentum: float = 0.01,
    ) -> None:
        super().__init__()
        if not len(backbone_channels) == len(backbone_layers) == len(backbone_strides) == len(neck_channels):
            raise SettingError(
                f"backbone_channels={list(backbone_channels)}, "
                f"backbone_layers={list(backbone_layers)}, backbone_strides={list(backbone_strides)} and "
                f"neck_channels={list(neck_channels)} must have one entry per level each"
            )
        if len(max_voxels) != 2:
            raise SettingError(f"max_voxels={list(max_voxels)}: give two numbers, for training and for evaluation")
        self.grid = grid
        self.max_points = max_points
        self.max_voxels = tuple(max_voxels)
        self.encoder = SparseEncoder(
            grid.sparse_shape,
            input_channels,
            encoder_channels,
            encoder_blocks,
            encoder_paddings,
            encoder_output_channels,
            partial(SparseBatchNorm, eps=norm_eps, momentum=norm_momentum),
        )
        dense_norm = partial(nn.BatchNorm2d, eps=norm_eps, momentum=norm_momentum)
        channels = self.encoder.out_channels
        self.backbone = SECOND(channels, backbone_channels, backbone_layers, backbone_strides, dense_norm)
        first = backbone_strides[0]
        scales = [math.prod(backbone_strides[1 : level + 1]) for level in range(len(backbone_strides))]
        self.neck = SECONDFPN(backbone_channels, neck_channels, scales, dense_norm)
        self.out_channels = sum(neck_channels)
        self._check_resolution(first, scales[-1])
        for dense in (self.backbone, self.neck):
            speed_up(dense)
            dense.to(memory_format=torch.channels_last)

    def _check_resolution(self, first_stride: int, coarsest: int) -> None:
        """Compare the output's resolution with the grid's."""
        _, rows, columns = self.encoder.output_shape
        divisor = first_stride * coarsest
        if rows % divisor or columns % divisor:
            raise SettingError(
                f"the encoder's {rows} x {columns} cells cannot be divided by {divisor}, the product of "
                "backbone_strides; change grid.sparse_shape"
            )
        actual = rows // first_stride, columns // first_stride
        if actual != self.grid.bev_shape:
            _, y, x = self.grid.sparse_shape
            raise SettingError(
                f"encoder and backbone make {actual} BEV cells of {y} x {x} voxels, "
                f"grid.stride={self.grid.stride} {self.grid.bev_shape}: make the number of stages and it agree"
            )

    def voxelize(self, points: Tensor, point_counts: tuple[int, ...]) -> Voxels:
        """Group points (point, feature) into voxels, see :func:`cmt_aqr.ops.voxels.hard_voxelize`."""
        limit = self.max_voxels[0 if self.training else 1]
        return hard_voxelize(points, point_counts, self.grid, self.max_points, limit)

    def forward(self, points: Tensor, point_counts: tuple[int, ...]) -> Tensor:
        """Encode points to BEV features.

        Args:
            points: (points of all samples, feature), LiDAR frame, see :class:`cmt_aqr.structures.Batch`.
            point_counts: number of points of every sample.

        Returns:
            (batch, out_channels, rows, columns), rows along y, columns along x.
        """
        voxels = self.voxelize(points, point_counts)
        sites = Sites(voxels.coords, self.grid.sparse_shape, len(point_counts))
        return self.neck(self.backbone(self.encoder(voxels.features, sites)))
