"""Posteriors under a prior over functions: exact chains, mini-batch chains, and cheaper rivals.

Every method ends in functions, "s m o": ``s`` draws at ``m`` points with ``o`` outputs, and the
scores average predictive probabilities over the draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.core.ensemble import Ensemble, fit_ensemble
from lib.core.fitting import fit, progress
from lib.core.mcmc import SGHMC, Chains, hmc
from lib.core.metrics import ece
from lib.core.seeds import batch_indices, child
from lib.width.functional_prior.priors import BNNPrior

LogLikelihood = Callable[[Tensor, Tensor], Tensor]


def gaussian(noise: float) -> LogLikelihood:
    """``log N(y; f, noise^2)`` at every point, summed over outputs: ("c m o", "m o") -> "c m".

    The points' own batch axes, "c m o" for ``y`` too, are allowed.

    Raises:
        ValueError: ``noise``, a standard deviation, is not above 0; or, when called, ``y`` has not
            the last axes of ``f``.
    """
    if not noise > 0:
        raise ValueError(f"noise={noise}: allowed is a standard deviation above 0")

    def log_p(f: Tensor, y: Tensor) -> Tensor:
        _same_points(f, y)
        each = -0.5 * ((y - f) / noise).square() - math.log(noise) - 0.5 * math.log(2 * math.pi)
        return each.sum(-1)

    return log_p


def softmax(f: Float[Tensor, "*c m o"], y: Int[Tensor, "*m"]) -> Float[Tensor, "*c m"]:
    """``log softmax(f)_y`` at every point.

    Raises:
        ValueError: ``y`` is not one integer a point.
    """
    if y.is_floating_point() or not y.ndim or y.shape != f.shape[:-1][-y.ndim :]:
        raise ValueError(
            f"y has shape {tuple(y.shape)} and {y.dtype}, f {tuple(f.shape)}: allowed is one "
            "integer a point"
        )
    return torch.log_softmax(f, -1).gather(-1, y.expand(f.shape[:-1])[..., None])[..., 0]


def log_posterior(
    prior: BNNPrior, x: Tensor, y: Tensor, likelihood: LogLikelihood, temperature: float = 1.0
) -> Callable[[Tensor], Tensor]:
    """``xi: "c p" -> "c"``, unnormalized; ``temperature`` below 1 sharpens all of it.

    Raises:
        ValueError: ``temperature`` not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: allowed is a number above 0")

    def log_p(xi: Tensor) -> Tensor:
        fit_ = likelihood(prior.functions(xi, x), y).sum(-1)
        return (prior.log_density(xi) + fit_) / temperature

    return log_p


def sample_hmc(
    prior: BNNPrior,
    x: Tensor,
    y: Tensor,
    likelihood: LogLikelihood,
    gen: torch.Generator,
    *,
    chains: int = 8,
    n: int = 60,
    burn_in: int = 100,
    leapfrog: int = 20,
    step: float = 0.02,
    temperature: float = 1.0,
) -> Chains:
    """Hamiltonian Monte Carlo in ``xi``, where the prior is white; chains start in the prior."""
    with torch.no_grad():
        start = prior.draw(chains, gen)
    density = log_posterior(prior, x, y, likelihood, temperature)
    return hmc(density, start, n, step=step, leapfrog=leapfrog, burn_in=burn_in, gen=gen)


