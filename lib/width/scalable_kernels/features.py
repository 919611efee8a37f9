"""What all feature maps share, and those that are equal on both sides: ReLU and Fourier."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.core.linalg import random_orthogonal
from lib.kernels.kernel_sum import kernel_sum
from lib.models.infinite_width import relu_dual


class Features(nn.Module):
    """What the feature maps share: ``v -> a function of G v``, with a twin for the weights.

    Attributes:
        d, m: inputs and random vectors; ``width`` is the number of real features.
        G: random vectors, ``m d``; a buffer (so a state dict carries them), or trained.
        normalize: if a number, inputs and weights are first rescaled to this norm.
        needs_norm: whether the features depend on ``|v|`` besides ``G v``.
    """

    needs_norm = False

    def __init__(
        self,
        d: int,
        m: int,
        gen: torch.Generator,
        orthogonal: bool,
        normalize: float | None,
        trained: bool,
        columns: int | None = None,
    ) -> None:
        super().__init__()
        if d < 1 or m < 1:
            raise ValueError(f"d={d}, m={m}: both must be 1 or more")
        if normalize is not None and not 0 < normalize < math.inf:
            raise ValueError(f"normalize={normalize}: allowed is None or a number above 0")
        if not isinstance(gen, torch.Generator):
            raise TypeError(f"gen: allowed is a torch.Generator, got {type(gen).__name__}")
        self.d, self.m, self.width, self.normalize = d, m, m, normalize
        columns = columns or d
        if orthogonal:
            G = gaussian_orthogonal_matrix(m, columns, gen)
        else:
            G = torch.randn(m, columns, generator=gen)
        if trained:
            self.G = nn.Parameter(G)
        else:
            self.register_buffer("G", G)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b width"]:
        """``Phi(x)``."""
        v = self.rescale(x)
        t = v @ self.keys.mT
        t = t if self.shift is None else t + self.shift
        return self.from_projection(t, v.square().sum(-1) if self.needs_norm else None)

    def rescale(self, v: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """``v`` with rows of norm ``normalize``, or as it is; refuses what does not fit ``G``."""
        check_vectors(v, self.d, self.G.dtype)
        if self.normalize is None:
            return v
        return self.normalize * nn.functional.normalize(v, dim=-1)

    @property
    def keys(self) -> Float[Tensor, "m d"]:
        """What multiplies the input; ``shift`` is added to the product."""
        return self.G

    @property
    def shift(self) -> Float[Tensor, "m"] | None:
        return None

    def extra_repr(self) -> str:
        return f"d={self.d}, m={self.m}, width={self.width}"


class ReLUFeatures(Features):
    """``max(G x, floor) / sqrt(m)`` on both sides: the arc-cosine kernel, not ``relu(w.x)``.

    For ``floor = 0`` the dot product of two of them has the mean ``arc_cosine(x, w)``.

    Args:
        floor: the paper's constant in the place of 0; a negative one lets small values through.
        joint: the bias is one more coordinate, ``[x, 1]`` and ``[w, b]``: a kernel of x and the
            pair (w, b) that is no function of ``w.x + b``.
        orthogonal, normalize, trained: as for ``UniversalFeatures``.
    """

    def __init__(
        self,
        d: int,
        m: int,
        *,
        gen: torch.Generator,
        orthogonal: bool = False,
        floor: float = 0.0,
        joint: bool = False,
        normalize: float | None = None,
        trained: bool = False,
    ) -> None:
        if not abs(floor) < math.inf:
            raise ValueError(f"floor={floor}: allowed is a finite number")
        super().__init__(d, m, gen, orthogonal, normalize, trained, d + joint)
        self.floor, self.joint = floor, joint

    @property
    def keys(self) -> Float[Tensor, "m d"]:
        return self.G[:, : self.d]

    @property
    def shift(self) -> Float[Tensor, "m"] | None:
        return self.G[:, -1] if self.joint else None

    def from_projection(
        self, t: Float[Tensor, "*b m"], squared_norm: Tensor | None = None
    ) -> Float[Tensor, "*b m"]:
        """``Phi`` from ``G x``."""
        return torch.clamp(t, min=self.floor) / math.sqrt(self.m)

    def weights(
        self, w: Float[Tensor, "k d"], b: Float[Tensor, "k"] | None = None
    ) -> Float[Tensor, "k m"]:
        """``Psi(w, b)``: the same map.

        Raises:
            ValueError: a bias without ``joint=True``, which these features cannot hold.
        """
        check_bias(b, self.joint, len(w))
        t = self.rescale(w) @ self.keys.mT
        return self.from_projection(t if b is None else t + self.shift * b[:, None])

    def sum(self, x: Float[Tensor, "*b d"], W: Float[Tensor, "k m"]) -> Float[Tensor, "*b k"]:
        """``Phi(x) W^T`` without storing ``Phi(x)``; ``max(t, c) = relu(t - c) + c``."""
        check_matrix(W, self.width)
        x, W = self.rescale(x), W.mT / math.sqrt(self.m)
        shift = self.shift
        if self.floor:
            shift = (0.0 if shift is None else shift) - self.G.new_full((self.m,), self.floor)
        y = kernel_sum(x.reshape(-1, self.d), self.keys, W, "relu", bias=shift)
        y = y + self.floor * W.sum(0) if self.floor else y
        return y.reshape(*x.shape[:-1], W.shape[1])


def check_bias(b: Tensor | None, joint: bool, units: int) -> None:
    """Refuse a bias that features have no coordinate for, or one of another length."""
    if b is not None and not joint:
        raise ValueError("b: these features hold a bias only with joint=True")
    if b is not None and b.shape != (units,):
        raise ValueError(f"b has shape {tuple(b.shape)}, allowed is ({units},): one a row of w")


def check_vectors(v: Tensor, d: int, dtype: torch.dtype) -> None:
    """Refuse vectors of another length than ``d`` or another dtype than the random vectors'."""
    if v.ndim < 1 or v.shape[-1] != d:
        entries = v.shape[-1] if v.ndim else "no"
        raise ValueError(f"the last axis has {entries} entries, allowed is d={d}")
    if v.dtype != dtype:
        raise TypeError(f"the vectors have dtype {v.dtype}, allowed is the features', {dtype}")


