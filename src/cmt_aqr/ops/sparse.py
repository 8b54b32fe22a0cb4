"""Sparse 3D convolution in plain PyTorch: submanifold and strided, forward and backward, on any device.

A submanifold convolution (Graham et al., CVPR 2018) has outputs at its input sites; a strided one (as in SECOND,
Yan et al., Sensors 2018) at every site that an input reaches. The *rulebook* lists which input feeds which output
through which kernel offset. It depends on the sites alone, so all submanifold layers of a resolution share one.

Sites are sorted by (sample, z, y, x), and so are their linear keys: a binary search finds neighbours, without a
hash table or a dense grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_aqr.errors import SettingError
from cmt_aqr.ops.batch_norm import batch_norm
from cmt_aqr.ops.rulebook import Rulebook, sparse_convolution

Triple = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Sites:
    """The occupied sites of a batch at one resolution, and their rulebook.

    Attributes:
        coords: (site, 4) int64: sample, z, y, x; distinct and sorted in this order.
        shape: cells along z, y, x.
        batch_size: number of samples.
    """

    coords: Tensor
    shape: Triple
    batch_size: int

    def __len__(self) -> int:
        return len(self.coords)

    @cached_property
    def submanifold(self) -> Rulebook:
        """Rulebook of a submanifold 3 x 3 x 3 convolution, with (27, site) neighbours.

        Neighbours along x are adjacent in the sorted order, so one search per (z, y) offset finds three of them,
        and each offset yields its mirror image: 4 searches instead of 26.
        """
        number, device = len(self), self.coords.device
        # Pad the grid by one empty cell, so that a step over the border reaches no site of the next row.
        padded = (self.shape[0] + 2, self.shape[1] + 2, self.shape[2] + 2)
        sample, z, y, x = self.coords.unbind(1)
        keys = _linear((sample, z + 1, y + 1, x + 1), padded)
        # Sentinels, so that the last site has a next one.
        searched = functional.pad(keys, (0, 3), value=2**62)
        sites = torch.arange(number, device=device)
        # The last column receives the writes of missing neighbours.
        table = torch.full((27, number + 1), number, dtype=torch.int64, device=device)
        table[13, :number] = sites

        def connect(offset: int, neighbour: Tensor, exists: Tensor) -> None:
            """Store a neighbour at ``offset`` and, for the neighbour, this site at the mirrored offset."""
            column = torch.where(exists, neighbour, number)
            table[offset, :number] = column
            table[26 - offset].scatter_(0, column, torch.where(exists, sites, number))

        connect(14, sites + 1, searched[1 : number + 1] == keys + 1)
        for row, (dz, dy) in enumerate(((0, 1), (1, -1), (1, 0), (1, 1))):
            target = keys + ((dz * padded[1] + dy) * padded[2] - 1)
            position = torch.searchsorted(searched, target)
            for dx in range(3):
                exists = searched[position] == target + dx
                connect(15 + 3 * row + dx, position, exists)
                position = position + exists
        return Rulebook(table[:, :number].contiguous(), number, None)

    def strided(self, kernel: Triple, stride: Triple, padding: Triple) -> tuple[Sites, Rulebook]:
        """Output sites and rulebook of a strided convolution.

        Input i feeds output o through offset k if o * stride = i + padding - k on each axis. The number of outputs
        depends on the data, so this synchronises with the device.

        Args:
            kernel: size along z, y, x.
            stride: along z, y, x.
            padding: on both sides of z, y, x.

        Raises:
            SettingError: the output has no cell on some axis.
        """
        shape = strided_shape(self.shape, kernel, stride, padding)
        device = self.coords.device
        reached, valid = [], []
        for axis in range(3):
            offsets = torch.arange(kernel[axis], device=device)
            scaled = self.coords[:, axis + 1] + padding[axis] - offsets[:, None]  # (offset, site)
            output = torch.div(scaled, stride[axis], rounding_mode="floor")
            valid.append((output * stride[axis] == scaled) & (output >= 0) & (output < shape[axis]))
            reached.append(output)
        feeds = valid[0][:, None, None] & valid[1][None, :, None] & valid[2][None, None]
        kz, ky, kx, site = feeds.nonzero(as_tuple=True)
        keys = _linear(
            (self.coords[site, 0], reached[0][kz, site], reached[1][ky, site], reached[2][kx, site]), shape
        )
        keys, output = torch.unique(keys, return_inverse=True)

        offset = (kz * kernel[1] + ky) * kernel[2] + kx
        number, inputs, outputs = math.prod(kernel), len(self), len(keys)
        neighbours = torch.full((number, outputs), inputs, dtype=torch.int64, device=device)
        neighbours[offset, output] = site
        reverse = torch.full((number, inputs), outputs, dtype=torch.int64, device=device)
        reverse[offset, site] = output
        coords = torch.stack(torch.unravel_index(keys, (self.batch_size, *shape)), dim=1)
        return Sites(coords, shape, self.batch_size), Rulebook(neighbours, inputs, reverse)


def strided_shape(shape: Triple, kernel: Triple, stride: Triple, padding: Triple) -> Triple:
    """Cells along z, y, x after a convolution: floor((cells + 2 padding - kernel) / stride) + 1.

    Raises:
        SettingError: the output has no cell on some axis.
    """
    z, y, x = (
        (cells + 2 * pad - size) // step + 1
        for cells, size, step, pad in zip(shape, kernel, stride, padding, strict=True)
    )
    if min(z, y, x) < 1:
        raise SettingError(
            f"a sparse grid of {list(shape)} cells (z, y, x) is too small for a convolution of kernel "
            f"{list(kernel)}, stride {list(stride)} and padding {list(padding)}; give it more cells or "
            "downsample less"
        )
    return z, y, x


def _linear(coords: tuple[Tensor, ...], shape: Triple) -> Tensor:
    """Row-major index of sample, z, y, x."""
    sample, z, y, x = coords
    return ((sample * shape[0] + z) * shape[1] + y) * shape[2] + x


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Features (site, channel) at occupied sites."""

    features: Tensor
    sites: Sites

    def replace(self, features: Tensor) -> SparseTensor:
        """Return a tensor with other features at the same sites."""
        return SparseTensor(features, self.sites)

    def dense(self) -> Tensor:
        """Return (batch, channel, z, y, x) with zeros at unoccupied cells.

        Channel and z are innermost in memory, so that (batch, channel * z, y, x) is channels-last.
        """
        depth, height, width = self.sites.shape
        sample, z, y, x = self.sites.coords.unbind(1)
        channels = self.features.shape[1]
        cells = self.features.new_zeros((self.sites.batch_size * height * width, channels, depth))
        cells[(sample * height + y) * width + x, :, z] = self.features
        cells = cells.view(self.sites.batch_size, height, width, channels, depth)
        return cells.permute(0, 3, 4, 1, 2)


