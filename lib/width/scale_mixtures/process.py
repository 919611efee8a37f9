"""Inference in a scale mixture of Gaussian processes: everything is about one number.

Model: ``s ~ H``, ``f | s ~ GP(0, s K)``, ``y = f(X) + noise`` of variance ``s eps``. Given ``s``
the posterior of ``f`` is the ordinary one with kernel ``K`` and noise ``eps``, times ``s`` in the
covariance; its mean does not depend on ``s``. The data speak about ``s`` through

    log p(y | s) = -(nC/2) log(2 pi s) - (C/2) log|Kt| - q / (2 s),     Kt = K + eps I,

with ``n`` points, ``C`` outputs that share ``s``, and ``q = sum_c y_c^T Kt^{-1} y_c``: one Cholesky
factorization, and then a problem on a line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lib.core.linalg import chol
from lib.width.scale_mixtures.kernels import prior_variance
from lib.width.scale_mixtures.priors import (
    Dirac,
    InverseGamma,
    Mixture,
    ScalePrior,
    Scales,
    StudentT,
    mix,
)

Kernel = Callable[[Tensor, Tensor], Tensor]
LogLikelihood = Callable[[Tensor], Tensor]
Infer = Callable[[ScalePrior, LogLikelihood], Scales]


def student_t_posterior(prior: InverseGamma, q: float, count: int) -> InverseGamma:
    """``s | y ~ InverseGamma(a + nC/2, b + q/2)``: an inverse gamma stays one.

    With it the outputs are Student-t of ``2a + nC`` degrees of freedom and squared scale
    ``(2b + q) / (2a + nC)`` times the Gaussian posterior's variance.

    Args:
        q: ``sum_c y_c^T Kt^{-1} y_c``.
        count: ``nC``, numbers observed.

    Raises:
        TypeError: another prior, which has no closed form.
        ValueError: ``q`` or ``count`` negative or not finite.
    """
    if not isinstance(prior, InverseGamma):
        raise TypeError(
            f"prior is a {type(prior).__name__}: allowed is InverseGamma; for others see "
            "quadrature_posterior"
        )
    if not (0 <= q < math.inf and 0 <= count < math.inf):
        raise ValueError(f"q={q}, count={count}: allowed are finite numbers, 0 or more")
    return InverseGamma(prior.a + count / 2, prior.b + q / 2)


def quadrature_posterior(
    prior: ScalePrior, log_likelihood: LogLikelihood | None = None, nodes: int = 200
) -> Scales:
    """Any law of the scale: trapezoid in ``t = log s``, where the density is that of s times s.

    The window is found by zooming in on where the integrand exceeds ``e^-60`` of its maximum, so a
    posterior that 10,000 numbers have made narrow is not missed. For smooth laws the error then
    falls exponentially with ``nodes``. Without a likelihood the nodes represent the prior.

    Raises:
        ValueError: fewer than 10 nodes; a ``Dirac``, which has no density; a likelihood that is
            not finite anywhere; a law of which more than about 1e-4 lies outside
            ``e^-150 < s < e^150``, the scales that are looked at.
    """
    if nodes < 10:
        raise ValueError(f"nodes={nodes}: allowed is 10 or more")

    def log_integrand(t: Tensor) -> Tensor:
        s = t.exp()
        value = prior.log_density(s) + t
        return value if log_likelihood is None else value + log_likelihood(s).to(value)

    low, high = -150.0, 150.0
    for zoom in range(6):
        t = torch.linspace(low, high, 2001, dtype=torch.float64)
        value = log_integrand(t)
        if not value.max() < math.inf or value.max() == -math.inf:  # NaN is a maximum too
            raise ValueError(
                f"prior={prior}: its density times the likelihood is {value.max().item()} at most; "
                "allowed is a finite number above 0"
            )
        if zoom == 0 and max(value[0], value[-1]) > value.max() - 7:
            raise ValueError(
                f"prior={prior}: too much of the law lies outside e^-150 < s < e^150; allowed are "
                "laws that fit inside"
            )
        inside = (value > value.max() - 60).nonzero()[:, 0]
        step = (high - low) / 2000
        low, high = t[inside[0]].item() - step, t[inside[-1]].item() + step
        if len(inside) > 500:
            break
    t = torch.linspace(low, high, nodes, dtype=torch.float64)
    value = log_integrand(t) + math.log((high - low) / (nodes - 1))
    evidence = torch.logsumexp(value, 0)
    return Scales(t.exp(), value - evidence, evidence.item())


def importance_posterior(
    prior: ScalePrior,
    log_likelihood: LogLikelihood,
    draws: int = 1000,
    gen: torch.Generator | None = None,
    proposal: ScalePrior | None = None,
) -> Scales:
    """The paper's way for any ``H``: draws from ``proposal``, weighted by likelihood over it.

        log w_j = log N(y; 0, s_j Kt) + log H(s_j) - log q(s_j),   weights normalized.

    The default proposal is the prior, which is far from the posterior when there are many data:
    look at ``Scales.ess()``.

    Raises:
        ValueError: fewer than one draw, no generator, or draws none of which has a finite weight.
    """
    if draws < 1:
        raise ValueError(f"draws={draws}: allowed is 1 or more")
    if gen is None:
        raise ValueError("gen=None: drawing needs a torch.Generator")
    s = (proposal or prior).sample(draws, gen)
    value = log_likelihood(s).to(s)
    if proposal is not None:
        value = value + prior.log_density(s) - proposal.log_density(s)
    total = torch.logsumexp(value, 0)
    if not total.isfinite():
        raise ValueError(
            f"log_likelihood: the log weights of the draws add up to {total.item()}; allowed is a "
            "finite number"
        )
    return Scales(s, value - total, total.item() - math.log(draws))


class SMNNGP:
    """Regression with a scale mixture of Gaussian processes.

    Args:
        kernel: ``(x1, x2) -> "n m"``: ``nngp_kernel(...)``, or any other (``lib.models.gp.rbf``
            makes a Student-t process with an RBF kernel).
        prior: of the scale; ``Dirac(1.0)`` is the NNGP.
        eps: variance of the noise, in units of the scale. The authors' code adds it to
            ``(b/a) K`` instead, which is this with ``eps a / b``.
        noise_scales: ``False`` for noise of variance ``eps`` whatever ``s`` is. Then there is no
            closed form, and the posterior mean depends on the prior.
        infer: how the posterior of ``s`` is found, ``(prior, log_likelihood) -> Scales``. ``None``
            is the closed form for an inverse gamma prior, quadrature for any other.

    Attributes:
        law: of ``s`` given the data; ``q`` and ``count`` as in ``student_t_posterior``.

    Raises:
        ValueError: ``eps`` negative or not finite.
    """

    def __init__(
        self,
        kernel: Kernel,
        prior: ScalePrior,
        eps: float = 0.01,
        noise_scales: bool = True,
        infer: Infer | None = None,
    ) -> None:
        if not 0 <= eps < math.inf:
            raise ValueError(f"eps={eps}: allowed is a finite number, 0 or more")
        self.kernel, self.prior, self.eps = kernel, prior, eps
        self.noise_scales, self.infer = noise_scales, infer

    def fit(self, X: Float[Tensor, "n ..."], y: Float[Tensor, "n o"]) -> SMNNGP:
        """Factorize once, then infer ``s``. In float64, which Apple's device ("mps") has not.

        Raises:
            ValueError: lengths differ, no data, numbers that are not finite, a singular kernel
                without noise (if the noise scales, after the jitter of ``lib.core.linalg.chol``).
        """
        if y.ndim != 2 or len(X) != len(y) or y.numel() == 0:
            raise ValueError(
                f"X has shape {tuple(X.shape)} and y {tuple(y.shape)}: allowed are n > 0 rows in "
                "both, and y of shape (n, outputs)"
            )
        for name, v in (("X", X), ("y", y)):
            if not torch.isfinite(v).all():
                raise ValueError(f"{name} has entries that are not finite")
        self.X, self.y = X.double(), y.double()
        self.count = self.y.numel()
        K = self.kernel(self.X, self.X).double()
        if self.noise_scales:
            self.L, _ = chol(K + self.eps * torch.eye(len(K), dtype=K.dtype, device=K.device))
            self.alpha = torch.cholesky_solve(self.y, self.L)
            self.q = (self.y * self.alpha).sum().item()
            self.logdet = 2 * self.L.diagonal().log().sum().item()
        else:
            self.eigenvalues, self.vectors = torch.linalg.eigh(K)
            self.eigenvalues = self.eigenvalues.clamp(min=0)  # rounding can leave -1e-16
            if self.eps + self.eigenvalues[0] < 1e-14 * self.eigenvalues[-1]:
                raise ValueError(
                    f"eps={self.eps}: the kernel is singular on X; allowed is a noise above 0 "
                    "where inputs occur twice"
                )
            self.rotated = self.vectors.T @ self.y
        self.law = self._infer()
        return self

    def _infer(self) -> ScalePrior | Scales:
        if isinstance(self.prior, Dirac):
            return self.prior
        if self.infer is not None:
            return self.infer(self.prior, self.log_likelihood)
        if isinstance(self.prior, InverseGamma) and self.noise_scales:
            return student_t_posterior(self.prior, self.q, self.count)
        return quadrature_posterior(self.prior, self.log_likelihood)

    def log_likelihood(self, s: Float[Tensor, "j"]) -> Float[Tensor, "j"]:
        """``log p(y | s)`` for each scale."""
        C = self.y.shape[1]
        if self.noise_scales:
            constant = -0.5 * C * self.logdet - 0.5 * self.count * math.log(2 * math.pi)
            return constant - 0.5 * self.count * s.log() - 0.5 * self.q / s
        v = s.to(self.eigenvalues)[:, None] * self.eigenvalues + self.eps
        fit = (self.rotated.square().sum(1) / v).sum(1)
        return -0.5 * (fit + C * v.log().sum(1) + self.count * math.log(2 * math.pi))

    def predict(
        self, x: Float[Tensor, "m ..."], noise: bool = True, joint: bool = False
    ) -> StudentT | Mixture:
        """The law of new targets (``noise=True``) or of the function itself at ``x``.

        Args:
            joint: with the covariance between the inputs, for joint densities and whole functions.

        Raises:
            RuntimeError: before ``fit``.
        """
        if not hasattr(self, "law"):
            raise RuntimeError("predict was called before fit")
        x = x.double()
        cross = self.kernel(x, self.X).double()
        prior_cov = self.kernel(x, x).double() if joint else None
        prior_var = prior_cov.diagonal() if joint else prior_variance(self.kernel, x)
        extra = self.eps if noise else 0.0
        eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
        if not self.noise_scales:
            return self._predict_fixed_noise(cross, prior_var, prior_cov, extra, eye)
        half = torch.linalg.solve_triangular(self.L, cross.T, upper=False)
        var = prior_var - half.square().sum(0) + extra
        cov = prior_cov - half.T @ half + extra * eye if joint else None
        return mix(self.law, cross @ self.alpha, var, cov)

    def _predict_fixed_noise(self, cross, prior_var, prior_cov, extra, eye) -> Mixture:
        """Each scale has a mean of its own here: ``s K_* (s K + eps)^{-1} y``."""
        law = self.law
        if isinstance(law, Dirac):
            law = Scales(torch.tensor([float(law.value)]), torch.zeros(1))
        s, log_w = law.s.to(cross), law.log_w.to(cross)
        inverse = 1 / (s[:, None] * self.eigenvalues + self.eps)  # "j n"
        rotated = cross @ self.vectors  # "m n"
        means = torch.einsum("j,mn,jn,no->jmo", s, rotated, inverse, self.rotated)
        shrink = s[:, None].square() * (inverse @ rotated.square().T)
        cov = None
        if prior_cov is not None:
            cov = s[:, None, None] * prior_cov + extra * eye
            cov = cov - torch.einsum("j,an,jn,bn->jab", s.square(), rotated, inverse, rotated)
        return Mixture(log_w, means, s[:, None] * prior_var - shrink + extra, cov)

    def log_marginal(self) -> float:
        """``log p(y)``, the scale integrated out."""
        law, prior = self.law, self.prior
        if isinstance(law, Scales):
            return law.log_evidence
        if isinstance(law, Dirac):
            return self.log_likelihood(torch.tensor([law.value], dtype=torch.float64)).item()
        gain = math.lgamma(law.a) - math.lgamma(prior.a)
        gain += prior.a * math.log(prior.b) - law.a * math.log(law.b)
        constant = -0.5 * self.y.shape[1] * self.logdet
        return gain + constant - 0.5 * self.count * math.log(2 * math.pi)


class EmpiricalBayesNNGP(SMNNGP):
    """The baseline without a prior: an NNGP at the scale of maximum likelihood, ``s = q / (nC)``.

    With many data every smooth prior gives the same: ``s | y`` concentrates there.
    """

    def __init__(self, kernel: Kernel, eps: float = 0.01) -> None:
        super().__init__(kernel, Dirac(1.0), eps)

    def _infer(self) -> Dirac:
        if self.q <= 0:
            raise ValueError("y is zero everywhere: its most likely scale is 0")
        return Dirac(self.q / self.count)


def choose_by_validation(
    candidates: Sequence[SMNNGP],
    X: Float[Tensor, "n ..."],
    y: Float[Tensor, "n o"],
    x_valid: Float[Tensor, "m ..."],
    y_valid: Float[Tensor, "m o"],
) -> tuple[SMNNGP, list[float]]:
    """The candidate with the smallest mean negative log-density on the validation set, and all."""
    if not candidates:
        raise ValueError("candidates is empty: at least one model is needed")
    target = y_valid.double()
    scores = [-c.fit(X, y).predict(x_valid).log_density(target).mean().item() for c in candidates]
    return candidates[min(range(len(scores)), key=scores.__getitem__)], scores


def class_probabilities(
    outputs: StudentT | Mixture, draws: int, gen: torch.Generator
) -> Float[Tensor, "m o"]:
    """Share of draws in which each output is the largest: classification by one-hot regression.

    One draw is added to every class, so that no probability is zero.
    """
    if draws < 1:
        raise ValueError(f"draws={draws}: allowed is 1 or more")
    winners = outputs.sample(draws, gen).argmax(-1)  # "draws m"
    classes = outputs.mean.shape[1]
    votes = torch.nn.functional.one_hot(winners, classes).sum(0).to(outputs.mean)
    return (votes + 1) / (draws + classes)
