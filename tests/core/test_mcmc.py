import math

import pytest
import torch

from lib.core.mcmc import SGHMC, Chains, ess, hmc, langevin_step, r_hat
from tests.helpers import assert_close, raises

MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
PRECISION = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)


def gaussian(theta):
    d = theta - MEAN
    return -0.5 * (d @ PRECISION * d).sum(-1)


def covariance(x):
    return torch.cov(x.T)


def test_hmc_samples_a_gaussian(gen):
    start = torch.zeros(64, 2, dtype=torch.float64)
    chains = hmc(gaussian, start, 250, step=0.5, leapfrog=6, gen=gen, burn_in=60)
    pooled = chains.pooled
    error = math.sqrt(1 / ess(chains.samples).min())
    assert (pooled.mean(0) - MEAN).abs().max() < 5 * error
    assert_close(covariance(pooled), torch.linalg.inv(PRECISION), 0.05)
    assert 0.6 < chains.accepted.mean() < 0.95  # adapted to 0.8
    assert (r_hat(chains.samples) < 1.01).all()


def test_hmc_is_exact_where_unadjusted_dynamics_are_not(gen):
    # A step near the limit of stability: without the acceptance step the variance is far off.
    start = torch.randn(400, 1, generator=gen, dtype=torch.float64)
    square = lambda t: -0.5 * t.square().sum(-1)
    chains = hmc(square, start, 60, step=1.7, leapfrog=2, gen=gen, target=None, jitter=0.1)
    assert chains.accepted.mean() < 0.9
    assert abs(chains.pooled.var() - 1) < 0.06


def test_hmc_rejects_what_leaves_the_support(gen):
    def half_normal(theta):
        return torch.where(theta[:, 0] > 0, -0.5 * theta[:, 0].square(), -torch.inf)

    start = torch.ones(200, 1, dtype=torch.float64)
    chains = hmc(half_normal, start, 100, step=0.4, leapfrog=4, gen=gen, burn_in=20, target=None)
    assert (chains.samples > 0).all()
    assert abs(chains.pooled.mean() - math.sqrt(2 / math.pi)) < 0.03


def test_langevin_has_its_law_with_anchor_and_preconditioner(gen):
    # U = a theta^2 / 2 with a restraint of strength gamma: precision a + gamma.
    a, gamma, step = 1.0, 3.0, 0.02
    theta = torch.zeros(20_000, 1, dtype=torch.float64)
    anchor, scale = torch.full_like(theta, 2.0), torch.tensor([1.5], dtype=torch.float64)
    for _ in range(300):
        theta = langevin_step(theta, a * theta, step, gen, anchor, gamma, scale)
    precision = a + gamma
    # The stationary variance of the discrete chain, exactly.
    exact = 1 / (precision * (1 - step * scale.item() * precision / 4))
    assert abs(theta.mean() - gamma * 2.0 / precision) < 0.02
    assert abs(theta.var() / exact - 1) < 0.04


def test_sghmc_samples_a_gaussian_from_noisy_gradients(gen):
    def potential(theta, step):
        noise = torch.randn(theta.shape, generator=gen, dtype=theta.dtype)
        return -gaussian(theta) + 0.3 * (noise * theta).sum(-1)

    sampler = SGHMC(potential, burn_in=300, rate=0.08, friction=0.05)
    chains = sampler.run(torch.zeros(256, 2, dtype=torch.float64), 40, gen, thin=10)
    assert chains.samples.shape == (256, 40, 2)
    assert (chains.pooled.mean(0) - MEAN).abs().max() < 0.08
    assert_close(covariance(chains.pooled), torch.linalg.inv(PRECISION), 0.12)


def test_sghmc_adapts_in_burn_in_only_and_clips(gen):
    seen = []

    def potential(theta, step):
        seen.append(step)
        return 1e3 * theta.sum(-1)

    start = torch.zeros(2, 3, dtype=torch.float64)
    still = SGHMC(potential, burn_in=0, rate=1e-3, friction=1.0, clip=1.0)
    moved = still.run(start, 2, gen, thin=3).samples
    assert seen == list(range(6))
    assert moved.abs().max() < 0.1  # the raw gradient would move it by the noise plus 1e-3 a step
    with raises(FloatingPointError, match="rate=10"):
        wild = SGHMC(lambda t, _: t.pow(4).sum(-1), burn_in=0, rate=10.0, friction=0.5)
        wild.run(start + 1, 30, gen)


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_effective_sample_size_of_an_autoregression(gen, rho):
    c, n = 8, 8000
    x = torch.empty(c, n, 1, dtype=torch.float64)
    state = torch.randn(c, 1, generator=gen, dtype=torch.float64)
    for i in range(n):
        kick = torch.randn(c, 1, generator=gen, dtype=torch.float64)
        state = rho * state + math.sqrt(1 - rho**2) * kick
        x[:, i] = state
    expected = c * n * (1 - rho) / (1 + rho)
    assert abs(ess(x).item() / expected - 1) < 0.15
    assert abs(r_hat(x).item() - 1) < 0.01
    apart = x + torch.arange(c)[:, None, None]
    assert r_hat(apart) > 1.5
    assert ess(apart) < 0.02 * ess(x)


def test_pooled_and_errors(gen):
    chains = Chains(torch.arange(12.0).view(2, 3, 2), torch.ones(2))
    assert chains.pooled.shape == (6, 2)
    start = torch.zeros(2, 1)
    flat = lambda t: 0 * t.sum(-1)
    with raises(ValueError, match="leapfrog=0"):
        hmc(flat, start, 1, step=0.1, leapfrog=0, gen=gen)
    with raises(ValueError, match="step=0"):
        hmc(flat, start, 1, step=0.0, leapfrog=1, gen=gen)
    with raises(ValueError, match="jitter=1"):
        hmc(flat, start, 1, step=0.1, leapfrog=1, gen=gen, jitter=1.0)
    with raises(ValueError, match="target=2"):
        hmc(flat, start, 1, step=0.1, leapfrog=1, gen=gen, target=2.0)
    with raises(ValueError, match="not finite"):
        hmc(lambda t: t.sum(-1) / 0, start, 1, step=0.1, leapfrog=1, gen=gen)
    with raises(ValueError, match="one number a chain"):
        hmc(lambda t: t.sum(), start, 1, step=0.1, leapfrog=1, gen=gen)
    with raises(ValueError, match="gamma=1"):
        langevin_step(start, start, 0.1, gen, gamma=1.0)
    with raises(ValueError, match="step=-1"):
        langevin_step(start, start, -1.0, gen)
    for bad in ({"rate": 0.0}, {"friction": 2.0}, {"clip": 0.0}, {"burn_in": -1}):
        (name,) = bad
        with raises(ValueError, match=f"{name}="):
            SGHMC(lambda t, _: t.sum(-1), **{"burn_in": 1, **bad})
    with raises(ValueError, match="thin=0"):
        SGHMC(lambda t, _: t.sum(-1), burn_in=0).run(start, 1, gen, thin=0)
    with raises(ValueError, match="at least 4"):
        r_hat(torch.zeros(1, 3, 1))
