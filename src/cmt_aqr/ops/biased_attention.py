"""Attention with a number per query added to the logits of each group of tokens, through the fused kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_ALIGNED = 8
"""Channels per head that the fused kernels want a multiple of."""


def biased_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    groups: Tensor,
    factors: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k / sqrt(d) + beta groups') v, without a (query, token) tensor.

    The bias is a product itself, so it rides in channels of its own: q' = [q, sqrt(d) beta], k' = [k, groups],
    v' = [v, 0], all filled up to a multiple of 8, and q' k' / sqrt(d) is the sum. With beta = 0 the result is that
    of plain attention.

    In half precision the groups are exact and beta is rounded like any query: to 2^-9 of itself in bfloat16 (0.04
    at 20), to 2^-12 in float16, whose range ends where sqrt(d) beta times a factor exceeds 65504.

    Args:
        query: (batch, head, query, d).
        key: (batch, head, token, d).
        value: (batch, head, token, d).
        beta: (batch, query, group), finite; rounded to the type of ``query``.
        groups: (token, group), 0 or 1.
        factors: (head,) that multiply beta, or None.
        dropout: of the attention weights.

    Returns:
        (batch, head, query, d).
    """
    batch, heads, count, channels = query.shape
    added = math.sqrt(channels) * beta[:, None]  # (batch, 1, query, group)
    if factors is not None:
        added = added * factors[:, None, None]
    added = added.to(query.dtype).expand(batch, heads, count, -1)
    tokens = groups.to(key.dtype).expand(batch, heads, -1, -1)
    width = channels + groups.shape[-1]
    fill = -width % _ALIGNED
    attended = functional.scaled_dot_product_attention(
        functional.pad(torch.cat((query, added), dim=-1), (0, fill)),
        functional.pad(torch.cat((key, tokens), dim=-1), (0, fill)),
        functional.pad(value, (0, width - channels + fill)),
        dropout_p=dropout,
        scale=1 / math.sqrt(channels),
    )
    return attended[..., :channels]
