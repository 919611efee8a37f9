import math

import pytest
import torch

from lib.core.data.points import gaussian_clusters
from lib.core.seeds import child
from lib.core.similarity import cka_gram
from lib.core.stats import relative_error
from lib.models.gp import GP, rbf
from lib.models.infinite_width import nngp_ntk
from lib.width.deep_kernel_machine import (
    Categorical,
    DeepKernelMachine,
    FiniteDGP,
    Gaussian,
    NetworkDKM,
    SparseDKM,
    TargetGram,
    arc_cosine,
    kernel_of,
    kl_gram,
    linear,
    linear_dkm_closed_form,
    nngp_predict,
    polynomial,
    squared_exponential,
    sum_kernel,
)
from lib.width.deep_kernel_machine.finite import excess_kurtosis
from lib.width.deep_kernel_machine.kernels import kl_factors, kl_ratio
from lib.width.deep_kernel_machine.machine import output_kl
from lib.width.deep_kernel_machine.network import Coupling
from tests.helpers import assert_close, raises

SE = squared_exponential()


def wishart(p, *key):
    z = torch.randn(p, p + 10, generator=child(0, "wishart", p, *key), dtype=torch.float64)
    return z @ z.mT / (p + 10)


def points(n, d, *key):
    return torch.randn(n, d, generator=child(0, "points", *key), dtype=torch.float64)


def clusters(n=10, seed=0):
    """Four clusters on a line whose labels alternate."""
    means = torch.tensor([[-3.0], [-1.0], [1.0], [3.0]], dtype=torch.float64)
    x, label = gaussian_clusters(means, 0.3, n, child(seed, "clusters"), modes=2)
    return x, (1.0 - 2 * label)[:, None].double()


# Kernels of Gram matrices.


def test_kernels_of_a_gram_matrix_are_those_of_the_points():
    x = points(7, 3, "kernels")
    G = x @ x.mT / 3
    assert_close(kernel_of(G, squared_exponential(0.7)), rbf(x, x, 0.7 * math.sqrt(3)), 1e-12)
    # A ReLU network without biases: gain 2 keeps the variance, one nonlinearity per kernel.
    assert_close(
        kernel_of(kernel_of(G, arc_cosine(False)), arc_cosine(False)),
        nngp_ntk(x, depth=2, beta=0.0, gain=2.0)[0],
        1e-10,
    )
    scale = G.diagonal().sqrt()
    assert_close(
        kernel_of(G, arc_cosine()) * scale[:, None] * scale, kernel_of(G, arc_cosine(False)), 1e-12
    )
    assert_close(kernel_of(G, polynomial(3, 0.5)), (G + 0.5) ** 3, 1e-12)
    assert_close(kernel_of(G, linear, 0.1), G + 0.1 * torch.eye(7, dtype=torch.float64), 1e-12)
    both = sum_kernel(SE, linear, weights=[0.3, 2.0])
    assert_close(kernel_of(G, both), 0.3 * kernel_of(G, SE) + 2 * G, 1e-12)


def test_kernels_know_only_the_gram_matrix():
    """Rotated features have the same Gram matrix, and the same kernel."""
    x = points(6, 4, "rotated")
    turn = torch.linalg.qr(points(4, 4, "turn"))[0]
    for kernel in (SE, arc_cosine(), arc_cosine(False), polynomial(2)):
        a, b = (kernel_of(v @ v.mT, kernel) for v in (x, x @ turn))
        assert_close(a, b, 1e-6)


@pytest.mark.parametrize("taylor", [False, True])
def test_kl_is_that_of_two_gaussians(taylor):
    G, K = wishart(6, "G"), wishart(6, "K")
    if taylor:
        G = K + 1e-3 * (G - K)
    normal = torch.distributions.MultivariateNormal
    zero = torch.zeros(6, dtype=torch.float64)
    peer = torch.distributions.kl_divergence(normal(zero, G), normal(zero, K))
    assert_close(kl_gram(G, K, taylor), peer, 1e-2 if taylor else 1e-10)
    assert_close(kl_gram(K, K, taylor) + 1, 1.0, 1e-12)


