"""Attention over small windows of a large map, without ever building the windows of all queries at once.

900 queries with 15 x 15 cells of 256 channels are 200 MB if they are gathered, twice that in training. The
two products that attention needs are therefore done in blocks of queries whose windows fit into the cache,
and gathered again in the backward pass instead of being kept. They are each other's adjoint:

    window_scores:  S[p, h, n] = sum_c  Q[p, h, c] T[I[p, n], c]
    window_sum:     R[p, h, c] = sum_n  A[p, h, n] T[I[p, n], c]
"""

from __future__ import annotations

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
    return _WindowScores.apply(queries, table, index)


def window_sum(weights: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Weighted sums of the cells of each query's window.

    Args:
        weights: (pair, head, window cell).
        table: (cell, channel), the map's cells as rows.
        index: (pair, window cell) int64, rows of ``table``.

    Returns:
        (pair, head, channel). Differentiable once in ``weights`` and ``table``.
    """
    return _WindowSum.apply(weights, table, index)


class _WindowScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(queries, table, index)
        return _scores(queries, table, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        queries, table, index = ctx.saved_tensors
        needs_queries, needs_table, _ = ctx.needs_input_grad
        return (
            _sum(gradient, table, index) if needs_queries else None,
            _scatter(gradient, queries, index, len(table)) if needs_table else None,
            None,
        )


class _WindowSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(weights, table, index)
        return _sum(weights, table, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weights, table, index = ctx.saved_tensors
        needs_weights, needs_table, _ = ctx.needs_input_grad
        return (
            _scores(gradient, table, index) if needs_weights else None,
            _scatter(weights, gradient, index, len(table)) if needs_table else None,
            None,
        )


def _blocks(table: Tensor, index: Tensor) -> Iterator[slice]:
    """Slices of pairs whose windows together stay within a block of memory."""
    limit = _CPU_BLOCK_BYTES if table.device.type == "cpu" else _GPU_BLOCK_BYTES
    bytes_of_pair = index.shape[1] * table.shape[1] * table.element_size()
    step = max(1, limit // bytes_of_pair)
    for start in range(0, len(index), step):
        yield slice(start, start + step)


def _windows(table: Tensor, index: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of pairs with their windows (pair of the block, window cell, channel), in one reused buffer."""
    buffer = None
    for block in _blocks(table, index):
        rows = index[block]
        if buffer is None:
            # One buffer for all blocks: fresh memory for each costs more than the gathering.
            buffer = table.new_empty(rows.numel(), table.shape[1])
        window = buffer[: rows.numel()]
        torch.index_select(table, 0, rows.flatten(), out=window)
        yield block, window.view(*rows.shape, -1)


def _scores(queries: Tensor, table: Tensor, index: Tensor) -> Tensor:
    result = queries.new_empty(*queries.shape[:2], index.shape[1])
    for block, window in _windows(table, index):
        torch.bmm(queries[block], window.transpose(1, 2), out=result[block])
    return result


def _sum(weights: Tensor, table: Tensor, index: Tensor) -> Tensor:
    result = weights.new_empty(*weights.shape[:2], table.shape[1])
    for block, window in _windows(table, index):
        torch.bmm(weights[block], window, out=result[block])
    return result


def _scatter(weights: Tensor, queries: Tensor, index: Tensor, cells: int) -> Tensor:
    """Gradient of the table: (cell, channel), the sum over pairs and heads of weight times query."""
    result = queries.new_zeros(cells, queries.shape[2])
    buffer = None
    for block in _blocks(result, index):
        rows = index[block]
        if buffer is None:
            buffer = queries.new_empty(*rows.shape, queries.shape[2])
        outer = buffer[: len(rows)]
        torch.bmm(weights[block].transpose(1, 2), queries[block], out=outer)
        result.index_add_(0, rows.flatten(), outer.flatten(0, 1))
    return result
