import pytest
import torch
from torch import nn

from lib.models.transformer import (
    Attention,
    Block,
    FeedForward,
    SequenceModel,
    causal_mask,
    context_mask,
)
from tests.helpers import assert_close


def _double(module):
    return module.double().eval()


@pytest.mark.parametrize("mask", [None, causal_mask(6), context_mask(6, 2)])
def test_the_explicit_path_equals_the_fused_one(gen, mask):
    attention = _double(Attention(12, 3))
    x = torch.randn(2, 6, 12, generator=gen, dtype=torch.float64)
    fused = attention(x, mask=mask)
    attention.explicit = True
    assert_close(attention(x, mask=mask), fused, 1e-12)
    assert_close(attention.last_weights.sum(-1), torch.ones(2, 3, 6), 1e-12)
    if mask is not None:
        assert (attention.last_weights[:, :, ~mask] == 0).all()


def test_attention_equals_torch_multihead(gen):
    ours, theirs = _double(Attention(8, 2)), _double(nn.MultiheadAttention(8, 2, batch_first=True))
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x = torch.randn(3, 5, 8, generator=gen, dtype=torch.float64)
    context = torch.randn(3, 7, 8, generator=gen, dtype=torch.float64)
    assert_close(ours(x, context), theirs(x, context, context, need_weights=False)[0], 1e-12)
    # torch's Boolean mask means the opposite.
    expected = theirs(x, x, x, attn_mask=~causal_mask(5), need_weights=False)[0]
    assert_close(ours(x, mask=causal_mask(5)), expected, 1e-12)


def test_second_derivatives_on_the_explicit_path(gen):
    attention = _double(Attention(4, 2, explicit=True))
    x = torch.randn(1, 3, 4, generator=gen, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(attention, (x,))


def test_a_causal_model_does_not_see_the_future(gen):
    model = _double(SequenceModel(3, 2, 16, 2, 4, mask=causal_mask, positions="sinusoidal"))
    x = torch.randn(2, 8, 3, generator=gen, dtype=torch.float64)
    changed = x.clone()
    changed[:, 5:] += 1.0
    a, b = model(x), model(changed)
    assert_close(a[:, :5], b[:, :5], 1e-12)
    assert (a[:, 5:] - b[:, 5:]).abs().min() > 1e-6


def test_a_set_model_without_positions_is_equivariant(gen):
    model = _double(SequenceModel(3, 2, 16, 2, 4, mask=None, positions=None))
    x = torch.randn(2, 8, 3, generator=gen, dtype=torch.float64)
    order = torch.randperm(8, generator=gen)
    assert_close(model(x[:, order]), model(x)[:, order], 1e-12)
    placed = _double(SequenceModel(3, 2, 16, 2, 4, positions="sinusoidal"))
    assert (placed(x[:, order]) - placed(x)[:, order]).norm() > 1e-3


def test_a_query_is_nobodys_key(gen):
    model = _double(SequenceModel(3, 1, 8, 2, 2, mask=context_mask))
    x = torch.randn(2, 6, 3, generator=gen, dtype=torch.float64)
    changed = x.clone()
    changed[:, -1] += 1.0
    assert_close(model(x)[:, :-1], model(changed)[:, :-1], 1e-12)


def test_block_orders_are_their_formulas(gen):
    x = torch.randn(2, 5, 8, generator=gen, dtype=torch.float64)
    pre = _double(Block(8, 2))
    y = x + pre.attn(pre.attn_norm(x))
    assert_close(pre(x), y + pre.mlp(pre.mlp_norm(y)), 1e-12)
    post = _double(Block(8, 2, order="post"))
    y = post.attn_norm(x + post.attn(x))
    assert_close(post(x), post.mlp_norm(y + post.mlp(y)), 1e-12)
    both = _double(Block(8, 2, order="parallel"))
    y = both.attn_norm(x)
    assert_close(both(x), x + both.attn(y) + both.mlp(y), 1e-12)
    bare = _double(Block(8, 2, norm=None, feedforward=None))
    assert_close(bare(x), x + bare.attn(x), 1e-12)
    assert len([n for n, _ in bare.named_parameters() if "norm" in n or "mlp" in n]) == 0


def test_cross_attention_reads_the_context(gen):
    block = _double(Block(8, 2, cross=True))
    x = torch.randn(2, 5, 8, generator=gen, dtype=torch.float64)
    context = torch.randn(2, 7, 8, generator=gen, dtype=torch.float64)
    y = x + block.attn(block.attn_norm(x))
    y = y + block.cross(block.cross_norm(y), context)
    assert_close(block(x, context), y + block.mlp(block.mlp_norm(y)), 1e-12)
    with pytest.raises(ValueError, match="context is missing"):
        block(x)
    with pytest.raises(ValueError, match="context is given"):
        _double(Block(8, 2))(x, context)


def test_gated_feedforward(gen):
    layer = _double(FeedForward(4, 6, nn.SiLU, gated=True))
    x = torch.randn(3, 4, generator=gen, dtype=torch.float64)
    gate = torch.nn.functional.silu(layer.gate(x))
    assert_close(layer(x), layer.down(gate * layer.up(x)), 1e-12)


def test_factories_are_called():
    made = []

    class Own(Attention):
        def __init__(self, dim, heads):
            super().__init__(dim, heads)
            made.append((dim, heads))

    block = lambda dim, heads: Block(dim, heads, attention=Own, norm=nn.RMSNorm)
    model = SequenceModel(3, 1, 8, 3, 2, block=block, norm=None)
    assert made == [(8, 2)] * 3
    assert isinstance(model.blocks[0].attn_norm, nn.RMSNorm)
    assert len(model.hidden(torch.zeros(1, 4, 3))) == 4


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Attention(10, 3), "heads=3 must divide dim=10"),
        (lambda: Block(8, 2, order="middle"), "order='middle'"),
        (lambda: Block(8, 2, order="parallel", cross=True), "cross=True"),
        (lambda: SequenceModel(2, 1, 8, 0, 2), "depth=0"),
        (lambda: SequenceModel(2, 1, 8, 1, 2, positions="learned"), "positions='learned'"),
        (lambda: context_mask(4, 4), "queries=4: allowed is 1 to 3"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
