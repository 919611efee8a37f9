"""Priors over functions: laws of the draws, the critic's closed forms, chains that return them."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from lib.core.data import Split, digits
from lib.models.cnn import ConvNet
from lib.models.gp import matern, rbf
from lib.models.mlp import MLP
from lib.models.resnet import ResNet
from lib.width.functional_prior import (
    BNNPrior,
    Critic,
    GPPrior,
    PlanarFlow,
    SGHMCPosterior,
    SylvesterFlow,
    WassersteinMapper,
    classification_scores,
    conditional_precision,
    correlation,
    covariance_error,
    critic_objective,
    critic_w1,
    deep_ensemble,
    difference,
    empirical_w1_1d,
    entropy,
    gaussian,
    gradient_penalty,
    images,
    log_posterior,
    match_variance,
    maximum_a_posteriori,
    mc_dropout,
    predictive_nll,
    regression,
    rmse,
    sample_hmc,
    softmax,
    swag,
    train_critic,
    uniform_points,
)
from tests.helpers import assert_close, raises


def tanh_net(*sizes):
    return MLP(sizes or (1, 20, 1), nn.Tanh)


def grid(m=7):
    return torch.linspace(-2, 2, m)[:, None]


# ------------------------------------------------------------------------------------- targets


def test_gp_draws_have_the_kernel_as_covariance(gen):
    gp = GPPrior(matern, length=0.7, amplitude=2.0, outputs=2)
    x = grid()
    f = gp.sample(x, 20000, gen)
    assert f.shape == (20000, 7, 2) and f.dtype == x.dtype
    truth = 4 * matern(x.double(), x.double(), 0.7)
    for o in range(2):
        assert covariance_error(f[..., o].double(), truth) < 0.05
    assert abs(torch.corrcoef(torch.stack([f[:, 3, 0], f[:, 3, 1]]))[0, 1]) < 0.03


def test_gp_lengths_one_for_each_input():
    gp = GPPrior(rbf, length=[0.5, 2.0])
    a, b = torch.tensor([[0.3, 0.4]]).double(), torch.tensor([[0.1, 1.4]]).double()
    truth = math.exp(-0.5 * ((0.2 / 0.5) ** 2 + (1.0 / 2.0) ** 2))
    assert_close(gp.covariance(a, b), torch.full((1, 1), truth, dtype=torch.float64), 1e-6)


def test_hierarchical_gp_has_log_normal_amplitudes(gen):
    f = GPPrior(spread=(0.3, 0.5)).sample(grid(3), 40000, gen)[:, 0, 0]
    variance = math.exp(2 * 0.5**2)  # E exp(2 s z)
    assert abs(f.var() / variance - 1) < 0.08
    kurtosis = 3 * math.exp(16 * 0.5**2 / 2) / math.exp(2 * 0.5**2) ** 2
    assert kurtosis > 7 and (f**4).mean() / f.var() ** 2 > 4.5  # a Gaussian has 3


# -------------------------------------------------------------------------------------- priors


def test_the_dense_route_is_the_network_itself(gen):
    net = tanh_net(2, 5, 4, 3)
    prior = BNNPrior(net, sigma=[1.0, 0.5, 2.0, 1.0, 1.5, 0.3])
    xi, x = prior.draw(3, gen), torch.randn(6, 2, generator=gen)
    f, W = prior.functions(xi, x), prior.weights(xi)
    for k in range(3):
        alone = torch.func.functional_call(net, {n: w[k] for n, w in W.items()}, (x,))
        assert_close(f[k].detach(), alone.detach(), 1e-6)
    assert_close(prior.functions(xi, x.expand(3, 6, 2)).detach(), f.detach(), 1e-6)
    weights = prior.weights(xi)["layers.1.weight"]
    expected = 2.0 / math.sqrt(5) * xi[:, 15:35].reshape(3, 4, 5)
    assert_close(weights.detach(), expected, 1e-6)


def test_convolutions_and_norms():
    x = torch.randn(2, 1, 8, 8)
    lenet = ConvNet((2, 4), 3, channels=1, kernel=5, head="flatten", size=8, pool_last=True)
    prior = BNNPrior(lenet)
    f = prior.sample(x, 4, torch.Generator().manual_seed(1))
    assert f.shape == (4, 2, 3)
    assert {b.fan_in for b in prior.blocks if len(b.shape) == 4} == {25, 50}
    resnet = ResNet([4, 8], 3, channels=1, norm=lambda c: nn.GroupNorm(2, c), preact=True)
    prior = BNNPrior(resnet, "hierarchical")
    assert not any(len(b.shape) == 1 and b.fan_in > 1 for b in prior.blocks)
    assert prior.sample(x, 2, torch.Generator().manual_seed(1)).shape == (2, 2, 3)


def test_raw_prior_has_unit_weights(gen):
    prior = BNNPrior(tanh_net(1, 400, 1), raw=True)
    w = prior.weights(prior.draw(40, gen))
    assert abs(w["layers.1.weight"].std() - 1) < 0.03
    scaled = BNNPrior(tanh_net(1, 400, 1))
    w = scaled.weights(scaled.draw(40, gen))
    assert abs(w["layers.1.weight"].std() * 20 - 1) < 0.03


def test_variance_of_a_linear_network(gen):
    # f = sum_j v_j u_j x / sqrt(n) + b: the variance is s_v^2 s_u^2 x^2 + s_b^2.
    net = MLP((1, 30, 1), nn.Identity)
    prior = BNNPrior(net, sigma=[1.5, 0.5, 2.0, 0.3])
    f = prior.sample(torch.tensor([[2.0]]), 40000, gen)[:, 0, 0].detach()
    truth = 2.0**2 * (1.5**2 * 4 + 0.5**2) + 0.3**2
    assert abs(f.var() / truth - 1) < 0.04


def test_hierarchical_precisions_are_gamma(gen):
    prior = BNNPrior(tanh_net(), "hierarchical", shape=3.0, rate=2.0)
    xi = prior.draw(4000, gen)
    precision = xi[:, prior.count :].exp().detach()
    p = stats.kstest(precision[:, 1].numpy(), stats.gamma(3, scale=0.5).cdf).pvalue
    assert p > 0.001
    assert_close(prior.sigma.detach(), torch.ones(4), 1e-6)  # beta / (alpha - 1) = 1
    shared = BNNPrior(tanh_net(), "hierarchical", shared=True).draw(5, gen)[:, -4:]
    assert (shared == shared[0]).all()
    # The implicit gradient: E precision = alpha / beta.
    prior.zero_grad()
    xi[:, prior.count :].exp().mean(0).sum().backward()
    slope = torch.sigmoid(prior.shape_.detach()) / 2.0
    assert (prior.shape_.grad / slope - 1).abs().max() < 0.15


def test_density_of_log_precisions_integrates_to_one():
    prior = BNNPrior(tanh_net(1, 1, 1), "hierarchical")
    u = torch.linspace(-12, 6, 4001)
    xi = torch.zeros(4001, prior.size)
    xi[:, prior.count] = u
    log_p = prior.log_density(xi)
    rest = prior.log_density(torch.zeros(1, prior.size)) - (
        3 * math.log(2.0) - 2.0 - math.lgamma(3)
    )
    total = torch.trapezoid(torch.exp(log_p - rest), u)
    assert_close(total.detach(), torch.tensor(1.0), 1e-3)


@pytest.mark.parametrize("make", [PlanarFlow, SylvesterFlow])
def test_flow_determinants(make, gen):
    flow = make(5, 3, gen=gen).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.mul_(3)
    z = torch.randn(4, 5, generator=gen, dtype=torch.float64)
    _, log_det = flow(z)
    for k in range(2):
        J = torch.autograd.functional.jacobian(lambda t: flow(t[None])[0][0], z[k])
        sign, value = torch.linalg.slogdet(J)
        assert sign > 0
        assert_close(log_det[k].detach(), value.detach(), 1e-8)


@pytest.mark.parametrize("kind", ["planar", "sylvester"])
def test_flow_priors_reach_every_parameter(kind, gen):
    prior = BNNPrior(tanh_net(), kind)
    prior.sample(grid(), 8, gen).square().mean().backward()
    # In one dimension an orthonormal basis is a sign, which has no slope.
    moved = [p for p in prior.parameters() if tuple(p.shape[1:]) != (1, 1)]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in moved)


# ------------------------------------------------------------------------------------ matching


def test_the_critic_knows_its_slope(gen):
    critic = Critic(6, gen, width=9, depth=3).double()
    f = torch.randn(5, 6, generator=gen, dtype=torch.float64, requires_grad=True)
    value, slope = critic.value_and_slope(f)
    (truth,) = torch.autograd.grad(value.sum(), f)
    assert_close(slope.detach(), truth, 1e-12)
    assert_close(value.detach(), critic(f).detach(), 1e-12)


def test_gradient_penalty_passes_gradcheck(gen):
    critic = Critic(2, gen, width=3).double()
    f = torch.randn(3, 2, generator=gen, dtype=torch.float64)
    parameters = [p.detach().clone().requires_grad_() for p in critic.parameters()]
    names = [n for n, _ in critic.named_parameters()]

    class Penalty(nn.Module):
        def __init__(self):
            super().__init__()
            self.critic = critic

        def forward(self, f):
            return gradient_penalty(self.critic.value_and_slope(f)[1])

    def penalty(*ps):
        state = {f"critic.{n}": p for n, p in zip(names, ps)}
        return torch.func.functional_call(Penalty(), state, (f,))

    assert torch.autograd.gradcheck(penalty, parameters)


def test_penalty_of_a_linear_critic():
    slope = torch.tensor([[3.0, 4.0], [0.0, 0.5]])
    assert_close(gradient_penalty(slope), torch.tensor(10 * (16 + 0.25) / 2), 1e-6)
    assert_close(gradient_penalty(slope, one_sided=True), torch.tensor(10 * 16 / 2), 1e-6)


def test_w1_of_a_shift_is_the_shift(gen):
    f = torch.randn(200, 3, generator=gen)
    assert_close(empirical_w1_1d(f + 0.7, f), torch.full((3,), 0.7), 1e-5)
    g = torch.randn(200, 3, generator=gen)
    for i in range(3):
        truth = stats.wasserstein_distance(f[:, i].numpy(), g[:, i].numpy())
        assert_close(empirical_w1_1d(f, g)[i], torch.tensor(truth, dtype=torch.float32), 1e-5)


def test_a_trained_critic_finds_the_sorted_distance(gen):
    f = 1.5 * torch.randn(256, 1, generator=gen) + 0.8
    g = torch.randn(256, 1, generator=gen)
    truth = empirical_w1_1d(f, g).item()
    found = critic_w1(f, g, gen, steps=150, width=32, lr=0.02)
    assert 0.8 * truth < found <= 1.1 * truth + 0.05
    critic = Critic(1, gen, width=8)
    with torch.no_grad():  # a line of slope 1 attains the distance of two samples, one shifted
        for p in critic.parameters():
            p.zero_()
        critic.W[0][0, 0] = critic.W[1][0, 0] = critic.W[2][0, 0] = 1
        critic.b[0][0] = critic.b[1][0] = 40  # softplus is the identity there
        assert_close(difference(critic, g + 0.7, g), torch.tensor(0.7), 1e-4)


def test_clipping_and_tolerance(gen):
    critic = Critic(2, gen, width=8)
    f, g = (torch.randn(10, 16, 2, generator=gen) + s for s in (1, 0))
    opt = torch.optim.Adam(critic.parameters(), lr=0.01)
    assert train_critic(critic, f, g, gen, optimizer=opt, clip=0.05) == 10
    assert max(p.abs().max().item() for p in critic.parameters()) <= 0.05 + 1e-6
    assert train_critic(critic, f, g, gen, optimizer=opt, tolerance=1e9) == 1


def test_sign_the_critic_climbs_what_the_prior_descends(gen):
    critic = Critic(2, gen, width=16)
    f, g = (torch.randn(60, 64, 2, generator=gen) * s for s in (3.0, 1.0))
    opt = torch.optim.Adam(critic.parameters(), lr=0.01)
    before = critic_objective(critic, f[0], g[0], gen).item()
    train_critic(critic, f, g, gen, optimizer=opt)
    assert critic_objective(critic, f[0], g[0], gen).item() > before
    assert critic(f[0]).mean() > critic(g[0]).mean()


def test_matching_recovers_the_output_scale(gen):
    # A target that is a network itself; two outputs share the critic.
    class Target:
        def __init__(self):
            self.bnn = BNNPrior(tanh_net(1, 20, 2), sigma=[1.0, 1.0, 3.0, 0.5])

        def sample(self, x, n, gen):
            return self.bnn.sample(x, n, gen).detach()

    target, prior = Target(), BNNPrior(tanh_net(1, 20, 2))
    mapper = WassersteinMapper(
        target,
        prior,
        uniform_points(6, -2, 2),
        critic={"width": 32},
        critic_optimizer=lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.5, 0.9)),
        reinit_critic=False,
    )
    history = mapper.fit(60, gen, n_samples=48, critic_steps=5, lr=0.15, decay=True)
    assert len(history.rows) == 60 and {"step", "w1", "critic_steps"} <= set(history.rows[0])
    x = grid()
    ours, theirs = (p.sample(x, 4000, gen).detach() for p in (prior, target))
    assert ((ours.var((0, 2)) / theirs.var((0, 2))).sqrt() - 1).abs().mean() < 0.2


def test_matched_variance(gen):
    prior = BNNPrior(MLP((1, 30, 1), nn.Identity))
    x = torch.ones(1, 1)  # variance s^4 + s^4 + s^2
    best = match_variance(prior, math.sqrt(6.0), x, torch.linspace(0.5, 2.5, 41), gen, n=8000)
    assert abs(best - math.sqrt(1.5)) < 0.11
    assert_close(prior.sigma.detach(), torch.full((4,), best), 1e-4)


def test_measurement_points(gen):
    train = torch.full((3, 2), 9.0)
    x = uniform_points(10, -1, 1, d=2, train=train)(gen)
    assert x.shape == (10, 2) and (x[:5] == 9).all() and (x[5:].abs() <= 1).all()


# ----------------------------------------------------------------------------------- posterior


def linear_prior():
    """f = w x + b with standard normal w, b: its posterior is a line of algebra."""
    return BNNPrior(nn.Linear(1, 1))


def exact_line(x, y, noise):
    A = torch.cat([x, torch.ones_like(x)], 1).double()
    cov = torch.linalg.inv(A.T @ A / noise**2 + torch.eye(2, dtype=torch.float64))
    return cov @ A.T @ y.double()[:, 0] / noise**2, cov


def test_chains_without_data_return_the_prior(gen):
    prior = BNNPrior(tanh_net(1, 5, 1))
    x = torch.zeros(1, 1)
    off = lambda f, y: 0 * f.sum(-1)
    chains = sample_hmc(prior, x, x, off, gen, chains=64, n=15, burn_in=10, leapfrog=8, step=0.2)
    f = prior.functions(chains.pooled, torch.ones(1, 1))[:, 0, 0].detach()
    truth = prior.sample(torch.ones(1, 1), 20000, gen)[:, 0, 0].detach()
    error = truth.std() / math.sqrt(64)  # one chain counts once at least
    assert abs(f.mean() - truth.mean()) < 4 * error and abs(f.std() - truth.std()) < 4 * error


def test_hmc_on_a_line_has_the_exact_posterior(gen):
    x = torch.tensor([[-1.0], [0.5], [2.0]])
    y = torch.tensor([[0.3], [0.1], [-0.9]])
    found = sample_hmc(
        linear_prior(), x, y, gaussian(0.5), gen, chains=64, n=25, leapfrog=5, step=0.3
    ).pooled.double()
    mean, cov = exact_line(x, y, 0.5)
    assert (found.mean(0) - mean).abs().max() < 0.05
    assert_close(torch.cov(found.T), cov, 0.15)


def test_sghmc_on_a_line(gen):
    x = torch.linspace(-1, 2, 40)[:, None]
    y = 0.8 * x - 0.2 + 0.5 * torch.randn(40, 1, generator=gen)
    sampler = SGHMCPosterior(
        linear_prior(), gaussian(0.5), batch=20, burn_in=300, thin=5, rate=0.03
    )
    found = sampler.run(x, y, gen, chains=32, n=40).pooled.double()
    mean, cov = exact_line(x, y, 0.5)
    assert (found.mean(0) - mean).abs().max() < 0.05
    assert ((found.std(0) / cov.diagonal().sqrt()) - 1).abs().max() < 0.3


def test_temperature_divides_the_log_density(gen):
    prior, x = BNNPrior(tanh_net()), grid()
    xi = prior.draw(3, gen)
    warm = log_posterior(prior, x, x, gaussian(0.3))(xi)
    cold = log_posterior(prior, x, x, gaussian(0.3), temperature=0.1)(xi)
    assert_close(cold.detach(), 10 * warm.detach(), 1e-5)


def test_gibbs_draws_the_conditional_gamma(gen):
    alpha, beta = torch.tensor([3.0]), torch.tensor([2.0])
    squares = torch.full((4000, 1), 5.0)
    p = conditional_precision(alpha, beta, squares, torch.tensor([8]), gen)[:, 0]
    assert stats.kstest(p.numpy(), stats.gamma(3 + 4, scale=1 / (2 + 2.5)).cdf).pvalue > 0.001


def test_sghmc_with_gibbs_and_learned_noise(gen):
    x = torch.linspace(-1, 1, 60)[:, None]
    y = x + 0.2 * torch.randn(60, 1, generator=gen)
    prior = BNNPrior(tanh_net(1, 10, 1), "hierarchical")
    sampler = SGHMCPosterior(
        prior, 0.5, learn_noise=True, burn_in=240, thin=3, resample=20, rate=0.03
    )
    kept = sampler.run(x, y, gen, chains=4, n=20)
    assert kept.samples.shape == (4, 20, prior.size + 1)
    f = sampler.functions(kept.pooled, x)
    assert rmse(f, y) < 0.35
    assert 0.12 < sampler.noise(kept.pooled).mean() < 0.35


def test_scores():
    f = torch.tensor([[[0.0]], [[1.0]]])
    y = torch.tensor([[0.5]])
    one = 0.5 * (0.5 / 0.2) ** 2 + math.log(0.2) + 0.5 * math.log(2 * math.pi)
    assert_close(predictive_nll(f, y, gaussian(0.2)), torch.tensor(one), 1e-6)
    assert rmse(f, y) == 0
    logits = torch.log(torch.tensor([[[0.7, 0.3]], [[0.5, 0.5]]]))
    scores = classification_scores(logits, torch.tensor([0]))
    assert abs(scores["nll"] + math.log(0.6)) < 1e-6 and scores["accuracy"] == 1
    assert abs(scores["ece"] - 0.4) < 1e-6
    assert_close(entropy(torch.full((1, 4), 0.25)), torch.tensor([math.log(4)]), 1e-6)
    assert_close(
        softmax(logits, torch.tensor([1]))[:, 0], torch.log(torch.tensor([0.3, 0.5])), 1e-5
    )


def test_rivals_fit(gen):
    x = torch.linspace(-1, 1, 20)[:, None]
    y = 0.7 * x + 0.1
    like = gaussian(0.3)
    mean, cov = exact_line(x, y, 0.3)
    line = linear_prior()
    xi = maximum_a_posteriori(line, x, y, like, gen, starts=2, steps=200, lr=0.05)
    for row in xi:  # a Gaussian's mode is its mean
        assert_close(row.double(), mean, 0.01)
    draws = swag(line, xi[0], x, y, like, draws=400, steps=120, every=10, lr=2e-3, batch=10)
    assert (draws.mean(0).double() - mean).abs().max() < 0.1 and (draws.std(0) > 1e-4).all()
    ensemble = deep_ensemble(
        lambda k: tanh_net(1, 8, 1), x, y, like, seeds=range(3), steps=50, lr=0.05
    )
    assert ensemble(x).shape == (3, 20, 1) and rmse(ensemble(x), y) < 0.15
    net = MLP((1, 16, 1), nn.Tanh, dropout=0.2)
    f = mc_dropout(net, x, y, like, x, draws=5, steps=20, lr=0.03)
    assert f.shape == (5, 20, 1) and (f.std(0) > 0).all()


def test_correlation_is_one_with_itself(gen):
    f = torch.randn(50, 3, generator=gen)
    assert_close(correlation(f).diagonal(), torch.ones(3), 1e-5)


# --------------------------------------------------------------------------------- experiments


def test_draws_in_chunks_are_the_same_work(gen):
    # The inner loop's functions must not depend on how many are drawn at once, but for the order
    # of random numbers: a Gaussian process of one point has the same marginals.
    x, gp = torch.zeros(1, 1), GPPrior(amplitude=3.0, outputs=2)
    mapper = WassersteinMapper(gp, BNNPrior(tanh_net()), uniform_points(1, -1, 1), chunk=7)
    bag = mapper._bag(gp, x, 50, 20, gen)
    assert bag.shape == (50, 40, 1) and abs(bag.std() / 3 - 1) < 0.06
    assert len(bag.unique()) == 2000  # no function comes twice


def test_regression_in_units_of_the_target(gen):
    x = torch.randn(60, 2, generator=gen)
    y = (x[:, :1] - 0.5 * x[:, 1:]) / 1.118 + 0.05 * torch.randn(60, 1, generator=gen)
    split = Split(x[:50], y[:50], x[50:], y[50:])
    small = {
        "hidden": (8,),
        "measured": 6,
        "chains": 2,
        "kept": 5,
        "matching": {"n_iter": 2, "n_samples": 8, "critic_steps": 2, "critic": {"width": 8}},
        "chain": {"burn_in": 100, "thin": 3, "rate": 0.03},
    }
    one, ten = (regression(split, "GPi-G", scale=v, **small) for v in (1.0, 10.0))
    assert one["rmse"] < 0.7  # always guessing 0 scores about 1
    assert_close(torch.tensor(ten["rmse"]), torch.tensor(10 * one["rmse"]), 1e-5)
    assert_close(torch.tensor(ten["nll"] - one["nll"]), torch.tensor(math.log(10)), 1e-4)


def test_images_through_a_convolutional_network():
    split = digits(60, 20, image=True)
    net = ConvNet((2, 3), 10, channels=1, head="flatten", size=8, pool_last=True)
    found = images(
        split,
        net,
        "GPi-G",
        far=torch.rand(5, 1, 8, 8),
        measured=4,
        chains=2,
        kept=2,
        matching={
            "n_iter": 1,
            "n_samples": 3,
            "critic_steps": 2,
            "chunk": 4,
            "critic": {"width": 8},
        },
        chain={"burn_in": 3, "thin": 1},
    )
    assert 0 <= found["accuracy"] <= 1 and found["nll"] > 0
    assert 0 < found["entropy far out"] <= math.log(10) + 1e-5
    with raises(ValueError, match="GPi-NF"):
        images(split, net, "GPi-X")


def test_a_prior_takes_its_networks_norms_along(gen):
    resnet = ResNet([4], 3, channels=1, norm=lambda c: nn.GroupNorm(2, c), preact=True)
    prior = BNNPrior(resnet).double()
    assert prior.sample(torch.randn(2, 1, 4, 4).double(), 2, gen).dtype == torch.float64


# -------------------------------------------------------------------------------------- errors


def test_errors(gen):
    prior = BNNPrior(tanh_net())
    for call, words in (
        (lambda: GPPrior(length=0.0), "length"),
        (lambda: GPPrior(amplitude=-1.0), "amplitude"),
        (lambda: GPPrior(spread=(-1.0, 0.0)), "spread"),
        (lambda: GPPrior(outputs=0), "outputs"),
        (lambda: GPPrior(length=[1.0, 2.0]).sample(grid(), 2, gen), "length has 2"),
        (lambda: BNNPrior(tanh_net(), sigma=0.0), "sigma"),
        (lambda: BNNPrior(nn.ReLU()), "no weights"),
        (lambda: prior.gamma, "Gamma"),
        (lambda: Critic(0, gen), "points"),
        (lambda: uniform_points(5, 1, -1), "low"),
        (lambda: WassersteinMapper(GPPrior(), prior, None).fit(0, gen), "n_iter"),
        (lambda: empirical_w1_1d(torch.zeros(2, 1), torch.zeros(3, 1)), "one shape"),
        (lambda: empirical_w1_1d(torch.zeros(0, 1), torch.zeros(0, 1)), "not empty"),
        (lambda: GPPrior(length=[]), "length"),
        (lambda: GPPrior(spread=()), "spread"),
        (lambda: GPPrior().sample(torch.arange(3)[:, None], 2, gen), "int64"),
        (lambda: GPPrior().sample(grid() * math.nan, 2, gen), "not finite"),
        (lambda: GPPrior().sample(grid(), 0, gen), "n=0"),
        (lambda: prior.sample(grid()[:, 0], 2, gen), "shape"),
        (lambda: prior.sample(torch.zeros(4, 2), 2, gen), r"\(points, 1\)"),
        (lambda: prior.weights(torch.zeros(2, 3)), "xi has shape"),
        (lambda: BNNPrior(tanh_net(), sigma=[1.0, 2.0]), "layers.1.bias"),
        (lambda: BNNPrior(tanh_net(), sigma=math.inf), "sigma"),
        (lambda: BNNPrior(tanh_net(), "planar", flows=0), "flows"),
        (lambda: BNNPrior(MLP((1, 4, 1), nn.Tanh, dropout=0.1)), "dropout"),
        (lambda: Critic(3, gen)(torch.zeros(4, 2)), "functions, 3"),
        (
            lambda: critic_objective(Critic(3, gen), torch.zeros(4, 3), torch.zeros(1, 3), gen),
            "one shape",
        ),
        (lambda: critic_w1(grid(), grid(), gen, steps=0), "steps"),
        (lambda: critic_w1(grid(), grid(), gen, clip=0.0), "clip"),
        (lambda: uniform_points(4, -1, 1, d=2, train=torch.zeros(3, 1)), "train"),
        (lambda: WassersteinMapper(GPPrior(), prior, None, chunk=0), "chunk"),
        (lambda: correlation(torch.zeros(1, 3)), "2 functions"),
        (lambda: covariance_error(torch.zeros(4, 3), torch.eye(2)), "K has shape"),
        (lambda: match_variance(prior, -1.0, grid(), torch.ones(1), gen), "std"),
        (lambda: gaussian(0.1)(torch.zeros(4, 5, 1), torch.zeros(5)), "outputs of f"),
        (lambda: rmse(torch.zeros(4, 5, 1), torch.zeros(5)), "outputs of f"),
        (lambda: softmax(torch.zeros(4, 5, 3), torch.zeros(5)), "integer"),
        (lambda: SGHMCPosterior(prior, -1.0, learn_noise=True), "above 0"),
        (lambda: swag(prior, torch.zeros(2, 61), grid(), grid(), softmax), "one start"),
        (
            lambda: maximum_a_posteriori(prior, grid(), grid(), gaussian(1.0), gen, steps=0),
            "steps",
        ),
        (lambda: gaussian(0.0), "noise"),
        (lambda: log_posterior(prior, None, None, softmax, 0.0), "temperature"),
        (lambda: SGHMCPosterior(prior, softmax, batch=0), "batch"),
        (lambda: SGHMCPosterior(prior, softmax, learn_noise=True), "likelihood"),
        (lambda: SGHMCPosterior(prior, softmax).noise(torch.zeros(1, 1)), "fixed"),
        (lambda: SGHMCPosterior(prior, softmax).run(grid(3), grid(4), gen), "rows"),
        (lambda: mc_dropout(tanh_net(), grid(), grid(), softmax, grid()), "dropout"),
        (lambda: swag(prior, torch.zeros(61), grid(), grid(), softmax, steps=5), "steps"),
    ):
        with raises(ValueError, match=words):
            call()
    with raises(ValueError, match="kind"):
        BNNPrior(tanh_net(), "laplace")
    hierarchical = BNNPrior(tanh_net(), "hierarchical")
    with raises(ValueError, match="hierarchical"):
        match_variance(hierarchical, 1.0, grid(), torch.ones(1), gen)
