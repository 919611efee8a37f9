import math

import numpy as np
import pytest
import torch
from scipy import stats

from lib.core.derivatives import empirical_ntk, functional
from lib.core.fitting import fit
from lib.core.seeds import child
from lib.models.gp import GP, rbf, sparse_predict
from lib.models.infinite_width import erf_dual, nngp_ntk, relu_dual
from lib.width import scale_mixtures as sm
from lib.width.scale_mixtures import SMNNGP, SVTP, Dirac, InverseGamma
from lib.width.scale_mixtures.kernels import _conv, _images
from tests.helpers import assert_close, raises

PRIORS = {
    "InverseGamma": (InverseGamma(3.0, 1.5), stats.invgamma(3.0, scale=1.5)),
    "BurrXII": (sm.BurrXII(4.0, 1.5), stats.burr12(4.0, 1.5)),
    "LogNormal": (sm.LogNormal(0.3, 0.8), stats.lognorm(0.8, scale=math.exp(0.3))),
    "HalfCauchy": (sm.HalfCauchy(1.3), None),
}
KERNEL = sm.nngp_kernel("mlp", 2, "erf")
IG = InverseGamma(2.0, 2.0)


def data(n=12, m=20, outputs=1, seed=0):
    gen = child(seed, "data")
    X, x = (torch.randn(k, 4, generator=gen, dtype=torch.float64) for k in (n, m))
    noise = (0.3 * torch.randn(k, outputs, generator=gen).double() for k in (n, m))
    y, target = (torch.sin(v[:, :outputs]) + e for v, e in zip((X, x), noise))
    return X, y, x, target


# Laws of the scale.


@pytest.mark.parametrize("name", PRIORS)
def test_densities_are_normalized_and_agree_with_their_draws(name, gen):
    prior, peer = PRIORS[name]
    nodes = sm.quadrature_posterior(prior)
    assert abs(nodes.log_evidence) < 1e-6  # the half-Cauchy's tails; 1e-12 for the others
    s = prior.sample(4000, gen)
    if peer is None:  # s is the square of a half-Cauchy variable
        law = lambda v: stats.halfcauchy(scale=prior.scale).cdf(np.sqrt(v))
    else:
        law = peer.cdf
        assert_close(prior.log_density(s), peer.logpdf(s.numpy()), 1e-10)
        assert_close(prior.moments(), peer.stats("mv"), 1e-10, "mean and variance")
        assert_close(nodes.mean(), peer.mean(), 1e-6)
    # One fixed draw of 4,000.
    assert stats.kstest(s.numpy(), law).pvalue > 0.01


def test_burr_density_at_the_ends_of_the_floats():
    s = torch.tensor([1e-200, 1e200], dtype=torch.float64)
    assert torch.isfinite(sm.BurrXII().log_density(s)).all()


def test_moments_that_do_not_exist_are_infinite():
    assert InverseGamma(1.0, 1.0).moments() == (math.inf, math.inf)
    assert InverseGamma(2.0, 2.0).moments() == (2.0, math.inf)
    assert sm.BurrXII(2.0, 1.0).moments()[1] == math.inf
    assert sm.excess_kurtosis(InverseGamma(2.0, 2.0)) == math.inf
    assert_close(sm.excess_kurtosis(InverseGamma(6.0, 2.0)), 6 / (2 * 6 - 4), 1e-12)
    assert sm.excess_kurtosis(Dirac(3.0)) == 0


# The law of the outputs.


def test_student_t_is_scipy_s():
    A = torch.randn(4, 4).double()
    cov, mean, y = A @ A.T + torch.eye(4), torch.randn(4, 1).double(), torch.randn(4, 1).double()
    law = sm.mix(InverseGamma(1.7, 0.6), mean, cov.diagonal(), cov)
    scale = 0.6 / 1.7 * cov
    peer = stats.multivariate_t(mean[:, 0].numpy(), scale.numpy(), df=3.4)
    assert_close(law.joint_log_density(y), peer.logpdf(y[:, 0].numpy()), 1e-12)
    each = stats.t(3.4, mean.numpy(), scale.diagonal().sqrt()[:, None].numpy())
    assert_close(law.log_density(y), each.logpdf(y.numpy()), 1e-12)
    assert_close(law.cdf(y), each.cdf(y.numpy()), 1e-10)
    assert_close(law.quantile(0.93), each.ppf(0.93), 1e-10)
    assert_close(law.variance()[:, None], each.var(), 1e-12)
    assert sm.StudentT(2.0, mean, cov.diagonal()).variance().isinf().all()


def test_mixture_of_nodes_is_the_student_t():
    mean, var = torch.randn(5, 2).double(), torch.rand(5).double() + 0.1
    prior = InverseGamma(2.5, 2.0)
    exact = sm.mix(prior, mean, var)
    nodes = sm.mix(sm.quadrature_posterior(prior), mean, var)
    y = 3 * torch.randn(5, 2).double()
    assert_close(nodes.log_density(y), exact.log_density(y), 1e-10)
    assert_close(nodes.cdf(y), exact.cdf(y), 1e-9)
    for p in (0.01, 0.5, 0.99):
        assert_close(nodes.quantile(p), exact.quantile(p), 1e-8)
    assert_close(nodes.mean, exact.mean, 1e-14)
    assert_close(nodes.variance()[:, 0], exact.variance(), 1e-4)


