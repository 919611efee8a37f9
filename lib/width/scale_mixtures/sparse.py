"""Classification: a sparse variational Student-t process with a softmax likelihood.

``m`` inducing points carry values ``u``, one column per class, with ``u_c | s ~ N(0, s K_uu)`` and
``s ~ InverseGamma(a, b)`` shared by the classes. The variational law is of the same kind,

    q(u_c | s) = N(mu_c, s Sigma_c),  Sigma_c diagonal,     q(s) = InverseGamma(a_q, b_q),

so that ``f_c(x) | s ~ N(A mu_c, s (K_xx - A K_ux + A Sigma_c A^T))`` with ``A = K_xu K_uu^{-1}``,
and ``f`` is Student-t of ``2 a_q`` degrees of freedom. With ``prior=Dirac(s)`` it is the sparse
variational Gaussian process, the paper's baseline; with a ``ScaledKernel`` that one learns a scale
too, as in the authors' code, as a number and not as a law.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.width.scale_mixtures.kernels import Kernel, prior_variance
from lib.width.scale_mixtures.priors import Dirac, InverseGamma


class SVTP(nn.Module):
    """Trained: ``mu``, ``Sigma``, the inducing points, ``a_q``, ``b_q``, and a kernel's parameters.

    Args:
        kernel: ``(x1, x2) -> Gram``; if it is a module its parameters are trained too.
        inducing: starting points, for instance training inputs (a copy is trained).
        classes: columns of ``u``.
        prior: ``InverseGamma`` (the authors' code: a = b = 2) or ``Dirac`` (then ``s`` is
            known and nothing is learned about it).
        jitter: added to ``K_uu``.

    Raises:
        TypeError: another prior, whose divergence has no closed form.
        ValueError: fewer than one class, no inducing points, or ``jitter`` negative.
    """

    def __init__(
        self,
        kernel: Kernel,
        inducing: Float[Tensor, "m ..."],
        classes: int,
        prior: InverseGamma | Dirac,
        jitter: float = 1e-4,
    ) -> None:
        super().__init__()
        if not isinstance(prior, (InverseGamma, Dirac)):
            raise TypeError(f"prior is a {type(prior).__name__}: allowed are InverseGamma, Dirac")
        if classes < 1 or not 0 <= jitter < math.inf:
            raise ValueError(
                f"classes={classes}, jitter={jitter}: allowed are classes >= 1, jitter >= 0"
            )
        m = len(inducing)
        if m == 0 or not torch.isfinite(inducing).all():
            raise ValueError(
                f"inducing has shape {tuple(inducing.shape)}: allowed are finite numbers for one "
                "point or more"
            )
        self.kernel, self.prior, self.classes, self.jitter = kernel, prior, classes, jitter
        self.inducing = nn.Parameter(inducing.detach().clone())
        self.mu = nn.Parameter(inducing.new_zeros(m, classes))
        # The diagonal that is nearest to the prior. (The authors' code starts at one, which K_uu's
        # small eigenvalues make a large divergence of.)
        with torch.no_grad():
            precision = torch.cholesky_inverse(torch.linalg.cholesky(self.K_uu())).diagonal()
        self.log_sigma = nn.Parameter(-precision.log().repeat(classes, 1))
        self.learns_scale = isinstance(prior, InverseGamma)
        if self.learns_scale:
            self.log_a = nn.Parameter(torch.tensor(math.log(prior.a)).to(inducing))
            self.log_b = nn.Parameter(torch.tensor(math.log(prior.b)).to(inducing))

    def scale_law(self) -> InverseGamma | Dirac:
        """What has been learned about ``s``."""
        if not self.learns_scale:
            return self.prior
        return InverseGamma(self.log_a.exp().item(), self.log_b.exp().item())

    def K_uu(self) -> Float[Tensor, "m m"]:
        K = self.kernel(self.inducing, self.inducing)
        return K + self.jitter * torch.eye(len(K), dtype=K.dtype, device=K.device)

    def marginals(
        self, x: Float[Tensor, "n ..."]
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        """Location of ``f(x)``, and its variance in units of ``s``."""
        L = torch.linalg.cholesky(self.K_uu())
        half = torch.linalg.solve_triangular(L, self.kernel(self.inducing, x), upper=False)
        At = torch.linalg.solve_triangular(L.T, half, upper=True)
        explained = prior_variance(self.kernel, x) - half.square().sum(0)
        added = At.square().T @ self.log_sigma.exp().T
        # Rounding can take the first term below zero where x is an inducing point.
        return At.T @ self.mu, explained.clamp(min=0)[:, None] + added

    def sample(
        self, x: Float[Tensor, "n ..."], draws: int, gen: torch.Generator
    ) -> Float[Tensor, "draws n c"]:
        """Draws of ``f(x)``: one ``s`` for each input and draw, shared by the classes.

        Only the law at each input matters to a likelihood that is a sum over inputs, so ``s`` is
        drawn afresh for each of them, which lowers the noise. Differentiable in everything, also
        in ``a_q`` (through the gamma draw's implicit derivative). ``s`` above ``1e6 b_q`` is cut
        to that: float32 would lose it, and it is rare unless ``a_q`` is far below one.

        Raises:
            ValueError: ``draws`` below 1.
        """
        if draws < 1:
            raise ValueError(f"draws={draws}: allowed is 1 or more")
        mean, var = self.marginals(x)
        z = torch.randn(draws, *mean.shape, generator=gen, dtype=mean.dtype).to(mean.device)
        if not self.learns_scale:
            return mean + math.sqrt(self.prior.value) * var.sqrt() * z
        # The generator lives on the CPU, and so does this small draw.
        shape = self.log_a.exp().cpu().expand(draws, len(x), 1)
        gamma = torch._standard_gamma(shape, generator=gen).to(mean.device)
        s = self.log_b.exp() / gamma.clamp(min=1e-6)
        return mean + (s * var).sqrt() * z

    def kl(self) -> Float[Tensor, ""]:
        """``KL(q(u, s) || p(u, s))``, in closed form."""
        sigma = self.log_sigma.exp()
        if not self.learns_scale:
            s = self.prior.value
            return _gaussian_kl(self.K_uu(), self.mu, sigma, torch.tensor(1 / s).to(sigma))
        a, b = self.log_a.exp(), self.log_b.exp()
        return student_t_kl(self.K_uu(), self.mu, sigma, a, b, self.prior)

    def loss(self, total: int, draws: int, gen: torch.Generator) -> Callable:
        """``loss(model, (x, y))`` for ``lib.core.fitting.fit``: minus the bound, per sample.

        ``(-N/B sum_i E log softmax(f(x_i))_{y_i} + KL) / N`` with ``N = total`` training samples.

        Raises:
            ValueError: ``total`` or ``draws`` below 1; labels that are no classes.
        """
        if total < 1 or draws < 1:
            raise ValueError(f"total={total}, draws={draws}: allowed is 1 or more")

        def negative_bound(model: SVTP, batch: tuple[Tensor, Tensor]) -> Tensor:
            x, y = batch
            model.check_labels(x, y)
            log_p = torch.log_softmax(model.sample(x, draws, gen), -1)
            fit = log_p.gather(-1, y.expand(draws, -1)[..., None]).mean()
            return model.kl() / total - fit

        return negative_bound

    @torch.no_grad()
    def predict(
        self, x: Float[Tensor, "n ..."], draws: int, gen: torch.Generator, chunk: int = 250
    ) -> Float[Tensor, "n c"]:
        """Class probabilities: the mean over draws of the softmax, ``chunk`` inputs at a time."""
        if chunk < 1:
            raise ValueError(f"chunk={chunk}: allowed is 1 or more")
        parts = [torch.softmax(self.sample(p, draws, gen), -1).mean(0) for p in x.split(chunk)]
        return torch.cat(parts)

    def nll(
        self, x: Float[Tensor, "n ..."], y: Int[Tensor, "n"], draws: int, gen: torch.Generator
    ) -> float:
        """Mean of ``-log`` of the probability given to the right class."""
        self.check_labels(x, y)
        p = self.predict(x, draws, gen)
        return -p.gather(1, y[:, None]).log().mean().item()

    def check_labels(self, x: Float[Tensor, "n ..."], y: Int[Tensor, "n"]) -> None:
        """Refuses labels that are no classes, or not one for each input."""
        if y.shape != x.shape[:1] or len(y) == 0:
            raise ValueError(
                f"y has shape {tuple(y.shape)}: allowed is ({len(x)},), one label each"
            )
        if y.min() < 0 or y.max() >= self.classes:
            raise ValueError(
                f"y has labels {y.min().item()} to {y.max().item()}: allowed are 0 to "
                f"{self.classes - 1}"
            )


class ScaledKernel(nn.Module):
    """``scale * K`` with a trained scale: the variance of the last layer as a parameter."""

    def __init__(self, kernel: Kernel, scale: float = 1.0) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"scale={scale}: allowed is a finite number above 0")
        self.kernel, self.log_scale = kernel, nn.Parameter(torch.tensor(math.log(scale)))

    def forward(
        self, x1: Float[Tensor, "p ..."], x2: Float[Tensor, "q ..."] | None = None
    ) -> Float[Tensor, "p q"]:
        return self.log_scale.exp() * self.kernel(x1, x2)


def student_t_kl(
    K: Float[Tensor, "m m"],
    mu: Float[Tensor, "m c"],
    Sigma: Float[Tensor, "c m"] | Float[Tensor, "c m m"],
    a_q: Float[Tensor, ""],
    b_q: Float[Tensor, ""],
    prior: InverseGamma,
) -> Float[Tensor, ""]:
    """Divergence of ``q(u | s) q(s)`` from ``p(u | s) p(s)``; ``Sigma`` diagonal or whole.

    The Gaussian part, averaged over ``q(s)``, sees ``s`` only in front of ``mu``, where
    ``E[1/s] = a_q / b_q``. The rest is the divergence of two inverse gammas.
    """
    a, b = prior.a, prior.b
    gammas = a * torch.log(b_q / b) - torch.lgamma(a_q) + math.lgamma(a)
    gammas = gammas + (a_q - a) * torch.digamma(a_q) + (b - b_q) * a_q / b_q
    return _gaussian_kl(K, mu, Sigma, a_q / b_q) + gammas


def _gaussian_kl(K: Tensor, mu: Tensor, Sigma: Tensor, precision: Tensor) -> Tensor:
    """``KL(N(mu, s Sigma) || N(0, s K))``, one term per class, with ``1/s -> precision``."""
    m, c = mu.shape
    L = torch.linalg.cholesky(K)
    distance = torch.linalg.solve_triangular(L, mu, upper=False).square().sum()
    if Sigma.ndim == 2:
        inverse = torch.cholesky_inverse(L).diagonal()
        trace, logdet = (inverse * Sigma).sum(), Sigma.log().sum()
    else:
        trace = torch.cholesky_solve(Sigma, L).diagonal(dim1=-2, dim2=-1).sum()
        logdet = torch.logdet(Sigma).sum()
    logdet_K = 2 * c * L.diagonal().log().sum()
    return 0.5 * (precision * distance + trace + logdet_K - logdet - m * c)
