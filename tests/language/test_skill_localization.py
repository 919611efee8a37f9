import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lib.core.masks import density, overlap, top_mask
from lib.core.seeds import child
from lib.kernels.graft_step import relaxed_graft
from lib.language import skill_localization as sl
from lib.models.adapters import tune_only
from lib.models.transformer import Block, Decoder, Encoder, FeedForward
from tests.helpers import assert_close, raises

WORDS = torch.tensor([3, 9])


def small(kind=Encoder):
    torch.manual_seed(1)
    block = lambda d, h: Block(d, h, feedforward=lambda d: FeedForward(d, 2 * d))
    model = kind(20, 16, 2, 2, positions=8, block=block, tie=False)
    nn.init.normal_(model.embed.weight)
    return model.double()


@pytest.fixture
def classifier():
    model = sl.PromptClassifier(small())
    tune_only(model, ["model.blocks"])
    return model


@pytest.fixture
def data():
    """Prompts whose class is whether their first word is below 10."""
    gen = child(0, "data")
    ids = torch.randint(20, (96, 6), generator=gen)
    y = (ids[:, 0] < 10).long()
    make = lambda s: (ids[s], y[s], WORDS.expand(len(ids[s]), 2))
    return make(slice(0, 48)), make(slice(48, 72)), make(slice(72, 96))


@pytest.fixture
def pair(classifier, data):
    """Pre-trained (random) and fine-tuned values."""
    pre = sl.trainable(classifier)
    return pre, sl.fine_tune(classifier, pre, data[0], steps=30, optimizer=sgd(0.3))


def sgd(lr):
    return lambda p: torch.optim.SGD(p, lr=lr)


def full(params, value):
    return {n: torch.full_like(p, value, dtype=torch.bool) for n, p in params.items()}


def same(a, b):
    return all(torch.equal(a[n], b[n]) for n in a) and a.keys() == b.keys()


# Grafts


def test_empty_and_full_grafts_are_the_two_models_bit_for_bit(classifier, data, pair):
    pre, ft = pair
    for value, ends in ((False, pre), (True, ft)):
        grafted = sl.graft(pre, ft, full(pre, value))
        assert same(grafted, ends)
        got, want = (sl.logits_of(classifier, p, data[2]) for p in (grafted, ends))
        assert torch.equal(got, want)
    # Twice the same graft is one graft; grafting the rest completes the model.
    mask = sl.top_movement_mask(pre, ft, 0.1)
    part = sl.graft(pre, ft, mask)
    assert same(sl.graft(part, ft, mask), part)
    assert same(sl.graft(part, ft, {n: ~m for n, m in mask.items()}), ft)


def test_graft_is_the_paper_s_formula(pair):
    pre, ft = pair
    mask = sl.random_mask(pre, 0.3, child(0, "m"))
    for name, value in sl.graft(pre, ft, mask).items():
        assert_close(value, pre[name] + mask[name] * (ft[name] - pre[name]), 1e-14)
    name = next(iter(pre))
    assert same(sl.graft(pre, ft, {name: mask[name]}), {**pre, name: sl.graft(pre, ft, mask)[name]})


def test_top_movement_and_its_ties():
    pre = {"a": torch.zeros(4), "b": torch.zeros(2, 2)}
    ft = {"a": torch.tensor([0.1, -5.0, 2.0, 0.0]), "b": torch.tensor([[2.0, -2.0], [0.2, 3.0]])}
    mask = sl.top_movement_mask(pre, ft, 0.5)  # 4 of 8: 5, 3 and two of the three 2s
    assert mask["a"].tolist() == [False, True, True, False]
    assert mask["b"].tolist() == [[True, False], [False, True]]
    strict = sl.top_movement_mask(pre, ft, 0.5, strict=True)
    assert sum(int(m.sum()) for m in strict.values()) == 2  # 5 and 3
    assert density(sl.top_movement_mask(pre, ft, 0.0, strict=True)) == 0