@pytest.mark.parametrize("prior", [InverseGamma(6.0, 6.0), sm.LogNormal(0.0, 0.5)])
def test_draws_have_the_predicted_covariance_and_share_the_scale(prior, gen):
    A = torch.randn(3, 3, generator=gen).double()
    cov, mean = A @ A.T + torch.eye(3), torch.randn(3, 2, generator=gen).double()
    nodes = prior if isinstance(prior, InverseGamma) else sm.quadrature_posterior(prior)
    law = sm.mix(nodes, mean, cov.diagonal(), cov)
    draws = law.sample(40_000, gen) - mean
    expected = prior.moments()[0] * cov
    assert_close(torch.einsum("nio,njo->ij", draws, draws) / 80_000, expected, 0.05)
    # The two outputs are uncorrelated, but their squares are not: one s moves both.
    a, b = draws[:, 0, 0], draws[:, 0, 1]
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.05
    assert torch.corrcoef(torch.stack([a.square(), b.square()]))[0, 1] > 0.04
    alone = sm.mix(nodes, mean, cov.diagonal()).sample(40_000, gen) - mean
    assert abs(torch.corrcoef(alone[:, :2, 0].T)[0, 1]) < 0.05


# Inference.


@pytest.mark.parametrize("outputs", [1, 3])
def test_quadrature_is_the_closed_form(outputs):
    X, y, x, target = data(outputs=outputs)
    prior = InverseGamma(2.0, 2.0)
    exact = SMNNGP(KERNEL, prior, 0.1).fit(X, y)
    numeric = SMNNGP(KERNEL, prior, 0.1, infer=sm.quadrature_posterior).fit(X, y)
    a, b = (m.predict(x, joint=True) for m in (exact, numeric))
    assert_close(b.log_density(target), a.log_density(target), 1e-8)
    assert_close(b.joint_log_density(target), a.joint_log_density(target), 1e-8)
    assert_close(exact.log_marginal(), numeric.log_marginal(), 1e-8)
    assert a.dof == 4 + 12 * outputs


def test_log_marginal_is_a_multivariate_t():
    X, y, _, _ = data()
    got = SMNNGP(KERNEL, InverseGamma(2.0, 3.0), 0.1).fit(X, y).log_marginal()
    Kt = KERNEL(X, X) + 0.1 * torch.eye(12).double()
    peer = stats.multivariate_t(np.zeros(12), 1.5 * Kt.numpy(), df=4)
    assert_close(got, peer.logpdf(y[:, 0].numpy()), 1e-10)


def test_importance_sampling_approaches_the_closed_form():
    X, y, x, target = data()
    prior = InverseGamma(2.0, 2.0)
    infer = lambda p, f: sm.importance_posterior(p, f, 100_000, child(0, "importance"))
    a = SMNNGP(KERNEL, prior, 0.1).fit(X, y)
    b = SMNNGP(KERNEL, prior, 0.1, infer=infer).fit(X, y)
    # 0.0004 to 0.004 over 5 seeds.
    gap = a.predict(x).log_density(target) - b.predict(x).log_density(target)
    assert gap.abs().max() < 0.02
    assert abs(a.log_marginal() - b.log_marginal()) < 0.02
    # Drawn from the exact posterior, all weights are equal and the evidence is exact.
    exact = sm.importance_posterior(prior, a.log_likelihood, 50, child(0), proposal=a.law)
    assert_close(exact.ess(), 50.0, 1e-9)
    assert_close(exact.log_evidence, a.log_marginal(), 1e-9)


@pytest.mark.parametrize("count", [10, 10_000, 10_000_000])
def test_quadrature_finds_a_posterior_of_any_width(count):
    q, prior = 0.3 * count, InverseGamma(2.0, 2.0)
    nodes = sm.quadrature_posterior(prior, lambda s: -0.5 * count * s.log() - 0.5 * q / s)
    exact = sm.student_t_posterior(prior, q, count)
    assert_close(nodes.mean(), exact.moments()[0], 1e-8)
    law = stats.invgamma(exact.a, scale=exact.b)
    below = nodes.log_w.exp()[nodes.s < law.median()].sum()
    assert abs(below - 0.5) < 0.1  # a node more or less


def test_mean_does_not_depend_on_the_prior():
    X, y, x, _ = data(outputs=2)
    nngp = GP(KERNEL, 0.1).fit(X, y)
    for prior in (Dirac(3.0), *(p for p, _ in PRIORS.values())):
        mean = SMNNGP(KERNEL, prior, 0.1).fit(X, y).predict(x).mean
        assert_close(mean, nngp.predict(x), 1e-8, str(prior))
    # With a known scale it is the Gaussian process of kernel sK and noise s eps.
    got = SMNNGP(KERNEL, Dirac(3.0), 0.1).fit(X, y)
    peer = GP(lambda a, b: 3 * KERNEL(a, b), 0.3).fit(X, y)
    assert_close(
        got.predict(x, noise=False).variance()[:, 0], peer.predict(x, True)[1].diag(), 1e-8
    )
    assert_close(got.log_marginal(), peer.log_marginal(), 1e-10)


