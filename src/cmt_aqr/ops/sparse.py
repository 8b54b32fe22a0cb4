"""Sparse 3D convolution in plain PyTorch: submanifold and strided, forward and backward, on any device.

A submanifold convolution (Graham et al., CVPR 2018) answers at the sites that were occupied before; a strided
one (as in SECOND, Yan et al., Sensors 2018) at every site that an occupied one reaches. Which input feeds
which output through which kernel offset is the *rulebook*; it depends on the sites alone, so all submanifold
layers of a resolution share one.

Sites are kept sorted by (sample, z, y, x). Their linear keys are then sorted as well, and a neighbour is
found by binary search instead of a hash table or a dense grid.

Two ways to compute, same result up to rounding, both deterministic (no atomic additions of floats):

- *pairs*, on a CPU: gather the pairs that exist, multiply, and sum by output, in chunks that fit the cache;
- *neighbours*, elsewhere: one gather and one product for each offset over all outputs, missing inputs being a
  row of zeros. It multiplies more, but every shape is known, so nothing waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cmt_aqr.errors import SettingError
from cmt_aqr.ops.batch_norm import batch_norm

Triple = tuple[int, int, int]

CHUNK_BYTES = 8 * 2**20
"""Products held before they are summed: few enough to stay in the cache and to reuse memory (glibc maps, and
the kernel clears, every block above 32 MB anew)."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive outputs of a rulebook and the pairs that feed them.

    Attributes:
        rows: first output and the one after the last.
        pairs: first pair and the one after the last, in ``PairPlan.inputs``.
        offsets: (kernel offset, first pair, one after the last) for each offset that has pairs.
    """

    rows: tuple[int, int]
    pairs: tuple[int, int]
    offsets: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class PairPlan:
    """The existing pairs of a rulebook, ordered by (chunk, kernel offset, output).

    Attributes:
        inputs: (pair,) input of each pair.
        outputs: (pair,) output of each pair.
        by_output: (pair,) for each output in turn, where its pairs are, counted from the chunk's first pair.
        bag_starts: (output,) where an output's entries in ``by_output`` start, counted likewise.
        chunks: the chunks.
    """

    inputs: Tensor
    outputs: Tensor
    by_output: Tensor
    bag_starts: Tensor
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, eq=False)
class Rulebook:
    """Which input feeds which output through which kernel offset.

    Attributes:
        neighbours: (offset, output) int64: the input, or ``inputs`` where there is none.
        inputs: number of inputs.
        reverse_neighbours: (offset, input): the output that an input feeds through an offset, or the number
            of outputs. ``None`` for a submanifold rulebook, which is its own mirror image.
    """

    neighbours: Tensor
    inputs: int
    reverse_neighbours: Tensor | None

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.neighbours.shape[1]

    @cached_property
    def reverse(self) -> Rulebook:
        """The rulebook of the transposed convolution; its offsets are mirrored for a submanifold one."""
        if self.reverse_neighbours is None:
            return self
        return Rulebook(self.reverse_neighbours, self.outputs, self.neighbours)

    def reverse_weight(self, weight: Tensor) -> Tensor:
        """Kernel (offset, in, out) of the transposed convolution over :attr:`reverse`: (offset, out, in)."""
        transposed = weight.transpose(1, 2)
        return transposed.flip(0) if self.reverse_neighbours is None else transposed

    @cached_property
    def exists(self) -> Tensor:
        """(offset, output) bool: whether there is an input."""
        return self.neighbours != self.inputs

    @cached_property
    def pair_count(self) -> int:
        """Number of existing pairs. Reading it waits for the device."""
        return int(self.exists.sum())

    def pairs(self, channels: int) -> PairPlan:
        """The existing pairs, in chunks whose products of ``channels`` values fit :data:`CHUNK_BYTES`."""
        size = max(1, CHUNK_BYTES // (4 * channels))
        if size not in self._plans:
            self._plans[size] = plan_pairs(self.neighbours, self.exists, self.pair_count, size)
        return self._plans[size]

    @cached_property
    def _plans(self) -> dict[int, PairPlan]:
        return {}


def plan_pairs(neighbours: Tensor, exists: Tensor, pair_count: int, pairs_per_chunk: int) -> PairPlan:
    """Order the existing pairs by (chunk, offset, output).

    A chunk is a run of outputs with about ``pairs_per_chunk`` pairs.

    Args:
        neighbours: (offset, output) input of each pair.
        exists: (offset, output) whether there is one.
        pair_count: how many there are.
        pairs_per_chunk: how many a chunk should have.
    """
    offsets, outputs = neighbours.shape
    number = max(1, math.ceil(pair_count / pairs_per_chunk))
    rows = max(1, math.ceil(outputs / number))
    number = math.ceil(outputs / rows)

    padded = functional.pad(exists, (0, number * rows - outputs))
    chunked = padded.view(offsets, number, rows).transpose(0, 1).contiguous()  # (chunk, offset, row)
    cell = chunked.flatten().nonzero().squeeze(1)
    chunk_offset, row = cell // rows, cell % rows
    output = (chunk_offset // offsets) * rows + row
    inputs = neighbours.flatten()[(chunk_offset % offsets) * outputs + output]

    where = chunked.flatten(1).cumsum(1, dtype=torch.int32).view_as(chunked) - 1
    by_row = chunked.transpose(1, 2).contiguous()  # (chunk, row, offset)
    by_output = where.transpose(1, 2).flatten()[by_row.flatten().nonzero().squeeze(1)]
    per_row = by_row.sum(2)

    chunks, pair = [], 0
    for chunk, counts in enumerate(chunked.sum(2).tolist()):
        first, spans = pair, []
        for offset, count in enumerate(counts):
            if count:
                spans.append((offset, pair, pair + count))
                pair += count
        last_row = min((chunk + 1) * rows, outputs)
        chunks.append(Chunk((chunk * rows, last_row), (first, pair), tuple(spans)))
    return PairPlan(
        inputs=inputs,
        outputs=output,
        by_output=by_output.long(),
        bag_starts=(per_row.cumsum(1) - per_row).flatten()[:outputs],
        chunks=tuple(chunks),
    )


def _convolve_pairs(features: Tensor, weight: Tensor, plan: PairPlan) -> Tensor:
    """Gather, multiply and reduce the existing pairs: (output, out)."""
    result = features.new_empty((len(plan.bag_starts), weight.shape[2]))
    longest = max((chunk.pairs[1] - chunk.pairs[0] for chunk in plan.chunks), default=0)
    buffer = features.new_empty((longest, weight.shape[2]))
    for chunk in plan.chunks:
        first, last = chunk.pairs
        for offset, start, stop in chunk.offsets:
            gathered = features.index_select(0, plan.inputs[start:stop])
            torch.mm(gathered, weight[offset], out=buffer[start - first : stop - first])
        rows = slice(*chunk.rows)
        if first == last:
            result[rows] = 0
            continue
        result[rows] = functional.embedding_bag(
            plan.by_output[first:last], buffer[: last - first], plan.bag_starts[rows], mode="sum"
        )
    return result


def _convolve_neighbours(features: Tensor, weight: Tensor, neighbours: Tensor) -> Tensor:
    """One product for each offset over all outputs, missing inputs being zeros: (output, out)."""
    padded = functional.pad(features, (0, 0, 0, 1))
    result = features.new_zeros((neighbours.shape[1], weight.shape[2]))
    for inputs, kernel in zip(neighbours, weight, strict=True):
        result.addmm_(padded.index_select(0, inputs), kernel)
    return result


def _convolve(features: Tensor, weight: Tensor, rulebook: Rulebook) -> Tensor:
    if features.device.type == "cpu":
        return _convolve_pairs(features, weight, rulebook.pairs(weight.shape[2]))
    return _convolve_neighbours(features, weight, rulebook.neighbours)


def _weight_gradient_pairs(features: Tensor, gradient: Tensor, rulebook: Rulebook) -> Tensor:
    """Gradient (offset, in, out) of the kernel, from the existing pairs."""
    plan, offsets = rulebook.pairs(gradient.shape[1]), len(rulebook.neighbours)
    result = features.new_zeros((offsets, features.shape[1], gradient.shape[1]))
    for chunk in plan.chunks:
        for offset, start, stop in chunk.offsets:
            gathered = features.index_select(0, plan.inputs[start:stop])
            result[offset].addmm_(gathered.T, gradient.index_select(0, plan.outputs[start:stop]))
    return result


def _weight_gradient_neighbours(features: Tensor, gradient: Tensor, rulebook: Rulebook) -> Tensor:
    """Gradient (offset, in, out) of the kernel, one product for each offset."""
    padded = functional.pad(features, (0, 0, 0, 1))
    return torch.stack([padded.index_select(0, inputs).T @ gradient for inputs in rulebook.neighbours])


def _weight_gradient(features: Tensor, gradient: Tensor, rulebook: Rulebook) -> Tensor:
    if features.device.type == "cpu":
        return _weight_gradient_pairs(features, gradient, rulebook)
    return _weight_gradient_neighbours(features, gradient, rulebook)


class _SparseConvolution(torch.autograd.Function):
    """Keeps the features only: what was gathered is gathered again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, rulebook: Rulebook) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.rulebook = rulebook
        return _convolve(features, weight, rulebook)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, weight = ctx.saved_tensors
        rulebook: Rulebook = ctx.rulebook
        features_gradient = weight_gradient = None
        gradient = gradient.contiguous()
        with torch.autocast(gradient.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                mirrored = rulebook.reverse_weight(weight).contiguous()
                features_gradient = _convolve(gradient, mirrored, rulebook.reverse)
            if ctx.needs_input_grad[1]:
                weight_gradient = _weight_gradient(features, gradient, rulebook)
        return features_gradient, weight_gradient, None


def sparse_convolution(features: Tensor, weight: Tensor, rulebook: Rulebook) -> Tensor:
    """Convolve sparse features: out[o] = sum over offsets k of features[neighbours[k, o]] @ weight[k].

    Runs in the kernel's precision whatever autocast says, because the sums are long and the error of bf16
    would add up over the encoder's twenty layers.

    Args:
        features: (input site, in).
        weight: (kz, ky, kx, in, out); offsets in row-major order, cross-correlation as in ``conv3d``.
        rulebook: who feeds whom.

    Returns:
        (output site, out).
    """
    with torch.autocast(features.device.type, enabled=False):
        flat = weight.flatten(0, 2)
        return _SparseConvolution.apply(features.to(weight.dtype), flat, rulebook)


class Sites:
    """The occupied sites of a batch at one resolution, sorted by (sample, z, y, x), and their rulebook."""

    def __init__(self, coords: Tensor, shape: Triple, batch_size: int) -> None:
        """Take sites that are sorted and distinct; :meth:`sorted` sorts them first.

        Args:
            coords: (site, 4) int64: sample, z, y, x.
            shape: cells along z, y, x.
            batch_size: number of samples.
        """
        self.coords = coords
        self.shape = shape
        self.batch_size = batch_size

    @classmethod
    def sorted(cls, coords: Tensor, shape: Triple, batch_size: int) -> tuple[Sites, Tensor]:
        """Sort distinct sites (site, 4); also returns the order (site,) that their features must follow."""
        order = _linear(coords.long().unbind(1), shape).argsort()
        return cls(coords.long()[order], shape, batch_size), order

    def __len__(self) -> int:
        return len(self.coords)

    @cached_property
    def submanifold(self) -> Rulebook:
        """Rulebook of a submanifold 3 x 3 x 3 convolution: (27, site) neighbours.

        Neighbours along x are next to each other in the sorted order, so one search for each (z, y) offset
        finds three of them, and the mirror image of an offset comes for nothing: 4 searches instead of 26.
        """
        number, device = len(self), self.coords.device
        # One empty cell around the grid, so that a step over the border meets no site of the next row.
        padded = (self.shape[0] + 2, self.shape[1] + 2, self.shape[2] + 2)
        sample, z, y, x = self.coords.unbind(1)
        keys = _linear((sample, z + 1, y + 1, x + 1), padded)
        # Sentinels, so that "the next site" exists for the last one.
        searched = functional.pad(keys, (0, 3), value=2**62)
        sites = torch.arange(number, device=device)
        # The last column is where missing neighbours write.
        table = torch.full((27, number + 1), number, dtype=torch.int64, device=device)
        table[13, :number] = sites

        def connect(offset: int, neighbour: Tensor, found: Tensor) -> None:
            """Note a neighbour at ``offset`` and, for it, this site at the mirrored offset."""
            column = torch.where(found, neighbour, number)
            table[offset, :number] = column
            table[26 - offset].scatter_(0, column, torch.where(found, sites, number))

        connect(14, sites + 1, searched[1 : number + 1] == keys + 1)
        for row, (dz, dy) in enumerate(((0, 1), (1, -1), (1, 0), (1, 1))):
            target = keys + ((dz * padded[1] + dy) * padded[2] - 1)
            position = torch.searchsorted(searched, target)
            for dx in range(3):
                found = searched[position] == target + dx
                connect(15 + 3 * row + dx, position, found)
                position = position + found
        return Rulebook(table[:, :number].contiguous(), number, None)

    def strided(self, kernel: Triple, stride: Triple, padding: Triple) -> tuple[Sites, Rulebook]:
        """Sites and rulebook of a strided convolution: every output that an occupied site reaches.

        An input i feeds output o through offset k where o * stride = i + padding - k, on each axis. The
        number of outputs depends on the data, so on a GPU this waits for the device.

        Args:
            kernel: size along z, y, x.
            stride: along z, y, x.
            padding: along z, y, x, on both sides.

        Raises:
            ValueError: where the output would have no cell on some axis.
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
        return Sites(_unravel(keys, shape), shape, self.batch_size), Rulebook(neighbours, inputs, reverse)


def strided_shape(shape: Triple, kernel: Triple, stride: Triple, padding: Triple) -> Triple:
    """Cells along z, y, x after a convolution: floor((cells + 2 padding - kernel) / stride) + 1.

    Raises:
        SettingError: where an axis would have none.
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


def _unravel(keys: Tensor, shape: Triple) -> Tensor:
    """Inverse of :func:`_linear`: (key, 4)."""
    rest, x = keys // shape[2], keys % shape[2]
    rest, y = rest // shape[1], rest % shape[1]
    return torch.stack((rest // shape[0], rest % shape[0], y, x), dim=1)


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Features at occupied sites.

    Attributes:
        features: (site, channel).
        sites: where they are.
    """

    features: Tensor
    sites: Sites

    def replace(self, features: Tensor) -> SparseTensor:
        """Return other features at the same sites."""
        return SparseTensor(features, self.sites)

    def dense(self) -> Tensor:
        """Return (batch, channel, z, y, x) with zeros where there is no site.

        Stored with z and channel innermost, so that (batch, channel * z, y, x) is channels-last.
        """
        depth, height, width = self.sites.shape
        sample, z, y, x = self.sites.coords.unbind(1)
        channels = self.features.shape[1]
        cells = self.features.new_zeros((self.sites.batch_size * height * width, channels, depth))
        cells[(sample * height + y) * width + x, :, z] = self.features
        cells = cells.view(self.sites.batch_size, height, width, channels, depth)
        return cells.permute(0, 3, 4, 1, 2)


class _SparseConv3d(nn.Module):
    """Kernel (kz, ky, kx, in, out) without bias: each offset is a contiguous (in, out) matrix."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*kernel, in_channels, out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernel from a uniform of variance 1 / (3 fan-in), as ``torch.nn.Conv3d`` does."""
        bound = 1 / math.sqrt(self.weight[..., 0].numel())
        nn.init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        *kernel, in_channels, out_channels = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel={tuple(kernel)}"


class SubmanifoldConv3d(_SparseConv3d):
    """Submanifold convolution, kernel 3 x 3 x 3: the sites stay."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (3, 3, 3))

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve; features (site, in) become (site, out) at the same sites."""
        return x.replace(sparse_convolution(x.features, self.weight, x.sites.submanifold))


class StridedSparseConv3d(_SparseConv3d):
    """Strided sparse convolution: answers at every output that an occupied site reaches."""

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

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{super().extra_repr()}, stride={self.stride}, padding={self.padding}"


class SparseBatchNorm(nn.BatchNorm1d):
    """Batch norm over the sites of a batch.

    A batch with fewer than two sites (a blanked LiDAR is one voxel a sample) has no variance; it is
    normalised with the running statistics and leaves them alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise features (site, channel)."""
        if self.training and len(input) < 2:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return batch_norm(self, input) if self.training else super().forward(input)