def test_taylor_is_the_second_order():
    """The error of the expansion falls with the cube of the distance."""
    G, K = wishart(5, "G"), wishart(5, "K")
    errors = []
    for t in (1e-2, 1e-3):
        near = K + t * (G - K)
        errors.append((kl_gram(near, K, True) - kl_gram(near, K)).abs().item())
    assert 500 < errors[0] / errors[1] < 2000


def test_kl_from_factors():
    G, K = wishart(5, "G"), wishart(5, "K")
    L, V = torch.linalg.cholesky(K), torch.linalg.cholesky(G)
    V = V @ torch.linalg.qr(points(5, 5, "turn"))[0]  # any root of G
    assert_close(kl_factors(V, L), kl_gram(G, K), 1e-12)
    assert_close(kl_ratio(torch.linalg.solve_triangular(L, V, upper=False)), kl_gram(G, K), 1e-12)


# The linear machine.


@pytest.mark.parametrize("nu", [None, (1.0, 3.0, 0.5, 2.0)])
def test_closed_form_is_stationary(nu):
    G0, out = wishart(8, 0), wishart(8, 1)
    grams = [G0, *linear_dkm_closed_form(G0, out, 3, nu), out]
    weights = nu or (1.0,) * 4
    for l in (1, 2, 3):
        G = grams[l].clone().requires_grad_()
        cost = weights[l - 1] * kl_gram(G, grams[l - 1]) + weights[l] * kl_gram(grams[l + 1], G)
        (slope,) = torch.autograd.grad(cost, G)
        scale = torch.linalg.inv(grams[l]).norm()
        assert slope.norm() < 1e-10 * scale
    if nu is None:
        for below, G, above in zip(grams, grams[1:], grams[2:]):
            assert_close(G @ torch.linalg.solve(below, G), above, 1e-10)


def test_closed_form_of_equal_weights_is_the_limit_of_unequal_ones():
    G0, out = wishart(6, 0), wishart(6, 1)
    near = linear_dkm_closed_form(G0, out, 2, (1.0, 1.0 + 1e-9, 1.0))
    for a, b in zip(near, linear_dkm_closed_form(G0, out, 2)):
        assert_close(a, b, 1e-8)


@pytest.mark.parametrize(
    ("depth", "nu", "way"),
    [
        (2, 1.0, "whitened"),
        (2, 1.0, "cholesky"),
        (1, 1.0, "full"),
        (3, (0.5, 2.0, 1.0), "whitened"),
    ],
)
def test_linear_machine_finds_the_closed_form(depth, nu, way):
    G0, out = wishart(12, 0), wishart(12, 1)
    X = math.sqrt(12) * torch.linalg.cholesky(G0)
    machine = DeepKernelMachine(
        depth, linear, nu, likelihood=TargetGram(1.0), jitter=0.0, parametrization=way
    ).fit(X, out)
    weights = None if nu == 1.0 else (*nu, 1.0)
    for G, exact in zip(machine.grams, linear_dkm_closed_form(G0, out, depth, weights)):
        assert_close(G, exact, 1e-5)
    # The other direction of the divergence has another optimum.
    swapped = kl_gram(G0, machine.grams[0]) + kl_gram(machine.grams[0], out)
    assert abs(swapped - kl_gram(machine.grams[0], G0) - kl_gram(out, machine.grams[0])) > 0.1


def test_without_a_price_a_linear_machine_copies_the_labels():
    """``nu = 0``: ``K(G_1) + noise I`` becomes ``Y Y^T`` over the number of columns."""
    p, noise = 6, 0.1
    Y = 3 * points(p, 40, "labels")
    machine = DeepKernelMachine(
        1, linear, 0.0, likelihood=Gaussian(noise), jitter=0.0, iterations=2000
    ).fit(points(p, 9, "inputs"), Y)
    assert_close(machine.grams[0] + noise * torch.eye(p), Y @ Y.mT / 40, 1e-4)