class _SparseConv3d(nn.Module):
    """Base of sparse convolutions. The kernel is (kz, ky, kx, in, out); there is no bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*kernel, in_channels, out_channels))
        bound = 1 / math.sqrt(self.weight[..., 0].numel())  # variance 1 / (3 fan-in), as of torch.nn.Conv3d
        nn.init.uniform_(self.weight, -bound, bound)


class SubmanifoldConv3d(_SparseConv3d):
    """Submanifold convolution with a 3 x 3 x 3 kernel."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (3, 3, 3))

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve; features (site, in) become (site, out) at the same sites."""
        return x.replace(sparse_convolution(x.features, self.weight, x.sites.submanifold))


class StridedSparseConv3d(_SparseConv3d):
    """Strided sparse convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Triple = (3, 3, 3),
        stride: Triple = (2, 2, 2),
        padding: Triple = (1, 1, 1),
    ) -> None:
        super().__init__(in_channels, out_channels, kernel)
        self.stride = stride
        self.padding = padding

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve; features (site, in) become (new site, out)."""
        kz, ky, kx = self.weight.shape[:3]
        sites, rulebook = x.sites.strided((kz, ky, kx), self.stride, self.padding)
        return SparseTensor(sparse_convolution(x.features, self.weight, rulebook), sites)


class SparseBatchNorm(nn.BatchNorm1d):
    """Batch norm over the sites of a batch.

    A batch of fewer than two sites (a blanked LiDAR has one voxel per sample) has no variance. It is normalised
    with the running statistics and does not update them.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise features (site, channel)."""
        if self.training and len(input) < 2:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return batch_norm(self, input) if self.training else super().forward(input)
