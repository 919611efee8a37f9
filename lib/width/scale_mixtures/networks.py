"""Finite networks with one random scale each, and what training makes of their law.

The network is ``f(x) = sqrt(s / width) sum_i v_i phi_i(x)`` with ``v_i ~ N(0, 1)`` and one
``s ~ H`` for all of them. The same random function comes from ``v_i ~ N(0, s)`` without the factor,
but its gradients are others: ``scale_in="multiplier"`` (the authors' code) and ``"init"``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.core.ensemble import Ensemble, fit_ensemble
from lib.core.linalg import chol
from lib.core.seeds import child
from lib.models.infinite_width import ACTIVATIONS
from lib.models.mlp import MLP, NTKLinear
from lib.width.scale_mixtures.kernels import check_variances, mlp_kernels
from lib.width.scale_mixtures.priors import (
    Dirac,
    InverseGamma,
    Mixture,
    ScalePrior,
    Scales,
    StudentT,
    mix,
)
from lib.width.scale_mixtures.process import Kernel, quadrature_posterior

SCALE_IN = ("multiplier", "init")


def sample_networks(
    x: Float[Tensor, "p d"],
    width: int,
    prior: ScalePrior,
    n: int,
    gen: torch.Generator,
    depth: int = 1,
    act: str = "erf",
    weight_var: float = 1.0,
    bias_var: float = 0.0,
    scale_per: Literal["network", "unit"] = "network",
    chunk: int = 1000,
) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n"] | Float[Tensor, "n width"]]:
    """Outputs of ``n`` untrained networks at ``x``, every weight drawn, and their scales.

    Args:
        scale_per: ``"unit"`` draws an ``s`` for every unit of the last hidden layer. The sum over
            units then averages the scales, and the limit is Gaussian after all.
        chunk: networks at a time; deep ones hold ``chunk * width^2`` weights.

    Raises:
        ValueError: unknown ``scale_per`` or ``act``; ``width``, ``depth`` or ``n`` below 1; a
            variance that no layer can have.
    """
    if scale_per not in ("network", "unit"):
        raise ValueError(f"scale_per={scale_per!r}: allowed are 'network' and 'unit'")
    _counts(width, depth, n, chunk)
    outputs, scales = [], []
    for start in range(0, n, chunk):
        k = min(chunk, n - start)
        phi = _random_features(x, k, width, depth, act, weight_var, bias_var, gen)
        s = prior.sample(k if scale_per == "network" else k * width, gen).view(k, -1)
        v = s.to(phi).sqrt() * torch.randn(k, width, generator=gen, dtype=x.dtype)
        outputs.append((phi @ v[:, :, None])[..., 0] / math.sqrt(width))
        scales.append(s[:, 0] if scale_per == "network" else s)
    return torch.cat(outputs), torch.cat(scales)


def last_layer_ensemble(
    X: Float[Tensor, "p d"],
    y: Float[Tensor, "p o"],
    x: Float[Tensor, "m d"],
    width: int,
    prior: ScalePrior,
    n: int,
    gen: torch.Generator,
    depth: int = 1,
    act: str = "erf",
    weight_var: float = 1.0,
    bias_var: float = 0.0,
    chunk: int = 250,
) -> tuple[Float[Tensor, "n m o"], Float[Tensor, "n"]]:
    """``n`` networks whose last layers were trained to the end of gradient flow, and their scales.

    Features ``Phi`` stay as drawn, so the end is known: the initial function plus the smallest
    change of ``v`` that fits, ``f(x) = f_0(x) + Phi(x) Phi(X)^+ (y - f_0(X))``.

    Raises:
        ValueError: as many points as units or more, or points that occur twice: the features then
            cannot fit them; ``X``, ``y`` and ``x`` of shapes that do not go together; ``width``,
            ``depth`` or ``n`` below 1.
    """
    _counts(width, depth, n, chunk)
    _same_data(X, y, x)
    if len(X) >= width:
        raise ValueError(f"width={width}: must exceed the {len(X)} training points")
    p, both = len(X), torch.cat([X, x])
    outputs, scales = [], []
    for start in range(0, n, chunk):
        k = min(chunk, n - start)
        phi = _random_features(both, k, width, depth, act, weight_var, bias_var, gen).double()
        phi = phi / math.sqrt(width)
        s = prior.sample(k, gen).to(phi)
        v = torch.randn(k, width, y.shape[1], generator=gen, dtype=torch.float64)
        f0 = phi @ (s.sqrt()[:, None, None] * v)
        gram = phi[:, :p] @ phi[:, :p].mT
        pull, info = torch.linalg.solve_ex(gram, y.double() - f0[:, :p])
        if info.any():
            raise ValueError("X: a network's features are singular on it; no input may occur twice")
        outputs.append(f0[:, p:] + phi[:, p:] @ (phi[:, :p].mT @ pull))
        scales.append(s)
    return torch.cat(outputs), torch.cat(scales)


def _counts(width: int, depth: int, n: int, chunk: int) -> None:
    if min(width, depth, n, chunk) < 1:
        raise ValueError(
            f"width={width}, depth={depth}, n={n}, chunk={chunk}: allowed is 1 or more"
        )


def _same_data(X: Tensor, y: Tensor, x: Tensor) -> None:
    if y.ndim != 2 or len(X) != len(y) or len(X) == 0 or X.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"X, y and x have shapes {tuple(X.shape)}, {tuple(y.shape)} and {tuple(x.shape)}: "
            "allowed are (n, d), (n, o) and (m, d) with n > 0"
        )


def _random_features(x, k, width, depth, act, weight_var, bias_var, gen) -> Tensor:
    """``phi``: "k points width", the last hidden layer of ``k`` random networks."""
    if act not in ACTIVATIONS:
        raise ValueError(f"act={act!r}: allowed are {', '.join(ACTIVATIONS)}")
    check_variances(weight_var, bias_var)
    h = x.expand(k, *x.shape)
    for _ in range(depth):
        W = torch.randn(k, h.shape[-1], width, generator=gen, dtype=x.dtype)
        z = math.sqrt(weight_var / h.shape[-1]) * (h @ W)
        if bias_var:
            b = torch.randn(k, 1, width, generator=gen, dtype=x.dtype)
            z = z + math.sqrt(bias_var) * b
        h = ACTIVATIONS[act](z)
    return h


# The laws after training, at infinite width.


def last_layer_trained(
    kernel: Kernel,
    prior: ScalePrior,
    X: Float[Tensor, "n d"],
    y: Float[Tensor, "n o"],
    x: Float[Tensor, "m d"],
    joint: bool = False,
) -> StudentT | Mixture:
    """The outputs at ``x`` after gradient flow in the last layer alone.

    Given ``s`` they are ``N(K_* K^{-1} y, s (K_** - K_* K^{-1} K_*^T))``, the NNGP's posterior
    without noise, and ``s`` keeps its *prior*: training a network does not tell it that its scale
    was unlikely. With an inverse gamma: ``2a`` degrees of freedom, not ``2a + nC``.

    Raises:
        ValueError: ``X``, ``y`` and ``x`` of shapes that do not go together.
    """
    _same_data(X, y, x)
    X, x, y = X.double(), x.double(), y.double()
    L, _ = chol(kernel(X, X).double())
    half = torch.linalg.solve_triangular(L, kernel(x, X).double().T, upper=False)
    mean = half.T @ torch.linalg.solve_triangular(L, y, upper=False)
    cov = kernel(x, x).double() - half.T @ half
    return mix(_as_law(prior), mean, cov.diagonal(), cov if joint else None)


def ntk_trained(
    K: Float[Tensor, "t t"],
    Theta_hidden: Float[Tensor, "t t"],
    prior: ScalePrior,
    y: Float[Tensor, "n o"],
    scale_in: Literal["multiplier", "init"] = "multiplier",
    joint: bool = False,
    nodes: int = 200,
) -> StudentT | Mixture:
    """The outputs at the test points after gradient flow in *all* layers.

    ``K`` and ``Theta_hidden`` are over the ``n`` training points followed by the test points (see
    ``mlp_kernels``). The tangent kernel is ``s (K + Theta_hidden)`` if the scale is a multiplier,
    and ``K + s Theta_hidden`` if it stands in the initial weights: those are then updated at a
    rate of their own. With ``A = Theta_*X Theta_XX^{-1}`` the outputs given ``s`` are

        N(A y,  s (K_** + A K A^T - A K_X* - K_*X A^T)).

    A multiplier cancels in ``A``: one mean, and Student-t under an inverse gamma. In the initial
    weights it does not, and the mean depends on ``s``: a mixture of Gaussians with different means.

    Raises:
        ValueError: unknown ``scale_in``; kernels that are not square of one size above n; no
            training points; ``nodes`` below 10.
    """
    if scale_in not in SCALE_IN:
        raise ValueError(f"scale_in={scale_in!r}: allowed are 'multiplier' and 'init'")
    n = len(y)
    if K.shape != Theta_hidden.shape or K.shape[0] != K.shape[1] or not len(K) > n > 0:
        raise ValueError(
            f"K and Theta_hidden have shapes {tuple(K.shape)} and {tuple(Theta_hidden.shape)}: "
            f"allowed are square ones of one size above n={n} > 0, training points first"
        )
    if nodes < 10:
        raise ValueError(f"nodes={nodes}: allowed is 10 or more")
    K, hidden, y = K.double(), Theta_hidden.double(), y.double()

    def given(theta: Tensor) -> tuple[Tensor, Tensor]:
        A = torch.cholesky_solve(theta[:n, n:], chol(theta[:n, :n])[0]).T
        cross = A @ K[:n, n:]
        return A @ y, K[n:, n:] + A @ K[:n, :n] @ A.T - cross - cross.T

    law = _as_law(prior, nodes if scale_in == "init" else None)
    if scale_in == "multiplier":
        mean, cov = given(K + hidden)
        return mix(law, mean, cov.diagonal(), cov if joint else None)
    s = law.s.to(K)
    means, covs = map(torch.stack, zip(*(given(K + value * hidden) for value in s)))
    covs = s[:, None, None] * covs
    variances = covs.diagonal(dim1=-2, dim2=-1).clamp(min=0)
    return Mixture(law.log_w.to(K), means, variances, covs if joint else None)


def _as_law(prior: ScalePrior, nodes: int | None = None) -> ScalePrior | Scales:
    """The prior where it integrates in closed form, otherwise (or with ``nodes``) as nodes."""
    if isinstance(prior, Dirac) and nodes is not None:
        return Scales(torch.tensor([float(prior.value)], dtype=torch.float64), torch.zeros(1))
    if isinstance(prior, Dirac) or (isinstance(prior, InverseGamma) and nodes is None):
        return prior
    return quadrature_posterior(prior, nodes=nodes or 200)


# Training them for real.


class ScaledMLP(nn.Module):
    """A network in the parametrization above, with its scale ``s`` as a buffer.

    ``widths`` is ``(inputs, hidden..., outputs)``. With ``scale_in="init"`` the last weights start
    as ``N(0, s)``; with ``"multiplier"`` they start as ``N(0, 1)`` and ``sqrt(s)`` stays outside.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        s: float,
        scale_in: Literal["multiplier", "init"] = "multiplier",
        act: str = "erf",
        weight_var: float = 1.0,
        bias_var: float = 0.0,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if scale_in not in SCALE_IN:
            raise ValueError(f"scale_in={scale_in!r}: allowed are 'multiplier' and 'init'")
        if act not in ACTIVATIONS:
            raise ValueError(f"act={act!r}: allowed are {', '.join(ACTIVATIONS)}")
        if not 0 < s < math.inf:
            raise ValueError(f"s={s}: allowed is a finite number above 0")
        check_variances(weight_var, bias_var)
        left = iter(range(len(widths) - 2, -1, -1))  # layers that come after the one being made

        def linear(n_in: int, n_out: int, bias: bool) -> NTKLinear:
            beta, gain = (bias_var**0.5, weight_var) if next(left) else (0.0, 1.0)
            return NTKLinear(n_in, n_out, beta, gain, gen=gen)

        self.net = MLP(widths, act=lambda: _Activation(act), linear=linear)
        outside = s if scale_in == "multiplier" else 1.0
        self.register_buffer("multiplier", torch.tensor(float(outside)).sqrt())
        if scale_in == "init":
            with torch.no_grad():
                self.net.layers[-1].weight *= math.sqrt(s)

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        return self.multiplier * self.net(x)


