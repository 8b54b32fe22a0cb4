"""The rulebook of a sparse convolution, which maps inputs to outputs, and the products computed with it.

Two implementations, equal up to rounding, both deterministic (no atomic additions of floats):

- *pairs*, on a CPU: gather the existing pairs, multiply, and sum by output, in chunks that fit the cache;
- *neighbours*, elsewhere: one gather and one product over all offsets and outputs, missing inputs being a row of
  zeros. It multiplies more, but all shapes are known, so nothing synchronises with the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cmt_aqr.ops.devices import masks_are_free

CHUNK_BYTES = 8 * 2**20
"""Size of the buffer of products: small enough for the cache, and for glibc to reuse (it maps blocks above 32 MB
anew, and the kernel clears them)."""

BLOCK_BYTES = 2**28
"""Size of the gathered inputs on a GPU."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive outputs of a rulebook and the pairs that feed them.

    Attributes:
        rows: outputs, as (start, stop).
        pairs: pairs, as (start, stop) in ``PairPlan.inputs``.
        offsets: (kernel offset, start, stop) of the pairs of each offset that has any.
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
        by_output: (pair,) indices of the pairs, output by output, relative to the chunk's first pair.
        bag_starts: (output,) start of each output in ``by_output``, relative to the chunk's first pair.
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
        neighbours: (offset, output) int64, the input; ``inputs`` where there is none.
        inputs: number of inputs.
        reverse_neighbours: (offset, input) int64, the output that an input feeds; the number of outputs where
            there is none. ``None`` for a submanifold rulebook, which is its own mirror image.
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
        """The rulebook of the transposed convolution; a submanifold one has its offsets mirrored."""
        if self.reverse_neighbours is None:
            return self
        return Rulebook(self.reverse_neighbours, self.outputs, self.neighbours)

    def reverse_weight(self, weight: Tensor) -> Tensor:
        """Kernel (offset, in, out) of the transposed convolution over :attr:`reverse`: (offset, out, in)."""
        transposed = weight.transpose(1, 2)
        return transposed.flip(0) if self.reverse_neighbours is None else transposed

    @cached_property
    def by_output(self) -> Tensor:
        """:attr:`neighbours` as (output, offset), contiguous per output."""
        return self.neighbours.T.contiguous()

    def pairs(self, channels: int) -> PairPlan:
        """The existing pairs, in chunks whose products of ``channels`` values fit :data:`CHUNK_BYTES`."""
        size = max(1, CHUNK_BYTES // (4 * channels))
        if size not in self._plans:
            self._plans[size] = _plan_pairs(self.neighbours, self.neighbours != self.inputs, size)
        return self._plans[size]

    @cached_property
    def _plans(self) -> dict[int, PairPlan]:
        return {}


def _plan_pairs(neighbours: Tensor, exists: Tensor, pairs_per_chunk: int) -> PairPlan:
    """Order the existing pairs (offset, output) into chunks of about ``pairs_per_chunk`` pairs."""
    offsets, outputs = neighbours.shape
    number = max(1, math.ceil(int(exists.sum()) / pairs_per_chunk))
    rows = max(1, math.ceil(outputs / number))
    number = math.ceil(outputs / rows)

    padded = functional.pad(exists, (0, number * rows - outputs))
    chunked = padded.view(offsets, number, rows).transpose(0, 1).contiguous()  # (chunk, offset, row)
    cell = chunked.flatten().nonzero().squeeze(1)
    chunk_offset, row = cell // rows, cell % rows
    output = (chunk_offset // offsets) * rows + row
    inputs = neighbours.flatten()[(chunk_offset % offsets) * outputs + output]

    within_chunk = chunked.flatten(1).cumsum(1, dtype=torch.int32).view_as(chunked) - 1
    by_row = chunked.transpose(1, 2).contiguous()  # (chunk, row, offset)
    by_output = within_chunk.transpose(1, 2).flatten()[by_row.flatten().nonzero().squeeze(1)]
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


def _gather(features: Tensor, rulebook: Rulebook) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of outputs and their inputs (output, offset * in), with zeros for missing inputs."""
    padded = functional.pad(features, (0, 0, 0, 1))
    inputs = rulebook.by_output
    rows = max(1, BLOCK_BYTES // (inputs.shape[1] * padded.stride(0) * padded.element_size()))
    for start in range(0, len(inputs), rows):
        block = slice(start, start + rows)
        yield block, padded.index_select(0, inputs[block].flatten()).view(-1, inputs.shape[1] * padded.shape[1])


def _convolve(features: Tensor, weight: Tensor, rulebook: Rulebook) -> Tensor:
    """Convolve features (input, in) with a kernel (offset, in, out): (output, out)."""
    result = features.new_empty((rulebook.outputs, weight.shape[2]))
    if not masks_are_free(features.device):
        for block, gathered in _gather(features, rulebook):
            torch.mm(gathered, weight.flatten(0, 1), out=result[block])
        return result
    plan = rulebook.pairs(weight.shape[2])
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


def _weight_gradient(features: Tensor, gradient: Tensor, rulebook: Rulebook) -> Tensor:
    """Gradient (offset, in, out) of the kernel, given features (input, in) and a gradient (output, out)."""
    result = features.new_zeros((len(rulebook.neighbours), features.shape[1], gradient.shape[1]))
    if not masks_are_free(features.device):
        for block, gathered in _gather(features, rulebook):
            result.flatten(0, 1).addmm_(gathered.T, gradient[block])
        return result
    plan = rulebook.pairs(gradient.shape[1])
    for chunk in plan.chunks:
        for offset, start, stop in chunk.offsets:
            gathered = features.index_select(0, plan.inputs[start:stop])
            result[offset].addmm_(gathered.T, gradient.index_select(0, plan.outputs[start:stop]))
    return result


class _SparseConvolution(torch.autograd.Function):
    """Saves the features only and gathers again in the backward pass."""

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

    Runs in the kernel's precision even under autocast, because the sums are long and bf16 errors accumulate over
    the encoder's twenty layers.

    Args:
        features: (input site, in).
        weight: (kz, ky, kx, in, out); offsets in row-major order, cross-correlation as in ``conv3d``.
        rulebook: of the convolution.

    Returns:
        (output site, out).
    """
    with torch.autocast(features.device.type, enabled=False):
        flat = weight.flatten(0, 2)
        return _SparseConvolution.apply(features.to(weight.dtype), flat, rulebook)
