"""Attention over small windows of a large map, without ever building the windows of all queries at once.

900 queries with 15 x 15 cells of 256 channels are 200 MB if they are gathered, twice that in training. The
two products that attention needs are therefore done in blocks of queries whose windows fit into the cache,
and gathered again in the backward pass instead of being kept. They are each other's adjoint:

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
    """Cells of the square windows around some cells.

    Where a map has fewer rows or columns than a window, the window has no more of them than the map; at a border
    it is moved inwards and what lies too far from the middle does not exist.

    Args:
        cell: (..., 2) int64, (column, row) of the middle cell, a cell of the map.
        map_size: rows and columns of the map.
        window: odd number of cells along a side.

    Returns:
        index (..., window cell) int64, row-major cell numbers, each at most once; exists (..., window cell) bool,
        whether a cell lies within ``window // 2`` of the middle one. There are min(window, rows) *
        min(window, columns) window cells.
    """
    rows, columns = map_size
    column, column_exists = _along(cell[..., 0, None], columns, window)
    row, row_exists = _along(cell[..., 1, None], rows, window)
    index = row[..., :, None] * columns + column[..., None, :]
    exists = row_exists[..., :, None] & column_exists[..., None, :]
    return index.flatten(-2), exists.flatten(-2)


def _along(middle: Tensor, length: int, window: int) -> tuple[Tensor, Tensor]:
    """Of windows around ``middle`` (..., 1) on a line of ``length`` cells: the cells, and which are near."""
    count = min(window, length)
    first = (middle - window // 2).clamp(0, length - count)
    place = first + torch.arange(count, device=middle.device)
    return place, (place - middle).abs() <= window // 2


def window_scores(queries: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Dot products of each query's heads with the cells of its window.

    Args:
        queries: (pair, head, channel).
        table: (cell, channel), the map's cells as rows.
        index: (pair, window cell) int64, rows of ``table``.

    Returns:
        (pair, head, window cell). Differentiable once in ``queries`` and ``table``.
    """
    return _WindowProduct.apply(queries, table, index, False)


def window_sum(weights: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Weighted sums of the cells of each query's window.

    Args:
        weights: (pair, head, window cell).
        table: as of :func:`window_scores`, like ``index``.
        index: likewise.

    Returns:
        (pair, head, channel). Differentiable once in ``weights`` and ``table``.
    """
    return _WindowProduct.apply(weights, table, index, True)


class _WindowProduct(torch.autograd.Function):
    """``window_sum`` of weights, or ``window_scores`` of queries, (pair, head, ...); each the other's adjoint."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, table: Tensor, index: Tensor, summed: bool) -> Tensor:
        ctx.save_for_backward(first, table, index)
        ctx.summed = summed
        return _product(first, table, index, summed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        first, table, index = ctx.saved_tensors
        of_first = of_table = None
        if ctx.needs_input_grad[0]:
            of_first = _product(gradient, table, index, not ctx.summed)
        if ctx.needs_input_grad[1]:
            weights, queries = (first, gradient) if ctx.summed else (gradient, first)
            of_table = _scatter(weights, queries, index, len(table))
        return of_first, of_table, None, None


def _blocks(table: Tensor, index: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of pairs whose windows together stay within a limit of memory.

    Yields:
        the pairs, their cells (cell of the block,) int64, and room for these cells' rows (cell of the block,
        channel): one buffer for all blocks, as fresh memory for each costs more than the gathering.
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


def _scatter(weights: Tensor, queries: Tensor, index: Tensor, cells: int) -> Tensor:
    """Gradient of the table: (cell, channel), the sum over pairs and heads of weight times query."""
    result = queries.new_zeros(cells, queries.shape[2])
    for block, of_block, rows in _blocks(result, index):
        torch.bmm(weights[block].transpose(1, 2), queries[block], out=rows.view(-1, index.shape[1], rows.shape[1]))
        result.index_add_(0, of_block, rows)
    return result
