"""Universal random features: any mixture of waves, taken apart into inputs and weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from lib.kernels.kernel_sum import kernel_sum
from lib.width.scalable_kernels.features import Features, check_bias, check_matrix


class Spectrum(NamedTuple):
    """Draws of ``(s, c)`` with ``f(z) = Re E[c exp(s z)]``.

    For a function with a Fourier transform ``tau`` and ``xi`` drawn from a density ``p``, ``s`` is
    ``2 pi i xi`` and ``c`` is ``tau(xi) / p(xi)``.
    """

    rate: Complex[Tensor, "n"]
    weight: Complex[Tensor, "n"]


Sampler = Callable[[int, torch.Generator], Spectrum]


def sine(n: int, gen: torch.Generator) -> Spectrum:
    """``sin z = Re(-i exp(i z))``: one frequency.

    The paper takes two, ``xi = 1/(2 pi)`` and its negative. With the same Gaussian vector the
    second gives the complex conjugate of the first, so the real part holds both.
    """
    return Spectrum(torch.full((n,), 1j), torch.full((n,), -1j))


def cosine(n: int, gen: torch.Generator) -> Spectrum:
    """``cos z = Re exp(i z)``."""
    return Spectrum(torch.full((n,), 1j), torch.ones(n, dtype=torch.complex64))


def exponential(n: int, gen: torch.Generator) -> Spectrum:
    """``exp z``: a real rate. Its features are the Performer's positive ones (FAVOR+)."""
    one = torch.ones(n, dtype=torch.complex64)
    return Spectrum(one, one.clone())


def bump(width: float) -> Sampler:
    """``exp(-z^2 / (2 width^2))``: frequencies from a Gaussian, all weights 1.

    Raises:
        ValueError: ``width`` is not positive.
    """
    if not 0 < width < math.inf:
        raise ValueError(f"width={width}: allowed is a number above 0")

    def draw(n: int, gen: torch.Generator) -> Spectrum:
        frequency = torch.randn(n, generator=gen) / width
        return Spectrum(torch.complex(torch.zeros(n), frequency), torch.ones(n) + 0j)

    return draw


def from_transform(
    tau: Callable[[Tensor], Tensor],
    draw: Callable[[int, torch.Generator], Tensor],
    density: Callable[[Tensor], Tensor],
) -> Sampler:
    """Any real ``f(z) = int tau(xi) exp(2 pi i xi z) d xi``, by importance sampling.

    Args:
        draw: ``n`` frequencies ``xi`` from ``density``; best is a density proportional to |tau|.
    """

    def sample(n: int, gen: torch.Generator) -> Spectrum:
        xi = draw(n, gen)
        return Spectrum(2j * math.pi * xi, tau(xi) / density(xi) + 0j)

    return sample


def reflected_series(f: Callable[[Tensor], Tensor], reach: float, terms: int) -> Sampler:
    """A function without a Fourier transform (tanh, GELU), on ``|z| <= reach`` alone.

    Reflected at both ends, ``f`` continues to a periodic function without jumps. Its series
    ``sum_k a_k cos(pi k (z + reach) / (2 reach))`` is a spectrum; frequency ``k`` is drawn with
    probability proportional to ``|a_k|``.

    Args:
        terms: how many frequencies are kept, from ``k = 0``.

    Raises:
        ValueError: ``reach`` not positive, ``terms`` below 1; values of ``f`` that are not finite,
            or zero in all frequencies that are kept.
    """
    if not 0 < reach < math.inf or terms < 1:
        raise ValueError(f"reach={reach}, terms={terms}: allowed are reach > 0 and terms >= 1")
    points = 16 * terms
    angle = math.pi * (torch.arange(points, dtype=torch.float64) + 0.5) / points
    values = f(reach * (2 * angle / math.pi - 1))
    k = torch.arange(terms, dtype=torch.float64)
    a = 2 / points * torch.cos(k[:, None] * angle) @ values
    a[0] /= 2
    if not 0 < a.abs().sum() < math.inf:
        raise ValueError(
            f"f: the first {terms} cosines on [-{reach}, {reach}] have sizes that add "
            f"up to {a.abs().sum():g}, allowed is a number above 0"
        )
    p = a.abs() / a.abs().sum()

    def draw(n: int, gen: torch.Generator) -> Spectrum:
        drawn = torch.multinomial(p, n, replacement=True, generator=gen)
        frequency = math.pi * drawn / (2 * reach)
        weight = a[drawn] / p[drawn] * torch.exp(1j * frequency * reach)
        return Spectrum((1j * frequency).to(torch.complex64), weight.to(torch.complex64))

    return draw