# The machine between its two limits.


def test_price_decides_between_prior_and_labels():
    x, y = clusters(5)
    alignment, moved = [], []
    for nu in (1e4, 1e3, 10.0, 1.0):
        m = DeepKernelMachine(2, SE, nu, likelihood=Gaussian(0.01)).fit(x, y)
        below = [m.G0, m.grams[0]]
        moved.append([relative_error(G, kernel_of(b, SE, 1e-4)) for G, b in zip(m.grams, below)])
        alignment.append(cka_gram(m.grams[-1], y @ y.mT).item())
        assert m.terms.total == pytest.approx(m.terms.fit - nu * sum(m.terms.kl))
    assert max(moved[0]) < 1e-2 and min(moved[-1]) > 0.2
    assert all(5 < b / a < 20 for a, b in zip(*moved[:2]))
    assert alignment == sorted(alignment)
    assert alignment[1] < 0.65 and alignment[-1] > 0.95


def test_ways_to_write_the_matrices_have_one_optimum():
    x, y = clusters(1)
    fits = [
        DeepKernelMachine(
            2, SE, 10.0, likelihood=Gaussian(0.1), jitter=1e-2, parametrization=way, iterations=300
        ).fit(x, y)
        for way in ("whitened", "cholesky")
    ]
    for a, b in zip(*(m.grams for m in fits)):
        assert_close(b, a, 1e-3)


def test_infinite_price_is_the_gaussian_process():
    x, y = clusters(4)
    new = points(5, 1, "new")
    m = DeepKernelMachine(2, SE, math.inf, likelihood=Gaussian(0.1), jitter=1e-6).fit(x, y)
    mean, var = m.predict(new)
    for a, b in zip((mean, var), nngp_predict(x, y, new, 2, SE, 0.1, jitter=1e-6)):
        assert_close(a, b, 1e-4)

    def composed(a, b):
        """The same through distances alone: each kernel's diagonal is one."""
        k = rbf(a, b)
        for _ in range(2):
            k = torch.exp(k - 1)
        return k

    peer = GP(composed, 0.1).fit(x, y)
    assert_close(mean, peer.predict(new), 1e-4)
    assert_close(m.terms.fit, peer.log_marginal(), 1e-4)
    assert m.terms.kl == [0.0, 0.0]


def test_new_points_follow_the_optimum_of_all_points():
    """Unlabeled points added to the fit end where the conditional formula puts them."""
    x, y = clusters(2)
    new = torch.tensor([[-2.0], [0.4]], dtype=torch.float64)

    class Labeled(Gaussian):
        def log_prob(self, K, Y):
            return super().log_prob(K[: len(y), : len(y)], Y[: len(y)])

    options = {"jitter": 1e-3}
    m = DeepKernelMachine(2, SE, 1.0, likelihood=Gaussian(0.1), **options).fit(x, y)
    padded = torch.cat([y, torch.zeros(2, 1)])
    both = DeepKernelMachine(2, SE, 1.0, likelihood=Labeled(0.1), **options)
    both.fit(torch.cat([x, new]), padded)
    p = len(x)
    for a, b in zip(both.grams, m.grams):
        assert_close(a[:p, :p], b, 1e-4)
    K = kernel_of(both.grams[-1], SE, 1e-3)
    _, across, own = m.kernels(new)
    assert_close(across, K[p:, :p], 1e-4)
    assert_close(own, K[p:, p:].diagonal(), 1e-4)


def test_noiseless_outputs_are_a_divergence():
    """``log N(Y; 0, K)`` summed over columns and ``-columns KL`` differ by a constant."""
    Y = points(5, 9, "columns")
    target = Y @ Y.mT / 9
    a, b = (
        Gaussian(0.0).log_prob(K, Y) - TargetGram(9.0).log_prob(K, target)
        for K in (wishart(5, 0), wishart(5, 1))
    )
    assert_close(a, b, 1e-10)


