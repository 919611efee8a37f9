"""Random features of a power series in ``w.x + b``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.width.scalable_kernels.features import check_bias, check_matrix, check_vectors


class MaclaurinFeatures(nn.Module):
    """Random features of a power series ``f(z) = sum_n a_n z^n`` (Kar and Karnick, 2012).

    A feature draws a degree ``n >= 1`` with probability ``p_n`` proportional to ``2^-n`` among
    those with ``a_n != 0``, and ``n`` vectors of random signs; ``Phi`` is
    ``sqrt(|a_n| / (p_n m)) prod_k (sign_k . x)`` and ``Psi`` carries the sign of ``a_n``. The
    constant ``a_0`` has a feature of its own and no variance.

    Args:
        coefficients: ``a_0, a_1, ...``, for instance ``taylor_coefficients("gelu", 8)``.
        joint: the bias is one more coordinate, ``[x, 1]`` and ``[w, b]``; here that is exactly
            ``f(w.x + b)``.

    Raises:
        ValueError: no coefficient but the constant, one that is not finite, ``d`` or ``m`` below 1.
    """

    def __init__(
        self,
        d: int,
        m: int,
        coefficients: Sequence[float],
        *,
        gen: torch.Generator,
        joint: bool = False,
    ) -> None:
        super().__init__()
        a = torch.tensor(list(coefficients), dtype=torch.float64)
        if d < 1 or m < 1:
            raise ValueError(f"d={d}, m={m}: both must be 1 or more")
        if not torch.isfinite(a).all():
            raise ValueError(f"coefficients={a.tolist()}: allowed are finite numbers")
        if not a[1:].any():
            raise ValueError("coefficients: at least one beyond the constant must not be zero")
        self.d, self.m, self.width, self.joint = d, m, m + 1, joint
        p = torch.where(a != 0, 0.5 ** torch.arange(len(a), dtype=torch.float64), 0.0)
        p[0] = 0
        p /= p.sum()
        degree = torch.multinomial(p, m, replacement=True, generator=gen)
        top = int(degree.max())
        signs = 2.0 * torch.randint(2, (m, top, d + joint), generator=gen) - 1
        self.register_buffer("signs", signs)
        self.register_buffer("used", torch.arange(top) < degree[:, None])
        self.register_buffer("scale", (a[degree].abs() / (p[degree] * m)).sqrt().float())
        self.register_buffer("sign", a[degree].sign().float())
        self.constant = float(a[0])

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b width"]:
        """``Phi(x)``; its last entry is the constant 1."""
        check_vectors(x, self.d, self.signs.dtype)
        return self._product(x, torch.ones_like(x[..., :1]))

    def weights(
        self, w: Float[Tensor, "k d"], b: Float[Tensor, "k"] | None = None
    ) -> Float[Tensor, "k width"]:
        """``Psi(w, b)``; without ``joint`` a bias is refused with a ValueError."""
        check_bias(b, self.joint, len(w))
        check_vectors(w, self.d, self.signs.dtype)
        psi = self._product(w, torch.zeros_like(w[:, :1]) if b is None else b[:, None])
        sign = torch.cat([self.sign, self.sign.new_tensor([self.constant])])
        return psi * sign

    def sum(self, x: Float[Tensor, "*b d"], W: Float[Tensor, "k width"]) -> Float[Tensor, "*b k"]:
        """``Phi(x) W^T``."""
        check_matrix(W, self.width)
        return self(x) @ W.mT

    def _product(self, v: Tensor, last: Tensor) -> Tensor:
        v = torch.cat([v, last], -1) if self.joint else v
        t = torch.einsum("...d,mkd->...mk", v, self.signs)
        product = torch.where(self.used, t, 1.0).prod(-1) * self.scale
        return torch.cat([product, torch.ones_like(product[..., :1])], -1)


def taylor_coefficients(name: str, terms: int) -> list[float]:
    """The first ``terms`` Maclaurin coefficients of ``"exp"``, ``"sin"``, ``"tanh"``, ``"gelu"``.

    Raises:
        ValueError: another name, or ``terms`` below 1.
    """
    if terms < 1:
        raise ValueError(f"terms={terms}: allowed is 1 or more")
    a = [0.0] * terms
    if name == "exp":
        a = [1 / math.factorial(n) for n in range(terms)]
    elif name == "sin":
        a[1::2] = [(-1) ** k / math.factorial(2 * k + 1) for k in range(len(a[1::2]))]
    elif name == "tanh":  # y' = 1 - y^2
        for n in range(1, terms):
            square = sum(a[k] * a[n - 1 - k] for k in range(n))
            a[n] = ((n == 1) - square) / n
    elif name == "gelu":  # z / 2 + z erf(z / sqrt 2) / 2
        if terms > 1:
            a[1] = 0.5
        for k, n in enumerate(range(2, terms, 2)):
            factor = math.sqrt(2 * math.pi) * math.factorial(k) * 2**k * (2 * k + 1)
            a[n] = (-1) ** k / factor
    else:
        raise ValueError(f"name={name!r}: allowed are 'exp', 'sin', 'tanh' and 'gelu'")
    return a
