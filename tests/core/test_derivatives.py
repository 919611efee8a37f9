import pytest
import torch
from torch import nn

from lib.core.derivatives import (
    empirical_ntk,
    functional,
    linearize,
    ntk_vector_product,
    parameter_jacobian,
    reduce_outputs,
)
from tests.helpers import assert_close, raises


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    x1, x2 = torch.randn(5, 4).double(), torch.randn(6, 4).double()
    return model, *functional(model), x1, x2


def test_jacobian_equals_backward(net):
    model, f, params, x, _ = net
    J = parameter_jacobian(f, params, x, chunk=2)
    for n, o in ((0, 0), (4, 2)):
        grads = torch.autograd.grad(model(x[n : n + 1])[0, o], list(model.parameters()))
        assert_close(J[n, o], torch.cat([g.flatten() for g in grads]), 1e-13)


def test_kernel_is_the_product_of_jacobians(net):
    _, f, params, x1, x2 = net
    J1, J2 = (parameter_jacobian(f, params, x) for x in (x1, x2))
    expected = torch.einsum("nop,mqp->nomq", J1, J2)
    assert_close(empirical_ntk(f, params, x1, x2), expected, 1e-13)
    square = empirical_ntk(f, params, x1)
    assert_close(square, square.permute(2, 3, 0, 1), 1e-13, "symmetry")
    flat = square.reshape(15, 15)
    assert torch.linalg.eigvalsh(flat).min() > -1e-12 * flat.diagonal().max()


@pytest.mark.parametrize("method", ["jacobian", "product"])
@pytest.mark.parametrize("reduce", ["none", "diagonal", "trace", "mean"])
def test_methods_reductions_and_chunks_agree(net, method, reduce):
    _, f, params, x1, x2 = net
    expected = reduce_outputs(empirical_ntk(f, params, x1, x2), reduce)
    for chunk in (None, 1, 4):
        got = empirical_ntk(f, params, x1, x2, method, reduce, chunk)
        assert_close(got, expected, 1e-13, f"{method} {reduce} {chunk}")


def test_vector_product_is_what_a_gradient_step_does(net):
    _, f, params, x1, x2 = net
    v = torch.randn(6, 3).double()
    theta = empirical_ntk(f, params, x1, x2)
    push = ntk_vector_product(f, params, x1, x2, v)
    assert_close(push, torch.einsum("nomq,mq->no", theta, v), 1e-13)
    # A step of size eta along J^T v moves f by eta Theta v, up to eta^2.
    grads = torch.func.vjp(lambda p: f(p, x2), params)[1](v)[0]
    eta = 1e-6
    moved = {k: p + eta * grads[k] for k, p in params.items()}
    assert_close((f(moved, x1) - f(params, x1)) / eta, push, 1e-4)


def test_linearization_touches_at_the_expansion_point(net):
    _, f, params, x, _ = net
    f_lin = linearize(f, params)
    assert_close(f_lin(params, x), f(params, x), 1e-15)
    direction = {k: torch.randn_like(p) for k, p in params.items()}
    errors = []
    for h in (1e-2, 1e-3):
        near = {k: p + h * direction[k] for k, p in params.items()}
        errors.append((f_lin(near, x) - f(near, x)).norm())
    assert 80 < errors[0] / errors[1] < 125, "the error must be of second order"
    # Linear in the parameters: its own Jacobian is constant.
    far = {k: p + direction[k] for k, p in params.items()}
    assert_close(
        empirical_ntk(f_lin, far, x, reduce="trace"),
        empirical_ntk(f, params, x, reduce="trace"),
        1e-12,
    )


def test_errors(net):
    _, f, params, x1, _ = net
    with raises(ValueError, match="method='fast'.*'jacobian' and 'product'"):
        empirical_ntk(f, params, x1, method="fast")
    with raises(ValueError, match="reduce='sum'.*'trace'"):
        empirical_ntk(f, params, x1, reduce="sum")
    with raises(ValueError, match="chunk=0"):
        empirical_ntk(f, params, x1, chunk=0)