class SGHMCPosterior:
    """Mini-batch chains with adapted scales, for data that a gradient cannot hold at once.

    The potential is ``(N / batch sum of NLL - log prior) / T``. A hierarchical prior's variances
    are not walked in: every ``resample`` steps they are drawn from their conditional law,
    ``sigma_l^2 ~ InverseGamma(alpha + n_l / 2, beta + sum w^2 / 2)``, with ``w`` the weights times
    ``sqrt(D_in)``, and the chain walks in ``w``. (This conditional law is that of ``T = 1``; at
    another temperature only the walk is tempered.) ``learn_noise`` adds the log of a Gaussian
    likelihood's noise as a last coordinate, standard normal around ``log noise``.

    Args:
        likelihood: at every point; with ``learn_noise`` the standard deviation to start from.
        rate, friction, clip: of ``lib.core.mcmc.SGHMC``.
        burn_in, thin: steps before anything is kept, and between two that are.

    Raises:
        ValueError: ``temperature``, ``batch`` or ``resample`` out of range.
    """

    def __init__(
        self,
        prior: BNNPrior,
        likelihood: LogLikelihood | float,
        *,
        learn_noise: bool = False,
        batch: int = 32,
        burn_in: int = 3000,
        thin: int = 100,
        rate: float = 0.01,
        friction: float = 0.05,
        clip: float | None = 100.0,
        temperature: float = 1.0,
        resample: int = 1000,
    ) -> None:
        if not temperature > 0 or batch < 1 or resample < 1:
            raise ValueError(
                f"temperature={temperature}, batch={batch}, resample={resample}: allowed are a "
                "number above 0, 1 or more, 1 or more"
            )
        if learn_noise is callable(likelihood) or (learn_noise and not likelihood > 0):
            raise ValueError(
                f"likelihood={likelihood!r}: allowed is a noise above 0 to start from with "
                "learn_noise=True, and a function without it"
            )
        self.prior, self.likelihood, self.learn_noise = prior, likelihood, learn_noise
        self.batch, self.temperature, self.resample = batch, temperature, resample
        self.options = {"burn_in": burn_in, "rate": rate, "friction": friction, "clip": clip}
        self.thin = thin
        self._log_precision: Tensor | None = None

    def run(
        self, x: Tensor, y: Tensor, gen: torch.Generator, *, chains: int = 4, n: int = 20, seed=0
    ) -> Chains:
        """``xi`` of the kept states; the last coordinate is the noise's where it is learned.

        Args:
            seed: of the mini-batches.
        """
        if len(x) != len(y):
            raise ValueError(f"x has {len(x)} rows and y {len(y)}: allowed is one number")
        prior, batch = self.prior, min(self.batch, len(x))
        hierarchical = prior.kind == "hierarchical"
        with torch.no_grad():
            theta = prior.draw(chains, gen)
        if hierarchical:
            theta, self._log_precision = theta[:, : prior.count], theta[:, prior.count :]
            theta = theta * self._scales()
        if self.learn_noise:
            theta = torch.cat([theta, torch.zeros_like(theta[:, :1])], 1)
        trail: list[Tensor] = []  # log precisions at the kept states

        def potential(theta: Tensor, step: int) -> Tensor:
            if hierarchical and step % self.resample == 0:
                self._gibbs(theta.detach(), gen)
            since = step - self.options["burn_in"] + 1
            if hierarchical and since > 0 and since % self.thin == 0:
                trail.append(self._log_precision)
            index = batch_indices(len(x), batch, step, seed)
            nll = -self._log_p(theta, x[index], y[index]).sum(-1) * (len(x) / batch)
            return (nll - self._log_prior(theta)) / self.temperature

        kept = SGHMC(potential, **self.options).run(theta, n, gen, self.thin)
        if not hierarchical:
            return kept
        u = torch.stack(trail, 1)
        w, rest = kept.samples[..., : prior.count], kept.samples[..., prior.count :]
        xi = w * torch.exp(0.5 * self._spread(u))
        return Chains(torch.cat([xi, u, rest], -1), kept.accepted)

    def functions(self, samples: Float[Tensor, "s p"], x: Tensor) -> Float[Tensor, "s m o"]:
        """The network at ``x`` for what ``run`` kept (``.pooled``)."""
        return self.prior.functions(samples[:, : self.prior.size], x)

    def noise(self, samples: Float[Tensor, "s p"]) -> Float[Tensor, "s"]:
        """Standard deviations of the noise in the kept states."""
        if not self.learn_noise:
            raise ValueError("the noise is fixed: only learn_noise=True samples it")
        return self.likelihood * samples[:, -1].exp()

    def _log_p(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        f = self.prior.functions(self._xi(theta), x)
        if not self.learn_noise:
            return self.likelihood(f, y)
        _same_points(f, y)
        s = theta[:, -1][:, None, None] + math.log(self.likelihood)
        each = -0.5 * ((y - f) * torch.exp(-s)).square() - s - 0.5 * math.log(2 * math.pi)
        return each.sum(-1)

    def _xi(self, theta: Tensor) -> Tensor:
        w = theta[:, : self.prior.count]
        if self.prior.kind != "hierarchical":
            return w
        return torch.cat([w / self._scales(), self._log_precision], 1)

    def _log_prior(self, theta: Tensor) -> Tensor:
        w = theta[:, : self.prior.count]
        if self.prior.kind == "hierarchical":
            w = w / self._scales()
        log_p = -0.5 * w.square().sum(1)
        return log_p - 0.5 * theta[:, -1].square() if self.learn_noise else log_p

    def _spread(self, per_tensor: Tensor) -> Tensor:
        """One number a tensor, repeated for each of the tensor's entries."""
        sizes = torch.tensor([b.size for b in self.prior.blocks], device=per_tensor.device)
        return per_tensor.repeat_interleave(sizes, -1)

    def _scales(self) -> Tensor:
        return torch.exp(-0.5 * self._spread(self._log_precision))

    @torch.no_grad()
    def _gibbs(self, theta: Tensor, gen: torch.Generator) -> None:
        sizes = [b.size for b in self.prior.blocks]
        parts = theta[:, : self.prior.count].split(sizes, 1)
        squares = torch.stack([w.square().sum(1) for w in parts], 1)
        self._log_precision = conditional_precision(
            *self.prior.gamma, squares, torch.tensor(sizes), gen
        ).log()


def conditional_precision(
    alpha: Float[Tensor, "t"],
    beta: Float[Tensor, "t"],
    squares: Float[Tensor, "c t"],
    sizes: Int[Tensor, "t"],
    gen: torch.Generator,
) -> Float[Tensor, "c t"]:
    """A draw of ``1/sigma_l^2`` given the weights: ``Gamma(alpha + n/2, beta + sum w^2 / 2)``."""
    shape = (alpha + sizes.to(alpha) / 2).expand_as(squares).contiguous()
    draws = torch._standard_gamma(shape.to(gen.device), generator=gen)
    return draws.to(squares) / (beta + squares / 2)


def _same_points(f: Tensor, y: Tensor) -> None:
    # A "m" in place of a "m 1" would broadcast to every pair of points.
    if y.ndim < 2 or y.shape != f.shape[-y.ndim :]:
        raise ValueError(
            f"y has shape {tuple(y.shape)}, f {tuple(f.shape)}: allowed are the points and "
            "outputs of f"
        )


# ------------------------------------------------------------------------------------- scores


def predictive_nll(
    f: Float[Tensor, "s m o"], y: Tensor, likelihood: LogLikelihood
) -> Float[Tensor, ""]:
    """``-log mean_s p(y | f_s)``, a mean over the points."""
    log_p = likelihood(f, y)
    return -(torch.logsumexp(log_p, 0) - math.log(len(f))).mean()


def rmse(f: Float[Tensor, "s m o"], y: Float[Tensor, "m o"]) -> Float[Tensor, ""]:
    """Root mean squared error of the mean function.

    Raises:
        ValueError: ``y`` has not the points and outputs of ``f``.
    """
    _same_points(f, y)
    return (f.mean(0) - y).square().mean().sqrt()


def class_probabilities(f: Float[Tensor, "s m o"]) -> Float[Tensor, "m o"]:
    """Softmax averaged over the draws."""
    return f.softmax(-1).mean(0)


def classification_scores(f: Float[Tensor, "s m o"], y: Int[Tensor, "m"]) -> dict[str, float]:
    """``accuracy``, ``nll`` (nats), ``ece`` and mean ``entropy`` (nats) of the averaged softmax."""
    p = class_probabilities(f)
    return {
        "accuracy": (p.argmax(-1) == y).double().mean().item(),
        "nll": predictive_nll(f, y, softmax).item(),
        "ece": ece(p / p.sum(-1, keepdim=True), y),
        "entropy": entropy(p).mean().item(),
    }


def entropy(p: Float[Tensor, "m o"]) -> Float[Tensor, "m"]:
    """In nats; on inputs unlike the training data it should be high."""
    return torch.special.entr(p).sum(-1)


# ------------------------------------------------------------------------------------- rivals


def maximum_a_posteriori(
    prior: BNNPrior,
    x: Tensor,
    y: Tensor,
    likelihood: LogLikelihood,
    gen: torch.Generator,
    *,
    starts: int = 1,
    steps: int = 500,
    lr: float = 0.01,
) -> Float[Tensor, "starts p"]:
    """The most probable ``xi``, from several starts at once, by Adam.

    Raises:
        ValueError: ``starts`` or ``steps`` below 1.
    """
    if min(starts, steps) < 1:
        raise ValueError(f"starts={starts}, steps={steps}: allowed is 1 or more")
    with torch.no_grad():
        xi = prior.draw(starts, gen)
    xi.requires_grad_()
    density = log_posterior(prior, x, y, likelihood)
    opt = torch.optim.Adam([xi], lr=lr)
    for _ in progress(range(steps), "maximum a posteriori"):
        opt.zero_grad()
        (-density(xi).sum()).backward()
        opt.step()
    return xi.detach()


def deep_ensemble(
    make: Callable[[int], nn.Module],
    x: Tensor,
    y: Tensor,
    likelihood: LogLikelihood,
    *,
    seeds: Sequence[int] = range(5),
    steps: int = 500,
    lr: float = 0.01,
    weight_decay: float = 0.0,
) -> Ensemble:
    """Networks trained from different starts; called at ``x`` it gives "s m o"."""
    return fit_ensemble(
        make,
        list(seeds),
        (x, y),
        lambda net, batch: -likelihood(net(batch[0]), batch[1]).mean(),
        steps=steps,
        optimizer=lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=weight_decay),
    )


