"""Attention with a bias per query and segment of tokens, at the cost of plain attention, on a CPU.

The softmax over all tokens is combined from one softmax per segment. With o_s the attention output over segment s
alone, l_s its log-sum-exp (which the fused kernel computes), and b_s the query's bias there:

    l = log sum_s exp(l_s + b_s),    o = sum_s w_s o_s,    w_s = exp(l_s + b_s - l)

The kernel's backward pass computes a token's share as exp(logit - l_s). Here the share is exp(logit + b_s - l), so
it is called with l - b_s as log-sum-exp and o as output. With g the gradient of o, that of b_s is w_s g (o_s - o).

No public function of PyTorch gives l_s on a CPU; ``pyproject.toml`` bounds its version for the two operators here.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def split_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, sizes: tuple[int, ...], scale: float
) -> Tensor:
    """softmax(scale q k + bias of the token's segment) v: (batch, head, query, d).

    Differentiable once, in everything but ``scale``.

    Args:
        query: (batch, head, query, d); all tensors are on a CPU.
        key: (batch, head, token, d).
        value: (batch, head, token, d).
        bias: (batch, head or 1, query, segment), finite; float64 if ``query`` is, or else float32.
        sizes: number of tokens of each segment, at least one each.
        scale: of the products.
    """
    result: Tensor = _SplitAttention.apply(query, key, value, bias, sizes, scale)
    return result


class _SplitAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, sizes: tuple[int, ...], scale: float
    ) -> Tensor:
        segments = zip(key.split(sizes, dim=2), value.split(sizes, dim=2), strict=True)
        outputs, sums = zip(*(_forward(query, *segment, scale=scale) for segment in segments), strict=True)
        # In float64, because rounding a logarithm to float32 costs more precision than the sum has.
        biased = torch.stack(sums, dim=-1).double() + bias  # (batch, head, query, segment)
        weights = biased.softmax(dim=-1).to(sums[0].dtype)
        shifted = (biased.logsumexp(dim=-1, keepdim=True) - bias).to(sums[0].dtype)  # l - b_s
        parts = torch.stack(outputs, dim=-2)  # (batch, head, query, segment, d)
        attended = (weights[..., None] * parts).sum(dim=-2).to(query.dtype)
        ctx.sizes, ctx.scale = sizes, scale
        ctx.save_for_backward(query, key, value, bias, attended, shifted, weights, parts)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, attended, shifted, weights, parts = ctx.saved_tensors
        query_gradient = torch.zeros_like(query)
        key_gradient, value_gradient = _like_tokens(key), _like_tokens(value)
        segments = zip(
            *(tokens.split(ctx.sizes, dim=2) for tokens in (key, value, key_gradient, value_gradient)),
            shifted.unbind(-1),
            strict=True,
        )
        for keys, values, keys_gradient, values_gradient, sums in segments:
            gradients = _backward(gradient, query, keys, values, attended, sums, 0.0, False, scale=ctx.scale)
            query_gradient += gradients[0]
            keys_gradient.copy_(gradients[1])
            values_gradient.copy_(gradients[2])
        bias_gradient = None
        if ctx.needs_input_grad[3]:
            along = (gradient[..., None, :] * (parts - attended[..., None, :])).sum(dim=-1, dtype=bias.dtype)
            bias_gradient = (weights * along).sum_to_size(bias.shape)
        return query_gradient, key_gradient, value_gradient, bias_gradient, None, None


def _like_tokens(tokens: Tensor) -> Tensor:
    """Empty gradient of (batch, head, token, d) in the projections' memory layout, (batch, token, head, d)."""
    return torch.empty_like(tokens.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
