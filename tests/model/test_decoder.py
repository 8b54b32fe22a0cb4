import pytest
import torch
from torch.nn import functional

from cmt_aqr.model.decoder import Attention, Decoder


def test_attention_equals_pytorchs_module() -> None:
    torch.manual_seed(0)
    ours = Attention(16, 4, dropout=0.0)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    forbidden = torch.rand(5, 9) > 0.7
    forbidden[:, 0] = False
    expected, _ = theirs(query, key, value, attn_mask=forbidden, need_weights=False)
    torch.testing.assert_close(ours(query, key, value, forbidden), expected)


def test_dropout_is_on_the_self_attentions_weights_only() -> None:
    """As the published models were trained; see the decoder's docstring."""
    torch.manual_seed(0)
    layer = Decoder(embed_dims=16, layers=1, heads=4, feedforward=32, dropout=0.0, attention_dropout=0.5).layers[0]
    query, memory = torch.randn(1, 5, 16), torch.randn(1, 12, 16)
    assert not torch.equal(layer.self_attention(query, query, query), layer.self_attention(query, query, query))
    assert torch.equal(layer.cross_attention(query, memory, memory), layer.cross_attention(query, memory, memory))


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match=r"heads="):
        Attention(10, 4, 0.0)


def test_a_query_first_looks_where_its_position_is() -> None:
    torch.manual_seed(0)
    attention = Attention(64, 4, dropout=0.0)
    attention.initialise_local()
    positions = 4 * functional.normalize(torch.randn(1, 30, 64), dim=-1) * 8
    values = torch.eye(30)[None]
    q, k, _ = attention.in_proj_weight.chunk(3)
    scores = (positions @ q.T) @ (positions @ k.T).transpose(1, 2)
    found = torch.softmax(scores / 8, dim=-1) @ values
    assert found[0].argmax(dim=-1).tolist() == list(range(30))


def test_matching_queries_do_not_feel_denoising_queries() -> None:
    torch.manual_seed(0)
    from cmt_aqr.training.denoising import attention_mask

    module = Decoder(embed_dims=16, layers=2, heads=4, feedforward=32, dropout=0.0, attention_dropout=0.0)
    embedding, memory = torch.randn(1, 5, 16), torch.randn(1, 12, 16)
    alone = module(embedding, memory, memory)
    noise = torch.randn(1, 4, 16)
    mask = attention_mask(groups=2, size=2, matching_queries=5, device=torch.device("cpu"))
    together = module(torch.cat((noise, embedding), dim=1), memory, memory, mask)
    torch.testing.assert_close(together[:, :, 4:], alone)