def test_log_likelihood_is_the_normal_density():
    K, Y = wishart(5, 0), points(5, 2, "columns")
    eye = torch.eye(5, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(
        torch.zeros(5, dtype=torch.float64), K + 0.3 * eye
    )
    assert_close(Gaussian(0.3).log_prob(K, Y), normal.log_prob(Y.mT).sum(), 1e-12)


def test_mode_of_the_features_is_smaller():
    """Without ``log det G`` the Gram matrix shrinks; alone, the trace drives it to zero."""
    x, y = clusters(3)
    law, mode = (
        DeepKernelMachine(1, SE, 10.0, likelihood=Gaussian(0.1), penalty=p).fit(x, y)
        for p in ("kl", "map")
    )
    assert mode.grams[0].trace() < 0.5 * law.grams[0].trace()
    exact = relative_error(law.grams[0], kernel_of(law.G0, SE, 1e-4))
    assert exact < 0.3


def test_classes_through_a_variational_output():
    x, y = clusters(5)
    label = (y[:, 0] > 0).long()
    fitted = {}
    for nu in (math.inf, 1.0):
        likelihood = Categorical(2, child(0, "noise"))
        m = DeepKernelMachine(1, SE, nu, likelihood=likelihood, iterations=100).fit(x, label)
        p, _ = m.predict(x)
        assert_close(p.sum(1), torch.ones(len(x)), 1e-10)
        assert (p.argmax(1) == label).all()
        fitted[nu] = m
    assert fitted[1.0].terms.total > fitted[math.inf].terms.total + 0.5
    G = fitted[1.0].grams[-1]
    assert cka_gram(G, y @ y.mT) > cka_gram(fitted[math.inf].grams[-1], y @ y.mT) + 0.1


def test_output_divergence_is_that_of_normals():
    m, S = points(4, 3, "mean"), points(4, 4, "spread")
    normal = torch.distributions.MultivariateNormal
    prior = normal(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    exact = sum(torch.distributions.kl_divergence(normal(c, S @ S.mT), prior) for c in m.mT)
    assert_close(output_kl(m, S), exact, 1e-10)


# Inducing points.


def sparse_copy(machine, X, noise):
    """A sparse machine with all data as inducing points and the full machine's Gram matrices."""
    s = SparseDKM(
        X,
        machine.depth,
        machine.kernel,
        machine.nu,
        1,
        likelihood="gaussian",
        noise=noise,
        jitter=machine.jitter,
    )
    G = machine.G0
    with torch.no_grad():
        for M, target in zip(s.M, machine.grams):
            L = torch.linalg.cholesky(kernel_of(G, machine.kernel, machine.jitter))
            M.copy_(torch.linalg.solve_triangular(L, torch.linalg.cholesky(target), upper=False))
            G = target
    return s


def test_inducing_points_at_all_data_are_the_full_machine():
    x, y = clusters(4)
    jitter, noise = 1e-6, 0.1
    m = DeepKernelMachine(2, SE, 1.0, likelihood=Gaussian(noise), jitter=jitter).fit(x, y)
    s = sparse_copy(m, x, noise)
    for a, b in zip(s.grams()[1:], m.grams):
        assert_close(a, b, 1e-8)
    # Data sent past inducing points that are the data arrive where those are.
    Kii, Kti, ktt = m.kernels(x)
    assert_close(Kti, Kii, 1e-4)
    assert_close(ktt, Kii.diagonal(), 1e-4)
    # The best output layer has the exact posterior; the bound is then the objective itself.
    L = torch.linalg.cholesky(Kii)
    with torch.no_grad():
        posterior = torch.linalg.inv(torch.linalg.inv(Kii) + torch.eye(len(x)) / noise)
        s.mean.copy_(torch.linalg.solve_triangular(L, posterior @ y / noise, upper=False))
        half = torch.linalg.cholesky(posterior + 1e-12 * torch.eye(len(x)))
        s.S.copy_(torch.linalg.solve_triangular(L, half, upper=False))
        bound = len(x) * s.elbo(x, y, len(x), child(0, "draws"))
        mean, var = s(x)
    assert_close(bound, m.terms.total, 1e-3)
    for a, b in zip((mean, var), m.predict(x)):
        assert_close(a, b, 1e-3)
    # Two ways to write the conditionals: from G_ii, and from M.
    new = points(6, 1, "new")
    for a, b in zip(s(new), m.predict(new)):
        assert_close(a.detach(), b, 1e-3)


def test_sparse_machine_starts_at_the_infinite_network_and_learns():
    x, y = clusters(10)
    s = SparseDKM(x[::4], 2, SE, 1.0, 1, likelihood="gaussian")
    G = s.grams()
    assert_close(G[2], kernel_of(kernel_of(G[0], SE, 1e-4), SE, 1e-4), 1e-10)
    assert s.penalty().item() == pytest.approx(0, abs=1e-10)
    gen = child(0, "draws")
    optimizer = torch.optim.Adam(s.parameters(), lr=0.03)
    before = s.elbo(x, y, len(x), gen).item()
    for _ in range(60):
        optimizer.zero_grad()
        (-s.elbo(x, y, len(x), gen)).backward()
        optimizer.step()
    assert s.elbo(x, y, len(x), gen).item() > before + 0.5
    assert cka_gram(s.grams()[-1], y[::4] @ y[::4].mT) > 0.65


def test_infinite_price_leaves_nothing_to_learn_in_the_layers():
    x = points(12, 3, "inducing").float()
    s = SparseDKM(x[:6], 2, arc_cosine(), math.inf, 3)
    assert not any(M.requires_grad for M in s.M)
    (-s.elbo(x, torch.arange(12) % 3, 12, child(0, "draws"))).backward()
    assert torch.isfinite(s.X.grad).all() and s.mean.grad.norm() > 0
    p = s.probabilities(x, child(0, "draws"))
    assert_close(p.sum(1), torch.ones(12), 1e-5)


# Finite width.


def fitted(depth=1, nu=1.0, **options):
    x, label = gaussian_clusters(
        torch.tensor([[-2.0], [0.0], [2.0]], dtype=torch.float64), 0.3, 2, child(0, "three")
    )
    y = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)[label][:, None]
    machine = DeepKernelMachine(depth, SE, nu, likelihood=Gaussian(0.1), jitter=1e-2, **options)
    return machine.fit(x, y)


def test_log_density_is_the_joint_density():
    m = fitted(2, (1.0, 2.0))
    f = FiniteDGP(m, 3)
    theta = f.prior(2, child(0, "prior"))
    assert theta.shape == (2, f.size) and f.widths == [3, 6]
    normal = torch.distributions.MultivariateNormal
    joint = []
    for state in theta:
        K, total = kernel_of(m.G0, SE, m.jitter), 0.0
        for F in f.features(state):
            total += normal(torch.zeros(len(K), dtype=K.dtype), K).log_prob(F.mT).sum()
            K = kernel_of(F @ F.mT / F.shape[1], SE, m.jitter)
        joint.append(total + 3 * m.likelihood.log_prob(K, m.Y))
    ours = f.log_density(theta)
    assert_close(ours[0] - ours[1], joint[0] - joint[1], 1e-8)


def test_wide_features_have_the_machine_s_gram_matrix():
    """The average over samples goes to the optimum, and far from the prior's kernel."""
    m = fitted()
    prior = kernel_of(m.G0, SE, m.jitter)
    assert relative_error(m.grams[0], prior) > 0.3
    errors = {}
    for width in (2, 32):
        f = FiniteDGP(m, width)
        chains = f.hmc(15, child(0, "hmc", width), chains=32, burn_in=12)
        errors[width] = relative_error(f.mean_grams(chains)[0], m.grams[0])
        assert chains.accepted.min() > 0.3
    assert errors[32] < 0.5 * errors[2] and errors[32] < 0.06


def test_langevin_and_hmc_sample_one_law():
    m = fitted()
    f = FiniteDGP(m, 2)
    walk = f.langevin(160, child(0, "langevin"), chains=192, burn_in=40, step=0.05, thin=8)
    exact = f.hmc(8, child(0, "hmc"), chains=192, burn_in=8)
    assert walk.samples.shape == (192, 20, f.size)
    assert_close(f.mean_grams(walk)[0], f.mean_grams(exact)[0], 0.12)


def test_network_instead_of_a_process():
    """With many features, ReLU's sample covariance is the arc-cosine kernel of the Gram matrix."""
    x = points(4, 4, "inputs")
    kernel = arc_cosine(normalized=False)
    m = DeepKernelMachine(1, kernel, 1.0, likelihood=Gaussian(0.1)).fit(x, x[:, :1])
    f = FiniteDGP(m, 20000, phi=torch.relu)
    F = f.features(f.prior(1, child(0, "prior")))[0]
    G = F @ F.mT / F.shape[-1]
    assert_close(f._next(F), kernel_of(G, kernel, m.jitter), 0.05)


def test_a_chain_that_runs_off_stops_no_other():
    """Where a covariance has no factor the density is NaN, for that chain alone."""
    m = fitted()
    f = FiniteDGP(m, 4, phi=torch.relu)
    theta = f.prior(2, child(0, "prior"))
    lost = torch.stack([theta[0], 1e200 * theta[1]])
    assert torch.isfinite(f.log_density(theta)).all()
    assert torch.isfinite(f.log_density(lost)).tolist() == [True, False]
    assert torch.isfinite(f.hmc(3, child(0, "far"), chains=3, burn_in=0, step=50.0).samples).all()


# The limit of a network.


def test_coupling_counts_its_volume():
    flow = Coupling(5, 3, 4, child(0, "flow")).double()
    with torch.no_grad():
        for p in flow.parameters():
            p += 0.3 * torch.randn(p.shape, generator=child(0, "move"), dtype=p.dtype)
    z = points(3, 5, "z")
    image, log_det = flow(z)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None])[0][0], z[i])
        assert_close(log_det[i].detach(), torch.linalg.slogdet(jacobian).logabsdet, 1e-10)
    assert not torch.allclose(image, z)


