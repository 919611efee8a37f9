"""Several layers in one: the matrices between random projections multiplied out."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.core.linalg import ridge as solve_ridge
from lib.width.scalable_kernels.features import Features
from lib.width.scalable_kernels.layers import SNNKLinear

NORM_TERMS = ("exact", "estimate", "none")


class Bundled(nn.Module):
    """``y = W Phi_L(C_{L-1} Phi_{L-1}(... C_1 Phi_1(x)))``, with ``C_l = G_{l+1} Wt_l`` trained.

    Between two layers of an unbundled network stand ``Wt_l`` (k by m) and the next projection
    ``G_{l+1}`` (m by k). Only their product, m by m, matters where the next features look at
    ``G h`` alone. Made by ``bundle``.
    """

    def __init__(
        self,
        maps: Sequence[Features],
        matrices: Sequence[Float[Tensor, "_ _"]],
        shifts: Sequence[Float[Tensor, "_"] | None],
        norms: Sequence[Float[Tensor, "_ _"] | None],
        norm_term: str,
    ) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)
        self.matrices = nn.ParameterList(matrices)
        self.shifts = nn.ParameterList(torch.zeros(0) if b is None else b for b in shifts)
        self.norms = nn.ParameterList(torch.zeros(0) if q is None else q for q in norms)
        self.norm_term = norm_term

    def features(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b width"]:
        """What enters the last map, in which the network is linear."""
        phi = self.maps[0](x)
        for layer, after in enumerate(list(self.maps)[1:]):
            t = _affine(phi, self.matrices[layer], self.shifts[layer])
            phi = after.from_projection(t, self._squared_norm(after, layer, phi, t))
        return phi

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b n_out"]:
        return _affine(self.features(x), self.matrices[-1], self.shifts[-1])

    def _squared_norm(self, after: Features, layer: int, phi: Tensor, t: Tensor) -> Tensor | None:
        if not after.needs_norm:
            return None
        if self.norm_term == "estimate":  # E |G h|^2 = m |h|^2
            return t.square().mean(-1)
        if self.norm_term == "none":
            return torch.zeros_like(t[..., 0])
        return _affine(phi, self.norms[layer]).square().sum(-1)


def _affine(phi: Tensor, matrix: Tensor, shift: Tensor | None = None) -> Tensor:
    y = phi @ matrix.mT
    return y if shift is None or shift.numel() == 0 else y + shift


@torch.no_grad()
def bundle(layers: Sequence[SNNKLinear], norm_term: str = "exact") -> Bundled:
    """The network ``layers[-1](... layers[0](x))`` with the matrices between layers multiplied.

    Its output is the same, except for ``norm_term`` other than ``"exact"``.

    Args:
        norm_term: what universal features, which need ``|h|^2`` besides ``G h``, get for it.
            ``"exact"`` keeps a root of the ``m`` by ``m`` matrix ``Wt^T Wt``, since
            ``|h|^2 = phi^T Wt^T Wt phi``; ``"estimate"`` takes ``|G h|^2 / m``; ``"none"`` drops
            the term, which makes another kernel. ReLU and Fourier features need nothing.

    Raises:
        ValueError: fewer than two layers, unknown ``norm_term``, a layer's outputs that are not
            the next one's inputs, features behind the first that normalize; ``"exact"`` together
            with an output bias.
        TypeError: features that are no function of one projection.
    """
    layers = list(layers)
    if len(layers) < 2:
        raise ValueError(f"layers: {len(layers)} given, allowed are two or more")
    if norm_term not in NORM_TERMS:
        raise ValueError(f"norm_term={norm_term!r}: allowed are {', '.join(NORM_TERMS)}")
    for layer in layers:
        if not isinstance(layer.features, Features):
            raise TypeError(f"layers: {type(layer.features).__name__} cannot be bundled")
    matrices, shifts, norms = [], [], []
    for layer, after in zip(layers[:-1], layers[1:], strict=True):
        features = after.features
        if features.d != len(layer.weight):
            raise ValueError(
                f"layers: {len(layer.weight)} outputs meet features of d={features.d} inputs"
            )
        if features.normalize is not None:
            raise ValueError("layers: features behind the first must have normalize=None")
        matrices.append(features.keys @ layer.weight)
        shift = features.shift
        if layer.bias is not None:
            shift = features.keys @ layer.bias + (0.0 if shift is None else shift)
        shifts.append(None if shift is None else shift.clone())
        exact = features.needs_norm and norm_term == "exact"
        if exact and layer.bias is not None:
            raise ValueError("norm_term='exact': a layer with an output bias; allowed is none")
        norms.append(_root(layer.weight) if exact else None)
    last = layers[-1]
    matrices.append(last.weight.clone())
    shifts.append(None if last.bias is None else last.bias.clone())
    maps = [copy.deepcopy(layer.features) for layer in layers]
    for features in maps[1:]:
        # The projections are in the matrices now; of G the norms of its rows are enough.
        norms_of_rows = features.G.norm(dim=1, keepdim=True)
        del features.G
        features.register_buffer("G", norms_of_rows)
    return Bundled(maps, matrices, shifts, norms, norm_term)


def _root(weight: Tensor) -> Tensor:
    """``R`` with ``R^T R = W^T W`` and at most as many rows as columns."""
    return torch.linalg.qr(weight).R if len(weight) > weight.shape[1] else weight.clone()


def fit_bundled_mse(
    Phi: Float[Tensor, "n m"],
    Y: Float[Tensor, "n o"],
    ridge: float,
    sample_weight: Float[Tensor, "n"] | None = None,
) -> tuple[Float[Tensor, "o m"], Float[Tensor, "o"]]:
    """The last map in closed form: ``sum_i c_i |y_i - W phi_i - b|^2 + ridge (|W|^2 + |b|^2)``.

    With a column of ones for the bias, ``W* = Y^T C Phi (Phi^T C Phi + ridge I)^{-1}``; ``C`` is
    diagonal, 1 without ``sample_weight``. No gradient step is taken.

    Raises:
        ValueError: no rows, lengths that differ, ``Y`` without an axis of outputs, ``ridge`` or a
            sample weight negative or not finite, features or targets that are not finite.
    """
    _check_pairs(Phi, Y)
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge={ridge}: allowed is 0 or more")
    A = torch.cat([Phi, torch.ones_like(Phi[:, :1])], 1)
    if sample_weight is not None:
        fits = sample_weight.shape == (len(Phi),)
        if not fits or not ((0 <= sample_weight) & (sample_weight < math.inf)).all():
            raise ValueError(f"sample_weight: allowed are {len(Phi)} numbers, none negative")
        root = sample_weight.sqrt()[:, None]
        A, Y = root * A, root * Y
    W = solve_ridge(A, Y, ridge).mT
    return W[:, :-1].contiguous(), W[:, -1].contiguous()


def fit_bundled_alignment(
    Phi: Float[Tensor, "n m"], Y: Float[Tensor, "n o"], ridge: float
) -> Float[Tensor, "o m"]:
    """The minimizer of ``-sum_i y_i . W phi_i + ridge / 2 |W|^2``: ``Y^T Phi / ridge``.

    A linear loss has it without a system of equations; for targets of +1 and -1 this is the
    difference of the classes' sums.

    Raises:
        ValueError: as for ``fit_bundled_mse``; here ``ridge = 0`` is refused, too.
    """
    _check_pairs(Phi, Y)
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge={ridge}: allowed is a number above 0")
    return Y.mT @ Phi / ridge


def _check_pairs(Phi: Tensor, Y: Tensor) -> None:
    if Phi.ndim != 2 or Y.ndim != 2:
        shapes = f"{tuple(Phi.shape)} and {tuple(Y.shape)}"
        raise ValueError(f"Phi and Y have shapes {shapes}: allowed are (n, m) and (n, o)")
    if len(Phi) != len(Y) or len(Phi) == 0:
        raise ValueError(
            f"Phi has {len(Phi)} rows and Y {len(Y)}: allowed is one number, at least 1"
        )
    for name, t in (("Phi", Phi), ("Y", Y)):
        if not torch.isfinite(t).all():
            raise ValueError(f"{name}: it has entries that are not finite")