def test_top_movement_is_the_sorted_one_at_every_density(pair):
    pre, ft = pair
    moved = {n: (ft[n] - p).abs() for n, p in pre.items()}
    for share in (0.0, 1e-6, 0.001, 0.07, 0.5, 0.999, 1.0):
        for dtype in (torch.float64, torch.float32):
            a, b = ({n: t.to(dtype) for n, t in values.items()} for values in (pre, ft))
            moved = {n: (b[n] - a[n]).abs() for n in a}
            want = top_mask(moved, share, scope="global")
            assert same(sl.top_movement_mask(a, b, share), want)


def test_padding_on_the_right_changes_nothing(data):
    ids, _, words = data[2]
    for kind in (Encoder, Decoder):
        model = sl.PromptClassifier(small(kind))
        plain = model(ids, words)
        padded = F.pad(ids, (0, 2), value=19)
        real = F.pad(torch.ones_like(ids, dtype=torch.bool), (0, 2))
        position = torch.full((len(ids),), ids.shape[1] - 1)
        assert_close(model(padded, words, position, real), plain, 1e-12)
        tuned = [
            sl.fine_tune(model, sl.trainable(model), batch, steps=2, optimizer=sgd(0.1))
            for batch in ((ids, data[2][1], words), (padded, data[2][1], words, position, real))
        ]
        for name, value in tuned[0].items():
            assert_close(tuned[1][name], value, 1e-10)


def test_random_mask_has_the_density_and_no_preference(pair):
    pre, _ = pair
    mask = sl.random_mask(pre, 0.2, child(0, "r"))
    assert abs(density(mask) - 0.2) < 1e-3
    shares = sl.by_module(mask)
    big = shares[shares["size"] >= 256]
    assert (big.density - 0.2).abs().max() < 0.12  # 5 standard deviations
    other = sl.random_mask(pre, 0.2, child(1, "r"))
    assert abs(overlap([mask, other])[0, 1] - 0.2) < 0.05


# The search


def test_gradient_of_the_mask_by_hand_is_autograd_s(classifier, data, pair):
    pre, ft = pair
    base = sl.top_movement_mask(pre, ft, 0.05)
    search = sl.GraftOptimizer(classifier, pre, ft, base, gen=child(0, "s"), bias=2.0)
    score = search.score.clone().requires_grad_()
    theta = relaxed_graft(search.pre, search.delta, score, search.base, 2.0)
    params, start = {}, 0
    for name, p in pre.items():
        params[name] = theta[start : start + p.numel()].view(p.shape)
        start += p.numel()
    x, y, words = data[0]
    F.cross_entropy(functional_call(classifier, params, (x, words)), y).backward()
    _, g = search.gradient(data[0])
    p = torch.sigmoid(search.score - 2.0)
    sign = 1 - 2 * search.base.double()
    assert_close(g * search.delta * sign * p * (1 - p), score.grad, 1e-10)
    # And the step goes down that gradient, in the units of the docstring.
    before = search.score.clone()
    search.step(data[0])
    assert_close(search.score, before - search.eta * score.grad, 1e-10)
    assert_close(search.eta, 100 / (g * search.delta).square().mean().sqrt(), 1e-10)


def test_search_starts_at_the_base_adds_and_removes(classifier, data, pair):
    pre, ft = pair
    base = sl.top_movement_mask(pre, ft, 0.1)
    search = sl.GraftOptimizer(classifier, pre, ft, base, gen=child(0, "s"), lr=3e4)
    assert same(search.hard_mask(), base)
    losses = [search.step(data[0]) for _ in range(6)]
    mask = search.hard_mask()
    assert sum(int((m & ~base[n]).sum()) for n, m in mask.items()) > 0
    assert sum(int((base[n] & ~m).sum()) for n, m in mask.items()) > 0
    assert losses[-1] < losses[0]


def test_batches_are_averaged(classifier, data, pair):
    pre, ft = pair
    base = sl.top_movement_mask(pre, ft, 0.05)
    make = lambda: sl.GraftOptimizer(classifier, pre, ft, base, gen=child(0, "s"))
    halves = [tuple(t[s] for t in data[0]) for s in (slice(0, 24), slice(24, 48))]
    whole, parts = make(), make()
    assert_close(whole.step(data[0]), parts.step(*halves), 1e-10)
    assert_close(whole.score, parts.score, 1e-10)