def relu_machine(depth=1, nu=1.0):
    m = fitted()
    X = torch.cat([m.X, torch.ones_like(m.X)], 1)
    machine = DeepKernelMachine(depth, arc_cosine(False), nu, likelihood=Gaussian(0.1), jitter=1e-2)
    return machine.fit(X, m.Y)


def test_gaussian_features_give_the_machine():
    """Where the flow starts its objective is the machine's, for one layer and for two."""
    for m in (relu_machine(), relu_machine(2, (1.0, 2.0))):
        net = NetworkDKM(m, torch.relu, child(0, "flow"), blocks=1, hidden=1)
        terms, grams = net.summary(40_000, child(0, "draws"))
        assert_close(terms.total, m.terms.total, 0.02)
        assert_close(torch.tensor(terms.kl), torch.tensor(m.terms.kl), 0.05)
        for a, b in zip(grams, m.grams):
            assert_close(a, b, 0.03)


def test_a_linear_network_gains_nothing_from_a_flow():
    """Its kernel is the Gram matrix, and of all laws with that the Gaussian costs least."""
    x, y = points(5, 6, "inputs"), points(5, 8, "labels")
    m = DeepKernelMachine(1, linear, likelihood=Gaussian(0.1), jitter=0.0).fit(x, y)
    net = NetworkDKM(m, lambda f: f / math.sqrt(2), child(0, "flow"), blocks=2, hidden=8)
    net.fit(child(0, "draws"), steps=60, draws=256)
    terms, _ = net.summary(50_000, child(0, "test"))
    assert m.terms.total - 1.0 < terms.total < m.terms.total + 0.1


