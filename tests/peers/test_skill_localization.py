"""The same scores as transformers' RoBERTa and GPT-2, from the weights of tiny random ones.

This is the path by which real checkpoints are loaded. ECE is compared with torchmetrics where that
is installed.
"""

import pytest
import torch

from lib.core.metrics import ece
from lib.language import skill_localization as sl
from lib.models import hf
from lib.models.adapters import tune_only
from lib.models.lm import label_logits, token_logprobs
from tests.helpers import assert_close, raises


def scramble(model):
    """Every weight random, also those that start at 0 or 1."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn_like(p))
    return model.double().eval()


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="pip install transformers")


@pytest.fixture
def roberta(transformers):
    config = transformers.RobertaConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=40, max_position_embeddings=20, type_vocab_size=1, pad_token_id=1,
        layer_norm_eps=1e-5,
    )  # fmt: skip
    return scramble(transformers.RobertaForMaskedLM(config))


@pytest.fixture
def gpt2(transformers):
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=24, n_layer=2, n_head=3, n_positions=20, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return scramble(transformers.GPT2LMHeadModel(config))


def test_roberta(roberta, gen):
    ours = hf.convert(roberta)
    ids = torch.randint(2, 50, (3, 9), generator=gen)
    real = torch.ones(3, 9, dtype=torch.bool)
    real[1, 6:] = False
    ids[~real] = 1
    theirs = roberta(input_ids=ids, attention_mask=real.long()).logits
    assert_close(ours(ids, real)[real], theirs[real], 1e-10)
    words = torch.tensor([7, 3, 30])
    at = torch.tensor([8, 5, 2])
    assert_close(label_logits(ours, ids, at, words, real), theirs[range(3), at][:, words], 1e-10)
    # Tied in both, so the bodies are all that fine-tuning changes.
    assert sum(p.numel() for p in ours.parameters()) == sum(
        p.numel() for p in roberta.parameters()
    ) - 24 * (2 + 1)  # two unused positions, one token type


def test_gpt2(gpt2, gen):
    ours = hf.convert(gpt2)
    ids = torch.randint(50, (3, 9), generator=gen)
    theirs = gpt2(input_ids=ids).logits
    assert_close(ours(ids), theirs, 1e-10)
    # transformers averages over all predicted words of the batch.
    loss = gpt2(input_ids=ids, labels=ids).loss
    assert_close(-token_logprobs(ours, ids)[:, 1:].mean(), loss, 1e-6)  # theirs is in float32


def test_the_gradient_of_a_graft_is_theirs(roberta, gen):
    """A graft on our names is a graft on theirs: the same loss gradient in the body's weights."""
    ours = sl.PromptClassifier(hf.convert(roberta))
    tune_only(ours, ["model.blocks"])
    ids, y = torch.randint(2, 50, (4, 7), generator=gen), torch.tensor([0, 1, 1, 0])
    words = torch.tensor([5, 9])
    loss = torch.nn.functional.cross_entropy(ours(ids, words), y)
    logits = roberta(input_ids=ids).logits[:, -1, words]
    other = torch.nn.functional.cross_entropy(logits, y)
    mine = dict(ours.named_parameters())["model.blocks.1.mlp.up.weight"]
    theirs = roberta.roberta.encoder.layer[1].intermediate.dense.weight
    a = torch.autograd.grad(loss, mine)[0]
    assert_close(a, torch.autograd.grad(other, theirs)[0], 1e-9)


def test_saved_checkpoints(roberta, gpt2, tmp_path, gen):
    ids = torch.randint(2, 50, (2, 5), generator=gen)
    for model, kind in ((roberta, "Encoder"), (gpt2, "Decoder")):
        model.save_pretrained(tmp_path / kind)
        ours = hf.from_pretrained(str(tmp_path / kind))
        assert type(ours).__name__ == kind
        assert_close(ours.double()(ids), model(input_ids=ids).logits, 1e-6)


def test_other_models_are_refused(transformers, gpt2, tmp_path):
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    with raises(ValueError, match="model: 'bert'; allowed are roberta, gpt2"):
        hf.convert(_fake(config)())
    config.save_pretrained(tmp_path)
    with raises(ValueError, match="is a 'bert'; allowed are roberta, gpt2"):
        hf.from_pretrained(str(tmp_path))
    gpt2.config.activation_function = "relu"
    with raises(ValueError, match="activation_function='relu'; allowed is 'gelu_new'"):
        hf.convert(gpt2)


def _fake(settings):
    return type("Other", (torch.nn.Module,), {"config": settings})


def test_ece_against_torchmetrics(gen):
    peer = pytest.importorskip("torchmetrics.functional.classification", reason="torchmetrics")
    probs = (3 * torch.randn(500, 4, generator=gen)).softmax(-1)
    y = torch.randint(4, (500,), generator=gen)
    want = peer.multiclass_calibration_error(probs, y, num_classes=4, n_bins=10, norm="l1")
    assert_close(ece(probs, y), want, 1e-5)
