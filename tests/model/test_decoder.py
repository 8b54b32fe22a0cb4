import pytest
import torch
from torch.nn import functional

from cmt_aqr.model.decoder import Attention, Decoder
from cmt_aqr.training.denoising import attention_mask


def test_attention_equals_pytorchs_module() -> None:
    torch.manual_seed(0)
    ours = Attention(16, 4, dropout=0.0)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    mask = torch.rand(5, 9) > 0.7
    mask[:, 0] = False
    expected, _ = theirs(query, key, value, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(ours(query, key, value, mask), expected)


def test_only_the_self_attention_has_dropout() -> None:
    torch.manual_seed(0)
    layer = Decoder(embed_dims=16, layers=1, heads=4, feedforward=32, dropout=0.0, attention_dropout=0.5).layers[0]
    query, memory = torch.randn(1, 5, 16), torch.randn(1, 12, 16)
    assert not torch.equal(layer.self_attention(query, query, query), layer.self_attention(query, query, query))
    assert torch.equal(layer.cross_attention(query, memory, memory), layer.cross_attention(query, memory, memory))


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match=r"heads="):
        Attention(10, 4, 0.0)


def test_initially_a_query_attends_to_its_own_position() -> None:
    torch.manual_seed(0)
    attention = Attention(64, 4, dropout=0.0)
    attention.initialise_local()
    positions = 4 * functional.normalize(torch.randn(1, 30, 64), dim=-1) * 8
    values = torch.eye(30)[None]
    q, k, _ = attention.in_proj_weight.chunk(3)
    scores = (positions @ q.T) @ (positions @ k.T).transpose(1, 2)
    attended = torch.softmax(scores / 8, dim=-1) @ values
    assert attended[0].argmax(dim=-1).tolist() == list(range(30))


def test_denoising_queries_do_not_change_matching_queries() -> None:
    torch.manual_seed(0)
    module = Decoder(embed_dims=16, layers=2, heads=4, feedforward=32, dropout=0.0, attention_dropout=0.0)
    embedding, memory = torch.randn(1, 5, 16), torch.randn(1, 12, 16)
    alone = module(embedding, memory, memory)
    noise = torch.randn(1, 4, 16)
    mask = attention_mask(groups=2, size=2, matching_queries=5, device=torch.device("cpu"))
    together = module(torch.cat((noise, embedding), dim=1), memory, memory, mask)
    torch.testing.assert_close(together[:, :, 4:], alone)