def test_noise_that_does_not_scale():
    X, y, x, target = data()
    peer = GP(lambda a, b: 3 * KERNEL(a, b), 0.2).fit(X, y)
    model = SMNNGP(KERNEL, Dirac(3.0), 0.2, noise_scales=False).fit(X, y)
    law = model.predict(x, noise=False, joint=True)
    mean, cov = peer.predict(x, True)
    assert_close(law.mean, mean, 1e-8)
    assert_close(law.cov[0], cov, 1e-8)
    assert_close(law.var[0], cov.diag(), 1e-8)
    assert_close(model.log_marginal(), peer.log_marginal(), 1e-8)
    # The mean then depends on the prior; without noise the two models are one.
    means = [
        SMNNGP(KERNEL, p, 0.2, noise_scales=False).fit(X, y).predict(x).mean
        for p in (InverseGamma(2.0, 2.0), InverseGamma(20.0, 2.0))
    ]
    assert (means[0] - means[1]).abs().max() > 0.01
    pair = [
        SMNNGP(KERNEL, InverseGamma(2.0, 2.0), 0.0, noise_scales=flag).fit(X, y).predict(x)
        for flag in (True, False)
    ]
    assert_close(pair[1].log_density(target), pair[0].log_density(target), 1e-6)


def test_empirical_bayes_is_the_most_likely_scale_and_the_limit_of_every_prior():
    X, y, x, target = data(n=400)
    model = sm.EmpiricalBayesNNGP(KERNEL, 0.1).fit(X, y)
    grid = model.law.value * torch.linspace(0.9, 1.1, 201).double()
    assert_close(grid[model.log_likelihood(grid).argmax()], model.law.value, 1e-6)
    score = model.predict(x).log_density(target).mean()
    for prior, _ in PRIORS.values():
        other = SMNNGP(KERNEL, prior, 0.1).fit(X, y).predict(x).log_density(target).mean()
        assert abs(other - score) < 0.05, prior


def test_the_kernel_is_an_argument():
    """A Student-t process with an RBF kernel; a GP with it is the same with a known scale."""
    X, y, x, target = data()
    t = SMNNGP(rbf, InverseGamma(1e7, 1e7), 0.1).fit(X, y).predict(x).log_density(target)
    g = SMNNGP(rbf, Dirac(1.0), 0.1).fit(X, y).predict(x).log_density(target)
    assert_close(t, g, 1e-5)


def test_choice_by_validation_and_class_probabilities(gen):
    X, y, x, target = data(outputs=3)
    models = [SMNNGP(KERNEL, InverseGamma(2.0, 2.0), eps) for eps in (1e-6, 0.1, 1.0)]
    best, scores = sm.choose_by_validation(models, X, y, x, target)
    assert best is models[scores.index(min(scores))]
    p = sm.class_probabilities(best.predict(x), 500, gen)
    assert_close(p.sum(1), torch.ones(20), 1e-12)
    assert p.min() > 0
    sure = sm.mix(Dirac(1e-12), torch.eye(3).double(), torch.ones(3).double())
    assert_close(
        sm.class_probabilities(sure, 97, gen).diag(), torch.full((3,), 0.98).double(), 1e-6
    )


# Kernels.


def test_mlp_kernel_layer_by_layer():
    x = torch.randn(5, 3).double()
    wv, bv = 1.7, 0.3
    c = wv * x @ x.T / 3 + bv
    for layer in range(2):
        v = c.diagonal()
        value = relu_dual(v[:, None], v[None], c)[0]
        c = value if layer == 1 else wv * value + bv
    assert_close(sm.nngp_kernel("mlp", 2, "relu", wv, bv)(x), c, 1e-12)
    K, hidden = sm.mlp_kernels(x, None, 2, "erf")
    sigma, theta = nngp_ntk(x, None, 2, "erf", 0.0)
    assert_close(K, sigma, 1e-12)
    assert_close(K + hidden, theta, 1e-12)


def test_residual_kernel_by_hand():
    x = torch.randn(4, 3).double()
    wv, bv = 0.8, 0.2

    def act(c):
        v = c.diagonal()
        return erf_dual(v[:, None], v[None], c)[0]

    z = wv * x @ x.T / 3 + bv
    z = z + wv * act(z) + bv
    assert_close(sm.nngp_kernel("resnet", 1, "erf", wv, bv)(x), act(z), 1e-12)


