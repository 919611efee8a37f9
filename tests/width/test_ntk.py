import math

import pytest
import torch
from torch import nn

from lib.core.ensemble import Ensemble, fit_ensemble
from lib.core.seeds import child
from lib.core.stats import loglog_slope
from lib.models.gp import GP
from lib.width import ntk
from lib.width.ntk import MLPNTK, NTKRegression, empirical_ntk, kernel_descent, nngp_ntk
from tests.helpers import assert_close, raises


def net(widths=(4, 30, 20, 3), activation="relu", seed=0, **settings):
    return MLPNTK(widths, activation, gen=child(seed, "net"), **settings).double()


def angles(n, start=0.0):
    gamma = start + torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    return torch.stack([gamma.cos(), gamma.sin()], 1)


def limit(a, b, beta=0.1, depth=3):
    return nngp_ntk(a, b, depth, "relu", beta)


# The network and its kernel.


def test_forward_is_the_paper_s_formula():
    model = net((4, 5, 6, 2), gain=1.5)
    x = torch.randn(7, 4).double()
    W, b = ([getattr(layer, k) for layer in model.layers] for k in ("weight", "bias"))
    z = x @ W[0].T / 2 + 0.1 * b[0]
    z = torch.relu(z) @ W[1].T * math.sqrt(1.5 / 5) + 0.1 * b[1]
    z = torch.relu(z) @ W[2].T * math.sqrt(1.5 / 6) + 0.1 * b[2]
    assert_close(model(x), z, 1e-14)


@pytest.mark.parametrize("parametrization", ["ntk", "standard"])
@pytest.mark.parametrize("activation", ["relu", "erf", "sin", "identity", torch.tanh])
def test_three_routes_are_one_kernel(parametrization, activation):
    model = net(activation=activation, parametrization=parametrization, gain=1.3)
    x1, x2 = torch.randn(5, 4).double(), torch.randn(6, 4).double()
    for reduce in ("none", "diagonal", "trace", "mean"):
        expected = empirical_ntk(model, x1, x2, "jacobian", reduce)
        for method, chunk in (("product", None), ("structured", None), ("structured", 4)):
            got = empirical_ntk(model, x1, x2, method, reduce, chunk)
            assert_close(got, expected, 1e-13, f"{method} {reduce}")


def test_routes_agree_in_float32():
    model = net((8, 200, 200, 1)).float()
    x = torch.randn(6, 8)
    exact = empirical_ntk(net((8, 200, 200, 1)), x.double(), reduce="trace")
    for method in ("jacobian", "product", "structured"):
        assert_close(empirical_ntk(model, x, method=method, reduce="trace"), exact, 1e-5, method)


def test_structured_kernel_of_an_ensemble():
    models = [net(seed=k) for k in range(3)]
    x = torch.randn(5, 4).double()
    together = ntk.structured_ntk(Ensemble(models).params, x, x)
    for i, model in enumerate(models):
        assert_close(together[i], empirical_ntk(model, x), 1e-13)


@pytest.mark.parametrize("activation", ["relu", "erf", "sin", torch.tanh])
def test_mean_kernel_approaches_the_limit(activation):
    """64 nets of width 256; largest error over 8 seeds 0.065 of the diagonal, allowed 0.12."""
    x = math.sqrt(2) * angles(8)
    models = [MLPNTK((2, 256, 256, 1), activation, gen=child(1, k)) for k in range(64)]
    theta = ntk.structured_ntk(Ensemble(models).params, x.float(), x.float(), activation)
    mean = theta[:, :, 0, :, 0].mean(0).double()
    exact = nngp_ntk(x, None, 2, activation)[1]
    assert (mean - exact).abs().max() < 0.12 * exact.max()
    outputs = Ensemble(models)(x.float())[..., 0].double()
    sigma = nngp_ntk(x, None, 2, activation)[0]
    # 64 draws: a standard error of 18 % for each variance, less for their mean.
    assert abs(outputs.square().mean() / sigma.diagonal().mean() - 1) < 0.5


