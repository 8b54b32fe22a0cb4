"""Attention with a bias per query and group of tokens, through PyTorch's fused kernels."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from cmt_aqr.ops.split_attention import split_attention

_ALIGNED = 8
"""Fused kernels need a multiple of this number of channels per head."""

_MAX_SEGMENTS = 8
"""Most segments of tokens for which one kernel call per segment pays; LiDAR and six cameras are 7."""


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

    The bias is itself a product, so it fits into extra channels: with q' = [q, sqrt(d) beta], k' = [k, groups] and
    v' = [v, 0], all padded to a multiple of 8, q' k' / sqrt(d) is the biased logit. With beta = 0 the result is
    that of plain attention.

    On a CPU, 40 channels instead of 32 make attention 25 % slower. There, :mod:`cmt_aqr.ops.split_attention`
    attends to each group's tokens, which are contiguous, and combines the results: the same function up to
    rounding. If beta is 0 everywhere, extra channels keep the result bit for bit that of plain attention; if beta
    needs no gradient either, plain attention is called.

    In half precision with extra channels, groups are exact and beta is rounded like a query: to a relative 2^-9 in
    bfloat16 (0.04 at 20) and 2^-12 in float16, which overflows where sqrt(d) beta times a factor exceeds 65504.

    Args:
        query: (batch, head, query, d).
        key: (batch, head, token, d).
        value: (batch, head, token, d).
        beta: (batch, query, group), finite.
        groups: (token, group), 0 or 1.
        factors: (head,), multiply beta, or ``None``.
        dropout: of the attention weights.

    Returns:
        (batch, head, query, d).
    """
    scale = 1 / math.sqrt(query.shape[-1])
    added = beta[:, None]  # (batch, head, query, group)
    if factors is not None:
        added = added * factors[:, None, None]
    # Whether the host can read beta without synchronising.
    on_host = (
        query.device.type == "cpu" and dropout == 0 and query.numel() > 0 and not torch.compiler.is_compiling()
    )
    if on_host and not added.requires_grad and not beta.any():  # a control, or an untrained bias in evaluation
        return functional.scaled_dot_product_attention(query, key, value)
    if on_host and beta.any():
        members, sizes = groups.unique_consecutive(dim=0, return_counts=True)  # (segment, group)
        if len(sizes) <= _MAX_SEGMENTS:
            exact = torch.promote_types(query.dtype, torch.float32)
            bias = added.to(exact) @ members.mT.to(exact)  # (batch, head, query, segment)
            return split_attention(query, key, value, bias, tuple(sizes.tolist()), scale)
    return _with_channels(query, key, value, added / scale, groups, dropout, scale)


def _with_channels(
    query: Tensor, key: Tensor, value: Tensor, added: Tensor, groups: Tensor, dropout: float, scale: float
) -> Tensor:
    """Attention with the bias in extra channels; ``added`` is (batch, head or 1, query, group) over ``scale``."""
    batch, heads, _, channels = query.shape
    extra = groups.shape[-1]
    padding = -(channels + extra) % _ALIGNED
    added = added.to(query.dtype).expand(batch, heads, -1, -1)
    groups = groups.to(key.dtype).expand(batch, heads, -1, -1)
    attended = functional.scaled_dot_product_attention(
        functional.pad(torch.cat((query, added), dim=-1), (0, padding)),
        functional.pad(torch.cat((key, groups), dim=-1), (0, padding)),
        functional.pad(value, (0, extra + padding)),
        dropout_p=dropout,
        scale=scale,
    )
    return attended[..., :channels]
