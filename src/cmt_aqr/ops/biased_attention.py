"""Attention with a number per query added to the logits of each group of tokens, through the fused kernels."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from cmt_aqr.ops.split_attention import split_attention

_ALIGNED = 8
"""Channels per head that the fused kernels want a multiple of."""

_MOST_SEGMENTS = 8
"""Runs of tokens that are worth a kernel each; LiDAR and six cameras are 7."""


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

    The bias can ride in channels of its own, because it is a product itself: q' = [q, sqrt(d) beta],
    k' = [k, groups], v' = [v, 0], all filled up to a multiple of 8, and q' k' / sqrt(d) is the sum. With beta = 0
    the result is that of plain attention.

    On a CPU 40 channels instead of 32 make attention a quarter dearer. There the tokens of one group, which lie
    side by side, are attended to on their own and the results put together, see
    :mod:`cmt_aqr.ops.split_attention`: the same function up to rounding. Where beta is 0 everywhere the channels
    are taken, so that this stays plain attention to the last bit; or no bias, where nothing learns beta.

    In half precision with channels the groups are exact and beta is rounded like any query: to 2^-9 of itself in
    bfloat16 (0.04 at 20), to 2^-12 in float16, whose range ends where sqrt(d) beta times a factor exceeds 65504.

    Args:
        query: (batch, head, query, d).
        key: (batch, head, token, d).
        value: (batch, head, token, d).
        beta: (batch, query, group), finite.
        groups: (token, group), 0 or 1.
        factors: (head,) that multiply beta, or None.
        dropout: of the attention weights.

    Returns:
        (batch, head, query, d).
    """
    scale = 1 / math.sqrt(query.shape[-1])
    added = beta[:, None]  # (batch, head, query, group)
    if factors is not None:
        added = added * factors[:, None, None]
    # Where the host knows at once whether beta is 0, tokens may be attended to in parts.
    known = query.device.type == "cpu" and dropout == 0 and query.numel() > 0 and not torch.compiler.is_compiling()
    if known and not added.requires_grad and not beta.any():  # a control, or a fresh bias that is evaluated
        return functional.scaled_dot_product_attention(query, key, value)
    if known and beta.any():
        members, sizes = groups.unique_consecutive(dim=0, return_counts=True)  # (segment, group)
        if len(sizes) <= _MOST_SEGMENTS:
            exact = torch.promote_types(query.dtype, torch.float32)
            bias = added.to(exact) @ members.mT.to(exact)  # (batch, head, query, segment)
            return split_attention(query, key, value, bias, tuple(sizes.tolist()), scale)
    return _with_channels(query, key, value, added / scale, groups, dropout, scale)


def _with_channels(
    query: Tensor, key: Tensor, value: Tensor, added: Tensor, groups: Tensor, dropout: float, scale: float
) -> Tensor:
    """The bias in channels; ``added`` is (batch, head or 1, query, group), divided by ``scale`` already."""
    batch, heads, _, channels = query.shape
    more = groups.shape[-1]
    fill = -(channels + more) % _ALIGNED
    added = added.to(query.dtype).expand(batch, heads, -1, -1)
    of_tokens = groups.to(key.dtype).expand(batch, heads, -1, -1)
    attended = functional.scaled_dot_product_attention(
        functional.pad(torch.cat((query, added), dim=-1), (0, fill)),
        functional.pad(torch.cat((key, of_tokens), dim=-1), (0, fill)),
        functional.pad(value, (0, more + fill)),
        dropout_p=dropout,
        scale=scale,
    )
    return attended[..., :channels]