def test_fluctuations_fall_as_the_root_of_width():
    """Slope -1/2; over 10 seeds it was -0.63 to -0.45 with these sizes, allowed -0.75 to -0.25."""
    widths, spread = (16, 64, 256), []
    for n in widths:
        models = [MLPNTK((2, n, n, 1), gen=child(0, n, k)) for k in range(64)]
        x = angles(8).float()
        theta = ntk.structured_ntk(Ensemble(models).params, x[:1], x, reduce="trace")
        spread.append(theta.std(0).mean().item())
    assert -0.75 < loglog_slope(widths, spread).slope < -0.25


def test_standard_parametrization_has_a_kernel_that_grows():
    x = math.sqrt(2) * angles(4)
    for n in (64, 256):
        models = [net((2, n, n, 1), seed=k, parametrization="standard") for k in range(16)]
        params = Ensemble(models).params
        theta = ntk.structured_ntk(params, x, x, parametrization="standard", reduce="trace")
        exact = nngp_ntk(x, None, 2, parametrization="standard", widths=(2, n, n))[1]
        # Over 8 seeds 0.17 at most; a factor of width is at stake.
        assert_close(theta.mean(0), exact, 0.35)


def test_biases_of_the_standard_parametrization_learn_at_rate_one():
    """Wide layers would hide the biases, so the inputs are zero: only biases send a signal."""
    x = torch.zeros(1, 2).double()
    models = [
        net((2, 4000, 1), "identity", seed=k, parametrization="standard", beta=0.5)
        for k in range(4)
    ]
    theta = ntk.structured_ntk(
        Ensemble(models).params, x, x, "identity", 0.5, 1.0, "standard", "trace"
    )
    exact = nngp_ntk(x, None, 1, "identity", 0.5, parametrization="standard", widths=(2, 4000))[1]
    # beta^2 n in the last layer's weights, 1 in its bias, E[w^2] n = 1 in the first bias.
    assert_close(exact, torch.tensor([[0.25 * 4000 + 2]]), 1e-12)
    assert_close(theta.mean(0), exact, 0.05)
    first = nngp_ntk(x, None, 0, "identity", 0.5, parametrization="standard", widths=(2,))[1]
    assert_close(first, torch.ones(1, 1), 1e-12)


# Training, solved.


def test_descent_on_the_linearized_network_is_the_closed_form():
    """Steps of gradient descent against (1 - eta Theta)^t, function by function."""
    model = net((4, 30, 30, 2))
    x, y, x_test = (
        torch.randn(9, 4).double(),
        torch.randn(9, 2).double(),
        torch.randn(5, 4).double(),
    )
    f, params = ntk.functional(model)
    f_lin = ntk.linearize(f, params)
    theta = empirical_ntk(model, x).reshape(18, 18)
    eta = 1.5 / torch.linalg.eigvalsh(theta)[-1].item()
    loss = lambda p: 0.5 * (f_lin(p, x) - y).square().sum()
    moved = params
    for _ in range(50):
        grads = torch.func.grad(loss)(moved)
        moved = {k: p - eta * grads[k] for k, p in moved.items()}
    f0, f0_test = f(params, x), f(params, x_test)
    keep = torch.linalg.matrix_power(torch.eye(18).double() - eta * theta, 50)
    expected = y + (keep @ (f0 - y).flatten()).view(9, 2)
    assert_close(f_lin(moved, x), expected, 1e-8)
    # Test points, through the regression, whose kernel is this network's own.
    single = net((4, 30, 30, 1))
    own = lambda a, b: (torch.zeros(len(a), len(b)), empirical_ntk(single, a, b, reduce="trace"))
    f, params = ntk.functional(single)
    f_lin, moved = ntk.linearize(f, params), params
    y = y[:, :1]
    eta = 1.5 / torch.linalg.eigvalsh(own(x, x)[1])[-1].item()
    for _ in range(100):
        grads = torch.func.grad(lambda p: 0.5 * (f_lin(p, x) - y).square().sum())(moved)
        moved = {k: p - eta * grads[k] for k, p in moved.items()}
    solved = NTKRegression(own, eta, "descent").fit(x, y, f(params, x))
    assert_close(solved.predict(x_test, 100, f(params, x_test)), f_lin(moved, x_test), 1e-8)
    assert f0_test.shape == (5, 2)


@pytest.fixture
def problem():
    x = angles(6, 0.1) * torch.linspace(0.7, 1.3, 6).double()[:, None]
    return x, torch.sin(3 * x[:, :1]), angles(5, 0.4)