def test_find_graft_keeps_the_best(classifier, data, pair):
    pre, ft = pair
    base = sl.top_movement_mask(pre, ft, 0.02)
    options = {"gen": child(0, "s"), "steps": 8, "lr": 1e4}
    found = sl.find_graft(classifier, pre, ft, base, *data[:2], **options)
    assert [r["step"] for r in found.rows] == list(range(9))
    both = [r["train"] + r["val"] for r in found.rows]
    assert found.step == both.index(max(both))
    assert_close(density(found.mask), found.rows[found.step]["density"], 1e-9)
    got = sl.score(classifier, sl.graft(pre, ft, found.mask), data[1]).accuracy
    assert_close(got, found.rows[found.step]["val"], 1e-12)
    tight = sl.find_graft(classifier, pre, ft, base, *data[:2], most=0.021, **options)
    assert density(tight.mask) <= 0.021
    drawn = sl.find_graft(classifier, pre, ft, base, lambda t: [data[0]], data[1], **options)
    assert len(drawn.rows) == 9
    with raises(ValueError, match="base_mask: density 0.02"):
        sl.find_graft(classifier, pre, ft, base, *data[:2], most=0.01, **options)


# Fine-tuning


def test_fine_tuning_leaves_the_model_alone(classifier, data):
    before = {n: p.detach().clone() for n, p in classifier.named_parameters()}
    learns = {n: p.requires_grad for n, p in classifier.named_parameters()}
    pre = sl.trainable(classifier)
    ft = sl.fine_tune(classifier, pre, data[0], steps=5, optimizer=sgd(0.1))
    assert not same(pre, ft)
    assert same(before, dict(classifier.named_parameters()))
    assert learns == {n: p.requires_grad for n, p in classifier.named_parameters()}
    # It starts from what it is given: two halves are one run.
    first = sl.fine_tune(classifier, pre, data[0], steps=2, optimizer=sgd(0.1))
    second = sl.fine_tune(classifier, first, data[0], steps=3, optimizer=sgd(0.1))
    assert all(torch.allclose(second[n], ft[n], atol=1e-12) for n in ft)


def test_one_step_is_sgd_and_l1_pulls_back(classifier, data, pair):
    pre, ft = pair
    x, y, words = data[0]
    leaves = {n: p.clone().requires_grad_() for n, p in pre.items()}
    loss = F.cross_entropy(functional_call(classifier, leaves, (x, words)), y)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    one = sl.fine_tune(classifier, pre, data[0], steps=1, optimizer=sgd(0.1))
    for (name, value), g in zip(one.items(), grads):
        assert_close(value, pre[name] - 0.1 * g, 1e-12)
    adam = lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0)
    moved = []
    for l1 in (0.0, 1e-3, 1e-2):
        new = sl.fine_tune(classifier, pre, data[0], steps=20, optimizer=adam, l1=l1)
        moved.append(sum(float((new[n] - pre[n]).abs().sum()) for n in pre))
    assert moved[0] > moved[1] > moved[2]


def test_retraining_moves_the_region_alone(classifier, data, pair):
    pre, ft = pair
    mask = sl.top_movement_mask(pre, ft, 0.05)
    adam = lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1)
    new = sl.retrain(classifier, pre, mask, data[0], steps=5, optimizer=adam)
    for name, p in pre.items():
        assert torch.equal(new[name][~mask[name]], p[~mask[name]])
    assert any((new[n] != pre[n]).any() for n in pre)
    # With every entry allowed to move it is fine-tuning.
    every = sl.retrain(classifier, pre, full(pre, True), data[0], steps=30, optimizer=sgd(0.3))
    assert same(every, ft)


