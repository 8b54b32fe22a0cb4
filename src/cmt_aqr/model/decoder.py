"""CMT's transformer decoder: queries attend to each other, then to the cells of both sensors."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_aqr.checks import require
from cmt_aqr.ops.biased_attention import biased_attention
from cmt_aqr.ops.pointwise import PointwiseLinear, linear
from cmt_aqr.outputs import TokenBias


class Attention(nn.Module):
    """Multi-head attention with PyTorch's fused kernels and a packed input projection."""

    def __init__(self, embed_dims: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        require(embed_dims % heads == 0, "heads", heads, f"a divisor of embed_dims={embed_dims}")
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dims, embed_dims))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dims))
        self.out_proj = PointwiseLinear(embed_dims, embed_dims)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    @torch.no_grad()
    def initialise_local(self) -> None:
        """Initialise keys with the queries' projection, so that a query attends to keys at similar positions.

        Where embeddings distinguish positions, a model trained from scratch then need not first learn which cells
        are near.
        """
        query, key, _ = self.in_proj_weight.chunk(3)
        nn.init.xavier_uniform_(query)
        key.copy_(query)

    def _project(self, *inputs: Tensor) -> list[Tensor]:
        """Project queries, keys and values, or only the first of them, to (batch, head, token, d)."""
        parts = zip(inputs, self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=False)
        return [
            linear(tokens, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for tokens, weight, bias in parts
        ]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        bias: TokenBias | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: (batch, query, channel).
            key: (batch, token, channel).
            value: (batch, token, channel).
            mask: (query, token) bool, True where a query must not attend; not together with ``bias``.
            bias: added to the logits.

        Returns:
            (batch, query, channel).
        """
        q, k, v = self._project(query, key, value)
        dropout = self.dropout if self.training else 0.0
        if bias is None:
            allowed = None if mask is None else ~mask
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        else:
            attended = biased_attention(q, k, v, bias.beta, bias.groups, bias.factors, dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def share(self, query: Tensor, key: Tensor, members: Tensor, bias: TokenBias | None = None) -> Tensor:
        """Share of each query's attention that goes to some tokens (batch, query), mean over the heads.

        Attends to membership as values, so that no (query, token) tensor is built. Runs in the dtype of the
        weights, without autocast.

        Args:
            query: (batch, query, channel).
            key: (batch, token, channel).
            members: (token,) bool.
            bias: added to the logits.
        """
        dtype = self.in_proj_weight.dtype
        with torch.autocast(query.device.type, enabled=False):
            q, k = self._project(query.to(dtype), key.to(dtype))
            value = members.to(dtype)[:, None].expand_as(k)
            if bias is None:
                attended = functional.scaled_dot_product_attention(q, k, value)
            else:
                attended = biased_attention(q, k, value, bias.beta, bias.groups, bias.factors)
        return attended[..., 0].mean(dim=1)


class DecoderLayer(nn.Module):
    """Self attention, cross attention and feed-forward network, each with a residual connection and a norm."""

    def __init__(
        self,
        embed_dims: int,
        heads: int,
        feedforward: int,
        dropout: float,
        attention_dropout: float,
        feedforward_dropout: float,
    ) -> None:
        super().__init__()
        self.self_attention = Attention(embed_dims, heads, attention_dropout)
        self.cross_attention = Attention(embed_dims, heads)
        self.cross_attention.initialise_local()
        self.linear1 = PointwiseLinear(embed_dims, feedforward)
        self.linear2 = PointwiseLinear(feedforward, embed_dims)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(embed_dims) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.feedforward_dropout = nn.Dropout(feedforward_dropout)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        query_embedding: Tensor,
        keys: Tensor,
        memory: Tensor,
        mask: Tensor | None,
        bias: TokenBias | None = None,
    ) -> Tensor:
        """Refine the queries (batch, query, channel); ``keys`` is the memory plus its position embedding."""
        # In float32 even under autocast, as published: the queries of the first layer have no content and nearly
        # equal rows, so that the gradient through their norm overflows float16.
        with torch.autocast(query.device.type, enabled=False):
            placed = query + query_embedding
            query = self.norm1(query + self.dropout(self.self_attention(placed, placed, query, mask)))
        placed = query + query_embedding
        query = self.norm2(query + self.dropout(self.cross_attention(placed, keys, memory, bias=bias)))
        hidden = self.feedforward_dropout(functional.relu(self.linear1(query)))
        return self.norm3(query + self.feedforward_dropout(self.linear2(hidden)))


class Decoder(nn.Module):
    """A stack of decoder layers with a shared norm on every layer's output.

    Args:
        embed_dims: channels.
        layers: number of layers.
        heads: attention heads.
        feedforward: hidden channels of the feed-forward networks.
        dropout: on the residual branches of both attentions.
        attention_dropout: on the weights of the self attention. The cross attention has none: the release
            configures it, but passes it as another argument (``bias``), so the published models trained without.
        feedforward_dropout: within and after the feed-forward networks; 0 in the published recipe.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        layers: int = 6,
        heads: int = 8,
        feedforward: int = 1024,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        feedforward_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = (embed_dims, heads, feedforward, dropout, attention_dropout, feedforward_dropout)
        self.layers = nn.ModuleList(DecoderLayer(*sizes) for _ in range(layers))
        self.norm = nn.LayerNorm(embed_dims)

    def forward(
        self,
        query_embedding: Tensor,
        memory: Tensor,
        memory_embedding: Tensor,
        mask: Tensor | None = None,
        bias: TokenBias | None = None,
    ) -> Tensor:
        """Decode.

        Args:
            query_embedding: (batch, query, channel), position embeddings; the queries themselves start at 0.
            memory: (batch, token, channel), features of both sensors' cells.
            memory_embedding: (batch or 1, token, channel), position embeddings of the cells.
            mask: (query, query) bool of the self attention, True where a query must not attend.
            bias: of the cross attentions, from AQR.

        Returns:
            Normalised output of every layer (layer, batch, query, channel).
        """
        keys = memory + memory_embedding
        query = torch.zeros_like(query_embedding)
        outputs = []
        for number, layer in enumerate(self.layers):
            layer_bias = None if bias is None else bias.of_layer(number)
            query = layer(query, query_embedding, keys, memory, mask, layer_bias)
            outputs.append(self.norm(query))
        return torch.stack(outputs)