def check_matrix(W: Tensor, width: int) -> None:
    """Refuse a matrix that does not stand behind ``width`` features."""
    if W.ndim != 2 or W.shape[1] != width:
        raise ValueError(f"W has shape {tuple(W.shape)}, allowed is (k, {width})")


def arc_cosine(x: Float[Tensor, "*#n d"], w: Float[Tensor, "*#n d"]) -> Float[Tensor, "*#n"]:
    """``E[relu(g.x) relu(g.w)] = |w||x| / (2 pi) (sqrt(1 - t^2) + (pi - arccos t) t)``.

    ``t`` is the cosine of the angle between the two (Cho and Saul, 2009).
    """
    lengths = x.square().sum(-1), w.square().sum(-1)
    return relu_dual(*lengths, (x * w).sum(-1))[0]


class FourierFeatures(Features):
    """Random Fourier features, ``sqrt(2 / m) cos(G x / length + u)`` with uniform phases ``u``.

    Rahimi and Recht (2007). The mean of the dot product is ``exp(-|x - w|^2 / (2 length^2))``, so
    a unit of such a layer is a bump around its weight vector: a kernel of ``x`` and ``w`` beyond
    their dot product. Other arguments as for ``ReLUFeatures``.

    Raises:
        ValueError: ``length`` is not positive and finite.
    """

    def __init__(
        self,
        d: int,
        m: int,
        *,
        gen: torch.Generator,
        length: float = 1.0,
        orthogonal: bool = False,
        normalize: float | None = None,
        trained: bool = False,
    ) -> None:
        if not 0 < length < math.inf:
            raise ValueError(f"length={length}: allowed is a number above 0")
        super().__init__(d, m, gen, orthogonal, normalize, trained)
        self.length, self.joint = length, False
        self.register_buffer("phase", 2 * math.pi * torch.rand(m, generator=gen))

    @property
    def keys(self) -> Float[Tensor, "m d"]:
        return self.G / self.length

    @property
    def shift(self) -> Float[Tensor, "m"]:
        return self.phase

    def from_projection(
        self, t: Float[Tensor, "*b m"], squared_norm: Tensor | None = None
    ) -> Float[Tensor, "*b m"]:
        """``Phi`` from ``G x / length + u``."""
        return math.sqrt(2 / self.m) * torch.cos(t)

    def weights(
        self, w: Float[Tensor, "k d"], b: Float[Tensor, "k"] | None = None
    ) -> Float[Tensor, "k m"]:
        """``Psi(w)``: the same map. A bias is refused with a ValueError."""
        check_bias(b, False, len(w))
        return self(w)

    def sum(self, x: Float[Tensor, "*b d"], W: Float[Tensor, "k m"]) -> Float[Tensor, "*b k"]:
        """``Phi(x) W^T`` without storing ``Phi(x)``."""
        check_matrix(W, self.width)
        x, W = self.rescale(x), math.sqrt(2 / self.m) * W.mT
        y = kernel_sum(x.reshape(-1, self.d), self.keys, W, "cos", bias=self.phase)
        return y.reshape(*x.shape[:-1], W.shape[1])


def gaussian_orthogonal_matrix(
    m: int, d: int, gen: torch.Generator, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "m d"]:
    """Rows that are Gaussian each, and orthogonal to one another in blocks of ``d``.

    Random rotations stacked, the last one cut; each row gets the norm of an independent Gaussian
    vector, so that its distribution is N(0, I) and every estimator stays unbiased.

    Raises:
        ValueError: ``m`` or ``d`` below 1.
    """
    if m < 1 or d < 1:
        raise ValueError(f"m={m}, d={d}: both must be 1 or more")
    blocks = [random_orthogonal(d, gen, min(d, m - i), torch.float64) for i in range(0, m, d)]
    norms = torch.randn(m, d, generator=gen, dtype=torch.float64).norm(dim=1, keepdim=True)
    return (torch.cat(blocks) * norms).to(dtype)
