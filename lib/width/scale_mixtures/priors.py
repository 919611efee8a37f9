"""Laws of the scale ``s``, and the distributions of the outputs that they lead to.

``s`` is the variance of the last layer's weights. ``InverseGamma`` leads to Student's t and needs
no numerics; for every other law the outputs are a ``Mixture`` of Gaussians over nodes or draws of
``s``. Everything is in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from scipy import special
from torch import Tensor

from lib.core.linalg import chol


@runtime_checkable
class ScalePrior(Protocol):
    """What a law of the scale can do: draw from it, and say how dense it is."""

    def sample(self, n: int, gen: torch.Generator) -> Float[Tensor, "n"]: ...

    def log_density(self, s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]: ...

    def moments(self) -> tuple[float, float]:
        """Mean and variance of ``s``; infinite where they do not exist."""
        ...


@dataclass(frozen=True)
class InverseGamma:
    """``p(s) = b^a / Gamma(a) s^(-a-1) exp(-b/s)``; ``b`` is a scale: ``b / s ~ Gamma(a, 1)``.

    A Gaussian with this variance is ``sqrt(b/a)`` times a Student-t of ``2a`` degrees of freedom.
    """

    a: float
    b: float

    def __post_init__(self):
        _positive(a=self.a, b=self.b)

    def sample(self, n: int, gen: torch.Generator) -> Float[Tensor, "n"]:
        shape = torch.full((n,), float(self.a), dtype=torch.float64)
        return self.b / torch._standard_gamma(shape, generator=gen)

    def log_density(self, s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        constant = self.a * math.log(self.b) - math.lgamma(self.a)
        return constant - (self.a + 1) * s.log() - self.b / s

    def moments(self) -> tuple[float, float]:
        a, b = self.a, self.b
        mean = b / (a - 1) if a > 1 else math.inf
        return mean, mean**2 / (a - 2) if a > 2 else math.inf


@dataclass(frozen=True)
class BurrXII:
    """``p(s) = c d s^(c-1) / (1 + s^c)^(d+1)``, a power law at both ends; the code's c=2, d=1."""

    c: float = 2.0
    d: float = 1.0

    def __post_init__(self):
        _positive(c=self.c, d=self.d)

    def sample(self, n: int, gen: torch.Generator) -> Float[Tensor, "n"]:
        u = torch.rand(n, generator=gen, dtype=torch.float64)
        # 1 - u is uniform too, and expm1 keeps the digits of small draws.
        return torch.expm1(-torch.log1p(-u) / self.d) ** (1 / self.c)

    def log_density(self, s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        t = s.log()
        tail = torch.nn.functional.softplus(self.c * t, threshold=700.0)  # log(1 + s^c)
        return math.log(self.c * self.d) + (self.c - 1) * t - (self.d + 1) * tail

    def moments(self) -> tuple[float, float]:
        c, d = self.c, self.d
        first, second = (
            d * special.beta(d - k / c, 1 + k / c) if c * d > k else math.inf for k in (1, 2)
        )
        return float(first), float(second - first**2) if second < math.inf else math.inf


@dataclass(frozen=True)
class LogNormal:
    """``log s ~ N(mean, std^2)``."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        _positive(std=self.std)
        if not math.isfinite(self.mean):
            raise ValueError(f"mean={self.mean}: allowed is a finite number")

    def sample(self, n: int, gen: torch.Generator) -> Float[Tensor, "n"]:
        z = torch.randn(n, generator=gen, dtype=torch.float64)
        return torch.exp(self.mean + self.std * z)

    def log_density(self, s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        t = s.log()
        z = (t - self.mean) / self.std
        return -0.5 * z.square() - t - math.log(self.std * math.sqrt(2 * math.pi))

    def moments(self) -> tuple[float, float]:
        first = math.exp(self.mean + self.std**2 / 2)
        return first, math.expm1(self.std**2) * first**2


@dataclass(frozen=True)
class HalfCauchy:
    """``sqrt(s)``, the standard deviation, is the absolute value of a Cauchy variable."""

    scale: float = 1.0

    def __post_init__(self):
        _positive(scale=self.scale)

    def sample(self, n: int, gen: torch.Generator) -> Float[Tensor, "n"]:
        u = torch.rand(n, generator=gen, dtype=torch.float64)
        return (self.scale * torch.tan(math.pi / 2 * u)).square()

    def log_density(self, s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        constant = -math.log(math.pi * self.scale)
        return constant - 0.5 * s.log() - torch.log1p(s / self.scale**2)

    def moments(self) -> tuple[float, float]:
        return math.inf, math.inf


@dataclass(frozen=True)
class Dirac:
    """``s`` is known: the ordinary NNGP with last-layer variance ``value``."""

    value: float = 1.0

    def __post_init__(self):
        _positive(value=self.value)

    def sample(self, n: int, gen: torch.Generator) -> Float[Tensor, "n"]:
        return torch.full((n,), float(self.value), dtype=torch.float64)

    def log_density(self, s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        raise ValueError("Dirac has no density: its scale is known, so nothing is to be inferred")

    def moments(self) -> tuple[float, float]:
        return self.value, 0.0


@dataclass(frozen=True)
class Scales:
    """Finitely many scales with weights: the nodes of a quadrature, or weighted draws.

    ``log_w`` are log weights that sum to one; ``log_evidence`` is ``log p(y)``.
    """

    s: Float[Tensor, "j"]
    log_w: Float[Tensor, "j"]
    log_evidence: float = 0.0

    def ess(self) -> float:
        """Effective sample size of weighted *draws*, ``1 / sum w^2``, between 1 and their number.

        It says nothing about a quadrature, whose weights differ by design.
        """
        return 1 / self.log_w.exp().square().sum().item()

    def mean(self) -> float:
        return (self.log_w.exp() * self.s).sum().item()


def excess_kurtosis(prior: ScalePrior) -> float:
    """``3 Var(s) / E[s]^2``, that of one output of the limit; ``6 / (2a - 4)`` for inverse gamma.

    The fourth moment of a Gaussian is three times its squared variance, so a mixture has
    ``3 E[s^2] / E[s]^2``, and a Gaussian's 3 is taken off.
    """
    mean, var = prior.moments()
    return math.inf if math.inf in (mean, var) else 3 * var / mean**2


# The law of the outputs.


def mix(
    law: ScalePrior | Scales,
    mean: Float[Tensor, "m o"],
    var: Float[Tensor, "m"],
    cov: Float[Tensor, "m m"] | None = None,
) -> StudentT | Mixture:
    """The outputs' law if ``f | s ~ N(mean, s var)`` and ``s ~ law``: the scale integrated out."""
    if var.shape != mean.shape[:1]:
        raise ValueError(
            f"var has shape {tuple(var.shape)}: allowed is one number for each of the {len(mean)} "
            "rows of mean"
        )
    var = var.clamp(min=0)  # rounding: a function that is known at x has -1e-17 there
    if isinstance(law, InverseGamma):
        r = law.b / law.a
        return StudentT(2 * law.a, mean, r * var, None if cov is None else r * cov)
    if isinstance(law, Dirac):
        law = Scales(torch.tensor([float(law.value)]), torch.zeros(1))
    if not isinstance(law, Scales):
        raise TypeError(
            f"law is a {type(law).__name__}: allowed are InverseGamma, Dirac and Scales; "
            "quadrature_posterior turns any other prior into Scales"
        )
    s, log_w = law.s.to(mean), law.log_w.to(mean)
    many = None if cov is None else s[:, None, None] * cov
    return Mixture(log_w, mean[None], s[:, None] * var, many)


@dataclass(frozen=True)
class StudentT:
    """Outputs at ``m`` inputs: Student's t of ``dof`` degrees of freedom, all with one scale.

    ``var`` is the squared scale at each input (times ``dof / (dof - 2)`` it is the variance), and
    ``cov`` the whole matrix where it was asked for. The outputs share ``s`` and are otherwise
    independent.
    """

    dof: float
    mean: Float[Tensor, "m o"]
    var: Float[Tensor, "m"]
    cov: Float[Tensor, "m m"] | None = None

    def variance(self) -> Float[Tensor, "m"]:
        """Of each output; infinite for ``dof <= 2``."""
        factor = self.dof / (self.dof - 2) if self.dof > 2 else math.inf
        return factor * self.var

    def log_density(self, y: Float[Tensor, "m o"]) -> Float[Tensor, "m o"]:
        """Of each entry on its own."""
        z2 = (_checked(y, self.mean) - self.mean).square() / self.var[:, None]
        return _t_log_density(z2, self.dof, 1) - 0.5 * self.var.log()[:, None]

    def joint_log_density(self, y: Float[Tensor, "m o"]) -> float:
        """Of all entries together; needs ``cov``."""
        z2, half_logdet = _whitened(y, self.mean, self.cov)
        return (_t_log_density(z2, self.dof, y.numel()) - half_logdet).item()

    def cdf(self, y: Float[Tensor, "m o"]) -> Float[Tensor, "m o"]:
        z = (_checked(y, self.mean) - self.mean) / self.var.sqrt()[:, None]
        return torch.as_tensor(special.stdtr(self.dof, z.cpu().numpy())).to(self.mean)

    def quantile(self, p: float) -> Float[Tensor, "m o"]:
        _probability(p)
        return self.mean + float(special.stdtrit(self.dof, p)) * self.var.sqrt()[:, None]

    def sample(self, n: int, gen: torch.Generator) -> Float[Tensor, "n m o"]:
        """``n`` draws, each with its own ``s``; independent over inputs given ``s`` without cov."""
        if n < 1:
            raise ValueError(f"n={n}: allowed is 1 or more")
        s = InverseGamma(self.dof / 2, self.dof / 2).sample(n, gen).to(self.mean)
        z = _gaussian(n, self.mean, self.var, self.cov, gen)
        return self.mean + s.sqrt()[:, None, None] * z


@dataclass(frozen=True)
class Mixture:
    """Outputs at ``m`` inputs: component ``j`` is ``N(means[j], var[j])`` with weight ``w_j``.

    ``means`` has one row if all components share it. ``cov`` where it was asked for.
    """

    log_w: Float[Tensor, "j"]
    means: Float[Tensor, "#j m o"]
    var: Float[Tensor, "j m"]
    cov: Float[Tensor, "j m m"] | None = None

    @property
    def mean(self) -> Float[Tensor, "m o"]:
        w = self.log_w.exp()[:, None, None]
        return self.means[0] if len(self.means) == 1 else (w * self.means).sum(0)

    def variance(self) -> Float[Tensor, "m o"]:
        """Of each output, as far as the nodes reach: infinite ones come out large."""
        w = self.log_w.exp()[:, None, None]
        return (w * (self.var[..., None] + (self.means - self.mean).square())).sum(0)

    def log_density(self, y: Float[Tensor, "m o"]) -> Float[Tensor, "m o"]:
        """Of each entry on its own."""
        _checked(y, self.means[0])
        z2 = (y - self.means).square() / self.var[..., None]
        parts = -0.5 * (z2 + self.var.log()[..., None] + math.log(2 * math.pi))
        return torch.logsumexp(self.log_w[:, None, None] + parts, 0)

    def joint_log_density(self, y: Float[Tensor, "m o"]) -> float:
        """Of all entries together; needs ``cov``."""
        _checked(y, self.means[0])
        parts = []
        for j, weight in enumerate(self.log_w):
            cov = None if self.cov is None else self.cov[j]
            z2, half_logdet = _whitened(y, self.means[min(j, len(self.means) - 1)], cov)
            normal = -0.5 * (z2 + y.numel() * math.log(2 * math.pi)) - half_logdet
            parts.append(weight + normal)
        return torch.logsumexp(torch.stack(parts), 0).item()

    def cdf(self, y: Float[Tensor, "m o"]) -> Float[Tensor, "m o"]:
        _checked(y, self.means[0])
        z = (y - self.means) / self.var.sqrt()[..., None]
        return (self.log_w.exp()[:, None, None] * torch.special.ndtr(z)).sum(0)

    def quantile(self, p: float) -> Float[Tensor, "m o"]:
        """By bisection, to about 1e-12 of the bracket."""
        _probability(p)
        reach = self.var.amax(0).sqrt()[:, None] + (self.means - self.mean).abs().amax(0)
        low, high = self.mean - 40 * reach, self.mean + 40 * reach
        for _ in range(80):
            middle = (low + high) / 2
            below = self.cdf(middle) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def sample(self, n: int, gen: torch.Generator) -> Float[Tensor, "n m o"]:
        """``n`` draws, each with its own ``s``; independent over inputs given ``s`` without cov."""
        if n < 1:
            raise ValueError(f"n={n}: allowed is 1 or more")
        w = self.log_w.exp().cpu()
        parts = torch.multinomial(w, n, replacement=True, generator=gen)
        draws = self.means.new_empty(n, *self.means.shape[1:])
        for j in parts.unique().tolist():
            rows = (parts == j).nonzero()[:, 0].to(draws.device)
            mean = self.means[min(j, len(self.means) - 1)]
            cov = None if self.cov is None else self.cov[j]
            draws[rows] = mean + _gaussian(len(rows), mean, self.var[j], cov, gen)
        return draws


def _t_log_density(z2: Tensor, dof: float, k: int) -> Tensor:
    """Student's t in ``k`` dimensions at squared distance ``z2``, unit scale."""
    constant = math.lgamma((dof + k) / 2) - math.lgamma(dof / 2) - k / 2 * math.log(dof * math.pi)
    return constant - (dof + k) / 2 * torch.log1p(z2 / dof)


def _whitened(y: Tensor, mean: Tensor, cov: Tensor | None) -> tuple[Tensor, Tensor]:
    """Squared distance of all outputs together, and half the log determinant of their scale."""
    if cov is None:
        raise ValueError("cov is None: predict with joint=True")
    L, _ = chol(cov)
    z = torch.linalg.solve_triangular(L, _checked(y, mean) - mean, upper=False)
    return z.square().sum(), y.shape[1] * L.diagonal().log().sum()


def _gaussian(n: int, mean: Tensor, var: Tensor, cov: Tensor | None, gen) -> Tensor:
    z = torch.randn(n, *mean.shape, generator=gen, dtype=mean.dtype).to(mean.device)
    return var.sqrt()[:, None] * z if cov is None else chol(cov)[0] @ z


def _checked(y: Tensor, mean: Tensor) -> Tensor:
    if y.shape != mean.shape:
        raise ValueError(f"y has shape {tuple(y.shape)}: allowed is {tuple(mean.shape)}, (m, o)")
    return y


def _probability(p: float) -> None:
    if not 0 < p < 1:
        raise ValueError(f"p={p}: allowed is a number between 0 and 1")


def _positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: allowed is a finite number above 0")
