"""The same model at finite width, sampled: what the limit is a limit of."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lib.core.fitting import progress
from lib.core.mcmc import Chains, hmc, langevin_step
from lib.width.deep_kernel_machine.kernels import kernel_of
from lib.width.deep_kernel_machine.machine import DeepKernelMachine, Gaussian, cholesky_or_nan


class FiniteDGP:
    """A deep Gaussian process with ``N_l = width * nu_l`` features, its outputs copied N times.

    The log joint density of the features ``F_l`` "P N_l" is

        sum_l log N(F_l; 0, K(F_{l-1} F_{l-1}^T / N_{l-1})) + N log P(Y | F_L),

    with a density of N(0, K) for every column of ``F_l``. It is sampled in the coordinates
    ``F_l = chol(G_l) Z_l``, ``G_l`` the machine's optimum: in them it is nearly a standard normal
    distribution, which has one scale where the features have many. That changes the sampler's
    speed and not the law, for the chains start from the prior and every step is exact.

    Args:
        machine: a fitted machine; kernel, ``nu``, likelihood and data are its own.
        width: N.
        phi: an elementwise function makes it a Bayesian neural network instead: the covariance of
            the next layer's features is ``2 phi(F) phi(F)^T / N_l`` (plus the jitter) and no
            longer depends on the Gram matrix alone. The first layer and the machine's kernel are
            as before, so ReLU goes with ``arc_cosine(normalized=False)``.

    Raises:
        ValueError: the machine is not fitted, or its outputs are not regression; a width that
            gives some layer no whole number of features.
    """

    def __init__(
        self,
        machine: DeepKernelMachine,
        width: int,
        phi: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not hasattr(machine, "grams"):
            raise ValueError("machine: call its fit(X, Y) first")
        if not isinstance(machine.likelihood, Gaussian):
            raise ValueError(
                f"machine: its likelihood is {type(machine.likelihood).__name__}, allowed is "
                "Gaussian"
            )
        self.widths = [width * nu for nu in machine.nu]
        if any(n < 1 or n != round(n) for n in self.widths if math.isfinite(n)) or math.inf in (
            self.widths
        ):
            raise ValueError(
                f"width={width} with nu={machine.nu}: width * nu must be a whole number of "
                "features, 1 or more"
            )
        self.widths = [round(n) for n in self.widths]
        self.machine, self.width, self.phi = machine, width, phi
        self.factors = [torch.linalg.cholesky(G) for G in machine.grams]
        self.points = len(machine.G0)

    @property
    def size(self) -> int:
        """Numbers in the state of one chain."""
        return self.points * sum(self.widths)

    def features(self, theta: Float[Tensor, "*c p"]) -> list[Float[Tensor, "*c points n"]]:
        """``F_1 .. F_L`` of a state.

        Raises:
            ValueError: a state of another size.
        """
        if theta.shape[-1] != self.size:
            raise ValueError(f"theta has {theta.shape[-1]} numbers, a state has {self.size}")
        parts = theta.split([self.points * n for n in self.widths], dim=-1)
        shapes = [(self.points, n) for n in self.widths]
        return [L @ z.unflatten(-1, s) for L, z, s in zip(self.factors, parts, shapes)]

    def grams(self, theta: Float[Tensor, "*c p"]) -> list[Float[Tensor, "*c points points"]]:
        """``F_l F_l^T / N_l`` of a state."""
        return [F @ F.mT / F.shape[-1] for F in self.features(theta)]

    def log_density(self, theta: Float[Tensor, "*c p"]) -> Float[Tensor, "*c"]:
        """The log joint density, up to a constant; NaN where a covariance has no factor.

        (A trajectory that runs off is then rejected by the sampler, and stops no other chain.)
        """
        m, total = self.machine, 0.0
        K = kernel_of(m.G0, m.kernel, m.jitter)
        for F in self.features(theta):
            L = cholesky_or_nan(K)
            half = torch.linalg.solve_triangular(L, F, upper=False)
            volume = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            total = total - 0.5 * half.square().sum((-2, -1)) - F.shape[-1] * volume
            K = self._next(F)
        return total + self.width * m.likelihood.density(K, m.Y)

    def _next(self, F: Tensor) -> Tensor:
        m = self.machine
        if self.phi is None:
            return kernel_of(F @ F.mT / F.shape[-1], m.kernel, m.jitter)
        hidden = self.phi(F)
        eye = torch.eye(self.points, dtype=F.dtype, device=F.device)
        return 2 * hidden @ hidden.mT / F.shape[-1] + m.jitter * eye

    def prior(self, chains: int, gen: torch.Generator) -> Float[Tensor, "c p"]:
        """States drawn from the model before it has seen outputs.

        Raises:
            ValueError: ``chains`` below 1.
        """
        if chains < 1:
            raise ValueError(f"chains={chains}: allowed is 1 or more")
        m, states = self.machine, []
        K = kernel_of(m.G0, m.kernel, m.jitter)
        for L, n in zip(self.factors, self.widths):
            z = torch.randn(chains, self.points, n, generator=gen, dtype=torch.float64).to(K)
            F = torch.linalg.cholesky(K) @ z
            states.append(torch.linalg.solve_triangular(L, F, upper=False).flatten(-2))
            K = self._next(F)
        return torch.cat(states, -1)

    def hmc(
        self,
        n: int,
        gen: torch.Generator,
        *,
        chains: int = 4,
        burn_in: int = 50,
        step: float = 0.1,
        leapfrog: int = 6,
    ) -> Chains:
        """``n`` states of each chain after burn-in, in which the step adapts; exact in law.

        Six steps come to about a quarter of an orbit in these coordinates. Ten come to half of
        one, after which ``F`` is near ``-F`` and the Gram matrix near where it was: measured at
        width 16, a quarter of the effective samples.
        """
        start = self.prior(chains, gen)
        return hmc(
            self.log_density, start, n, step=step, leapfrog=leapfrog, gen=gen, burn_in=burn_in
        )

    def langevin(
        self,
        steps: int,
        gen: torch.Generator,
        *,
        chains: int = 4,
        burn_in: int = 0,
        step: float = 0.01,
        thin: int = 1,
    ) -> Chains:
        """Unadjusted Langevin steps, the paper's sampler: no rejection, a bias of order ``step``.

        Raises:
            ValueError: ``steps`` or ``thin`` below 1, ``burn_in`` below 0.
        """
        if steps < 1 or thin < 1 or burn_in < 0:
            raise ValueError(
                f"steps={steps}, thin={thin}, burn_in={burn_in}: allowed are >= 1, >= 1 and >= 0"
            )
        theta, kept = self.prior(chains, gen), []
        for i in progress(range(burn_in + steps), "Langevin steps"):
            theta = theta.detach().requires_grad_()
            (grad,) = torch.autograd.grad(-self.log_density(theta).sum(), theta)
            theta = langevin_step(theta.detach(), grad, step, gen)
            if i >= burn_in and (i - burn_in) % thin == 0:
                kept.append(theta)
        return Chains(torch.stack(kept, 1), torch.ones(chains, dtype=theta.dtype))

    def mean_grams(self, chains: Chains) -> list[Float[Tensor, "points points"]]:
        """``E[F_l F_l^T / N_l]`` over all samples of all chains."""
        totals = [torch.zeros_like(G) for G in self.machine.grams]
        for block in chains.pooled.split(256):
            for total, G in zip(totals, self.grams(block)):
                total += G.sum(0)
        return [total / len(chains.pooled) for total in totals]


def excess_kurtosis(
    features: Float[Tensor, "... p n"], G: Float[Tensor, "p p"]
) -> Float[Tensor, "p"]:
    """``E z^4 / (E z^2)^2 - 3`` of the features whitened by ``G``, for each coordinate ``p``.

    Zero for a Gaussian law. Columns and leading axes are samples.

    Raises:
        ValueError: ``G`` is not "p p", or there are no samples.
    """
    if G.shape != (features.shape[-2],) * 2 or features.numel() == 0:
        raise ValueError(
            f"features {tuple(features.shape)}, G {tuple(G.shape)}: allowed are samples of p "
            "coordinates in the last axis but one, and p by p"
        )
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(G), features, upper=False)
    z = z.movedim(-2, -1).flatten(0, -2)
    return z.pow(4).mean(0) / z.square().mean(0).square() - 3
