"""Attention over small windows of a large map, without gathering the windows of all queries at the same time.

The gathered windows of 900 queries with 15 x 15 cells of 256 channels take 200 MB, twice that in training. So the
two products of attention are computed in blocks of queries whose windows fit into the cache, and the backward pass
gathers the windows again. Each product is the other's adjoint:

    window_scores:  S[p, h, n] = sum_c  Q[p, h, c] T[I[p, n], c]
    window_sum:     R[p, h, c] = sum_n  A[p, h, n] T[I[p, n], c]
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CPU_BLOCK_BYTES = 4 * 2**20
_GPU_BLOCK_BYTES = 256 * 2**20


def window_cells(cell: Tensor, map_size: tuple[int, int], window: int) -> tuple[Tensor, Tensor]:
    """Cells of square windows around cells of a map.

    A window has at most as many rows and columns as the map. At a border it is shifted inwards, and its cells that
    are too far from the centre do not exist.

    Args:
        cell: (..., 2) int64, (column, row) of the centre, a cell of the map.
        map_size: rows and columns of the map.
        window: odd number of cells along a side.

    Returns:
        index (..., window cell) int64, distinct row-major cell indices; exists (..., window cell) bool, whether a
        cell lies within ``window // 2`` of the centre. There are min(window, rows) * min(window, columns) window
        cells.
    """
    rows, columns = map_size
    column, column_exists = _along_axis(cell[..., 0, None], columns, window)
    row, row_exists = _along_axis(cell[..., 1, None], rows, window)
    index = row[..., :, None] * columns + column[..., None, :]
    exists = row_exists[..., :, None] & column_exists[..., None, :]
    return index.flatten(-2), exists.flatten(-2)


def _along_axis(centre: Tensor, length: int, window: int) -> tuple[Tensor, Tensor]:
    """Cells of windows around ``centre`` (..., 1) on an axis of ``length`` cells, and which of them exist."""
    count = min(window, length)
    first = (centre - window // 2).clamp(0, length - count)
    cells = first + torch.arange(count, device=centre.device)
    return cells, (cells - centre).abs() <= window // 2


def window_scores(queries: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Dot products of each query's heads with the cells of its window.

    Args:
        queries: (pair, head, channel).
        table: (cell, channel), the cells of the maps.
        index: (pair, window cell) int64, rows of ``table``.

    Returns:
        (pair, head, window cell). Differentiable once in ``queries`` and ``table``.
    """
    return _WindowProduct.apply(queries, table, index, False)


def window_sum(weights: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Weighted sums of the cells of each query's window.

    Args:
        weights: (pair, head, window cell).
        table: (cell, channel), the cells of the maps.
        index: (pair, window cell) int64, rows of ``table``.

    Returns:
        (pair, head, channel). Differentiable once in ``weights`` and ``table``.
    """
    return _WindowProduct.apply(weights, table, index, True)


class _WindowProduct(torch.autograd.Function):
    """``window_sum`` of weights if ``summed``, else ``window_scores`` of queries."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, table: Tensor, index: Tensor, summed: bool) -> Tensor:
        ctx.save_for_backward(first, table, index)
        ctx.summed = summed
        return _product(first, table, index, summed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        first, table, index = ctx.saved_tensors
        first_gradient = table_gradient = None
        if ctx.needs_input_grad[0]:
            first_gradient = _product(gradient, table, index, not ctx.summed)
        if ctx.needs_input_grad[1]:
            weights, queries = (first, gradient) if ctx.summed else (gradient, first)
            table_gradient = _table_gradient(weights, queries, index, len(table))
        return first_gradient, table_gradient, None, None


def _blocks(table: Tensor, index: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Split the pairs into blocks whose windows stay within a memory limit.

    Yields:
        The block's pairs, its cells (block cell,) int64, and a buffer (block cell, channel) for their rows. All
        blocks share the buffer, because allocating memory costs more than gathering.
    """
    limit = _CPU_BLOCK_BYTES if table.device.type == "cpu" else _GPU_BLOCK_BYTES
    step = max(1, limit // (index.shape[1] * table.shape[1] * table.element_size()))
    buffer = table.new_empty(min(step, len(index)) * index.shape[1], table.shape[1])
    for start in range(0, len(index), step):
        cells = index[start : start + step].flatten()
        yield slice(start, start + step), cells, buffer[: len(cells)]


def _product(first: Tensor, table: Tensor, index: Tensor, summed: bool) -> Tensor:
    result = first.new_empty(*first.shape[:2], table.shape[1] if summed else index.shape[1])
    for block, cells, rows in _blocks(table, index):
        torch.index_select(table, 0, cells, out=rows)
        window = rows.view(-1, index.shape[1], table.shape[1])
        torch.bmm(first[block], window if summed else window.transpose(1, 2), out=result[block])
    return result


def _table_gradient(weights: Tensor, queries: Tensor, index: Tensor, count: int) -> Tensor:
    """Gradient (cell, channel) of a table of ``count`` cells: sum over pairs and heads of weight times query."""
    result = queries.new_zeros(count, queries.shape[2])
    for block, cells, rows in _blocks(result, index):
        torch.bmm(weights[block].transpose(1, 2), queries[block], out=rows.view(-1, index.shape[1], rows.shape[1]))
        result.index_add_(0, cells, rows)
    return result
