import pytest
import torch

from lib.core.ode import euler, heun, rk4
from lib.core.stats import loglog_slope
from tests.helpers import assert_close, raises


def spiral(t, y):
    A = torch.tensor([[-0.3, 2.0], [-2.0, -0.3]], dtype=torch.float64)
    return y @ A.T + torch.sin(t)


@pytest.mark.parametrize(("method", "order"), [(euler, 1), (heun, 2), (rk4, 4)])
def test_order(method, order):
    y0 = torch.tensor([[1.0, 0.5], [0.0, -1.0]], dtype=torch.float64)
    exact = rk4(spiral, y0, torch.linspace(0, 2, 4001, dtype=torch.float64))[-1]
    counts = [20, 40, 80, 160]
    errors = [
        float(
            (
                method(spiral, y0, torch.linspace(0, 2, n + 1, dtype=torch.float64))[-1] - exact
            ).norm()
        )
        for n in counts
    ]
    assert abs(loglog_slope(counts, errors).slope + order) < 0.15


@pytest.mark.parametrize("method", [euler, heun, rk4])
def test_one_step_by_hand_backward_in_time_and_gradients(method):
    f = lambda t, y: t * y
    ts = torch.tensor([1.0, 1.5], dtype=torch.float64)
    y = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    out = method(f, y, ts)
    assert out.shape == (2,) and out[0] == 2
    growth = {euler: 1 + 0.5, heun: 1 + 0.25 * (1 + 1.5 * 1.5), rk4: None}[method]
    if growth is not None:
        assert_close(out[1], torch.tensor(2 * growth, dtype=torch.float64), 1e-12)
    out[1].backward()
    assert_close(y.grad, out[1].detach() / 2, 1e-12)  # linear in y0
    there = method(f, torch.ones(3, dtype=torch.float64), torch.linspace(0, 1, 400).double())
    back = method(f, there[-1], torch.linspace(1, 0, 400).double())
    assert_close(back[-1], torch.ones(3, dtype=torch.float64), 5e-3)


def test_errors():
    y = torch.ones(2)
    with raises(ValueError, match="ts has 3 times"):
        euler(lambda t, y: y, y, torch.tensor([0.0, 1.0, 0.5]))
    with raises(ValueError, match=r"f returned shape \(\) for a state \(2,\)"):
        rk4(lambda t, y: y.sum(), y, torch.tensor([0.0, 1.0]))
    assert euler(lambda t, y: y, y, torch.tensor([0.0])).shape == (1, 2)