def test_infinite_time_is_kernel_regression(problem):
    x, y, xs = problem
    expected = limit(xs, x)[1] @ torch.linalg.solve(limit(x, x)[1], y)
    for dynamics in ("flow", "descent"):
        solved = NTKRegression(limit, 0.5, dynamics).fit(x, y)
        assert_close(solved.predict(xs), expected, 1e-9)
        assert_close(solved.predict(x), y, 1e-8)
        f0, f0s = torch.randn(6, 1).double(), torch.randn(5, 1).double()
        shifted = NTKRegression(limit, 0.5, dynamics).fit(x, y + f0, f0)
        assert_close(shifted.predict(xs, math.inf, f0s), f0s + expected, 1e-9)


def test_time_zero_is_the_prior_and_small_steps_are_the_flow(problem):
    x, y, xs = problem
    mean, cov = NTKRegression(limit).fit(x, y).predict(xs, 0.0, return_cov=True)
    assert (mean == 0).all()
    assert_close(cov, limit(xs, xs)[0], 1e-12)
    flow = NTKRegression(limit, 0.5).fit(x, y).predict(xs, 3.0)
    for steps, tol in ((300, 1e-2), (30000, 1e-4)):
        descent = NTKRegression(limit, 0.5 * 3 / steps, "descent").fit(x, y)
        assert_close(descent.predict(xs, steps), flow, tol)


def test_remaining_share_of_the_residual(problem):
    x, y, _ = problem
    solved = NTKRegression(limit, 0.7, "descent").fit(x, y)
    left = solved.vectors.T @ (y - solved.predict(x, 9))
    start = solved.vectors.T @ y
    assert_close(left[:, 0] / start[:, 0], solved.remaining(9), 1e-8)


def test_a_singular_kernel_at_a_very_late_time_gives_least_squares(gen):
    """Linear kernel, more samples than dimensions: the least-squares weights of smallest norm."""
    x = torch.randn(9, 3, generator=gen, dtype=torch.float64)
    y, xs = (torch.randn(n, m, generator=gen, dtype=torch.float64) for n, m in ((9, 1), (4, 3)))
    linear = lambda a, b: (a @ b.T / 3, a @ b.T / 3)
    expected = xs @ torch.linalg.lstsq(x, y).solution
    for dynamics in ("flow", "descent"):
        solved = NTKRegression(linear, 0.1, dynamics).fit(x, y)
        assert_close(solved.predict(xs, 10**16), expected, 1e-10, dynamics)
        assert_close(solved.remaining(10**16)[:6], torch.ones(6), 1e-12, dynamics)


def test_steps_diverge_from_twice_the_inverse_of_the_largest_eigenvalue_on(problem):
    x, y, _ = problem
    top = torch.linalg.eigvalsh(limit(x, x)[1])[-1].item()
    for ridge in (0.0, 0.3):
        edge = 1 / (top + ridge)
        NTKRegression(limit, 1.999 * edge, "descent", ridge).fit(x, y)
        with raises(ValueError, match="gradient steps diverge"):
            NTKRegression(limit, 2.001 * edge, "descent", ridge).fit(x, y)


def test_remaining_share_with_a_ridge(problem):
    """The pull acts as one more eigenvalue: what is left decays at lambda + ridge."""
    x, y, _ = problem
    solved = NTKRegression(limit, 0.7, "descent", ridge=0.2).fit(x, y)
    rate = torch.linalg.eigvalsh(limit(x, x)[1]) + 0.2
    assert_close(solved.remaining(9), (1 - 0.7 * rate) ** 9, 1e-10)
    flow = NTKRegression(limit, 0.7, ridge=0.2).fit(x, y)
    assert_close(flow.remaining(2.5), torch.exp(-0.7 * 2.5 * rate), 1e-10)


def test_ridge_is_kernel_ridge_regression(problem):
    from sklearn.kernel_ridge import KernelRidge

    x, y, xs = problem
    K = limit(x, x)[1]
    peer = KernelRidge(alpha=0.3, kernel="precomputed").fit(K.numpy(), y.numpy())
    got = NTKRegression(limit, ridge=0.3).fit(x, y).predict(xs)
    assert_close(got, peer.predict(limit(xs, x)[1].numpy()), 1e-10)


