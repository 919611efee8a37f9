import copy

import pytest
import torch
from torch import nn

from lib.core.ensemble import Ensemble
from lib.core.masks import (
    Masked,
    apply_mask,
    density,
    full_mask,
    overlap,
    plain_name,
    prunable,
    random_like,
    top_mask,
)
from tests.helpers import assert_close, raises


def scores(gen):
    return {"a": torch.randn(7, 5, generator=gen), "b": torch.randn(3, 4, 2, generator=gen)}


def test_keeps_the_largest_of_each_tensor_or_of_all(gen):
    s = scores(gen)
    mask = top_mask(s, 0.4)
    for name, keep in mask.items():
        dropped = round(0.6 * keep.numel())
        assert int((~keep).sum()) == dropped
        assert s[name][keep].min() > s[name][~keep].max()
    pooled = top_mask(s, 0.4, "global")
    kept = torch.cat([s[n][k] for n, k in pooled.items()])
    gone = torch.cat([s[n][~k] for n, k in pooled.items()])
    assert len(gone) == round(0.6 * 59) and kept.min() > gone.max()
    # Over one tensor the two scopes are the same, and the smallest are the largest of -s.
    one = {"a": s["a"]}
    assert torch.equal(top_mask(one, 0.3)["a"], top_mask(one, 0.3, "global")["a"])
    negative = top_mask({"a": -s["a"]}, 0.3)["a"]
    assert torch.equal(top_mask(one, 0.3, largest=False)["a"], negative)


def test_limits_and_a_density_for_each(gen):
    s = scores(gen)
    assert density(top_mask(s, 1.0)) == 1 and density(top_mask(s, 0.0, "global")) == 0
    mask = top_mask(s, {"a": 0.0, "b": 1.0})
    assert not mask["a"].any() and mask["b"].all()


@pytest.mark.parametrize("n", [5, 10, 15, 25, 1000])
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3, 0.5, 0.7])
def test_dropped_counts_are_python_s_round(n, rate):
    """1 - 0.7 is not 0.3 in floating point; where a half is to be rounded, that would show."""
    keep = top_mask({"w": torch.arange(float(n))}, 1 - rate)["w"]
    assert n - int(keep.sum()) == round(rate * n)


def test_ties_keep_the_earlier():
    keep = top_mask({"w": torch.tensor([1.0, 2.0, 1.0, 1.0, 2.0])}, 0.6)["w"]
    assert keep.tolist() == [True, True, False, False, True]


def test_candidates_are_ranked_among_themselves(gen):
    s = scores(gen)
    first = top_mask(s, 0.5)
    second = top_mask(s, 0.5, within=first)
    assert all((second[n] <= first[n]).all() for n in s)
    for n in s:
        left = int(first[n].sum())
        assert int(second[n].sum()) == left - round(0.5 * left)
    # What is no candidate may even be NaN.
    spoiled = {n: torch.where(first[n], t, float("nan")) for n, t in s.items()}
    assert all(torch.equal(top_mask(spoiled, 0.5, within=first)[n], second[n]) for n in s)
    with raises(ValueError, match="a: a score is NaN"):
        top_mask(spoiled, 0.5)


def test_shuffled_mask_has_the_same_counts(gen):
    mask = top_mask(scores(gen), 0.3)
    other = random_like(mask, gen)
    assert all(other[n].sum() == mask[n].sum() for n in mask)
    assert any((other[n] != mask[n]).any() for n in mask)


def test_overlap():
    a = {"w": torch.tensor([True, True, False, False])}
    b = {"w": torch.tensor([True, False, False, False])}
    assert_close(overlap([a, b]), [[1.0, 1.0], [0.5, 1.0]])


def test_prunable_leaves_out_biases_norms_and_embeddings():
    model = nn.ModuleDict(
        {
            "words": nn.Embedding(9, 4),
            "conv": nn.Conv2d(1, 2, 3),
            "norm": nn.BatchNorm2d(2),
            "head": nn.Linear(4, 2),
        }
    )
    assert prunable(model) == ["conv.weight", "head.weight"]
    assert prunable(model, ["head"]) == ["conv.weight"]
    assert density(full_mask(model)) == 1
    assert prunable(nn.Embedding(3, 2)) == [] and prunable(nn.Linear(3, 2)) == ["weight"]
    with raises(ValueError, match="exclude='hea': no parameter"):
        prunable(model, ["hea"])


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3))


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_no_optimizer_revives_a_weight(make, gen):
    model = network()
    before = copy.deepcopy(dict(model.named_parameters()))
    mask = random_like(top_mask({n: before[n] for n in prunable(model)}, 0.4), gen)
    masked = Masked(model, mask)
    plain = copy.deepcopy(network())
    plain.load_state_dict(masked.state())
    x = torch.randn(16, 6, generator=gen)
    assert_close(masked(x), plain(x), 0.0)
    opt = make(masked.parameters())
    for _ in range(5):
        opt.zero_grad()
        masked(x).square().mean().backward()
        opt.step()
        state = masked.state()
        for name, keep in mask.items():
            assert (state[name][~keep] == 0).all() and (state[name][keep] != 0).all()
            hidden = dict(masked.named_parameters())
            hidden = {plain_name(n.removeprefix("module.")): p for n, p in hidden.items()}
            assert (hidden[name][~keep] == 0).all()
    assert state.keys() == network().state_dict().keys()
    assert all((masked.mask[n] == mask[n]).all() for n in mask)