def test_linear_convolutional_kernel_is_a_sum_over_paths():
    """Identity activations, one channel: the kernel of two layers is 1/81 of a double sum."""
    x = torch.randn(3, 1, 4, 4).double()
    ones = torch.ones(1, 1, 3, 3).double()
    product = x[:, None, 0] * x[None, :, 0]
    for _ in range(2):
        product = torch.conv2d(product.view(-1, 1, 4, 4), ones, padding=1) / 9
    expected = product.view(3, 3, 16).mean(2)
    assert_close(sm.nngp_kernel("cnn", 2, "identity")(x), expected, 1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_all_pairs_of_places_contain_the_equal_ones(stride):
    x1, x2 = torch.rand(2, 3, 4, 4).double(), torch.rand(3, 3, 4, 4).double()
    flat, full = (_images(x1, x2, pool) for pool in (False, True))
    for _ in range(2):
        flat, full = (_conv(z, (1.3, 0.2), stride).act("relu") for z in (flat, full))
    equal = full.c.flatten(4).flatten(2, 3).diagonal(dim1=-2, dim2=-1)
    assert_close(equal, flat.c.flatten(2), 1e-12)
    assert_close(full.a[..., 0, 0], flat.a, 1e-12)
    assert_close(full.b[:, :, 0, 0], flat.b, 1e-12)


@pytest.mark.parametrize("arch", ["cnn", "conv_resnet"])
def test_convolutional_kernels_are_those_of_random_networks(arch):
    """Mean over 300 nets of width 32; largest error 0.039 of the diagonal over 5 seeds."""
    gen = child(1, arch)
    x = torch.rand(3, 2, 4, 4, generator=gen)
    wv, bv, width, nets = 1.5, 0.2, 32, 300

    def conv(z, stride=1):
        fan_in = 18 if z.shape[1] == 2 else 9 * width
        groups = 1 if z.shape[1] == 2 else nets  # the nets stand side by side as channels
        W = math.sqrt(wv / fan_in) * torch.randn(nets * width, fan_in // 9, 3, 3, generator=gen)
        b = math.sqrt(bv) * torch.randn(nets * width, generator=gen)
        return torch.conv2d(z, W, b, stride, 1, groups=groups)

    if arch == "cnn":
        z = torch.relu(conv(torch.relu(conv(x))))
        settings = ("cnn", 2, "relu", wv, bv)
    else:
        z = conv(x)
        z = conv(torch.relu(conv(torch.relu(z), 1))) + conv(z, 1)
        z = conv(torch.relu(conv(torch.relu(z), 2))) + conv(z, 2)
        settings = ("conv_resnet", 1, "relu", wv, bv)
    for pool in (False, True):
        kernel = sm.nngp_kernel(*settings, pool=pool, groups=2)
        phi = z.mean((2, 3)) if pool else z.flatten(1) / math.sqrt(z[0, 0].numel())
        K = kernel(x.double())
        assert (phi @ phi.T / (nets * width) - K).abs().max() < 0.1 * K.max(), pool
        assert_close(kernel(x.double(), x.double()[:2]), K[:, :2], 1e-12)
        assert_close(sm.prior_variance(kernel, x.double(), 2), K.diagonal(), 1e-12)


# Networks of finite width.


def test_random_networks_follow_the_mixture_and_scales_per_unit_do_not():
    prior = InverseGamma(2.0, 2.0)
    x = torch.tensor([[1.0, 0.5, -0.3], [0.2, 1.0, 0.4]])
    K = KERNEL(x.double())
    for per, depth in (("network", 1), ("unit", 1), ("network", 2)):
        width = 256 if depth == 1 else 64
        kernel = sm.nngp_kernel("mlp", depth, "erf")(x.double())
        f, s = sm.sample_networks(
            x, width, prior, 2000, child(0, per), depth, "erf", scale_per=per, chunk=500
        )
        t = stats.kstest((f[:, 0] / kernel[0, 0].sqrt()).numpy(), stats.t(4).cdf).pvalue
        if per == "network":
            assert t > 0.005  # 0.06 to 0.97 over 5 seeds
            assert s.shape == (2000,)
            # Divided by its own scale, each network is an ordinary one.
            z = f.double() / s.sqrt()[:, None]
            assert_close(z.T @ z / 2000, kernel, 0.15)
        else:
            assert t < 1e-3  # below 1e-5 over 5 seeds
            assert s.shape == (2000, width)
    assert K[0, 1] < K[0, 0]


def test_kurtosis_of_the_limit(gen):
    """0.75 for a = 6; 200,000 draws gave 0.69 to 0.83 over 6 seeds."""
    law = sm.mix(InverseGamma(6.0, 3.0), torch.zeros(1, 1).double(), torch.ones(1).double())
    f = law.sample(200_000, gen).flatten().numpy()
    assert abs(stats.kurtosis(f) / sm.excess_kurtosis(InverseGamma(6.0, 3.0)) - 1) < 0.2


def test_trained_last_layers():
    X, y, x, _ = data(n=5, m=2)
    prior = InverseGamma(2.0, 2.0)
    kernel = sm.nngp_kernel("mlp", 1, "erf")
    law = sm.last_layer_trained(kernel, prior, X, y, x, joint=True)
    mean, cov = GP(kernel).fit(X, y).predict(x, True)
    assert law.dof == 4
    assert_close(law.mean, mean, 1e-8)
    assert_close(law.cov, cov, 1e-8)  # b/a = 1
    assert_close(sm.last_layer_trained(kernel, Dirac(2.0), X, y, x).var[0], 2 * cov.diag(), 1e-8)
    f, s = sm.last_layer_ensemble(X.float(), y, x.float(), 256, prior, 500, child(0, "ensemble"))
    z = ((f - law.mean) / law.var.sqrt()[:, None])[:, 0, 0].abs()
    # The median of |t_4| is 0.741; 1.05 to 1.11 times that over 6 seeds: finite width.
    assert abs(z.median() / stats.t(4).ppf(0.75) - 1) < 0.2
    # Each network fits its training points: at a training point the law has no width.
    at = sm.last_layer_ensemble(X.float(), y, X[:1].float(), 256, prior, 20, child(0))[0]
    assert (at - y[:1]).abs().max() < 1e-4


def test_outputs_after_training_all_layers():
    X, y, x, target = data(n=5, m=4)
    K, hidden = sm.mlp_kernels(torch.cat([X, x]), None, 1, "erf")
    prior = InverseGamma(2.0, 2.0)
    law = sm.ntk_trained(K, hidden, prior, y)
    assert law.dof == 4
    nodes = sm.ntk_trained(K, hidden, sm.LogNormal(0.0, 1e-3), y)
    known = sm.ntk_trained(K, hidden, Dirac(1.0), y)
    assert_close(nodes.log_density(target), known.log_density(target), 1e-4)
    assert_close(known.mean, law.mean, 1e-12)
    # At s = 1 it does not matter where the scale stands; elsewhere it does.
    inside = sm.ntk_trained(K, hidden, Dirac(1.0), y, "init", joint=True)
    assert_close(inside.mean, law.mean, 1e-12)
    assert_close(inside.var, known.var, 1e-12)
    other = sm.ntk_trained(K, hidden, Dirac(0.01), y, "init").mean
    assert (other - law.mean).abs().max() > 0.01
    # Where the outputs are known, rounding must not make their quantiles NaN.
    K2, h2 = (v[:5, :5].repeat(2, 2) for v in (K, hidden))
    for place in ("multiplier", "init"):
        at = sm.ntk_trained(K2, h2, prior, y, place)
        assert (at.quantile(0.9) - y).abs().max() < 1e-4
    # Without hidden layers' training both are the last layer's law.
    last = sm.last_layer_trained(sm.nngp_kernel("mlp", 1, "erf"), prior, X, y, x)
    for place in ("multiplier", "init"):
        bare = sm.ntk_trained(K, 0 * hidden, prior, y, place)
        assert_close(bare.log_density(target), last.log_density(target), 1e-8)


@pytest.mark.parametrize("place", ["multiplier", "init"])
def test_trained_networks_end_where_their_kernel_says(place):
    """``f = f_0 + A_s (y - f_0(X))`` with A of the limit; the other place's A is further off.

    Ratio of the two errors 0.18 to 0.49 over 3 seeds.
    """
    X, y, x, _ = data(n=4, m=6)
    y = 0.2 * y  # small targets: at s = 0.01 the weights would have to move far for large ones
    shape = (1, "erf", 4.0)
    K, hidden = sm.mlp_kernels(torch.cat([X, x]), None, *shape)
    run = lambda steps: sm.train_networks(
        X.float(), y.float(), 512, Dirac(0.01), 4, steps, 3, *shape, scale_in=place
    )
    (start, _), (nets, s) = run(0), run(120)
    assert_close(s, torch.full((4,), 0.01), 1e-6)
    both = torch.cat([X, x]).float()
    f0, f = start(both).detach().double(), nets(both).detach().double()
    assert_close(f[:, :4], y.expand(4, 4, 1), 0.05)
    errors = {}
    for name, scale in (("multiplier", 1.0), ("init", 0.01)):
        theta = K + scale * hidden
        A = torch.linalg.solve(theta[:4, :4], theta[:4, 4:]).T
        errors[name] = (f[:, 4:] - f0[:, 4:] - A @ (y - f0[:, :4])).norm().item()
    other = {"multiplier": "init", "init": "multiplier"}[place]
    assert errors[place] < 0.7 * errors[other], errors


def test_kernel_of_a_wide_scaled_network():
    x = torch.randn(3, 4)
    K, hidden = sm.mlp_kernels(x.double(), None, 2, "erf", 1.4, 0.3)
    for place, expected in (("multiplier", 4 * (K + hidden)), ("init", K + 4 * hidden)):
        theta = 0.0
        for k in range(4):
            net = sm.ScaledMLP((4, 512, 512, 1), 4.0, place, "erf", 1.4, 0.3, child(k, place))
            theta = theta + empirical_ntk(*functional(net), x, reduce="trace").double() / 4
        assert_close(theta, expected, 0.1)


# Sparse variational classification.


def sparse(prior=IG, m=6, classes=3, dtype=torch.float64):
    x = torch.randn(m, 4, generator=child(0, "inducing")).to(dtype)
    return SVTP(KERNEL, x, classes, prior)


def test_divergence_is_zero_at_the_prior_and_matches_draws(gen):
    K = KERNEL(torch.randn(4, 4).double()) + 1e-3 * torch.eye(4)
    prior, c = InverseGamma(2.0, 3.0), 2
    a, b = (torch.tensor(v, dtype=torch.float64) for v in (prior.a, prior.b))
    zero = sm.student_t_kl(K, torch.zeros(4, c).double(), K.expand(c, 4, 4), a, b, prior)
    assert abs(zero) < 1e-10
    a_q, b_q = (torch.tensor(v, dtype=torch.float64) for v in (5.0, 4.0))
    mu = torch.randn(4, c, generator=gen).double()
    sigma = torch.rand(c, 4, generator=gen).double() + 0.2
    kl = sm.student_t_kl(K, mu, sigma, a_q, b_q, prior)
    assert_close(sm.student_t_kl(K, mu, torch.diag_embed(sigma), a_q, b_q, prior), kl, 1e-10)
    q = InverseGamma(5.0, 4.0)
    s = q.sample(20_000, gen)
    log_ratio = q.log_density(s) - prior.log_density(s)
    L = torch.linalg.cholesky(K)
    for k in range(c):
        e = torch.randn(len(s), 4, generator=gen).double()
        u = mu[:, k] + (s[:, None] * sigma[k]).sqrt() * e
        w = torch.linalg.solve_triangular(L, u.T, upper=False).square().sum(0)
        log_q = -0.5 * (e.square().sum(1) + sigma[k].log().sum() + 4 * s.log())
        log_p = -0.5 * (w / s + 2 * L.diagonal().log().sum() + 4 * s.log())
        log_ratio = log_ratio + log_q - log_p
    error = log_ratio.std() / math.sqrt(len(s))
    assert abs(log_ratio.mean() - kl) < 4 * error


def test_with_a_known_scale_the_divergence_is_torch_s():
    model = sparse(Dirac(3.0))
    with torch.no_grad():
        model.mu.normal_(generator=child(0))
        model.log_sigma.normal_(generator=child(1))
    K, normal = model.K_uu(), torch.distributions.MultivariateNormal
    expected = sum(
        torch.distributions.kl_divergence(
            normal(model.mu[:, c], 3 * torch.diag(model.log_sigma[c].exp())),
            normal(torch.zeros(6).double(), 3 * K),
        )
        for c in range(3)
    )
    assert_close(model.kl().detach(), expected.detach(), 1e-8)


def test_marginals_are_those_of_the_sparse_gaussian_process():
    model = sparse()
    with torch.no_grad():
        model.mu.normal_(generator=child(0))
        model.log_sigma.copy_(torch.randn(6, generator=child(1)).expand(3, 6))
    x = torch.randn(5, 4).double()
    mean, var = model.marginals(x)
    Kzx, kxx = KERNEL(model.inducing, x), KERNEL(x).diagonal()
    cov = torch.diag(model.log_sigma[0].exp())
    peer_mean, peer_var = sparse_predict(model.K_uu(), Kzx, kxx, model.mu, cov)
    assert_close(mean, peer_mean, 1e-8)
    assert_close(var, peer_var[:, None].expand(5, 3), 1e-8)


def test_draws_are_student_t_with_one_scale_for_all_classes(gen):
    model = sparse()
    x = torch.randn(1, 4).double()
    f = model.sample(x, 20_000, gen).detach()[:, 0]
    var = model.marginals(x)[1].detach()[0]
    z = f / var.sqrt()
    assert stats.kstest(z[:, 0].numpy(), stats.t(4).cdf).pvalue > 0.01
    # Two t's with one scale: their quotient is Cauchy as for Gaussians, their sizes go together.
    assert torch.corrcoef(z.abs().clamp(max=4).T)[0, 1] > 0.1
    fixed = sparse(Dirac(4.0)).sample(x, 20_000, gen).detach()[:, 0] / (2 * var.sqrt())
    assert stats.kstest(fixed[:, 0].numpy(), stats.norm.cdf).pvalue > 0.01
    assert abs(torch.corrcoef(fixed.abs().T)[0, 1]) < 0.03


@pytest.mark.parametrize("prior", [InverseGamma(2.0, 2.0), Dirac(1.0)])
def test_training_improves_the_bound_and_classifies(prior, gen):
    x = torch.randn(120, 4, generator=gen)
    y = x[:, :3].argmax(1)
    model = SVTP(KERNEL, x[:12], 3, prior)
    loss = model.loss(120, 8, gen)
    before = loss(model, (x, y)).item()
    assert before - model.kl().item() / 120 > math.log(3) - 0.1
    loss(model, (x, y)).backward()
    assert all(torch.isfinite(p.grad).all() and (p.grad != 0).any() for p in model.parameters())
    adam = lambda p: torch.optim.Adam(p, lr=0.05)
    fit(model, (x, y), loss, steps=60, optimizer=adam, batch=40)
    assert loss(model, (x, y)).item() < 0.8 * before
    p = model.predict(x, 100, gen)
    assert_close(p.sum(1), torch.ones(120), 1e-5)
    assert (p.argmax(1) == y).float().mean() > 0.85
    assert model.nll(x, y, 100, gen) < math.log(3)
    assert isinstance(model.scale_law(), type(prior))


def test_a_gaussian_process_can_learn_its_scale_as_a_number(gen):
    x, y = torch.randn(40, 4, generator=gen), torch.randint(3, (40,), generator=gen)
    kernel = sm.ScaledKernel(KERNEL, 2.0)
    assert_close(kernel(x, x), 2 * KERNEL(x), 1e-6)
    model = SVTP(kernel, x[:6], 3, Dirac(1.0))
    model.loss(40, 4, gen)(model, (x, y)).backward()
    assert kernel.log_scale.grad != 0


# What is refused.


def test_errors_name_the_argument():
    X, y, x, target = data()
    K = KERNEL(X)
    with raises(ValueError, match="a=0: allowed"):
        InverseGamma(0, 1.0)
    with raises(ValueError, match="Dirac has no density"):
        sm.quadrature_posterior(Dirac(1.0))
    with raises(ValueError, match="nodes=3"):
        sm.quadrature_posterior(InverseGamma(1.0, 1.0), nodes=3)
    with raises(ValueError, match="draws=0"):
        sm.importance_posterior(InverseGamma(1.0, 1.0), torch.log, 0)
    with raises(ValueError, match="gen=None"):
        sm.importance_posterior(InverseGamma(1.0, 1.0), torch.log, 10)
    with raises(ValueError, match="eps=-1"):
        SMNNGP(KERNEL, Dirac(1.0), -1)
    with raises(ValueError, match="X has shape"):
        SMNNGP(KERNEL, Dirac(1.0)).fit(X, y[:3])
    with raises(RuntimeError, match="before fit"):
        SMNNGP(KERNEL, Dirac(1.0)).predict(x)
    law = SMNNGP(KERNEL, InverseGamma(1.0, 1.0)).fit(X, y).predict(x)
    with raises(ValueError, match="y has shape"):
        law.log_density(target[:, 0])
    with raises(ValueError, match="joint=True"):
        law.joint_log_density(target)
    with raises(ValueError, match="p=1.5"):
        law.quantile(1.5)
    with raises(TypeError, match="law is a BurrXII"):
        sm.mix(sm.BurrXII(), target, target[:, 0])
    with raises(ValueError, match="arch='vit'"):
        sm.nngp_kernel("vit")
    with raises(ValueError, match="depth=0"):
        sm.nngp_kernel("mlp", 0)
    with raises(ValueError, match="weight_var=0"):
        sm.nngp_kernel("mlp", 1, weight_var=0)
    with raises(ValueError, match="pool=True"):
        sm.nngp_kernel("mlp", 1, pool=True)
    with raises(ValueError, match="images"):
        sm.nngp_kernel("cnn", 1)(X)
    with raises(ValueError, match="scale_per='weight'"):
        sm.sample_networks(x, 8, Dirac(1.0), 2, child(0), scale_per="weight")
    with raises(ValueError, match="width=0"):
        sm.sample_networks(x, 0, Dirac(1.0), 2, child(0))
    with raises(ValueError, match="act='silu'"):
        sm.sample_networks(x, 8, Dirac(1.0), 2, child(0), act="silu")
    with raises(ValueError, match="width=8"):
        sm.last_layer_ensemble(X, y, x, 8, Dirac(1.0), 2, child(0))
    with raises(ValueError, match="scale_in='last'"):
        sm.ntk_trained(K, K, Dirac(1.0), y[:4], "last")
    with raises(ValueError, match="training points first"):
        sm.ntk_trained(K, K, Dirac(1.0), y)
    with raises(ValueError, match="s=-1"):
        sm.ScaledMLP((4, 8, 1), -1.0)
    with raises(ValueError, match="members=0"):
        sm.train_networks(X, y, 8, Dirac(1.0), 0, 1, 0)
    with raises(ValueError, match="scale=0"):
        sm.ScaledKernel(KERNEL, 0.0)
    with raises(TypeError, match="prior is a BurrXII"):
        SVTP(KERNEL, X, 3, sm.BurrXII())
    with raises(ValueError, match="classes=0"):
        SVTP(KERNEL, X, 0, Dirac(1.0))
    with raises(ValueError, match="candidates is empty"):
        sm.choose_by_validation([], X, y, x, target)
    with raises(ValueError, match="y is zero everywhere"):
        sm.EmpiricalBayesNNGP(KERNEL).fit(X, 0 * y)


def test_errors_name_the_data_that_cannot_be_used(gen):
    X, y, x, _ = data()
    nan, IG2 = float("nan"), InverseGamma(2.0, 2.0)
    for scales in (True, False):
        with raises(ValueError, match="X has entries that are not finite"):
            SMNNGP(KERNEL, IG2, noise_scales=scales).fit(nan * X, y)
        with raises(ValueError, match="y has entries that are not finite"):
            SMNNGP(KERNEL, sm.BurrXII(), noise_scales=scales).fit(X, y / 0)
    with raises(ValueError, match=r"y \(\d+, 0\)"):
        SMNNGP(KERNEL, IG2).fit(X, y[:, :0])
    with raises(ValueError, match="eps=inf"):
        SMNNGP(KERNEL, IG2, math.inf)
    twice = torch.cat([X, X]), torch.cat([y, y])
    with raises(ValueError, match="eps=0.0: the kernel is singular"):
        SMNNGP(KERNEL, IG2, 0.0, noise_scales=False).fit(*twice)
    with raises(ValueError, match="no input may occur twice"):
        sm.last_layer_ensemble(*twice, x, 64, IG2, 2, gen)
    with raises(ValueError, match="X, y and x have shapes"):
        sm.last_layer_trained(KERNEL, IG2, X, y[:3], x)
    with raises(ValueError, match="X, y and x have shapes"):
        sm.last_layer_ensemble(X, y, x[:, :2], 64, IG2, 2, gen)
    with raises(ValueError, match="X, y and x have shapes"):
        sm.train_networks(X, y[:3], 8, IG2, 2, 1, 0)
    with raises(ValueError, match="n=0"):
        sm.last_layer_ensemble(X, y, x, 64, IG2, 0, gen)
    with raises(ValueError, match="x1 and x2 must be"):
        sm.nngp_kernel("resnet", 1)(X, x[:, :2])
    with raises(ValueError, match="act='silu'"):
        sm.nngp_kernel("cnn", 1, "silu")
    with raises(ValueError, match="depth=1.5"):
        sm.nngp_kernel("mlp", 1.5)
    with raises(ValueError, match="bias_var=-1"):
        sm.sample_networks(x, 8, IG2, 2, gen, bias_var=-1)
    with raises(ValueError, match="weight_var=nan"):
        sm.ScaledMLP((4, 8, 1), 1.0, weight_var=nan)
    with raises(ValueError, match="block=0"):
        sm.prior_variance(KERNEL, X, 0)


def test_errors_of_laws_that_cannot_be_integrated(gen):
    IG2 = InverseGamma(2.0, 2.0)
    # Half of this law lies beyond the last node: an integral over the rest would be wrong.
    for law in (sm.LogNormal(200.0, 1.0), InverseGamma(0.01, 0.01), sm.BurrXII(0.05, 0.05)):
        with raises(ValueError, match="too much of the law lies outside"):
            sm.quadrature_posterior(law)
    for heavy in (sm.LogNormal(0.0, 30.0), InverseGamma(0.1, 0.1), sm.HalfCauchy()):
        assert abs(sm.quadrature_posterior(heavy).log_evidence) < 1e-5
    with raises(ValueError, match="times the likelihood is nan"):
        sm.quadrature_posterior(IG2, lambda s: s * float("nan"))
    with raises(ValueError, match="log weights of the draws add up to nan"):
        sm.importance_posterior(IG2, lambda s: s * float("nan"), 10, gen)
    with raises(TypeError, match="prior is a BurrXII"):
        sm.student_t_posterior(sm.BurrXII(), 1.0, 4)
    with raises(ValueError, match="q=-1"):
        sm.student_t_posterior(IG2, -1.0, 4)
    with raises(ValueError, match="mean=nan"):
        sm.LogNormal(float("nan"), 1.0)
    mean = torch.zeros(4, 2).double()
    with raises(ValueError, match="var has shape"):
        sm.mix(IG2, mean, torch.ones(3).double())
    for law in (IG2, Dirac(1.0)):
        with raises(ValueError, match="n=0"):
            sm.mix(law, mean, torch.ones(4).double()).sample(0, gen)


def test_errors_of_sparse_classification(gen):
    model = sparse()
    x, y = torch.randn(4, 4).double(), torch.tensor([0, 1, 2, 3])
    with raises(ValueError, match="y has labels 0 to 3: allowed are 0 to 2"):
        model.nll(x, y, 5, gen)
    with raises(ValueError, match="y has labels -4 to -1"):
        model.loss(4, 2, gen)(model, (x, y - 4))
    with raises(ValueError, match="one label each"):
        model.nll(x, y[:2], 5, gen)
    with raises(ValueError, match="draws=0"):
        model.predict(x, 0, gen)
    with raises(ValueError, match="chunk=0"):
        model.predict(x, 2, gen, chunk=0)
    with raises(ValueError, match="total=0"):
        model.loss(0, 2, gen)
    with raises(ValueError, match="inducing has shape"):
        SVTP(KERNEL, x[:0], 3, IG)
    with raises(ValueError, match="jitter=nan"):
        SVTP(KERNEL, x, 3, IG, float("nan"))
