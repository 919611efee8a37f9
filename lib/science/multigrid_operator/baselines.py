"""What the paper compares with, beyond ``FNO`` and ``UNet`` of ``lib.models``.

``ResidualCNN`` sees only what its stencils reach. ``DilatedResNet`` (K. Stachenfeld et al.,
arXiv:2112.15275, "dCNN" in the paper) stretches them. ``UFNO`` (G. Wen et al., arXiv:2109.03697)
adds a U-Net to Fourier layers. ``MWT`` (G. Gupta, X. Xiao and P. Bogdan, arXiv:2109.13459) works on
multiwavelet coefficients. ``LSM`` (H. Wu et al., arXiv:2301.12664) solves in a latent spectral
space inside a U-Net.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lib.models.operators import CONV, FNO, SpectralConv, coordinates
from lib.models.unet import UNet


class ResidualCNN(nn.Module):
    """``depth`` plain 3-wide convolutions; those inside are residual. Reach: ``depth`` places."""

    def __init__(
        self, c_in: int, c_out: int, width: int, depth: int = 5, dims: int = 2,
        act: Callable[[], nn.Module] = nn.GELU,
    ) -> None:  # fmt: skip
        super().__init__()
        if depth < 2 or dims not in CONV:
            raise ValueError(f"depth={depth}, dims={dims}: allowed are 2 or more, and 1, 2, 3")
        conv = lambda n, m: CONV[dims](n, m, 3, padding=1)
        self.first, self.last = conv(c_in, width), conv(width, c_out)
        self.inner = nn.ModuleList(conv(width, width) for _ in range(depth - 2))
        self.acts = nn.ModuleList(act() for _ in range(depth - 1))

    def forward(self, x: Float[Tensor, "b c_in *n"]) -> Float[Tensor, "b c_out *n"]:
        x = self.acts[0](self.first(x))
        for conv, act in zip(self.inner, self.acts[1:], strict=True):
            x = x + act(conv(x))
        return self.last(x)


class DilatedResNet(nn.Module):
    """Four residual blocks of seven convolutions with dilations 1, 2, 4, 8, 4, 2, 1."""

    def __init__(self, c_in: int, c_out: int, width: int = 48, blocks: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(c_in, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in (1, 2, 4, 8, 4, 2, 1)
            )
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(width, c_out, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h w"]:
        x = self.first(x)
        for block in self.blocks:
            z = x
            for conv in block[:-1]:
                z = F.relu(conv(z))
            x = F.relu(x + block[-1](z))
        return self.last(x)


class UFNO(FNO):
    """An FNO whose later half of layers adds a small U-Net to the two linear parts."""

    def __init__(
        self, c_in: int, c_out: int, width: int, modes: int | Sequence[int], depth: int = 4,
        **settings,
    ) -> None:  # fmt: skip
        super().__init__(c_in, c_out, width, modes, depth, **settings)
        for i in range(depth // 2, depth):
            unet = UNet(width, width, [width] * 3, self.dims)
            self.local[i] = _Sum(self.local[i], unet)


class _Sum(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return sum(part(x) for part in self.parts)


# --------------------------------------------------------------------------- multiwavelets


class MWT(nn.Module):
    """Lift to ``c k^2`` channels, ``depth`` multiwavelet layers, two linear maps.

    Args:
        k: polynomials of degree below ``k`` along each axis make up a basis function.
        alpha: Fourier modes of the map on every level.
        c: copies of the basis.
        coarsest: the transform stops at ``2^coarsest`` places an axis.

    The field's sides must be equal, a power of two.
    """

    def __init__(
        self, c_in: int, c_out: int, k: int = 3, alpha: int = 5, c: int = 1, depth: int = 2,
        coarsest: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if min(k, c, alpha, depth) < 1:
            raise ValueError(f"k={k}, c={c}, alpha={alpha}, depth={depth}: allowed are 1 or more")
        self.lift = nn.Conv2d(c_in + 2, c * k * k, 1)
        self.layers = nn.ModuleList(MultiwaveletLayer(k, alpha, c, coarsest) for _ in range(depth))
        self.head = nn.Sequential(
            nn.Conv2d(c * k * k, 128, 1), nn.ReLU(), nn.Conv2d(128, c_out, 1)
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "b c_in n n"]) -> Float[Tensor, "b c_out n n"]:
        n = x.shape[-1]
        if x.shape[-2] != n or n < 2 or n & (n - 1):
            raise ValueError(f"x: {x.shape[-2]} x {n} places; allowed are equal powers of two")
        x = self.lift(torch.cat([x, coordinates(x)], 1))
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i + 1 < len(self.layers):
                x = F.relu(x)
        return self.head(x)


class MultiwaveletLayer(nn.Module):
    """Decompose into details ``d`` and averages ``s``; learned maps A, B, C of them; reconstruct.

    On every level ``Ud = A(d) + B(s)`` and ``Us = C(d)``: the non-standard form of an operator.
    All three kinds of details of a plane are kept, so that :meth:`join` undoes :meth:`split`; the
    authors' two-dimensional code keeps one of them.
    """

    def __init__(self, k: int, alpha: int, c: int, coarsest: int) -> None:
        super().__init__()
        self.k, self.c, self.coarsest = k, c, coarsest
        w = c * k * k
        spectral = SpectralConv(w, w, alpha, 2)
        local = lambda: nn.Sequential(nn.Conv2d(w, w, 3, padding=1), nn.ReLU(), nn.Conv2d(w, w, 1))
        self.A = nn.Sequential(spectral, nn.ReLU(), nn.Conv2d(w, w, 1))
        self.B, self.C, self.T0 = local(), local(), nn.Conv2d(w, w, 1)
        h0, h1, g0, g1 = multiwavelet_filters(k)
        # Average and detail of four children, one for each pair of halves.
        s = [torch.kron(a, b) for a in (h0, h1) for b in (h0, h1)]
        d = [torch.kron(a, b) for a in (g0, g1) for b in (g0, g1)]
        mixed = [
            [torch.kron(a, b) for a in (p0, p1) for b in (q0, q1)]
            for (p0, p1), (q0, q1) in (((h0, h1), (g0, g1)), ((g0, g1), (h0, h1)))
        ]
        # One orthogonal matrix: averages, three kinds of details, out of four children.
        full = torch.cat([torch.cat(row, 1) for row in (s, *mixed, d)])
        self.register_buffer("filters", full.float(), persistent=False)
        # Details of three kinds enter as one set of channels.
        self.gather = nn.Conv2d(3 * w, w, 1)
        self.spread = nn.Conv2d(w, 3 * w, 1)

    def split(self, x: Float[Tensor, "b w n n"]) -> tuple[Tensor, Tensor]:
        """Averages ``(b, w, n/2, n/2)`` and details ``(b, 3 w, n/2, n/2)``."""
        kk = self.k**2
        four = torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 2)
        four = four.unflatten(1, (self.c, kk)).transpose(2, 3).flatten(2, 3)  # b c (4 kk) h w
        out = torch.einsum("oi,bcihw->bcohw", self.filters.to(x), four)
        s, d = out[:, :, :kk], out[:, :, kk:]
        return s.flatten(1, 2), d.flatten(1, 2)

    def join(self, s: Float[Tensor, "b w m m"], d: Float[Tensor, "b w3 m m"]) -> Tensor:
        """The inverse of :meth:`split`."""
        kk = self.k**2
        both = torch.cat([s.unflatten(1, (self.c, kk)), d.unflatten(1, (self.c, 3 * kk))], 2)
        four = torch.einsum("io,bcihw->bcohw", self.filters.to(s), both)
        four = four.unflatten(2, (4, kk))
        b, c, _, _, m, _ = four.shape
        x = s.new_zeros(b, c, kk, 2 * m, 2 * m)
        for child, (i, j) in enumerate((i, j) for i in (0, 1) for j in (0, 1)):
            x[..., i::2, j::2] = four[:, :, child]
        return x.flatten(1, 2)

    def forward(self, x: Float[Tensor, "b w n n"]) -> Float[Tensor, "b w n n"]:
        levels = round(math.log2(x.shape[-1])) - self.coarsest
        ups = []
        for _ in range(levels):
            x, details = self.split(x)
            d = self.gather(details)
            ups.append((self.A(d) + self.B(x), self.C(d)))
        x = self.T0(x)
        for Ud, Us in reversed(ups):
            x = self.join(x + Us, self.spread(Ud))
        return x


def multiwavelet_filters(k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Legendre multiwavelets: ``h0, h1, g0, g1`` of shape ``(k, k)``, float64.

    Scaling functions on a cell are ``h0`` times those of its left half plus ``h1`` times those of
    its right half. ``[h0 h1; g0 g1]`` is orthogonal, so details vanish on polynomials of degree
    below ``k``. The details' basis is fixed by a QR factorization, up to a rotation.
    """
    nodes, weights = np.polynomial.legendre.leggauss(k + 1)
    nodes, weights = (nodes + 1) / 2, weights / 2  # on [0, 1]

    def phi(x):
        P = np.polynomial.legendre.legvander(2 * x - 1, k - 1).T
        return np.sqrt(2 * np.arange(k) + 1)[:, None] * P

    # <phi_i, sqrt2 phi_j(2x - half)> over that half.
    h = [(phi((nodes + half) / 2) * weights) @ phi(nodes).T / math.sqrt(2) for half in (0, 1)]
    low = np.concatenate(h, 1)
    q, _ = np.linalg.qr(np.concatenate([low.T, np.eye(2 * k)], 1))
    g = q[:, k:].T
    return tuple(torch.from_numpy(np.ascontiguousarray(m)) for m in (*h, g[:, :k], g[:, k:]))


