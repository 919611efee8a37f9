import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.models.adapters import tune_only
from lib.models.lm import cover, label_logits, lm_loss, masked_lm_loss, token_logprobs
from lib.models.transformer import Block, Decoder, Encoder
from tests.helpers import assert_close, raises


@pytest.fixture
def ids(gen):
    return torch.randint(20, (3, 7), generator=gen)


def loud(model):
    """Larger embeddings: a tied random model is nearly indifferent between words."""
    nn.init.normal_(model.embed.weight)
    return model.double().eval()


def decoder(**options):
    return loud(Decoder(20, 16, 2, 4, positions=12, **options))


def encoder(**options):
    return loud(Encoder(20, 16, 2, 4, positions=12, **options))


def test_a_decoder_does_not_see_the_future_and_an_encoder_does(ids):
    changed = ids.clone()
    changed[:, 4:] = (ids[:, 4:] + 1) % 20
    causal, both = decoder(), encoder()
    assert_close(causal(changed)[:, :4], causal(ids)[:, :4], 1e-12)
    assert (both(changed)[:, :4] - both(ids)[:, :4]).abs().max() > 1e-3


def test_words_or_their_embeddings(ids):
    for model in (decoder(), encoder()):
        assert_close(model(model.embed(ids)), model(ids), 1e-12)
        states = model.hidden(ids)
        assert len(states) == 3
        assert_close(model.read_out(states[-1][:, 2]), model(ids)[:, 2], 1e-12)


def test_padding_is_not_seen(ids):
    real = torch.ones_like(ids, dtype=torch.bool)
    real[1, 5:] = False
    other = torch.where(real, ids, (ids + 3) % 20)
    for model in (decoder(), encoder()):
        assert_close(model(other, real)[real], model(ids, real)[real], 1e-12)
        assert_close(model(ids, real)[1, :5], model(ids[1:2, :5])[0], 1e-12)


def test_tied_scores_are_one_parameter():
    model = encoder()
    assert model.unembed.weight is model.embed.weight
    assert "unembed.weight" not in dict(model.named_parameters())
    assert "unembed.weight" in dict(decoder(tie=False).named_parameters())


def test_positions(ids):
    bag = loud(Encoder(20, 16, 1, 4, positions=None))
    order = torch.tensor([3, 0, 6, 1, 2, 5, 4])
    assert_close(bag(ids[:, order]), bag(ids)[:, order], 1e-12)
    waves = loud(Decoder(20, 16, 1, 4, positions="sinusoidal"))
    assert waves(ids).shape == (3, 7, 20)
    with raises(ValueError, match="tokens: 7 of them; the model has 5 positions"):
        Decoder(20, 16, 1, 4, positions=5)(ids)
    with raises(ValueError, match="positions='rope'"):
        Decoder(20, 16, 1, 4, positions="rope")
    with raises(ValueError, match="depth=0"):
        Encoder(20, 16, 0, 4, positions=5)
    with raises(ValueError, match="vocab=0"):
        Encoder(0, 16, 1, 4, positions=5)


def test_norms_where_the_papers_have_them():
    names = {n.rpartition(".")[0] for n, _ in encoder().named_parameters()}
    assert {"embed_norm", "head.0", "head.2", "unembed"} <= names
    assert "norm" not in names
    names = {n.rpartition(".")[0] for n, _ in decoder().named_parameters()}
    assert "norm" in names
    assert not {"embed_norm", "unembed"} & names
    assert encoder().blocks[0].order == "post"
    pre = encoder(block=lambda d, h: Block(d, h))
    assert pre.blocks[0].order == "pre"


def test_token_logprobs_one_by_one(ids):
    model = decoder()
    got = token_logprobs(model, ids)
    assert (got[:, 0] == 0).all()
    for t in range(1, 7):
        alone = model(ids[:, :t])[:, -1].log_softmax(-1).gather(1, ids[:, t : t + 1])[:, 0]
        assert_close(got[:, t], alone, 1e-10)
    real = torch.ones_like(ids, dtype=torch.bool)
    real[0, 3:] = False
    assert (token_logprobs(model, ids, real)[0, 3:] == 0).all()
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 5:] = True
    assert_close(lm_loss(model, ids, mask, 6), -got[:, 5:].mean(), 1e-10)


def test_cover_and_masked_loss(ids, gen):
    keep = torch.arange(7) == 0
    hidden, where = cover(ids.repeat(500, 1), 0.3, 19, gen, keep)
    assert (hidden[where] == 19).all()
    assert torch.equal(hidden[~where], ids.repeat(500, 1)[~where])
    assert not where[:, 0].any()
    assert abs(where[:, 1:].double().mean() - 0.3) < 0.03
    model = encoder()
    where = where[:3]
    scores = model(ids.masked_fill(where, 19))
    assert_close(
        masked_lm_loss(model, ids, where, 19), F.cross_entropy(scores[where], ids[where]), 1e-10
    )
    assert masked_lm_loss(model, ids, torch.zeros_like(where), 19) == 0
    with raises(ValueError, match="p=2.0: allowed is 0 to 1"):
        cover(ids, 2.0, 19, gen)


def test_label_logits(ids):
    model = encoder()
    words = torch.tensor([4, 11])
    every = model(ids)
    assert_close(label_logits(model, ids, -1, words), every[:, -1, words], 1e-12)
    at = torch.tensor([0, 3, 6])
    own = torch.tensor([[1, 2], [3, 4], [5, 6]])
    got = label_logits(model, ids, at, own)
    for i in range(3):
        assert_close(got[i], every[i, at[i], own[i]], 1e-12)
    with raises(ValueError, match="position: allowed is -7 to 6"):
        label_logits(model, ids, 7, words)


def test_tune_only():
    model = encoder()
    biases = tune_only(model, "bias", within=["blocks"])
    assert biases and all(n.endswith(".bias") and n.startswith("blocks.") for n in biases)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == biases
    norms = tune_only(model, "norm")
    assert "embed_norm.weight" in norms and "blocks.1.mlp_norm.bias" in norms
    assert not any("attn.q" in n for n in norms)
    assert tune_only(model, "blocks.1.mlp") == [
        f"blocks.1.mlp.{m}.{leaf}" for m in ("up", "down") for leaf in ("weight", "bias")
    ]
    # "blocks.1" is no beginning of "blocks.10".
    with raises(ValueError, match="what: no parameter 'block'"):
        tune_only(model, ["block"])
    with raises(ValueError, match="within: no parameter 'body'"):
        tune_only(model, "bias", within=["body"])
    with raises(ValueError, match="no parameter is left to learn"):
        tune_only(model, "norm", within=["head.0"])