def test_only_the_last_layer_trained_gives_the_posterior_of_the_gaussian_process(problem):
    """Theta = Sigma: mean and covariance at t = inf are the Bayesian posterior without noise."""
    x, y, xs = problem
    bayes = lambda a, b: (limit(a, b)[0], limit(a, b)[0])
    mean, cov = NTKRegression(bayes).fit(x, y).predict(xs, return_cov=True)
    gp_mean, gp_cov = GP(lambda a, b: limit(a, b)[0]).fit(x, y).predict(xs, cov=True)
    assert_close(mean, gp_mean, 1e-6)
    assert_close(cov, gp_cov, 1e-5)


def test_covariance_is_that_of_trained_random_functions(problem, gen):
    """Draw f_0 from the prior, train each by the closed form, compare the sample covariance."""
    x, y, xs = problem
    both = torch.cat([x, xs])
    f0 = GP(lambda a, b: limit(a, b)[0]).sample(both, 20000, gen)
    solved = NTKRegression(limit, 1.0, "descent").fit(x, torch.zeros(6, 20000), f0[:, :6].T)
    trained = solved.predict(xs, 5, f0[:, 6:].T)
    _, cov = NTKRegression(limit, 1.0, "descent").fit(x, y).predict(xs, 5, return_cov=True)
    assert_close(trained @ trained.T / 20000, cov, 0.05)


def test_wide_networks_follow_the_prediction():
    """6 nets of width 512 after 40 steps; error over 8 seeds 0.02-0.05 of y, allowed 0.1."""
    x, y = angles(4, 0.2).float(), torch.tensor([[1.0], [-0.5], [0.5], [-1.0]])
    make = lambda k: MLPNTK((2, 512, 512, 1), beta=0.3, gen=child(3, k))
    fresh = Ensemble([make(k) for k in range(6)])
    f0 = fresh(x).detach()
    mse = lambda model, b: 0.5 * (model(b[0]) - b[1]).square().mean()
    sgd = lambda p: torch.optim.SGD(p, lr=1.0)
    trained = fit_ensemble(fresh, range(6), (x, y), mse, steps=40, optimizer=sgd)
    kernel = lambda a, b: nngp_ntk(a, b, 2, "relu", 0.3)
    solved = NTKRegression(kernel, 1 / 4, "descent").fit(x, y.expand(-1, 6), f0[..., 0].T)
    predicted = solved.predict(x, 40, f0[..., 0].T).T
    error = (trained(x)[..., 0].detach().double() - predicted).norm() / (math.sqrt(6) * y.norm())
    assert error < 0.1, f"{error:.3f}"


# Other losses, principal components.


def test_function_space_flow_solves_the_squared_loss_too(problem):
    x, y, xs = problem
    solved = NTKRegression(limit, 0.8).fit(x, y)
    times = [0.0, 0.5, 2.0, 10.0]
    path = kernel_descent(
        limit(x, x)[1],
        torch.zeros(6, 1),
        ntk.squared_velocity(y, 0.8),
        times,
        limit(xs, x)[1],
        torch.zeros(5, 1),
    )
    assert path.shape == (4, 11, 1)
    for t, f in zip(times, path):
        expected = torch.cat([solved.predict(x, t), solved.predict(xs, t)])
        assert (f - expected).abs().max() < 1e-6


def test_cross_entropy_flow_follows_the_linearized_network():
    """One gradient flow twice: Runge-Kutta steps of the parameters, and function space."""
    model = net((4, 40, 3))
    x, label = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    target = nn.functional.one_hot(label, 3).double()
    f, params = ntk.functional(model)
    f_lin = ntk.linearize(f, params)
    theta = empirical_ntk(model, x)
    downhill = torch.func.grad(
        lambda p: -nn.functional.cross_entropy(f_lin(p, x), label, reduction="sum")
    )
    moved, h, steps = params, 0.05, 20
    for _ in range(steps):
        k = downhill(moved)
        total = k
        for part, weight in ((0.5, 2), (0.5, 2), (1.0, 1)):
            k = downhill({name: p + part * h * k[name] for name, p in moved.items()})
            total = {name: total[name] + weight * k[name] for name in k}
        moved = {name: p + h / 6 * total[name] for name, p in moved.items()}
    # The kernel of a finite net mixes outputs, so flatten both axes into one.
    velocity = lambda g: ntk.cross_entropy_velocity(target)(g.view(6, 3)).view(18, 1)
    path = kernel_descent(theta.reshape(18, 18), f(params, x).view(18, 1), velocity, [h * steps])
    assert_close(path[-1].view(6, 3), f_lin(moved, x), 1e-6)