SPECTRA: dict[str, Sampler] = {"sin": sine, "cos": cosine, "exp": exponential}
SPLITS = ("root", "positive inputs", "positive weights")


class UniversalFeatures(Features):
    """Universal random features of ``f(w.x + b)`` for a spectrum ``f(z) = Re E[c exp(s z)]``.

    One ``(s, c)`` and one Gaussian vector ``g`` for each of ``m`` features (equations 6 to 10):

        Phi(x)    = k exp(sqrt(1 + 4 M) eta g.x - M |g|^2 - eta^2 |x|^2 / 2) / sqrt(m)
        Psi(w, b) = k c e^{s b} exp(sqrt(1 + 4 M) rho g.w - M |g|^2 - rho^2 |w|^2 / 2) / sqrt(m)

    with ``eta rho = s`` and ``k = (1 + 4 M)^(d/4)``. They are complex; here they are returned as
    real vectors, real and imaginary parts side by side, arranged so that the ordinary dot product
    is ``Re(Psi Phi)``. Unbiased for every ``M >= 0``, every split and every length of the rows.

    Args:
        spectrum: ``"sin"``, ``"cos"``, ``"exp"``, or a sampler such as ``bump(1.0)``.
        orthogonal: random vectors orthogonal in blocks of ``d``; each still Gaussian.
        M: parameter of the exponential family; 0 is the plain estimator.
        split: ``"root"``: ``eta = rho = sqrt(s)``; ``"positive inputs"``: ``eta = 1``, so that
            ``Phi`` is real and positive and half as wide; ``"positive weights"``: ``rho = 1``.
        several: Gaussian vectors for each draw of the spectrum; must divide ``m``.
        normalize, trained: see ``Features``.

    Raises:
        ValueError: unknown ``spectrum`` or ``split``, negative ``M``, ``several`` not a divisor, a
            sampler that does not return as many draws as it is asked for.
    """

    needs_norm = True

    def __init__(
        self,
        d: int,
        m: int,
        spectrum: str | Sampler = "sin",
        *,
        gen: torch.Generator,
        orthogonal: bool = False,
        M: float = 0.0,
        split: str = "root",
        several: int = 1,
        normalize: float | None = None,
        trained: bool = False,
    ) -> None:
        if isinstance(spectrum, str) and spectrum not in SPECTRA:
            raise ValueError(f"spectrum={spectrum!r}: allowed are {', '.join(SPECTRA)}, a sampler")
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: allowed are {', '.join(SPLITS)}")
        if not 0 <= M < math.inf:
            raise ValueError(f"M={M}: allowed is 0 or more")
        if several < 1 or m % several:
            raise ValueError(f"several={several}: allowed is a divisor of m={m}")
        super().__init__(d, m, gen, orthogonal, normalize, trained)
        drawn = SPECTRA.get(spectrum, spectrum)(m // several, gen)
        if any(t.shape != (m // several,) for t in drawn):
            got = ", ".join(str(tuple(t.shape)) for t in drawn)
            raise ValueError(f"spectrum: draws of shapes {got}, allowed is ({m // several},)")
        s, c = (t.to(torch.complex64).repeat_interleave(several) for t in drawn)
        eta, rho = _split(s, split)
        # As pairs of real numbers: nn.Module.to(dtype) would drop an imaginary part.
        for name, value in (("s", s), ("c", c), ("eta", eta), ("rho", rho)):
            self.register_buffer(name, torch.view_as_real(value.resolve_conj()).clone())
        self.M, self.split = M, split
        self.is_real = not self.eta[:, 1].any()
        self.width = m if self.is_real else 2 * m

    def from_projection(
        self, t: Float[Tensor, "*b m"], squared_norm: Float[Tensor, "*b"]
    ) -> Float[Tensor, "*b width"]:
        """``Phi`` from ``G x`` and ``|x|^2``."""
        phi = self._exponential(t, squared_norm, self.eta)
        phi = phi.real if self.is_real else torch.cat([phi.real, -phi.imag], -1)
        return phi.to(t.dtype)

    def weights(
        self, w: Float[Tensor, "k d"], b: Float[Tensor, "k"] | None = None
    ) -> Float[Tensor, "k width"]:
        """``Psi(w, b)`` for each row of ``w``."""
        check_bias(b, True, len(w))
        w = self.rescale(w)
        psi = self._exponential(w @ self.G.mT, w.square().sum(-1), self.rho)
        c, s = _complex(self.c), _complex(self.s)
        psi = psi * (c if b is None else c * torch.exp(s * b[:, None]))
        psi = psi.real if self.is_real else torch.cat([psi.real, psi.imag], -1)
        return psi.to(w.dtype)

    def sum(self, x: Float[Tensor, "*b d"], W: Float[Tensor, "k width"]) -> Float[Tensor, "*b k"]:
        """``Phi(x) W^T`` without storing ``Phi(x)``."""
        check_matrix(W, self.width)
        units, W = len(W), W.mT * self._scale
        values = W if self.is_real else _complex(torch.stack([W[: self.m], W[self.m :]], -1))
        rate = self.eta[:, 0] if self.is_real else _complex(self.eta)
        keys = math.sqrt(1 + 4 * self.M) * self.G
        bias = None if self.M == 0 else -self.M * self.G.square().sum(1)
        x = self.rescale(x)
        y = kernel_sum(x.reshape(-1, self.d), keys, values, "exp", bias=bias, rate=rate, norm=True)
        return y.reshape(*x.shape[:-1], units)

    @property
    def _scale(self) -> float:
        return (1 + 4 * self.M) ** (self.d / 4) / math.sqrt(self.m)

    def _exponential(self, t: Tensor, squared_norm: Tensor, root: Tensor) -> Tensor:
        root = _complex(root)
        z = math.sqrt(1 + 4 * self.M) * root * t - 0.5 * root**2 * squared_norm[..., None]
        return self._scale * torch.exp(z - self.M * self.G.square().sum(1))


def _complex(pairs: Float[Tensor, "*n 2"]) -> Complex[Tensor, "*n"]:
    """Complex numbers from pairs; half precision, which complex numbers lack, becomes single."""
    return torch.view_as_complex(pairs if pairs.dtype == torch.float64 else pairs.float())


def _split(s: Tensor, split: str) -> tuple[Tensor, Tensor]:
    """``eta`` and ``rho`` with ``eta rho = s``; roots on the principal branch."""
    if split == "root":
        return torch.sqrt(s), torch.sqrt(s)
    one = torch.ones_like(s)
    return (one, s) if split == "positive inputs" else (s, one)


def feature_variance(
    x: Float[Tensor, "n d"],
    w: Float[Tensor, "n d"],
    b: Float[Tensor, "n"],
    spectrum: Spectrum,
    *,
    M: float = 0.0,
    split: str = "root",
) -> Float[Tensor, "n"]:
    """Variance of one independent feature's ``Re(Psi Phi)``; divide by ``m`` for the estimator's.

    With ``a = eta x + rho w`` and ``A = c e^{s b - (eta^2 |x|^2 + rho^2 |w|^2) / 2}`` a feature's
    product is ``Z = A (1 + 4 M)^{d/2} exp(sqrt(1 + 4 M) a.g - 2 M |g|^2)``, and Gaussian integrals
    give

        E|Z|^2 = |A|^2 K exp(2 q |Re a|^2),   E Z^2 = A^2 K exp(2 q a.a),
        q = (1 + 4 M) / (1 + 8 M),            K = (1 + 4 M)^d (1 + 8 M)^{-d/2}.

    So ``M`` trades a factor ``K > 1`` against an exponent that shrinks. The entries of ``spectrum``
    are averaged: exact where it has one frequency.

    Raises:
        ValueError: unknown ``split``, negative ``M``, rows that do not match.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: allowed are {', '.join(SPLITS)}")
    if not 0 <= M < math.inf:
        raise ValueError(f"M={M}: allowed is 0 or more")
    if x.ndim != 2 or w.shape != x.shape or b.shape != x.shape[:1]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (x, w, b))
        raise ValueError(f"x, w, b have shapes {shapes}: allowed are (n, d), (n, d), (n,)")
    x, w, b = x.double(), w.double(), b.double()
    s, c = (t.to(torch.complex128)[:, None] for t in spectrum)
    eta, rho = _split(s, split)
    a = eta[..., None] * x + rho[..., None] * w  # (frequencies, n, d)
    A = c * torch.exp(s * b - 0.5 * (eta**2 * x.square().sum(1) + rho**2 * w.square().sum(1)))
    q = (1 + 4 * M) / (1 + 8 * M)
    log_K = x.shape[1] * (math.log1p(4 * M) - 0.5 * math.log1p(8 * M))
    absolute = A.abs() ** 2 * torch.exp(log_K + 2 * q * a.real.square().sum(-1))
    square = A**2 * torch.exp(log_K + 2 * q * (a * a).sum(-1))
    mean = (c * torch.exp(s * (b + (x * w).sum(1)))).real.mean(0)
    return (0.5 * (absolute + square.real)).mean(0) - mean**2
