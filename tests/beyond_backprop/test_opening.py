"""The part's comparison: every rule learns, and a local one hears nothing from above."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lib.beyond_backprop import counter_current
from lib.beyond_backprop.opening import RULES, Rule, cost, trial
from lib.core.data import digits
from lib.core.seeds import child
from tests.helpers import raises

WIDTHS = [64, 32, 32, 32, 10]


@pytest.fixture(scope="module")
def data():
    return digits(train=600, test=200)


def update(rule: Rule, data, upper: float) -> list[torch.Tensor]:
    """What one step changes in the lowest hidden layer, the layers above moved by ``upper``."""
    trainer = rule.make(WIDTHS, seed=0)
    lowest, *above = trainer.groups.values()
    gen = child(1, "move")
    with torch.no_grad():
        for p in (p for group in above for p in group):
            p += upper * torch.randn(p.shape, generator=gen)
    before = [p.detach().clone() for p in lowest]
    trainer.step(data.x[:20], data.y[:20])
    return [p.detach() - b for p, b in zip(lowest, before)]


@pytest.mark.parametrize("name", RULES)
def test_a_local_rule_hears_nothing_from_above_bit_for_bit(name, data):
    still, moved = (update(RULES[name], data, upper) for upper in (0.0, 0.5))
    assert any(t.abs().max() > 0 for t in still)
    same = all(torch.equal(a, b) for a, b in zip(still, moved))
    assert same == RULES[name].local


def test_counter_current_learning_is_local_but_for_its_clip(data):
    free = Rule(partial(counter_current.mlp_trainer, clip=None, lr=0.01), True)
    assert all(map(torch.equal, update(free, data, 0.0), update(free, data, 0.5)))


@pytest.mark.parametrize("name", RULES)
def test_the_same_seed_gives_the_same_network(name, data):
    first, again, other = (
        RULES[name].make(WIDTHS, seed=seed).predict(data.x_test) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (200, 10)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_learns(name, data):
    slow = ("feedback alignment", "direct feedback alignment", "direct random targets")
    steps = 200 if name in (*slow, "local forward gradient") else 40
    found = trial(RULES[name], [64, 64, 64, 10], data, steps=steps, batch=60, seed=0)
    assert found.accuracy > 0.4 and found.seconds > 0


def test_the_cost_of_back_propagation_is_what_one_counts(data):
    widths, b = [64, 16, 24, 10], 20
    found = cost(RULES["backpropagation"], widths, data.x[:b], data.y[:b], seed=0)
    # Three products up, then down to the layer, and one for its own gradient.
    assert found.waits == [6, 5]
    # Hidden layers before and after ELU; logits, their log-softmax, and the batch's weight.
    assert found.saved == 4 * b * (2 * (16 + 24) + 10) + 4


def test_the_deeper_the_network_the_longer_the_wait_unless_local(data):
    def waits(name: str, depth: int) -> list[int]:
        return cost(RULES[name], [64] + [16] * depth + [10], *rows, seed=0).waits

    rows = (data.x[:20], data.y[:20])
    assert waits("backpropagation", 6)[0] - waits("backpropagation", 3)[0] == 6
    for name in ("forward-forward", "local classifiers", "direct random targets"):
        assert waits(name, 6)[0] == waits(name, 3)[0]
    assert set(waits("NoProp", 6)) == set(waits("NoProp", 3))


def test_errors(data):
    with raises(ValueError, match="steps=0, batch=60: allowed is 1 or more"):
        trial(RULES["NoProp"], WIDTHS, data, steps=0, batch=60, seed=0)
