"""Networks of infinite width that can be trained: muP (linear, one hidden layer), GP and NTK."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.core.ensemble import Ensemble, fit_ensemble
from lib.models.infinite_width import relu_dual
from lib.width.feature_learning.abc import ABCMLP, check_inputs


class Linear1LP(nn.Module):
    """``f(x) = alpha (V (U x + beta_1 b_1) + beta_2 b_2)``, linear with one hidden layer.

    In muP, written symmetrically: the entries of U "n d" and V "o n" have variance
    ``sigma^2 / n``, the biases start at zero, and one learning rate without any power of ``n``
    trains them all.

    Args:
        bias_alpha: ``(beta_1, beta_2)``; a zero leaves that bias out.
    """

    def __init__(
        self,
        U: Float[Tensor, "n d"],
        V: Float[Tensor, "o n"],
        alpha: float = 1.0,
        bias_alpha: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        if U.ndim != 2 or V.ndim != 2 or U.shape[0] != V.shape[1]:
            raise ValueError(
                f"U and V must be (n, d) and (o, n), got {tuple(U.shape)} and {tuple(V.shape)}"
            )
        if len(bias_alpha) != 2:
            raise ValueError(f"bias_alpha={bias_alpha}: allowed is a pair (beta_1, beta_2)")
        self.U, self.V = nn.Parameter(U.clone()), nn.Parameter(V.clone())
        self.alpha, self.bias_alpha = alpha, tuple(bias_alpha)
        biased = [beta != 0 for beta in bias_alpha]
        self.b1 = nn.Parameter(U.new_zeros(len(U))) if biased[0] else None
        self.b2 = nn.Parameter(V.new_zeros(len(V))) if biased[1] else None

    @classmethod
    def random(
        cls,
        d: int,
        o: int,
        n: int,
        sigma1: float = 1.0,
        sigma2: float = 1.0,
        alpha: float = 1.0,
        bias_alpha: tuple[float, float] = (0.0, 0.0),
        gen: torch.Generator | None = None,
    ) -> Linear1LP:
        """A network of width ``n`` as it starts."""
        check_sizes(d=d, o=o, n=n)
        _check_sigmas(sigma1, sigma2)
        U = sigma1 / math.sqrt(n) * torch.randn(n, d, generator=gen)
        V = sigma2 / math.sqrt(n) * torch.randn(o, n, generator=gen)
        return cls(U, V, alpha, bias_alpha)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch o"]:
        check_inputs(x, self.U.shape[1])
        h = nn.functional.linear(x, self.U)
        if self.b1 is not None:
            h = h + self.bias_alpha[0] * self.b1
        f = nn.functional.linear(h, self.V)
        if self.b2 is not None:
            f = f + self.bias_alpha[1] * self.b2
        return self.alpha * f

    def compressed(self) -> Linear1LP:
        """The same network in at most ``d + o`` (+ 1 with a hidden bias) hidden units.

        Gradient steps move U and V inside the span of the columns of U and the rows of V. In an
        orthonormal basis Q of that span the network is ``U' = Q^T U``, ``V' = V Q``; it trains to
        the same functions, with the same gradient norms.
        """
        columns = [self.U, self.V.T] + ([self.b1[:, None]] if self.b1 is not None else [])
        Q = torch.linalg.qr(torch.cat([c.detach() for c in columns], 1)).Q
        small = Linear1LP(Q.T @ self.U.detach(), self.V.detach() @ Q, self.alpha, self.bias_alpha)
        with torch.no_grad():
            if self.b1 is not None:
                small.b1.copy_(Q.T @ self.b1)
            if self.b2 is not None:
                small.b2.copy_(self.b2)
        return small


class InfLinear1LP(Linear1LP):
    """The muP limit of ``Linear1LP``: an ordinary network of hidden width ``d + o``.

    A finite network is ``U = n^{-1/2} omega U_eff``, ``V = n^{-1/2} V_eff omega^T`` with Gaussian
    ``omega`` "n (d+o)". Every quantity in training meets ``omega`` only as
    ``omega^T omega / n``, which is the identity in the limit. So U_eff and V_eff train as if
    ``omega`` were not there, and SGD, momentum, weight decay and clipping of the gradient's norm
    act on them directly. They start as ``[sigma1 I_d; 0]`` and ``[0, sigma2 I_o]``, so f starts
    at exactly zero.

    Raises:
        ValueError: ``d`` or ``o`` below 1.
    """

    def __init__(
        self,
        d: int,
        o: int,
        sigma1: float = 1.0,
        sigma2: float = 1.0,
        alpha: float = 1.0,
        bias_alpha: tuple[float, float] = (0.0, 0.0),
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(d=d, o=o)
        U, V = inf_linear_start(d, o, sigma1, sigma2, dtype)
        super().__init__(U, V, alpha, bias_alpha)

    def sample(self, n: int, gen: torch.Generator | None = None) -> Linear1LP:
        """A network of width ``n`` in this state: one ``omega`` for U, V and the hidden bias."""
        check_sizes(n=n)
        omega = torch.randn(n, len(self.U), generator=gen).to(self.U) / math.sqrt(n)
        net = Linear1LP(
            omega @ self.U.detach(), self.V.detach() @ omega.T, self.alpha, self.bias_alpha
        )
        with torch.no_grad():
            if self.b1 is not None:
                net.b1.copy_(omega @ self.b1)
            if self.b2 is not None:
                net.b2.copy_(self.b2)
        return net


def inf_linear_start(
    d: int,
    o: int,
    sigma1: float = 1.0,
    sigma2: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "h d"], Float[Tensor, "o h"]]:
    """``U_eff = [sigma1 I; 0]`` and ``V_eff = [0, sigma2 I]`` with ``h = d + o``."""
    _check_sigmas(sigma1, sigma2)
    U, V = torch.zeros(d + o, d, dtype=dtype), torch.zeros(o, d + o, dtype=dtype)
    U[:d].fill_diagonal_(sigma1)
    V[:, d:].fill_diagonal_(sigma2)
    return U, V


def wide_proxy(
    make: Callable[[int], ABCMLP],
    members: int,
    data: tuple[Tensor, ...],
    loss: Callable[[Callable[[Tensor], Tensor], tuple], Tensor],
    *,
    steps: int,
    eta: float,
) -> Ensemble:
    """A stand-in for limits without a small exact form, such as those of nonlinear networks.

    Trains ``members`` wide networks ``make(k)`` of one kind side by side; ``ensemble(x)`` has
    their outputs "members batch o". The mean estimates the limit, the standard deviation over
    ``sqrt(members)`` its sampling error; a bias of order 1/n stays.
    """
    if members < 2:
        raise ValueError(f"members={members}: allowed is 2 or more, for an error estimate")
    rate = make(0).rate(eta)
    sgd = lambda params: torch.optim.SGD(params, lr=rate)
    return fit_ensemble(make, range(members), data, loss, steps=steps, optimizer=sgd)


class InfKernel1LP:
    """The GP or NTK limit of a ReLU network with one hidden layer, trained by SGD from zero.

    The network is ``f(x) = n^{-1/2} V relu(U x + b)``, U, b and V with variances ``var_w``,
    ``var_b`` and ``var_w2``. In the GP limit only V learns, in the NTK limit U and V do. Either
    way f stays a sum of kernels, one term for every sample that was ever stepped on:

        f(x) = sum_i C_i k(x_i, x),
        k(x, x') = E[relu(u) relu(u')] + (NTK only) var_w2 E[relu'(u) relu'(u')] x.x',

    with ``(u, u')`` Gaussian of covariance ``var_w x.x' + var_b``.

    Attributes:
        X: the samples "m d".
        C: their coefficients "m o".
    """

    def __init__(
        self,
        kind: str,
        d: int,
        o: int,
        var_w: float = 1.0,
        var_b: float = 0.0,
        var_w2: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if kind not in ("gp", "ntk"):
            raise ValueError(f"kind={kind!r}: allowed are 'gp' and 'ntk'")
        check_sizes(d=d, o=o)
        if var_w <= 0 or var_b < 0 or var_w2 < 0:
            raise ValueError(
                f"var_w={var_w}, var_b={var_b}, var_w2={var_w2}: allowed are var_w > 0, the others "
                "0 or more"
            )
        self.kind, self.d, self.o = kind, d, o
        self.var_w, self.var_b, self.var_w2 = var_w, var_b, var_w2
        self.X, self.C = (torch.zeros(0, k, dtype=dtype, device=device) for k in (d, o))

    def __len__(self) -> int:
        """The number of terms."""
        return len(self.C)

    def __call__(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch o"]:
        if x.dtype != self.X.dtype:
            raise TypeError(f"inputs must be {self.X.dtype}, got {x.dtype}")
        return self.kernel(x, self.X) @ self.C

    def kernel(
        self, x1: Float[Tensor, "p d"], x2: Float[Tensor, "q d"] | None = None
    ) -> Float[Tensor, "p q"]:
        """k of two sets of inputs."""
        x2 = x1 if x2 is None else x2
        if x1.shape[1:] != (self.d,) or x2.shape[1:] != (self.d,):
            raise ValueError(
                f"inputs must be (batch, {self.d}), got {tuple(x1.shape)} and {tuple(x2.shape)}"
            )
        inner = x1 @ x2.T
        a, b = (self.var_w * x.square().sum(1) + self.var_b for x in (x1, x2))
        value, slope = relu_dual(a[:, None], b[None], self.var_w * inner + self.var_b)
        return value + self.var_w2 * slope * inner if self.kind == "ntk" else value

    def gradient_norm(self, x: Float[Tensor, "batch d"], delta: Float[Tensor, "batch o"]) -> float:
        """Norm of the loss's gradient in all (infinitely many) weights, from the kernel.

        ``delta`` is the loss's derivative in the outputs at ``x``.
        """
        return (delta * (self.kernel(x) @ delta)).sum().clamp_min(0).sqrt().item()

    def descend(
        self,
        x: Float[Tensor, "batch d"],
        delta: Float[Tensor, "batch o"],
        lr: float,
        weight_decay: float = 0.0,
        clip: float | None = None,
    ) -> None:
        """One SGD step on ``x``: earlier terms shrink by ``1 - lr weight_decay``, new ones join.

        Args:
            clip: largest norm of the gradient (``gradient_norm``).
        """
        if x.shape[1:] != (self.d,) or delta.shape != (len(x), self.o):
            raise ValueError(
                f"x and delta must be (batch, {self.d}) and (batch, {self.o}), got "
                f"{tuple(x.shape)} and {tuple(delta.shape)}"
            )
        if lr < 0 or weight_decay < 0 or (clip is not None and not clip > 0):
            raise ValueError(
                f"lr={lr}, weight_decay={weight_decay}, clip={clip}: allowed are 0 or more, and "
                "clip > 0 or None"
            )
        if clip is not None:
            delta = delta * min(1.0, clip / (self.gradient_norm(x, delta) + 1e-12))
        self.X = torch.cat([self.X, x])
        self.C = torch.cat([(1 - lr * weight_decay) * self.C, -lr * delta])

    def compact(self) -> None:
        """Add up the coefficients of samples that occur more than once; the function stays.

        The expansion grows with every sample. With a finite pool of samples this bounds it.
        """
        self.X, place = self.X.unique(dim=0, return_inverse=True)
        self.C = self.C.new_zeros(len(self.X), self.o).index_add_(0, place, self.C)

    def sample(self, n: int, gen: torch.Generator | None = None) -> GP1LP:
        """A finite network of width ``n`` in this state (GP limit).

        Raises:
            ValueError: the NTK limit, whose state does not determine a network's first layer.
        """
        if self.kind != "gp":
            raise ValueError("sample: only the GP limit's state is one of a finite network")
        check_sizes(n=n)
        U = math.sqrt(self.var_w) * torch.randn(n, self.d, generator=gen).to(self.X)
        b = math.sqrt(self.var_b) * torch.randn(n, generator=gen).to(self.X)
        V = (torch.relu(self.X @ U.T + b).T @ self.C).T / math.sqrt(n)
        return GP1LP(U, b, V)


class GP1LP(nn.Module):
    """``n^{-1/2} V relu(U x + b)`` of which only V learns."""

    def __init__(
        self, U: Float[Tensor, "n d"], b: Float[Tensor, "n"], V: Float[Tensor, "o n"]
    ) -> None:
        super().__init__()
        self.register_buffer("U", U)
        self.register_buffer("b", b)
        self.V = nn.Parameter(V)

    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch o"]:
        return torch.relu(x @ self.U.T + self.b) @ self.V.T / math.sqrt(len(self.U))


def check_sizes(**sizes: int) -> None:
    """Every size is 1 or more, or a ``ValueError`` names it."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}: allowed is 1 or more")


def _check_sigmas(sigma1: float, sigma2: float) -> None:
    if not (0 <= sigma1 < math.inf and 0 <= sigma2 < math.inf):
        raise ValueError(f"sigma1={sigma1}, sigma2={sigma2}: allowed are finite numbers >= 0")


__all__ = [
    "GP1LP",
    "InfKernel1LP",
    "InfLinear1LP",
    "Linear1LP",
    "check_sizes",
    "inf_linear_start",
    "wide_proxy",
]