@pytest.mark.parametrize("kind", ["prompt", "autoregressive", "head", "bias"])
def test_every_variant_learns_and_grafts(kind, data):
    model = small(Decoder if kind == "autoregressive" else Encoder)
    model = sl.HeadClassifier(model, 2).double() if kind == "head" else sl.PromptClassifier(model)
    tune_only(model, "bias" if kind == "bias" else ["model.blocks"], within=["model.blocks"])
    pre = sl.trainable(model)
    ft = sl.fine_tune(model, pre, data[0], steps=40, optimizer=sgd(0.3))
    before, after = (sl.score(model, p, data[0], like=ft) for p in (pre, ft))
    assert after.accuracy > before.accuracy + 0.1
    assert after.agreement == 1
    half = sl.score(model, sl.graft(pre, ft, sl.top_movement_mask(pre, ft, 0.5)), data[0], like=ft)
    assert half.agreement > before.agreement
    assert math.isnan(sl.score(model, pre, data[0]).agreement)


def test_head_reads_the_first_token(data):
    model = sl.HeadClassifier(small(Decoder), 3).double()
    ids = data[0][0]
    changed = ids.clone()
    changed[:, 1:] = (ids[:, 1:] + 1) % 20  # a causal model's first state sees the first word only
    assert_close(model(changed), model(ids), 1e-12)


# Regions


def test_cost_of_a_skill():
    mask = {"w": torch.zeros(1000, dtype=torch.bool)}
    mask["w"][:3] = True
    cost = sl.skill_bytes(mask)
    assert cost["values"] == 12 and cost["indices"] == 12 and cost["full"] == 4000
    assert_close(cost["packed"], math.log2(math.comb(1000, 3)) / 8, 1e-9)
    assert sl.skill_bytes(mask, 16)["values"] == 6
    # No code for regions is shorter, on average, than the entropy it must carry; none at the ends.
    assert abs(sl.skill_bytes({"w": torch.ones(9, dtype=torch.bool)})["packed"]) < 1e-9


def test_by_module_counts_everything(pair):
    pre, ft = pair
    mask = sl.top_movement_mask(pre, ft, 0.1)
    table = sl.by_module(mask)
    assert set(table.layer) == {0, 1}
    assert table["size"].sum() == sum(p.numel() for p in pre.values())
    assert_close(table.share.sum(), 1.0, 1e-12)
    row = table[(table.layer == 1) & (table.module == "mlp.up.weight")].iloc[0]
    assert row.kept == int(mask["model.blocks.1.mlp.up.weight"].sum())
    assert sl.by_module({"head": torch.ones(2, dtype=torch.bool)}).layer.tolist() == [-1]


def test_union_and_overlap():
    a = {"w": torch.tensor([True, True, False, False])}
    b = {"w": torch.tensor([False, True, True, True])}
    assert sl.union([a, b])["w"].all()
    # |a and b| / |b| and / |a|
    assert_close(sl.mask_overlap([a, b]), torch.tensor([[1, 1 / 3], [1 / 2, 1]]), 1e-6)


def test_continual_grafts_never_touch_an_earlier_region(classifier, data):
    pre = sl.trainable(classifier)
    seen = []

    def tune(params, task):
        seen.append({n: p.clone() for n, p in params.items()})
        x, y, words = data[task]
        return sl.fine_tune(classifier, params, data[task], steps=3, optimizer=sgd(0.3))

    locate = lambda before, after, task: sl.top_movement_mask(before, after, 0.05)
    stages = sl.continual(pre, [0, 1, 2], tune, locate)
    for i, stage in enumerate(stages):
        before = seen[i]
        for name, keep in stage.mask.items():
            assert torch.equal(stage.params[name][~keep], before[name][~keep])
        for other in stages[:i]:
            assert not any((stage.mask[n] & other.mask[n]).any() for n in pre)
            for name, keep in other.mask.items():
                assert torch.equal(stage.params[name][keep], other.params[name][keep])
    naive = sl.continual(pre, [0, 1], tune)
    assert naive[0].mask is None
    assert same(naive[1].params, tune(naive[0].params, 1))


