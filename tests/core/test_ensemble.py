import pytest
import torch
from torch import nn

from lib.core.ensemble import Ensemble, fit_ensemble, stack
from lib.core.fitting import fit
from tests.helpers import assert_close, raises


def make(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def mse(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


@pytest.fixture
def data(gen):
    x = torch.randn(20, 3, generator=gen).double()
    return x, torch.sin(x[:, :2])


SEEDS = [4, 7, 9]


def test_a_call_is_every_member_on_its_own(data):
    x, _ = data
    ensemble = Ensemble([make(k) for k in SEEDS], SEEDS)
    out = ensemble(x)
    assert out.shape == (3, 20, 2) and len(ensemble) == 3
    for i, seed in enumerate(SEEDS):
        assert_close(out[i], make(seed)(x), 1e-14)
        assert_close(ensemble.member(i)(x), make(seed)(x), 1e-14)
    own = torch.stack([x, 2 * x, 3 * x])
    assert_close(ensemble(own, per_member=True)[1], make(7)(2 * x), 1e-14)


def test_stack_is_functional(data):
    x, _ = data
    params, call = stack([make(k) for k in SEEDS])
    assert_close(call(params, x)[2], make(9)(x), 1e-14)
    doubled = {k: 2 * p for k, p in params.items()}
    assert not torch.allclose(call(doubled, x), call(params, x))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ],
)
@pytest.mark.parametrize("batch", [None, 6])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_members_train_as_if_alone(data, optimizer, batch, clip):
    schedule = lambda t: 1 / (1 + t)
    settings = {"steps": 12, "optimizer": optimizer, "batch": batch}
    settings |= {"clip": clip, "schedule": schedule}
    together = fit_ensemble(make, SEEDS, data, mse, **settings, log=[0, 12])
    for i, seed in enumerate(SEEDS):
        alone = make(seed)
        history = fit(alone, data, mse, **settings, log=[0], seed=seed)
        assert_close(together(data[0])[i], alone(data[0]), 1e-9, f"seed {seed}")
        assert_close(together.history.rows[i]["loss"], history.rows[0]["loss"], 1e-12)


def test_targets_per_member_and_rates(data):
    x, y = data
    ys = torch.stack([y, -y, 0 * y])
    sgd = lambda p: torch.optim.SGD(p, lr=0.2)
    rates = torch.tensor([1.0, 0.5, 0.0])
    together = fit_ensemble(
        make, SEEDS, (x, ys), mse, steps=5, optimizer=sgd, per_member=(False, True), rates=rates
    )
    for i, seed in enumerate(SEEDS):
        alone = make(seed)
        slow = lambda p, i=i: torch.optim.SGD(p, lr=0.2 * float(rates[i]))
        fit(alone, (x, ys[i]), mse, steps=5, optimizer=slow)
        assert_close(together(x)[i], alone(x), 1e-12)


def test_training_goes_on_from_an_ensemble_and_records(data):
    sgd = lambda p: torch.optim.SGD(p, lr=0.1)
    first = fit_ensemble(make, SEEDS, data, mse, steps=3, optimizer=sgd)
    again = fit_ensemble(
        first,
        SEEDS,
        lambda t: data,
        mse,
        steps=3,
        optimizer=sgd,
        log=[0, 3],
        callback=lambda t, e: {"norm": e(data[0]).flatten(1).norm(dim=1), "step2": t * t},
    )
    whole = fit_ensemble(make, SEEDS, data, mse, steps=6, optimizer=sgd)
    assert_close(again(data[0]), whole(data[0]), 1e-13)
    frame = again.history.frame()
    assert list(frame.seed) == SEEDS * 2 and set(frame.columns) >= {"loss", "norm", "step2"}
    assert_close(frame.norm[3:].to_numpy(), again(data[0]).flatten(1).norm(dim=1), 1e-13)


def test_errors(data):
    sgd = lambda p: torch.optim.SGD(p, lr=0.1)
    with raises(ValueError, match="steps=-1"):
        fit_ensemble(make, SEEDS, data, mse, steps=-1, optimizer=sgd)
    with raises(ValueError, match="batch=21.*1 to 20"):
        fit_ensemble(make, SEEDS, data, mse, steps=1, optimizer=sgd, batch=21)
    with raises(ValueError, match="outside 0 to 1"):
        fit_ensemble(make, SEEDS, data, mse, steps=1, optimizer=sgd, log=[2])
    with raises(ValueError, match="scalar"):
        fit_ensemble(make, SEEDS, data, lambda m, b: m(b[0]), steps=1, optimizer=sgd)
    with raises(ValueError, match="per_member: 1 answers for 2"):
        fit_ensemble(make, SEEDS, data, mse, steps=1, optimizer=sgd, per_member=[True])
    with raises(ValueError, match="at least one member"):
        Ensemble([])
    bad = torch.stack([data[1], data[1] * float("nan"), data[1]])
    with raises(FloatingPointError, match="seed 7 is not finite at step 0"):
        fit_ensemble(
            make, SEEDS, (data[0], bad), mse, steps=1, optimizer=sgd, per_member=(False, True)
        )
