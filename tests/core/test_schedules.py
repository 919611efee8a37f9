"""Schedules against closed forms and PyTorch's own."""

import math

import pytest
import torch

from lib.core.schedules import per_step, schedule
from tests.helpers import assert_close

NAMES = ("constant", "linear", "polynomial", "cosine", "exponential", "step")


@pytest.mark.parametrize("name", NAMES)
def test_ends_and_warmup(name):
    marks = {"milestones": (40, 70)} if name == "step" else {}
    f = schedule(name, 100, warmup=10, floor=0.1, power=2.0, **marks)
    assert [f(t) for t in range(10)] == [(t + 1) / 10 for t in range(10)]
    assert f(10) == pytest.approx(1.0)
    last = {"constant": 1.0, "step": 0.01}.get(name, 0.1)
    assert f(100) == pytest.approx(last)
    assert f(10_000) == f(100)
    values = [f(t) for t in range(10, 101)]
    assert all(a >= b for a, b in zip(values, values[1:], strict=False))


def test_middle_values():
    assert schedule("cosine", 8)(4) == pytest.approx(0.5)
    assert schedule("linear", 8)(2) == pytest.approx(0.75)
    assert schedule("polynomial", 8, power=3.0)(4) == pytest.approx(0.125)
    assert schedule("exponential", 8, floor=0.01)(4) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20)),
        ("linear", lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=20)),
        ("step", lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [5, 12], gamma=0.1)),
    ],
)
def test_agrees_with_torch(name, build):
    rates = []
    for kind in ("own", "torch"):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        marks = {"milestones": (5, 12)} if name == "step" else {}
        scheduler = (
            per_step(optimizer, schedule(name, 20, **marks)) if kind == "own" else build(optimizer)
        )
        run = []
        for _ in range(20):
            run.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        rates.append(run)
    assert_close(rates[0], rates[1], 1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": 0}, "total=0: allowed is 1 or more"),
        ({"warmup": 30}, "warmup=30: allowed is 0 to total=20"),
        ({"floor": 2.0}, "floor=2.0"),
        ({"power": 0.0}, "power=0.0"),
        ({"gamma": 0.0}, "gamma=0.0"),
        ({"milestones": (3,)}, "milestones="),
        ({"name": "exponential"}, "floor=0.0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        schedule(**{"name": "cosine", "total": 20, **arguments})


def test_cosine_is_the_formula():
    f = schedule("cosine", 50, floor=0.2)
    wanted = [0.2 + 0.4 * (1 + math.cos(math.pi * t / 50)) for t in range(51)]
    assert_close([f(t) for t in range(51)], wanted, 1e-12)
