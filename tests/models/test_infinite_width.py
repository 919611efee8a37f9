import math

import numpy as np
import pytest
import torch

from lib.models.infinite_width import (
    dual,
    erf_dual,
    kernel_recursion,
    nngp_ntk,
    relu_dual,
    slope_of,
)
from tests.helpers import assert_close, raises

SMOOTH = {"erf": torch.erf, "sin": torch.sin, "identity": lambda z: z}


def covariances(gen, n=50):
    A = torch.randn(n, 2, 2, generator=gen, dtype=torch.float64)
    return A @ A.mT


def on_sphere(gen, n, d):
    x = torch.randn(n, d, generator=gen, dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True) * math.sqrt(d)


@pytest.mark.parametrize("name", SMOOTH)
def test_closed_duals_equal_quadrature(name, gen):
    cov = covariances(gen, 20) / 4  # erf's poles are at i z: small variances converge fast
    for closed, numeric in zip(dual(name, cov), dual(SMOOTH[name], cov, nodes=128)):
        assert_close(closed, numeric, 1e-7, name)


def test_relu_dual_equals_an_integral_over_angles(gen):
    """In polar coordinates the radius integrates to 1, and the rest is a smooth arc."""
    cov = covariances(gen)
    a, b, c = cov[:, 0, 0], cov[:, 1, 1], cov[:, 0, 1]
    angle = torch.acos(c / (a * b).sqrt())
    nodes, weights = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(40))
    low, half = angle[:, None] - math.pi / 2, (math.pi - angle[:, None]) / 2
    phi = low + half * (nodes + 1)
    arc = torch.cos(phi) * torch.cos(phi - angle[:, None])
    value = (a * b).sqrt() / math.pi * (arc * weights * half).sum(1)
    slope = half[:, 0] / math.pi
    got = relu_dual(a, b, c)
    assert_close(got[0], value, 1e-12)
    assert_close(got[1], slope, 1e-12)
    # Quadrature sees the kink: right, but to three digits only.
    for x, y in zip(dual(torch.relu, cov, nodes=128), got):
        assert_close(x, y, 2e-2)


@pytest.mark.parametrize("pair", [relu_dual, erf_dual])
def test_the_slope_dual_is_the_derivative_of_the_dual(pair, gen):
    cov = covariances(gen)
    a, b, c = (cov[:, i, j].clone() for i, j in ((0, 0), (1, 1), (0, 1)))
    c.requires_grad_()
    value, slope = pair(a, b, c)
    assert_close(torch.autograd.grad(value.sum(), c)[0], slope, 1e-10)