def test_cross_entropy_flow_keeps_the_sum_of_logits_and_lowers_the_loss(problem):
    x, _, _ = problem
    target = nn.functional.one_hot(torch.tensor([0, 1, 0, 2, 1, 2]), 3).double()
    K = limit(x, x)[1]
    path = kernel_descent(K, torch.zeros(6, 3), ntk.cross_entropy_velocity(target), [0, 1, 5, 50])
    assert path.sum(2).abs().max() < 1e-6
    losses = [-(target * torch.log_softmax(f, 1)).sum().item() for f in path]
    assert losses == sorted(losses, reverse=True)


def test_kernel_pca(problem):
    K = limit(problem[0], problem[0])[1]
    values, vectors = ntk.kernel_pca(K, 3)
    assert_close(K @ vectors, vectors * values, 1e-12)
    assert_close(vectors.T @ vectors, torch.eye(3).double(), 1e-12)
    assert (values.diff() <= 0).all()
    peak = vectors.abs().argmax(0)
    assert (vectors[peak, torch.arange(3)] > 0).all()


def test_errors(problem):
    x, y, xs = problem
    with raises(ValueError, match="activation='gelu'.*or a function"):
        MLPNTK((2, 3, 1), "gelu")
    with raises(ValueError, match="method='fast'.*'structured'"):
        empirical_ntk(net(), torch.zeros(2, 4), method="fast")
    with raises(TypeError, match="needs an MLPNTK, got Linear"):
        empirical_ntk(nn.Linear(4, 1), torch.zeros(2, 4), method="structured")
    with raises(ValueError, match="reduce='sum'"):
        empirical_ntk(net(), torch.zeros(2, 4).double(), method="structured", reduce="sum")
    with raises(ValueError, match="chunk=0"):
        empirical_ntk(net(), torch.zeros(2, 4).double(), method="structured", chunk=0)
    params, zero = dict(net().named_parameters()), torch.zeros(2, 4).double()
    with raises(ValueError, match="activation='gelu'.*or a function"):
        ntk.structured_ntk(params, zero, zero, "gelu")
    with raises(ValueError, match="parametrization='mup'.*'standard'"):
        ntk.structured_ntk(params, zero, zero, parametrization="mup")
    with raises(ValueError, match="dynamics='adam'"):
        NTKRegression(limit, dynamics="adam")
    with raises(ValueError, match="lr=0"):
        NTKRegression(limit, 0.0)
    with raises(ValueError, match="lr=nan"):
        NTKRegression(limit, math.nan)
    with raises(RuntimeError, match="before fit"):
        NTKRegression(limit).predict(x)
    with raises(ValueError, match="0 rows and y 0"):
        NTKRegression(limit).fit(x[:0], y[:0])
    with raises(ValueError, match="6 rows and y 5"):
        NTKRegression(limit).fit(x, y[:5])
    with raises(ValueError, match="diverge.*allowed is below"):
        NTKRegression(limit, 1e3, "descent").fit(x, y)
    solved = NTKRegression(limit, 0.1, "descent").fit(x, y)
    with raises(ValueError, match=r"t=1\.5.*whole steps"):
        solved.predict(xs, 1.5)
    with raises(ValueError, match="t=nan"):
        solved.predict(xs, math.nan)
    with raises(ValueError, match="to both fit and predict"):
        solved.predict(xs, 1, torch.zeros(5, 1))
    twice = torch.cat([x, x[:1]])
    with raises(ValueError, match="singular"):
        NTKRegression(limit).fit(twice, torch.cat([y, y[:1]])).predict(xs)
    with raises(ValueError, match="times must increase"):
        kernel_descent(torch.eye(6), y, ntk.squared_velocity(y), [1.0, 1.0])
    with raises(ValueError, match="both or neither"):
        kernel_descent(torch.eye(6), y, ntk.squared_velocity(y), [1.0], torch.zeros(5, 6))
    with raises(ValueError, match="k=7: allowed is 1 to 6"):
        ntk.kernel_pca(torch.eye(6), 7)