def mc_dropout(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    likelihood: LogLikelihood,
    x_test: Tensor,
    *,
    seed: int = 0,
    draws: int = 50,
    steps: int = 500,
    lr: float = 0.01,
    weight_decay: float = 0.0,
) -> Float[Tensor, "s m o"]:
    """Train ``net``, which has dropout, and leave it on: functions at ``x_test``.

    Gal and Ghahramani, 2016, arXiv 1506.02142.

    Raises:
        ValueError: ``net`` has no dropout that is above 0, or ``draws`` below 1.
    """
    if draws < 1:
        raise ValueError(f"draws={draws}: allowed is 1 or more")
    if not any(isinstance(m, nn.Dropout) and m.p > 0 for m in net.modules()):
        raise ValueError("net has no dropout: build it with dropout above 0")
    with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator
        torch.manual_seed(seed)
        net.train()
        fit(
            net,
            (x, y),
            lambda model, batch: -likelihood(model(batch[0]), batch[1]).mean(),
            steps=steps,
            optimizer=lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=weight_decay),
            seed=seed,
        )
        with torch.no_grad():
            return torch.stack([net(x_test) for _ in range(draws)])


def swag(
    prior: BNNPrior,
    xi: Float[Tensor, "p"],
    x: Tensor,
    y: Tensor,
    likelihood: LogLikelihood,
    *,
    seed: int = 0,
    draws: int = 50,
    steps: int = 1000,
    every: int = 20,
    rank: int = 20,
    lr: float = 1e-4,
    batch: int = 32,
) -> Float[Tensor, "draws p"]:
    """SGD from ``xi`` at a constant rate; a Gaussian of its path's mean and covariance.

    Half of the covariance is diagonal, half from the last ``rank`` deviations (Maddox et al.,
    2019, arXiv 1902.02476).

    Raises:
        ValueError: fewer than two states would be collected, ``rank`` below 2, ``draws`` or
            ``batch`` below 1, or ``xi`` is not one start.
    """
    if every < 1 or steps < 2 * every or rank < 2 or min(draws, batch) < 1:
        raise ValueError(
            f"steps={steps}, every={every}, rank={rank}, draws={draws}, batch={batch}: allowed are "
            "two states and two columns or more, and 1 or more of the rest"
        )
    if xi.shape != (prior.size,):
        raise ValueError(f"xi has shape {tuple(xi.shape)}: allowed is ({prior.size},), one start")
    theta = xi.detach().clone()[None].requires_grad_()
    batch, states = min(batch, len(x)), []
    opt = torch.optim.SGD([theta], lr=lr, momentum=0.9)
    for step in progress(range(steps), "SWAG"):
        index = batch_indices(len(x), batch, step, seed)
        log_p = likelihood(prior.functions(theta, x[index]), y[index]).sum() * (len(x) / batch)
        opt.zero_grad()
        (-(log_p + prior.log_density(theta).sum())).backward()
        opt.step()
        if (step + 1) % every == 0:
            states.append(theta.detach()[0].clone())
    path = torch.stack(states)
    mean, deviations = path.mean(0), (path - path.mean(0))[-rank:]
    gen = child(seed, "swag")
    z1 = torch.randn(draws, len(mean), generator=gen).to(mean)
    z2 = torch.randn(draws, len(deviations), generator=gen).to(mean)
    low = z2 @ deviations / math.sqrt(2 * (len(deviations) - 1))
    return mean + z1 * path.std(0, correction=0) / math.sqrt(2) + low