def test_gradient_is_that_of_the_dense_network_on_the_survivors(gen):
    model = network().double().eval()
    mask = top_mask({n: dict(model.named_parameters())[n].abs() for n in prunable(model)}, 0.5)
    dense = copy.deepcopy(model)
    dense.load_state_dict(apply_mask(dict(model.state_dict()), mask))
    masked = Masked(model, mask)
    x = torch.randn(4, 6, generator=gen).double()
    for net in (masked, dense):
        net(x).square().sum().backward()
    truth = {n: p.grad for n, p in dense.named_parameters()}
    for full, p in masked.named_parameters():
        name = plain_name(full.removeprefix("module."))
        assert_close(p.grad, apply_mask(truth, mask)[name], 1e-12)


def test_another_mask_and_a_stack_of_masks(gen):
    nets = []
    for density_ in (0.2, 0.6):
        model = nn.Linear(5, 4)
        nets.append(Masked(model, random_like(top_mask({"weight": model.weight}, density_), gen)))
    x = torch.randn(3, 5, generator=gen)
    together = Ensemble(nets)(x)
    for i, net in enumerate(nets):
        assert_close(together[i], net(x), 1e-6)
    old, state = nets[0].mask, nets[0].state()
    nets[0].set_mask(nets[1].mask)
    both = old["weight"] & nets[1].mask["weight"]
    assert_close(nets[0].state()["weight"], torch.where(both, state["weight"], 0), 0.0)
    assert torch.equal(nets[0].mask["weight"], nets[1].mask["weight"])


def test_errors():
    s = {"w": torch.arange(4.0)}
    with raises(ValueError, match="scope='network': allowed are 'layer' and 'global'"):
        top_mask(s, 0.5, "network")
    with raises(ValueError, match="density=1.5: allowed is 0 to 1"):
        top_mask(s, 1.5)
    with raises(ValueError, match="density: nothing for 'w'; there are v"):
        top_mask(s, {"v": 0.5})
    with raises(ValueError, match="one number for scope='global'"):
        top_mask(s, {"w": 0.5}, "global")
    with raises(ValueError, match="only one side has v, w"):
        top_mask(s, 0.5, within={"v": torch.ones(4, dtype=torch.bool)})
    with raises(ValueError, match=r"w: the mask has shape \(3,\), the tensor \(4,\)"):
        top_mask(s, 0.5, within={"w": torch.ones(3, dtype=torch.bool)})
    with raises(ValueError, match="w: a mask is boolean"):
        top_mask(s, 0.5, within={"w": torch.ones(4)})
    with raises(ValueError, match="mask is empty"):
        density({})
    with raises(ValueError, match="masks is empty"):
        overlap([])
    with raises(ValueError, match="mask: no parameter 'w'; there are weight, bias"):
        Masked(nn.Linear(2, 2), {"w": torch.ones(2, 2, dtype=torch.bool)})
    with raises(ValueError, match="scores is empty: a global pool"):
        top_mask({}, 0.5, "global")
    with raises(ValueError, match="masks is empty"):
        overlap([{}])
    with raises(ValueError, match="mask: no parameter 'v'; there are w"):
        apply_mask(s, {"v": torch.ones(4, dtype=torch.bool)})
    with raises(ValueError, match=r"w: the mask has shape \(1,\), the tensor \(4,\)"):
        apply_mask(s, {"w": torch.ones(1, dtype=torch.bool)})
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    with raises(ValueError, match="mask: '0.weight' is tied to '1.weight'"):
        Masked(tied, {"0.weight": torch.ones(2, 2, dtype=torch.bool)})
    with raises(TypeError, match="weight_hh_l0: LSTM reads its weights past the mask"):
        Masked(nn.LSTM(2, 3), {"weight_hh_l0": torch.ones(12, 3, dtype=torch.bool)})