def test_features_of_a_relu_network_are_not_gaussian():
    """The flow's objective is higher, and a wide network's Gram matrix is the flow's."""
    m = relu_machine()
    net = NetworkDKM(m, torch.relu, child(0, "flow"), blocks=4, hidden=16)
    net.fit(child(0, "draws"), steps=150, draws=256, lr=0.03)
    terms, (G,) = net.summary(20_000, child(0, "test"))
    assert terms.total > m.terms.total + 0.5
    f = FiniteDGP(m, 32, phi=torch.relu)
    sampled = f.mean_grams(f.hmc(20, child(0, "hmc"), chains=16, burn_in=20, step=0.15))[0]
    assert relative_error(G, sampled) < 0.85 * relative_error(m.grams[0], sampled)


def test_kurtosis():
    G = wishart(3, 0)
    z = torch.randn(3, 200_000, generator=child(0, "z"), dtype=torch.float64)
    L = torch.linalg.cholesky(G)
    assert excess_kurtosis(L @ z, G).abs().max() < 0.1
    assert_close(excess_kurtosis(L @ z.sign(), G), -2 * torch.ones(3), 1e-2)


# Messages.


def one_layer(likelihood=None):
    return DeepKernelMachine(1, SE, likelihood=likelihood or Gaussian(0.1))