def test_relu_dual_where_inputs_coincide_or_vanish():
    a = torch.tensor([2.0, 2.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([2.0, 2.0, 1.0, 2.0], dtype=torch.float64)
    c = torch.tensor([2.0, -2.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    value, slope = relu_dual(a, b, c)
    assert_close(value, [1.0, 0.0, 0.0, 1 / math.pi], 1e-12)
    assert_close(slope[[0, 1, 3]], [0.5, 0.0, 0.25], 1e-12)
    for grad in torch.autograd.grad((value + slope)[[0, 1, 3]].sum(), [a, c]):
        assert torch.isfinite(grad).all()


def test_values_of_the_paper_s_defaults():
    """L = 4 weight layers, ReLU without gain, beta 0.1, unit vectors in the plane."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    _, theta = nngp_ntk(x, depth=3, act="relu", beta=0.1)
    assert abs(theta[0, 0].item() - 0.2825) < 1e-9
    assert abs(theta[0, 1].item() - 0.06435) < 1e-5


@pytest.mark.parametrize("act", ["relu", "erf", "sin", "identity", torch.tanh])
def test_symmetric_positive_definite_and_diagonal_carried(act, gen):
    x = on_sphere(gen, 12, 4)
    for same, pair in zip(nngp_ntk(x, None, 2, act), nngp_ntk(x, x.clone(), 2, act)):
        assert_close(same, same.T, 1e-12)
        assert_close(same, pair, 1e-7)
        assert torch.linalg.eigvalsh(same)[0] > -1e-9 * same[0, 0]


def test_linear_network():
    """Identity: Sigma^L = x.x'/d and Theta^L = L x.x'/d, without bias."""
    x = torch.randn(5, 3, dtype=torch.float64)
    sigma, theta = nngp_ntk(x, None, 4, "identity", beta=0.0)
    assert_close(sigma, x @ x.T / 3, 1e-13)
    assert_close(theta, 5 * x @ x.T / 3, 1e-13)


@pytest.mark.parametrize("depth", [0, 1, 6])
def test_diagonal_of_a_relu_network_with_gain_two(depth, gen):
    """beta = 0, |x|^2 = d: every layer adds one, so Theta(x, x) = L."""
    x = on_sphere(gen, 3, 5)
    sigma, theta = nngp_ntk(x, None, depth, "relu", beta=0.0, gain=2.0)
    assert_close(sigma.diagonal(), torch.ones(3), 1e-12)
    assert_close(theta.diagonal(), torch.full((3,), depth + 1.0), 1e-12)


def test_relu_kernels_are_homogeneous_without_bias(gen):
    x, y = on_sphere(gen, 4, 3), on_sphere(gen, 5, 3)
    for near, far in zip(nngp_ntk(x, y, 3, beta=0.0), nngp_ntk(3 * x, 2 * y, 3, beta=0.0)):
        assert_close(far, 6 * near, 1e-12)


def test_without_bias_odd_harmonics_vanish_in_one_relu_layer():
    """On the circle, one hidden layer: frequencies 3, 5, 7 are missing; a bias brings them back."""
    angle = torch.arange(64, dtype=torch.float64) * (2 * math.pi / 64)
    x = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)
    spectrum = lambda **kw: torch.fft.rfft(nngp_ntk(x, None, 1, "relu", **kw)[1][0]).real / 64
    without, with_bias = spectrum(beta=0.0), spectrum(beta=0.5)
    odd = [3, 5, 7]
    # 64 points alias frequency 61 onto 3: a floor, not zero.
    assert without[odd].abs().max() < 0.02 * without[[2, 4]].abs().min()
    assert with_bias[odd].abs().min() > 20 * without[odd].abs().max()


def test_standard_parametrization_weighs_layers_by_fan_in(gen):
    x = on_sphere(gen, 4, 3)
    ntk = nngp_ntk(x, None, 2, "relu", beta=0.2)
    std = nngp_ntk(x, None, 2, "relu", 0.2, parametrization="standard", widths=(3, 100, 100))
    assert_close(std[0], ntk[0], 1e-12)
    # The gradient in b is 1 instead of beta, in W sqrt(n) times as large.
    last = nngp_ntk(x, None, 2, "relu", 0.2, parametrization="standard", widths=(3, 100, 200))
    assert_close(last[1] - std[1], 100 * (std[0] - 0.2**2), 1e-12)


def test_recursion_on_inner_products_equals_inputs(gen):
    x, y = on_sphere(gen, 4, 3), torch.randn(5, 3, generator=gen, dtype=torch.float64)
    a, b = (x * x).mean(1)[:, None], (y * y).mean(1)[None]
    got = kernel_recursion(a, b, x @ y.T / 3, 3, "erf", 0.3, 1.5)
    for g, e in zip(got, nngp_ntk(x, y, 3, "erf", 0.3, 1.5)):
        assert_close(g, e, 1e-12)


def test_slope_of():
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    assert_close(slope_of(torch.tanh)(z), 1 - torch.tanh(z) ** 2, 1e-14)


def test_gradient_through_quadrature(gen):
    """A custom activation, coincident pairs on the diagonal included: finite differences."""
    x, direction = on_sphere(gen, 3, 4), torch.randn(3, 4, generator=gen, dtype=torch.float64)
    total = lambda z: nngp_ntk(z, None, 2, torch.tanh, nodes=24)[1].sum()
    leaf = x.clone().requires_grad_()
    grad = torch.autograd.grad(total(leaf), leaf)[0]
    numeric = (total(x + 1e-5 * direction) - total(x - 1e-5 * direction)) / 2e-5
    assert_close((grad * direction).sum(), numeric, 1e-6)


def test_one_tensor_twice_is_the_same_as_none(gen):
    x = on_sphere(gen, 5, 7).float()
    for named, alone in zip(nngp_ntk(x, x, 3), nngp_ntk(x, None, 3)):
        assert torch.equal(named, alone)


def test_errors(gen):
    x = on_sphere(gen, 3, 2)
    with raises(ValueError, match=r"one d > 0, got \(3, 2\) and \(3, 1\)"):
        nngp_ntk(x, x[:, :1])
    with raises(ValueError, match="act='gelu'.*or a function"):
        nngp_ntk(x, act="gelu")
    with raises(ValueError, match="beta=-0.1"):
        nngp_ntk(x, beta=-0.1)
    with raises(ValueError, match="depth=-1"):
        nngp_ntk(x, depth=-1, act="sin")
    with raises(ValueError, match="needs 4 fan-ins"):
        nngp_ntk(x, depth=3, parametrization="standard")
    with raises(ValueError, match="parametrization='mup'"):
        nngp_ntk(x, parametrization="mup")
