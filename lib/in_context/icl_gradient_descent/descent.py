"""Gradient descent, GD++ and ridge regression on a context, and how well they can do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.in_context.icl_gradient_descent.tasks import positive

Rates = int | float | Sequence[float] | Tensor  # one for all steps, or one for each


def gd_predict(
    x: Float[Tensor, "*b n d"],
    y: Float[Tensor, "*b n o"],
    xq: Float[Tensor, "*b d"],
    eta: Rates,
    steps: int = 1,
    gamma: Rates = 0.0,
) -> Float[Tensor, "*b o"]:
    """Predict at ``xq`` after ``steps`` of gradient descent from ``W = 0`` on the context.

    ``gamma > 0`` is GD++: after each step, inputs and query are multiplied by
    ``I - gamma / n sum_i x_i x_i^T``. Rates are one number, or one for each step.

    Raises:
        ValueError: no examples, no steps, or rates that are not one for each step.
    """
    if x.shape[-2] == 0:
        raise ValueError("x has 0 examples: allowed is 1 or more")
    etas, gammas = _per_step("eta", eta, steps), _per_step("gamma", gamma, steps)
    n, prediction = x.shape[-2], 0.0
    for rate, correction in zip(etas, gammas, strict=True):
        step = rate / n * (y.mT @ x)  # dW: residuals times inputs
        prediction = prediction + (step @ xq[..., None])[..., 0]
        y = y - x @ step.mT
        if correction:
            h = x.mT @ x / n
            x, xq = x - correction * x @ h, xq - correction * (h @ xq[..., None])[..., 0]
    return prediction


def ridge_predict(
    x: Float[Tensor, "*b n d"],
    y: Float[Tensor, "*b n o"],
    xq: Float[Tensor, "*b d"],
    lam: float = 0.0,
) -> Float[Tensor, "*b o"]:
    """Ridge regression on the context, ``min sum_i |W x_i - y_i|^2 + lam |W|^2``.

    ``lam = 0`` is ordinary least squares, of smallest norm where the context does not decide.

    Raises:
        ValueError: ``lam`` is negative.
    """
    if not lam >= 0:
        raise ValueError(f"lam={lam}: allowed is 0 or more")
    if lam == 0:
        w = torch.linalg.pinv(x) @ y
    else:
        w = torch.linalg.solve(x.mT @ x + lam * torch.eye(x.shape[-1]).to(x), x.mT @ y)
    return (xq[..., None, :] @ w)[..., 0, :]


def residual_factor(
    lam: Float[Tensor, "*b"],
    eta: Rates,
    gamma: Rates,
    steps: int,
) -> Float[Tensor, "*b"]:
    """What is left of an error along an eigenvector of ``H = 1/n sum_i x_i x_i^T``.

    ``r(lam) = prod_k (1 - eta_k lam_k)`` with ``lam_(k+1) = lam_k (1 - gamma_k lam_k)^2``: GD++ is
    GD on data whose spectrum it reshapes between the steps. ``gamma = 0`` is GD.

    Raises:
        ValueError: no steps, or rates that are not one for each step.
    """
    left = torch.ones_like(lam)
    etas, gammas = _per_step("eta", eta, steps), _per_step("gamma", gamma, steps)
    for rate, correction in zip(etas, gammas, strict=True):
        left = left * (1 - rate * lam)
        lam = lam * (1 - correction * lam) ** 2
    return left


def sample_spectrum(
    batch: int, n: int, d: int, *, input_range: float = 1.0, gen: torch.Generator
) -> Float[Tensor, "{batch} {d}"]:
    """Eigenvalues of ``1/n sum_i x_i x_i^T`` for ``batch`` contexts, in ascending order."""
    positive(batch=batch, n=n, d=d, input_range=input_range)
    x = input_range * (2 * torch.rand(batch, n, d, generator=gen, device=gen.device) - 1)
    return torch.linalg.eigvalsh(x.mT @ x / n)


@dataclass(frozen=True)
class Tuned:
    """Best rates found, one for each step, and the mean squared error they reach."""

    eta: tuple[float, ...]
    gamma: tuple[float, ...]
    mse: float


def tune_gd(
    steps: int,
    spectrum: Float[Tensor, "b d"],
    *,
    gdpp: bool = False,
    shared: bool = True,
    input_range: float = 1.0,
) -> Tuned:
    """Rates of GD or GD++ that are best on average over tasks with these spectra.

    For ``W ~ N(0, I)`` and a query of covariance ``input_range^2 / 3``, the mean squared error is
    ``input_range^2 / 3`` times the mean of ``sum_i r(lam_i)^2``. No task has to be solved: the
    error over all teachers and queries is known exactly, only the contexts are a sample. And
    ``r^2`` is a polynomial, so a few Gauss nodes stand for all eigenvalues: ``steps + 1`` for GD.

    Args:
        gdpp: tune ``gamma`` as well, instead of leaving it at zero.
        shared: one rate for all steps (a looped layer), or one each (a stack).

    Raises:
        ValueError: ``steps`` is not positive; the spectrum is empty, or has a value that is not
            finite, or none above zero.
        FloatingPointError: every search diverged (seen with free rates and many steps of GD++).
    """
    positive(steps=steps, input_range=input_range)
    # Small problems in double precision: at home on the CPU, wherever the contexts were made.
    spectrum = spectrum.detach().cpu().double()
    if not (spectrum.numel() and spectrum.isfinite().all() and spectrum.max() > 0):
        raise ValueError("spectrum: allowed are finite eigenvalues, at least one of them above 0")
    # r has degree steps, or 1 + 3 + 9 + ... for GD++; m nodes are exact below degree 2m. Five steps
    # of GD++ would need 122; 64 are enough to find the rates.
    degree = (3**steps - 1) // 2 if gdpp else steps
    lam, weight = _gauss_nodes(spectrum.flatten(), min(degree + 1, 64))
    free = 1 if shared else steps

    def rates(theta: Tensor) -> tuple[Tensor, Tensor]:
        eta = theta[0].expand(steps)
        return eta, theta[1].expand(steps) if gdpp else torch.zeros_like(eta)

    def risk(theta: Tensor) -> Tensor:
        left = residual_factor(lam, *rates(theta), steps)
        return input_range**2 / 3 * spectrum.shape[-1] * (weight @ left.square())

    best = None
    scale = (weight @ lam.square()) / (weight @ lam.pow(3))  # about 1 / (largest eigenvalue)
    # Equal rates are a saddle of the problem with free rates, so they start fanned out; from
    # several places, because GD++ has more than one valley.
    fan = (torch.linspace(0.6, 1.8, free) if free > 1 else torch.ones(1)).double()
    for start, first in itertools.product((0.6, 1.0, 2.0), (0.15, 0.6, 1.2) if gdpp else (0.0,)):
        rows = [start * fan, torch.full_like(fan, first)][: 2 if gdpp else 1]
        theta = (scale * torch.stack(rows)).requires_grad_()
        optimizer = torch.optim.LBFGS([theta], max_iter=200, line_search_fn="strong_wolfe")

        def closure(theta=theta, optimizer=optimizer):
            optimizer.zero_grad()
            loss = risk(theta)
            loss.backward()
            return loss

        optimizer.step(closure)
        found = float(risk(theta).detach())
        if math.isfinite(found) and (best is None or found < best[0]):
            best = found, theta.detach()
    if best is None:
        raise FloatingPointError(f"steps={steps}: no search for the rates ended at a finite error")
    eta, gamma = rates(best[1])
    left = residual_factor(spectrum, eta, gamma, steps)
    mse = float(input_range**2 / 3 * left.square().sum(-1).mean())
    return Tuned(tuple(eta.tolist()), tuple(gamma.tolist()), mse)


def one_step_mse(eta: float, n: int, d: int, input_range: float = 1.0) -> float:
    """Mean squared error of one GD step, exactly: a parabola in ``eta``.

    ``d a^2/3 (1 - 2/3 eta a^2 + c eta^2 a^4)`` with ``a = input_range`` and
    ``c = 1/9 + (1/5 + (d - 1)/9 - 1/9) / n``; from the second and fourth moments of the uniform
    distribution, 1/3 and 1/5.

    Raises:
        ValueError: a size or the range is not positive.
    """
    positive(n=n, d=d, input_range=input_range)
    a2 = input_range**2
    c = 1 / 9 + (1 / 5 + (d - 1) / 9 - 1 / 9) / n
    return d * a2 / 3 * (1 - 2 / 3 * eta * a2 + c * (eta * a2) ** 2)


def _gauss_nodes(
    lam: Float[Tensor, " n"], count: int
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """At most ``count`` nodes and weights with the mean of ``f(lam)``, for ``f`` a polynomial.

    Exact below degree ``2 count``. Lanczos on the diagonal matrix of ``lam``, from the vector of
    ones: the eigenvalues of the tridiagonal matrix are the nodes, the squares of the first entries
    of its eigenvectors the weights (Golub and Welsch).
    """
    basis = lam.new_empty(count, len(lam))
    basis[0] = len(lam) ** -0.5
    diagonal, beside = [], []
    for k in range(count):
        v = lam * basis[k]
        diagonal.append(v @ basis[k])
        for _ in range(2):  # once is not enough for orthogonality to rounding
            v -= (basis[: k + 1] @ v) @ basis[: k + 1]
        norm = v.norm()
        if k + 1 == count or norm < 1e-10 * lam.abs().max():  # no more different values
            break
        beside.append(norm)
        basis[k + 1] = v / norm
    matrix = torch.diag(torch.stack(diagonal))
    if beside:
        off = torch.stack(beside)
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    nodes, vectors = torch.linalg.eigh(matrix)
    return nodes, vectors[0].square()


def _per_step(name: str, value: Rates, steps: int) -> list:
    positive(steps=steps)
    if getattr(value, "ndim", 0) == 0 and not isinstance(value, Sequence):
        return [value] * steps
    if len(value) != steps:
        raise ValueError(
            f"{name} has {len(value)} values for steps={steps}: allowed is a number, or {steps}"
        )
    return list(value)