def test_another_likelihood_is_refused():
    with raises(TypeError, match="likelihood is a float"):
        DeepKernelMachine(1, SE, likelihood=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: squared_exponential(0.0), "length=0.0"),
        (lambda: polynomial(0), "degree=0"),
        (lambda: sum_kernel(linear, weights=[1.0, 2.0]), "for 1 kernels"),
        (lambda: kl_gram(torch.eye(2), torch.eye(3)), "one shape"),
        (lambda: kl_gram(-torch.eye(2), torch.eye(2)), "G is not positive definite"),
        (lambda: linear_dkm_closed_form(torch.eye(2), torch.eye(2), 0), "depth=0"),
        (lambda: linear_dkm_closed_form(torch.eye(2), torch.eye(2), 1, [1.0]), "2 finite numbers"),
        (lambda: Gaussian(-1.0), "noise=-1.0"),
        (lambda: TargetGram(0.0), "nu=0.0"),
        (lambda: Categorical(1, child(0, "x")), "classes=1"),
        (lambda: DeepKernelMachine(0, SE, likelihood=Gaussian(0.1)), "depth=0"),
        (lambda: DeepKernelMachine(2, SE, [1.0], likelihood=Gaussian(0.1)), "2 of them"),
        (lambda: DeepKernelMachine(2, SE, -1.0, likelihood=Gaussian(0.1)), "nu=-1.0"),
        (
            lambda: DeepKernelMachine(1, SE, likelihood=Gaussian(0.1), penalty="l2"),
            "penalty='l2'",
        ),
        (
            lambda: DeepKernelMachine(1, SE, likelihood=Gaussian(0.1), parametrization="log"),
            "parametrization='log'",
        ),
        (
            lambda: DeepKernelMachine(1, SE, likelihood=Gaussian(0.1)).fit(
                torch.zeros(3, 1), torch.zeros(2, 1)
            ),
            r"X has 3 rows and Y shape \(2, 1\)",
        ),
        (
            lambda: DeepKernelMachine(1, linear, likelihood=Gaussian(0.1), jitter=0.0).fit(
                torch.ones(3, 1), torch.zeros(3, 1)
            ),
            "raise the jitter",
        ),
        (lambda: SparseDKM(torch.eye(2), 0, SE, 1.0, 2), "depth=0"),
        (lambda: SparseDKM(torch.eye(2), 1, SE, 1.0, 2, likelihood="probit"), "probit"),
        (lambda: SparseDKM(torch.eye(2), 1, SE, 1.0, 2, noise=0.0), "noise=0.0"),
        (
            lambda: SparseDKM(torch.eye(2), 1, SE, 1.0, 2).elbo(
                torch.eye(2), torch.zeros(2), 1, child(0, "x")
            ),
            "total=1",
        ),
        (
            lambda: FiniteDGP(DeepKernelMachine(1, SE, likelihood=Gaussian(0.1)), 4),
            "call its fit",
        ),
        (lambda: FiniteDGP(fitted(1, 0.3), 4), "whole number"),
        (lambda: FiniteDGP(fitted(1, math.inf), 4), "whole number"),
        (lambda: FiniteDGP(fitted(), 4).langevin(0, child(0, "x")), "steps=0"),
        (lambda: FiniteDGP(fitted(), 4).prior(0, child(0, "x")), "chains=0"),
        (lambda: FiniteDGP(fitted(), 4).features(torch.zeros(2, 7)), "theta has 7"),
        (lambda: excess_kurtosis(torch.zeros(3, 5), torch.eye(2)), "samples of p"),
        (lambda: kl_gram(torch.full((2, 2), math.nan), torch.eye(2)), "G .*finite"),
        (lambda: kl_gram(torch.eye(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "not symmetric"),
        (lambda: linear_dkm_closed_form(torch.eye(2)[:1], torch.eye(2)[:1], 1), "square"),
        (lambda: Gaussian(math.nan), "noise=nan"),
        (lambda: DeepKernelMachine(1, SE, likelihood=Gaussian(0.1), jitter=math.nan), "nan"),
        (lambda: one_layer().fit(torch.full((3, 1), math.nan), torch.zeros(3, 1)), "X has shape"),
        (lambda: one_layer().fit(torch.zeros(0, 1), torch.zeros(0, 1)), "X has shape"),
        (lambda: one_layer().fit(torch.zeros(3, 1), torch.zeros(3)), "Y has shape"),
        (lambda: one_layer(TargetGram()).fit(torch.zeros(3, 1), torch.zeros(3, 1)), "3 by 3"),
        (
            lambda: one_layer(Categorical(2, child(0, "x"))).fit(
                torch.zeros(2, 1), torch.tensor([0, -1])
            ),
            "from 0 to 1",
        ),
        (lambda: one_layer().predict(torch.zeros(2, 1)), "call fit"),
        (lambda: fitted().predict(torch.zeros(2, 3)), "1 columns"),
        (
            lambda: DeepKernelMachine(1, arc_cosine(), likelihood=Gaussian(0.1)).fit(
                torch.zeros(2, 1), torch.zeros(2, 1)
            ),
            "no angle",
        ),
        (
            lambda: nngp_predict(
                torch.eye(2), torch.eye(2), torch.eye(3), depth=1, kernel=SE, noise=0.1
            ),
            "as many columns",
        ),
        (lambda: SparseDKM(torch.zeros(0, 2), 1, SE, 1.0, 2), "inducing has shape"),
        (lambda: SparseDKM(torch.eye(2), 1, SE, 1.0, 2)(torch.eye(3)), "2 columns"),
        (
            lambda: SparseDKM(torch.eye(2), 1, SE, 1.0, 1, likelihood="gaussian").elbo(
                torch.eye(2), torch.zeros(2), 2, child(0, "x")
            ),
            "y has shape",
        ),
        (
            lambda: SparseDKM(torch.eye(2), 1, SE, 1.0, 2).elbo(
                torch.eye(2), torch.tensor([0, 2]), 2, child(0, "x")
            ),
            "from 0 to 1",
        ),
        (
            lambda: SparseDKM(torch.eye(2), 1, SE, 1.0, 2, likelihood="gaussian").probabilities(
                torch.eye(2), child(0, "x")
            ),
            "likelihood='gaussian'",
        ),
        (lambda: NetworkDKM(one_layer(), torch.relu, child(0, "x")), "call its fit"),
        (lambda: NetworkDKM(fitted(1, math.inf), torch.relu, child(0, "x")), "its nu"),
        (lambda: NetworkDKM(fitted(), torch.relu, child(0, "x"), blocks=-1), "blocks=-1"),
        (lambda: NetworkDKM(fitted(), torch.relu, child(0, "x"))(0, child(0, "x")), "n=0"),
    ],
)
def test_errors_name_the_argument(call, message):
    with raises(ValueError, match=message):
        call()
