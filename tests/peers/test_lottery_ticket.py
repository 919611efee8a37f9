"""The same masks as ``torch.nn.utils.prune``, and a training with its masks gives the same weights.

It is a part of PyTorch, so nothing has to be installed.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lib.compression.lottery_ticket import magnitude_mask
from lib.core.masks import Masked, full_mask, prunable, random_like, top_mask
from lib.core.seeds import child
from lib.models.cnn import lenet300
from lib.models.init import initialize_
from tests.helpers import assert_close


def network(seed=0):
    model = lenet300(64)
    initialize_(model, "glorot", gen=child(seed, "peer"))
    return model


def layers(model):
    return [(m, "weight") for m in model.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("rate", [0.2, 0.37])
def test_masks_round_after_round(scope, rate):
    """Weights that were pruned before are not counted in the next round, on either side."""
    ours, theirs = network(), network()
    mask = full_mask(ours)
    weights = {n: p.detach() for n, p in ours.named_parameters()}
    for _ in range(4):
        mask = magnitude_mask(weights, mask, rate, scope)
        if scope == "global":
            prune.global_unstructured(layers(theirs), prune.L1Unstructured, amount=rate)
        else:
            for module, name in layers(theirs):
                prune.l1_unstructured(module, name, amount=rate)
        for name, (module, _) in zip(mask, layers(theirs), strict=True):
            assert torch.equal(mask[name], module.weight_mask.bool()), name


def test_random_masks_have_the_peer_s_counts(gen):
    model = network()
    mask = top_mask({n: dict(model.named_parameters())[n] for n in prunable(model)}, 0.7)
    for module, name in layers(model):
        prune.random_unstructured(module, name, amount=0.3)
    for keep, (module, _) in zip(random_like(mask, gen).values(), layers(model), strict=True):
        assert keep.sum() == module.weight_mask.sum()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=1.2e-3),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ],
)
def test_training_under_a_mask(make, gen):
    """``custom_from_mask`` and ``Masked``: the same weights after ten steps."""
    plain, peer = network(), network()
    mask = random_like(top_mask({n: dict(plain.named_parameters())[n] for n in prunable(plain)},
                                0.2), gen)  # fmt: skip
    ours = Masked(copy.deepcopy(plain), mask)
    for keep, (module, name) in zip(mask.values(), layers(peer), strict=True):
        prune.custom_from_mask(module, name, keep)
    x, y = torch.rand(60, 64, generator=gen), torch.randint(10, (60,), generator=gen)
    for model in (ours, peer):
        opt = make(model.parameters())
        for _ in range(10):
            opt.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            opt.step()
    assert_close(ours(x), peer(x), 1e-5)
    state = ours.state()
    for name, (module, _) in zip(mask, layers(peer), strict=True):
        assert_close(state[name], module.weight_orig * module.weight_mask, 1e-5, name)