# --------------------------------------------------------------------------- latent spectral model


class LSM(nn.Module):
    """A U-Net on lifted fields whose maps pass through :class:`NeuralSpectralBlock` on every level.

    Every map's sides must be multiples of ``patch``.
    """

    def __init__(
        self, c_in: int, c_out: int, width: int = 16, levels: int = 3, patch: int = 2,
        tokens: int = 4, basis: int = 6, heads: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        process = lambda level, c: NeuralSpectralBlock(c, patch, tokens, basis, heads)
        self.lift = nn.Conv2d(c_in + 2, width, 1)
        widths = [width * 2**i for i in range(levels)]
        norm = nn.BatchNorm2d
        self.unet = UNet(width, width, widths, norm=norm, bias=True, process=process)
        self.head = nn.Sequential(nn.Conv2d(width, 128, 1), nn.GELU(), nn.Conv2d(128, c_out, 1))

    def forward(self, x: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h w"]:
        return self.head(self.unet(self.lift(torch.cat([x, coordinates(x)], 1))))


class NeuralSpectralBlock(nn.Module):
    """Patches attend to latent tokens, tokens pass through a sine and cosine basis, and back."""

    def __init__(self, width: int, patch: int, tokens: int, basis: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads}: allowed are divisors of the width, {width}")
        self.patch, self.heads = patch, heads
        self.latent = nn.Parameter(torch.rand(tokens, width) / width)
        self.weight = nn.Parameter(torch.rand(width, 2 * basis) / width)
        self.register_buffer("modes", math.pi * torch.arange(basis) / basis, persistent=False)
        self.key_value = nn.Conv2d(width, 2 * width, 1)
        self.query = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        b, c, h, w = x.shape
        p = self.patch
        if h % p or w % p:
            raise ValueError(f"x: {h} x {w} places; allowed are multiples of patch={p}")
        # Patches are samples; places inside a patch are the sequence.
        cut = lambda t: (
            t.unflatten(2, (h // p, p)).unflatten(4, (w // p, p))
            .permute(0, 2, 4, 3, 5, 1).reshape(-1, p * p, self.heads, t.shape[1] // self.heads)
            .transpose(1, 2)
        )  # fmt: skip
        k, v = (cut(t) for t in self.key_value(x).chunk(2, 1))
        latent = self.latent.unflatten(1, (self.heads, -1)).transpose(0, 1)
        latent = latent.expand(len(k), *latent.shape)
        # As in the authors' code the scores are not divided by the root of the width.
        token = latent + F.scaled_dot_product_attention(latent, k, v, scale=1.0)
        flat = token.transpose(1, 2).flatten(2)  # patches, tokens, width
        phase = flat[..., None] * self.modes
        waves = torch.cat([phase.sin(), phase.cos()], -1)
        flat = flat + torch.einsum("ptcm,cm->ptc", waves, self.weight)
        token = flat.unflatten(2, (self.heads, -1)).transpose(1, 2)
        back = F.scaled_dot_product_attention(cut(self.query(x)), token, token, scale=1.0)
        back = back.transpose(1, 2).reshape(b, h // p, w // p, p, p, c)
        return x + back.permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
