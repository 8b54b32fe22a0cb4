"""CMT's transformer decoder: queries look at each other, then at the cells of both sensors."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_aqr.checks import require
from cmt_aqr.ops.biased_attention import biased_attention
from cmt_aqr.ops.pointwise import PointwiseLinear, linear
from cmt_aqr.outputs import TokenBias


class Attention(nn.Module):
    """Multi-head attention over PyTorch's fused kernel, with one packed input projection."""

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
    def start_local(self) -> None:
        """Give keys the queries' projection, so that a query first looks where its position resembles a key's.

        Together with embeddings that tell places apart, a run from nothing need not learn first what "near"
        means.
        """
        query, key, _ = self.in_proj_weight.chunk(3)
        nn.init.xavier_uniform_(query)
        key.copy_(query)

    def _projected(self, *tokens: Tensor) -> list[Tensor]:
        """Queries, keys and values (batch, token, channel), or the first of them: (batch, head, token, d)."""
        parts = zip(tokens, self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=False)
        return [
            linear(one, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for one, weight, bias in parts
        ]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        forbidden: Tensor | None = None,
        bias: TokenBias | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: (batch, query, channel).
            key: (batch, token, channel).
            value: (batch, token, channel).
            forbidden: (query, token) bool, True where a query may not look; not together with ``bias``.
            bias: added to the logits.

        Returns:
            (batch, query, channel).
        """
        q, k, v = self._projected(query, key, value)
        dropout = self.dropout if self.training else 0.0
        if bias is None:
            allowed = None if forbidden is None else ~forbidden
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        else:
            attended = biased_attention(q, k, v, bias.beta, bias.groups, bias.factors, dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def share(self, query: Tensor, key: Tensor, members: Tensor, bias: TokenBias | None = None) -> Tensor:
        """How much of each query's attention goes to some of the tokens, mean over the heads: (batch, query).

        Membership is what is attended to, so that no (query, token) tensor is made. In the type of the weights
        whatever autocast says. ``members`` is (token,) bool, the rest as of :meth:`forward`.
        """
        dtype = self.in_proj_weight.dtype
        with torch.autocast(query.device.type, enabled=False):
            q, k = self._projected(query.to(dtype), key.to(dtype))
            value = members.to(dtype)[:, None].expand_as(k)
            if bias is None:
                attended = functional.scaled_dot_product_attention(q, k, value)
            else:
                attended = biased_attention(q, k, value, bias.beta, bias.groups, bias.factors)
        return attended[..., 0].mean(dim=1)


class DecoderLayer(nn.Module):
    """Self attention, cross attention, feed-forward; each added to its input, then normalised."""

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
        self.cross_attention.start_local()
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
        forbidden: Tensor | None,
        bias: TokenBias | None = None,
    ) -> Tensor:
        """Refine the queries (batch, query, channel); ``keys`` is the memory plus its position embedding."""
        # In float32 also under autocast, as published: the first layer's queries have no content yet, all rows are
        # nearly alike, and the gradient that comes through their norm exceeds what float16 holds.
        with torch.autocast(query.device.type, enabled=False):
            placed = query + query_embedding
            query = self.norm1(query + self.dropout(self.self_attention(placed, placed, query, forbidden)))
        placed = query + query_embedding
        query = self.norm2(query + self.dropout(self.cross_attention(placed, keys, memory, bias=bias)))
        hidden = self.feedforward_dropout(functional.relu(self.linear1(query)))
        return self.norm3(query + self.feedforward_dropout(self.linear2(hidden)))


class Decoder(nn.Module):
    """A stack of decoder layers with one shared norm on every layer's output.

    Args:
        embed_dims: channels.
        layers: number of layers.
        heads: attention heads.
        feedforward: hidden channels of the feed-forward networks.
        dropout: on the residual branches of both attentions.
        attention_dropout: on the weights of the self attention. The cross attention has none: the release's
            configuration asks for it, but its attention takes the number for another argument (``bias``), so
            the published models were trained without.
        feedforward_dropout: within and after the feed-forward networks; the published recipe has none there.
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
        forbidden: Tensor | None = None,
        bias: TokenBias | None = None,
    ) -> Tensor:
        """Decode.

        Args:
            query_embedding: (batch, query, channel), the queries' positions; the queries start at 0.
            memory: (batch, token, channel), the cells of both sensors.
            memory_embedding: (batch or 1, token, channel), the cells' positions.
            forbidden: (query, query) bool for the self attention, True where a query may not look.
            bias: of the cross attentions, from AQR.

        Returns:
            (layer, batch, query, channel): the normalised output of every layer.
        """
        keys = memory + memory_embedding
        query = torch.zeros_like(query_embedding)
        outputs = []
        for number, layer in enumerate(self.layers):
            of_layer = None if bias is None else bias.of_layer(number)
            query = layer(query, query_embedding, keys, memory, forbidden, of_layer)
            outputs.append(self.norm(query))
        return torch.stack(outputs)
