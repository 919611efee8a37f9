"""Markov chains: Langevin steps, Hamiltonian and stochastic-gradient Hamiltonian Monte Carlo.

A state is a tensor "c p": ``c`` independent chains of ``p`` numbers, advanced together. A density
is a function of all chains at once that returns one number each, ``theta: "c p" -> "c"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Chains(NamedTuple):
    """What a sampler kept: ``samples`` "c n p", and the acceptance rate of each chain."""

    samples: Float[Tensor, "c n p"]
    accepted: Float[Tensor, "c"]

    @property
    def pooled(self) -> Float[Tensor, "m p"]:
        """The samples of all chains, one after another."""
        return self.samples.flatten(0, 1)


def langevin_step(
    theta: Float[Tensor, "..."],
    grad: Float[Tensor, "..."],
    step: float,
    gen: torch.Generator,
    anchor: Float[Tensor, "..."] | None = None,
    gamma: float = 0.0,
    precondition: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
    """One step of (stochastic-gradient) Langevin dynamics (Welling and Teh, 2011).

    ``theta - step/2 P (grad + gamma (theta - anchor)) + sqrt(step P) noise``. As ``step`` goes to
    0 the chain's law goes to ``exp(-U - gamma/2 |theta - anchor|^2)``, for ``grad`` that of ``U``.

    Args:
        grad: gradient of the potential ``U`` (minus the log density) at ``theta``.
        anchor: center of the quadratic restraint; needed if ``gamma`` is not 0.
        precondition: positive ``P``, broadcast against ``theta``; 1 if None. It must not depend
            on ``theta``, or the law changes.

    Raises:
        ValueError: ``step`` not above 0, negative ``gamma``, ``gamma`` without an anchor.
    """
    if not step > 0:
        raise ValueError(f"step={step}: allowed is a number above 0")
    if gamma < 0 or (gamma > 0 and anchor is None):
        raise ValueError(f"gamma={gamma}: allowed is 0 or more, and above 0 only with an anchor")
    force = grad if gamma == 0 else grad + gamma * (theta - anchor)
    scale = torch.ones_like(theta) if precondition is None else precondition
    return theta - 0.5 * step * scale * force + (step * scale).sqrt() * _normal(theta, gen)


def hmc(
    log_density: Callable[[Tensor], Tensor],
    theta: Float[Tensor, "c p"],
    n: int,
    *,
    step: float,
    leapfrog: int,
    gen: torch.Generator,
    burn_in: int = 0,
    target: float | None = 0.8,
    jitter: float = 0.2,
) -> Chains:
    """Hamiltonian Monte Carlo with unit masses (Neal, 2011), all chains at once.

    Args:
        theta: where the chains start; copied.
        n: samples kept of each chain, after ``burn_in`` steps that are not.
        step: length of a leapfrog step at the start.
        leapfrog: leapfrog steps before each acceptance. In white coordinates ``step * leapfrog``
            near pi/2 mixes best; pi is half an orbit and returns to the mirror image.
        target: acceptance rate that each chain's step is adapted to during burn-in; None keeps
            ``step``. It never changes afterwards, so the kept samples are exact.
        jitter: each trajectory's step is drawn within this fraction of its length, which breaks
            periodic orbits.

    Raises:
        ValueError: sizes below 1, ``step`` not above 0, ``jitter`` or ``target`` outside 0 to 1,
            or a density that is not finite where the chains start.
    """
    if n < 1 or leapfrog < 1 or burn_in < 0:
        raise ValueError(
            f"n={n}, leapfrog={leapfrog}, burn_in={burn_in}: allowed is 1 or more, 1 or more, "
            "0 or more"
        )
    if not step > 0:
        raise ValueError(f"step={step}: allowed is a number above 0")
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter={jitter}: allowed is 0 to below 1")
    if target is not None and not 0 < target < 1:
        raise ValueError(f"target={target}: allowed is between 0 and 1, or None")
    theta = theta.detach().clone()
    log_p, grad = _value_and_grad(log_density, theta)
    if not torch.isfinite(log_p).all():
        raise ValueError("log_density is not finite where the chains start")
    c, p = theta.shape
    log_step = torch.full((c,), math.log(step), dtype=theta.dtype, device=theta.device)
    kept, accepted = theta.new_empty(c, n, p), theta.new_zeros(c)
    for i in range(burn_in + n):
        length = log_step.exp() * (1 + jitter * (2 * _uniform(log_step, gen) - 1))
        momentum = _normal(theta, gen)
        new, new_momentum, new_log_p, new_grad = _leapfrog(
            log_density, theta, momentum, grad, length[:, None], leapfrog
        )
        energy = 0.5 * (momentum.square() - new_momentum.square()).sum(-1)
        # A trajectory that left the density's support is a rejection, not an error.
        odds = torch.nan_to_num(new_log_p - log_p + energy, nan=-torch.inf).clamp(max=0)
        take = _uniform(odds, gen).log() < odds
        theta = torch.where(take[:, None], new, theta)
        grad = torch.where(take[:, None], new_grad, grad)
        log_p = torch.where(take, new_log_p, log_p)
        if i >= burn_in:
            kept[:, i - burn_in] = theta
            accepted += take
        elif target is not None:
            log_step = log_step + (odds.exp() - target) / math.sqrt(i + 1)
    return Chains(kept, accepted / n)


def _leapfrog(log_density, theta, momentum, grad, length, steps: int):
    log_p = None
    for _ in range(steps):
        momentum = momentum + 0.5 * length * grad
        theta = theta + length * momentum
        log_p, grad = _value_and_grad(log_density, theta)
        momentum = momentum + 0.5 * length * grad
    return theta, momentum, log_p, grad


class SGHMC:
    """Scale-adapted stochastic-gradient HMC (Chen et al., 2014; Springenberg et al., 2016).

    With ``g`` the (noisy) gradient of the potential and ``v`` its running second moment, frozen
    after burn-in, a step is ``r <- (1 - friction) r - rate^2 v^{-1/2} g + noise`` of variance
    ``2 rate^2 friction v^{-1/2} - rate^4``, then ``theta <- theta + r``. The law is right only as
    ``rate`` goes to 0; there is no acceptance step. The scales are those of burn-in, however it
    went: chains that start far out, or burn in briefly, may keep scales that spread too far.

    Args:
        potential: ``(theta: "c p", step) -> "c"``, minus the log density of the *whole* data,
            estimated from the mini-batch of ``step``.
        burn_in: steps before anything is kept, in which the scales adapt.
        rate: step size.
        friction: momentum lost in a step.
        clip: largest norm of a chain's gradient; longer ones are shortened. None: no limit.

    Raises:
        ValueError: ``rate``, ``friction`` or ``clip`` not above 0, ``friction`` above 1, negative
            ``burn_in``.
    """

    def __init__(
        self,
        potential: Callable[[Tensor, int], Tensor],
        *,
        burn_in: int,
        rate: float = 0.01,
        friction: float = 0.05,
        clip: float | None = None,
    ) -> None:
        if not rate > 0:
            raise ValueError(f"rate={rate}: allowed is a number above 0")
        if not 0 < friction <= 1:
            raise ValueError(f"friction={friction}: allowed is above 0 to 1")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip={clip}: allowed is a number above 0, or None")
        if burn_in < 0:
            raise ValueError(f"burn_in={burn_in}: allowed is 0 or more")
        self.potential, self.burn_in, self.rate = potential, burn_in, rate
        self.friction, self.clip = friction, clip

    def run(
        self, theta: Float[Tensor, "c p"], n: int, gen: torch.Generator, thin: int = 1
    ) -> Chains:
        """Burn in, then keep every ``thin``-th state until there are ``n``; nothing is rejected.

        Raises:
            ValueError: ``n`` or ``thin`` below 1.
            FloatingPointError: the chains diverged; a smaller ``rate`` mends it.
        """
        if n < 1 or thin < 1:
            raise ValueError(f"n={n}, thin={thin}: both must be 1 or more")
        theta = theta.detach().clone()
        momentum = torch.zeros_like(theta)
        tau, mean, second = (torch.ones_like(theta) for _ in range(3))
        kept = theta.new_empty(theta.shape[0], n, theta.shape[1])
        for step in range(self.burn_in + n * thin):
            _, grad = _value_and_grad(lambda t, step=step: self.potential(t, step), theta)
            if self.clip is not None:
                norm = grad.norm(dim=-1, keepdim=True)
                grad = grad * (self.clip / norm.clamp(min=self.clip))
            if step < self.burn_in:
                share = 1 / (tau + 1)
                tau = tau + 1 - tau * mean.square() / second
                mean = mean + share * (grad - mean)
                second = second + share * (grad.square() - second)
            scale = second.clamp(min=1e-16).rsqrt()
            variance = 2 * self.rate**2 * self.friction * scale - self.rate**4
            noise = variance.clamp(min=1e-16).sqrt() * _normal(theta, gen)
            momentum = (1 - self.friction) * momentum - self.rate**2 * scale * grad + noise
            theta = theta + momentum
            kept_now, left = divmod(step - self.burn_in + 1, thin)
            if step >= self.burn_in and left == 0:
                if not torch.isfinite(theta).all():
                    raise FloatingPointError(
                        f"the chains diverged before step {step}: rate={self.rate} is too large"
                    )
                kept[:, kept_now - 1] = theta
        return Chains(kept, torch.ones_like(kept[:, 0, 0]))


def r_hat(samples: Float[Tensor, "c n p"]) -> Float[Tensor, "p"]:
    """Potential scale reduction of each number, with chains split in halves (Gelman et al., 2013).

    Near 1 where all halves agree; 1.01 is the usual limit. A number that never moves gives NaN.

    Raises:
        ValueError: fewer than 4 samples a chain.
    """
    halves = _halves(samples)
    n = halves.shape[1]
    within = halves.var(1).mean(0)
    between = halves.mean(1).var(0)
    return ((n - 1) / n + between / within).sqrt()


def ess(samples: Float[Tensor, "c n p"]) -> Float[Tensor, "p"]:
    """Effective sample size of each number's mean, over all chains.

    ``c n / (1 + 2 sum of autocorrelations)``, the sum cut by Geyer's initial monotone sequence,
    the chains split in halves and combined as in Vehtari et al. (2021), without ranks.

    Raises:
        ValueError: fewer than 4 samples a chain.
    """
    halves = _halves(samples).double()
    m, n, _ = halves.shape
    centered = halves - halves.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centered, n=2 * n, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * n, dim=1)[:, :n] / n
    within = covariance[:, 0].mean(0) * n / (n - 1)
    total = within * (n - 1) / n + halves.mean(1).var(0)
    rho = 1 - (within - covariance.mean(0) * n / (n - 1)) / total
    rho[0] = 1
    even = n - n % 2
    pairs = rho[:even].unflatten(0, (even // 2, 2)).sum(1)
    # Sums of neighbors are positive and fall for every reversible chain; what breaks that is noise.
    positive = (pairs > 0).int().cumprod(0).bool()
    pairs = torch.where(positive, pairs, 0).cummin(0).values
    length = 2 * pairs.sum(0) - 1
    return (m * n / length.clamp(min=1 / math.log10(m * n))).to(samples.dtype)


def _halves(samples: Tensor) -> Tensor:
    n = samples.shape[1]
    if n < 4:
        raise ValueError(f"{n} samples a chain: at least 4 are needed")
    half = n // 2
    return torch.cat([samples[:, :half], samples[:, -half:]])


def _value_and_grad(function: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        value = function(theta)
        if value.shape != theta.shape[:1]:
            raise ValueError(
                f"a density must return one number a chain, {tuple(theta.shape[:1])}, "
                f"got {tuple(value.shape)}"
            )
        (grad,) = torch.autograd.grad(value.sum(), theta)
    return value.detach(), grad


def _normal(like: Tensor, gen: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=gen, dtype=like.dtype, device=gen.device).to(like)


def _uniform(like: Tensor, gen: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=gen, dtype=like.dtype, device=gen.device).to(like)