class _Activation(nn.Module):
    def __init__(self, act: str) -> None:
        super().__init__()
        self.f = ACTIVATIONS[act]

    def forward(self, z: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return self.f(z)


def train_networks(
    X: Float[Tensor, "n d"],
    y: Float[Tensor, "n o"],
    width: int,
    prior: ScalePrior,
    members: int,
    steps: int,
    seed: int,
    depth: int = 1,
    act: str = "erf",
    weight_var: float = 1.0,
    bias_var: float = 0.0,
    scale_in: Literal["multiplier", "init"] = "multiplier",
) -> tuple[Ensemble, Float[Tensor, "members"]]:
    """Gradient descent in all layers of ``members`` networks, each with its own ``s``.

    The loss is half the summed square. A member's step is one over the largest eigenvalue of its
    own limit kernel, because kernels grow with ``s``; the end of gradient flow does not depend on
    it. The slowest direction needs about ``largest / smallest eigenvalue`` steps.

    Raises:
        ValueError: ``members`` below 1 or ``steps`` below 0; ``X`` and ``y`` of other lengths.
    """
    if members < 1 or steps < 0:
        raise ValueError(f"members={members}, steps={steps}: allowed are members >= 1, steps >= 0")
    _same_data(X, y, X)
    s = prior.sample(members, child(seed, "scales"))
    widths = (X.shape[1], *[width] * depth, y.shape[1])
    shape = (act, weight_var, bias_var)

    def make(k: int) -> ScaledMLP:
        net = ScaledMLP(widths, s[k].item(), scale_in, *shape, gen=child(seed, "member", k))
        return net.to(X)

    K, hidden = (k.double() for k in mlp_kernels(X, None, depth, *shape))
    thetas = [v * (K + hidden) if scale_in == "multiplier" else K + v * hidden for v in s.to(K)]
    rates = torch.stack([1 / torch.linalg.eigvalsh(theta)[-1] for theta in thetas])
    nets = fit_ensemble(
        make,
        range(members),
        (X, y),
        lambda f, batch: 0.5 * (f(batch[0]) - batch[1]).square().sum(),
        steps=steps,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        rates=rates.to(X),
    )
    return nets, s
