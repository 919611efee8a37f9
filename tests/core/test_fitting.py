import pytest
import torch
from torch import nn

from lib.core.fitting import History, evaluate, fit, inner_sgd, log_steps
from lib.core.seeds import batch_indices
from tests.helpers import assert_close, raises


def mse(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def data(n=32, d=3):
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=gen)
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]])


def sgd(lr):
    return lambda p: torch.optim.SGD(p, lr=lr)


def test_full_batch_descent_is_the_closed_form():
    x, y = data()
    model = nn.Linear(3, 1, bias=False)
    w0 = model.weight.detach().clone()
    fit(model, (x, y), mse, steps=20, optimizer=sgd(0.05))
    # w_t - w* = (I - lr H)^t (w_0 - w*), H = 2 X^T X / n
    step = torch.eye(3) - 0.05 * 2 * x.T @ x / len(x)
    w_star = torch.tensor([1.0, -2.0, 0.5])
    expected = w_star + torch.linalg.matrix_power(step, 20) @ (w0[0] - w_star)
    assert_close(model.weight.detach()[0], expected, 1e-5)


def test_mini_batches_are_those_of_batch_indices():
    x, y = data()
    seen = []

    def loss(model, batch):
        seen.append(batch[0])
        return mse(model, batch)

    fit(nn.Linear(3, 1), (x, y), loss, steps=5, batch=8, optimizer=sgd(0.1), seed=7)
    for step, rows in enumerate(seen):
        assert torch.equal(rows, x[batch_indices(32, 8, step, 7)])


def test_history_schedule_clip_and_callback():
    x, y = data()
    model = nn.Linear(3, 1)
    rates = []

    def factory(p):
        opt = torch.optim.SGD(p, lr=0.1)
        hook = lambda o, *_: rates.append(o.param_groups[0]["lr"])
        opt.register_step_pre_hook(hook)
        return opt

    seen = []
    history = fit(
        model, (x, y), mse, steps=4, optimizer=factory, schedule=lambda t: 1 / (t + 1), clip=1e-3,
        log=[0, 2, 4], callback=lambda t, m: {"norm": float(m.weight.norm()), "t": seen.append(t)},
    )  # fmt: skip
    assert rates == pytest.approx([0.1, 0.05, 0.1 / 3, 0.025])
    frame = history.frame()
    assert frame.step.tolist() == [0, 2, 4] and seen == [0, 2, 4]
    assert frame.loss.isna().tolist() == [False, False, True]
    assert history.last("loss") == frame.loss[1] and history.seconds > 0
    assert abs(frame.norm[2] - frame.norm[0]) <= 1e-3 * sum(rates) + 1e-7
    with raises(KeyError, match="'acc' was not recorded; recorded are loss, norm, step"):
        history.last("acc")
    with raises(KeyError, match="nothing"):
        History().last("loss")


def test_fresh_batches_from_a_function():
    steps = []

    def draw(step):
        steps.append(step)
        return data()

    fit(nn.Linear(3, 1), draw, mse, steps=3, optimizer=sgd(0.1))
    assert steps == [0, 1, 2]


@pytest.mark.parametrize(
    "changes,error,message",
    [
        ({"steps": -1}, ValueError, "steps=-1"),
        ({"batch": 33}, ValueError, "batch=33: allowed is 1 to 32"),
        ({"log": [9]}, ValueError, "log has steps outside 0 to 2"),
        ({"data": (torch.zeros(3, 3), torch.zeros(2, 1))}, ValueError, r"one length, got \[3, 2\]"),
        ({"data": lambda t: data(), "batch": 4}, ValueError, "leave it out"),
        ({"loss": lambda m, b: m(b[0])}, ValueError, "must return a scalar"),
        ({"loss": lambda m, b: mse(m, b) / 0}, FloatingPointError, "inf at step 0"),
    ],
)
def test_bad_input_is_named(changes, error, message):
    arguments = {"data": data(), "loss": mse, "steps": 2, "optimizer": sgd(0.1)} | changes
    with raises(error, match=message):
        fit(nn.Linear(3, 1), arguments.pop("data"), arguments.pop("loss"), **arguments)


def test_log_steps():
    assert log_steps(100, 5)[0] == 0 and log_steps(100, 5)[-1] == 100
    assert log_steps(0, 2) == [0]
    steps = log_steps(1000, 20)
    assert steps == sorted(set(steps)) and len(steps) <= 20
    with raises(ValueError, match="k=1"):
        log_steps(10, 1)


def test_evaluate_weighs_samples_and_restores_the_mode():
    x, y = data(10)
    model = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5)).train()
    chunked = evaluate(model, x, y, lambda a, b: (a - b).square().mean(), chunk=3)
    model.eval()
    with torch.no_grad():
        assert chunked == pytest.approx(float((model(x) - y).square().mean()), rel=1e-5)
    model.train()
    evaluate(model, x, y, lambda a, b: 0.0)
    assert model.training
    with raises(ValueError, match="one length"):
        evaluate(model, x, y[:5], lambda a, b: 0.0)


def test_inner_sgd_first_and_second_order():
    x, y = data()
    w = torch.zeros(1, 3, requires_grad=True)
    loss = lambda p: (x @ p["w"].T - y).square().mean()
    other = torch.ones(2)
    first = inner_sgd({"w": w, "v": other}, loss, lr=0.1, steps=2, only=["w"])
    second = inner_sgd({"w": w, "v": other}, loss, lr=0.1, steps=2, create_graph=True, only=["w"])
    assert_close(first["w"].detach(), second["w"].detach(), 1e-6)
    assert first["w"].is_leaf and torch.equal(second["v"], other)
    # Two steps on a quadratic: d w_2 / d w_0 = (I - lr H)^2, so the outer gradient is known.
    (grad,) = torch.autograd.grad(loss(second), w)
    step = torch.eye(3) - 0.1 * 2 * x.T @ x / len(x)
    outer = 2 / len(x) * (x @ second["w"].T - y).T @ x
    assert_close(grad, outer.detach() @ step @ step, 1e-5)
    with raises(ValueError, match="no parameter 'u'"):
        inner_sgd({"w": w}, loss, lr=0.1, only=["u"])