def test_errors(classifier, data, pair):
    pre, ft = pair
    name = "model.blocks.0.attn.q.bias"
    short = {n: t for n, t in ft.items() if n != name}
    with raises(ValueError, match=f"only one of them has {name}"):
        sl.graft(pre, short, {})
    with raises(ValueError, match="pre and ft have the shapes"):
        sl.graft(pre, {**ft, name: ft[name][:3]}, {})
    with raises(ValueError, match="mask: no parameter 'w'"):
        sl.graft(pre, ft, {"w": torch.tensor([True])})
    with raises(ValueError, match="True is grafted, so bool is allowed"):
        sl.graft(pre, ft, {name: torch.ones(16)})
    with raises(ValueError, match=r"has shape \(3,\), the parameter \(16,\)"):
        sl.graft(pre, ft, {name: torch.ones(3, dtype=torch.bool)})
    with raises(ValueError, match="lr=0.0: allowed are positive"):
        sl.GraftOptimizer(classifier, pre, ft, full(pre, False), gen=child(0), lr=0.0)
    with raises(ValueError, match="steps=-1"):
        sl.find_graft(classifier, pre, ft, full(pre, False), *data[:2], gen=child(0), steps=-1)
    with raises(ValueError, match="l1=-1.0"):
        sl.fine_tune(classifier, pre, data[0], steps=1, optimizer=sgd(0.1), l1=-1.0)
    with raises(ValueError, match="the model has no parameter 'w'"):
        sl.fine_tune(classifier, {"w": ft[name]}, data[0], steps=1, optimizer=sgd(0.1))
    with raises(ValueError, match="value_bits=0"):
        sl.skill_bytes(full(pre, False), 0)
    with raises(ValueError, match="masks is empty"):
        sl.union([])
    with raises(ValueError, match="same names"):
        sl.union([full(pre, True), {}])


def test_errors_of_odd_input(classifier, data, pair):
    pre, ft = pair
    name = "model.blocks.0.attn.q.bias"
    base = sl.top_movement_mask(pre, ft, 0.05)
    broken = {**ft, name: ft[name] * float("nan")}
    search = lambda *args: sl.GraftOptimizer(classifier, *args, gen=child(0))
    with raises(ValueError, match="pre is empty"):
        sl.top_movement_mask({}, {}, 0.1)
    for share in (-0.1, 1.5, float("nan")):
        with raises(ValueError, match=f"density={share}: allowed is 0 to 1"):
            sl.top_movement_mask(pre, ft, share)
    with raises(ValueError, match=f"{name}: a movement is NaN"):
        sl.top_movement_mask(pre, broken, 0.1)
    with raises(ValueError, match="pre is torch.float64, ft torch.float32"):
        sl.graft(pre, {n: t.float() for n, t in ft.items()}, {})
    with raises(ValueError, match="like is empty"):
        sl.random_mask({}, 0.1, child(0))
    with raises(ValueError, match="entries that are not finite"):
        search(pre, broken, base)
    with raises(ValueError, match="ft equals pre"):
        search(pre, pre, base)
    with raises(ValueError, match="base_mask is empty"):
        search(pre, ft, {})
    with raises(ValueError, match="batches is empty"):
        search(pre, ft, base).step()
    none = tuple(t[:0] for t in data[0])
    with raises(ValueError, match="no samples"):
        sl.find_graft(classifier, pre, ft, base, data[0], none, gen=child(0))
    with raises(ValueError, match="data has no samples"):
        sl.score(classifier, pre, none)
    with raises(ValueError, match="mask: no parameter 'w'"):
        sl.retrain(classifier, pre, {"w": base[name]}, data[0], steps=1, optimizer=sgd(0.1))
    with raises(ValueError, match="a mask is boolean"):
        sl.union([base, {n: m.long() for n, m in base.items()}])
    with raises(ValueError, match="the masks have the shapes"):
        sl.union([{"w": base[name]}, {"w": base[name][:1]}])


def test_a_flat_loss_sets_no_unit(classifier, data, pair):
    """Where the gradient is exactly zero the search waits instead of standing still for good."""
    pre, ft = pair
    base = sl.top_movement_mask(pre, ft, 0.05)
    search = sl.GraftOptimizer(classifier, pre, ft, base, gen=child(0))
    search.loss = lambda logits, y: 0 * logits.sum()
    before = search.score.clone()
    search.step(data[0])
    assert search.eta is None and torch.equal(search.score, before)
    search.loss = F.cross_entropy
    search.step(data[0])
    assert search.eta > 0
