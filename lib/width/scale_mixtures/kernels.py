"""The kernel ``K`` of an architecture: the limit's covariance at last-layer variance one.

The recursion of ``lib.models.infinite_width`` for fully connected networks, and the same one layer
at a time for residual and convolutional ones. ``weight_var`` and ``bias_var`` are the variances of
every layer but the last (weights divided by fan-in); the last has weights of variance one over
fan-in and no bias, since its scale is the mixture's ``s``. ``depth`` counts nonlinearities (mlp,
cnn) or residual blocks, as the authors' code counts its hidden layers.

Convolutions are 3 x 3 with zeros around the image. A network that flattens its last maps compares
two images place by place, so covariances of equal places are enough: ``(p, q, h, w)`` numbers. One
that averages over places needs all pairs of places, ``(p, q, h, w, h, w)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lib.models.infinite_width import (
    erf_dual,
    identity_dual,
    kernel_recursion,
    nngp_ntk,
    relu_dual,
    sin_dual,
)

Kernel = Callable[..., Tensor]
DUALS = {"relu": relu_dual, "erf": erf_dual, "identity": identity_dual, "sin": sin_dual}
ARCHS = ("mlp", "resnet", "cnn", "conv_resnet")


def nngp_kernel(
    arch: Literal["mlp", "resnet", "cnn", "conv_resnet"] = "mlp",
    depth: int = 2,
    act: str | Callable[[Tensor], Tensor] = "relu",
    weight_var: float = 1.0,
    bias_var: float = 0.0,
    pool: bool = False,
    groups: int = 4,
    chunk: int = 16,
) -> Kernel:
    """``kernel(x1, x2) -> "p q"``; ``x2=None`` means ``x1``.

    - ``"mlp"``: ``depth`` hidden layers on vectors ``(p, d)``.
    - ``"resnet"``: a dense layer, ``depth`` blocks ``z + dense(act(z))``, the activation.
    - ``"cnn"``: ``depth`` times convolution and activation on images ``(p, c, h, w)``.
    - ``"conv_resnet"``: a convolution, ``groups`` groups of ``depth`` blocks; each group's first
      block has a convolution in its shortcut and, from the second group on, stride 2. The
      authors' networks have four groups and no activation before the last layer.

    Args:
        act: ``"relu"``, ``"erf"``, or another that ``lib.models.infinite_width.nngp_ntk`` takes.
        pool: average the last maps over places instead of flattening them (images only).
        chunk: rows of ``x1`` at a time, which bounds the memory (images only).

    Raises:
        ValueError: unknown ``arch`` or ``act``; ``depth``, ``groups`` or ``chunk`` not a whole
            number above 0; ``weight_var`` not positive or ``bias_var`` negative; ``pool`` without
            images.
    """
    if arch not in ARCHS:
        raise ValueError(f"arch={arch!r}: allowed are {', '.join(map(repr, ARCHS))}")
    if any(v < 1 or v != int(v) for v in (depth, groups, chunk)):
        raise ValueError(
            f"depth={depth}, groups={groups}, chunk={chunk}: allowed are whole numbers, 1 or more"
        )
    if not callable(act) and act not in DUALS:
        raise ValueError(f"act={act!r}: allowed are {', '.join(DUALS)}, or a function")
    check_variances(weight_var, bias_var)
    if pool and arch in ("mlp", "resnet"):
        raise ValueError(f"pool=True: arch={arch!r} has no places to average over")
    layer = (weight_var, bias_var)
    if arch == "mlp":
        return lambda x1, x2=None: mlp_kernels(x1, x2, depth, act, *layer)[0]
    if arch == "resnet":
        return lambda x1, x2=None: _resnet(_vectors(x1, x2), depth, act, layer)

    def images(x1: Tensor, x2: Tensor | None = None) -> Tensor:
        x2 = x1 if x2 is None else x2
        rows = []
        for part in x1.split(chunk):
            z = _images(part, x2, pool)
            rows.append(_cnn(z, depth, act, layer) if arch == "cnn" else
                        _conv_resnet(z, depth, groups, act, layer))  # fmt: skip
        return torch.cat(rows)

    return images


def mlp_kernels(
    x1: Float[Tensor, "p d"],
    x2: Float[Tensor, "q d"] | None = None,
    depth: int = 2,
    act: str | Callable[[Tensor], Tensor] = "relu",
    weight_var: float = 1.0,
    bias_var: float = 0.0,
) -> tuple[Float[Tensor, "p q"], Float[Tensor, "p q"]]:
    """``(K, Theta_hidden)``: covariance, and the tangent kernel of all layers but the last.

    The last layer's own tangent kernel is ``K``; both at last-layer variance one, weights of unit
    variance with their factors outside (see ``lib.models.mlp.NTKLinear``).
    """
    check_variances(weight_var, bias_var)
    root = weight_var**0.5  # the first layer's variance goes to the inputs
    inner = (depth, act, bias_var**0.5, weight_var)
    sigma, theta = nngp_ntk(root * x1, None if x2 is None else root * x2, *inner)
    # The recursion ends with a layer's variance and bias; the last layer here has neither.
    K = (sigma - bias_var) / weight_var
    return K, (theta - bias_var) / weight_var - K


def prior_variance(
    kernel: Kernel, x: Float[Tensor, "m ..."], block: int = 32
) -> Float[Tensor, "m"]:
    """``K(x_i, x_i)`` from Gram matrices of ``block`` inputs, so that m^2 numbers are never held.

    In the kernel's own precision and differentiable.

    Raises:
        ValueError: ``block`` below 1.
    """
    if block < 1:
        raise ValueError(f"block={block}: allowed is 1 or more")
    return torch.cat([kernel(part, part).diagonal() for part in x.split(block)])


def check_variances(weight_var: float, bias_var: float) -> None:
    """Refuses what no layer can have."""
    if not (0 < weight_var < math.inf and 0 <= bias_var < math.inf):
        raise ValueError(
            f"weight_var={weight_var}, bias_var={bias_var}: allowed are finite numbers, "
            "weight_var > 0 and bias_var >= 0"
        )


# Covariances on their way through a network.


@dataclass
class _Pairs:
    """Variances of the left and of the right inputs, and their covariances, which broadcast."""

    a: Tensor
    b: Tensor
    c: Tensor

    def __add__(self, other: _Pairs) -> _Pairs:
        return _Pairs(self.a + other.a, self.b + other.b, self.c + other.c)

    def map(self, f: Callable[[Tensor], Tensor]) -> _Pairs:
        return _Pairs(f(self.a), f(self.b), f(self.c))

    def act(self, act) -> _Pairs:
        """One nonlinearity: the Gaussian averages of ``lib.models.infinite_width``."""
        dual = DUALS.get(act) or (lambda *v: kernel_recursion(*v, 1, act, 0.0))
        a, b, c = self.a, self.b, self.c
        return _Pairs(dual(a, a, a)[0], dual(b, b, b)[0], dual(a, b, c)[0])


def _dense(z: _Pairs, layer: tuple[float, float]) -> _Pairs:
    return z.map(lambda v: layer[0] * v + layer[1])


def _conv(z: _Pairs, layer: tuple[float, float], stride: int = 1) -> _Pairs:
    """A 3 x 3 convolution: the mean over its nine taps, zeros outside the image."""
    weight, bias = layer

    def one_place(v: Tensor) -> Tensor:
        mean = F.avg_pool2d(v.reshape(-1, 1, *v.shape[-2:]), 3, stride, 1)
        return weight * mean.view(*v.shape[:-2], *mean.shape[-2:]) + bias

    def two_places(v: Tensor) -> Tensor:
        h, w = v.shape[-2:]
        v = F.pad(v, (1, 1) * 4)
        taps = 0.0
        for i in range(3):
            for j in range(3):
                rows, columns = slice(i, i + h, stride), slice(j, j + w, stride)
                taps = taps + v[..., rows, columns, rows, columns]
        return weight / 9 * taps + bias

    if z.c.ndim == 4:
        return z.map(one_place)
    # Variances are those of single places; one of the two pairs of axes only broadcasts.
    a = one_place(z.a[..., 0, 0])[..., None, None]
    return _Pairs(a, one_place(z.b[:, :, 0, 0])[:, :, None, None], two_places(z.c))


def _vectors(x1: Tensor, x2: Tensor | None) -> _Pairs:
    x2 = x1 if x2 is None else x2
    if x1.ndim != 2 or x2.ndim != 2 or x1.shape[1] != x2.shape[1] or x1.shape[1] == 0:
        raise ValueError(
            "x1 and x2 must be (p, d) and (q, d) with one d > 0, got "
            f"{tuple(x1.shape)} and {tuple(x2.shape)}"
        )
    d = x1.shape[1]
    return _Pairs((x1 * x1).sum(1)[:, None] / d, (x2 * x2).sum(1)[None] / d, x1 @ x2.T / d)


def _images(x1: Tensor, x2: Tensor, pool: bool) -> _Pairs:
    if x1.ndim != 4 or x2.ndim != 4 or x1.shape[1:] != x2.shape[1:]:
        raise ValueError(
            f"x1 and x2 must be images (n, c, h, w) of one size, got {tuple(x1.shape)} and "
            f"{tuple(x2.shape)}"
        )
    channels = x1.shape[1]
    a, b = x1.square().mean(1)[:, None], x2.square().mean(1)[None]
    if not pool:
        return _Pairs(a, b, torch.einsum("pchw,qchw->pqhw", x1, x2) / channels)
    c = torch.einsum("pchw,qcij->pqhwij", x1, x2) / channels
    return _Pairs(a[..., None, None], b[:, :, None, None], c)


def _resnet(z: _Pairs, depth: int, act, layer) -> Tensor:
    z = _dense(z, layer)
    for _ in range(depth):
        z = z + _dense(z.act(act), layer)
    return z.act(act).c


def _cnn(z: _Pairs, depth: int, act, layer) -> Tensor:
    for _ in range(depth):
        z = _conv(z, layer).act(act)
    return z.c.flatten(2).mean(2)


def _conv_resnet(z: _Pairs, depth: int, groups: int, act, layer) -> Tensor:
    z = _conv(z, layer)
    for group in range(groups):
        for block in range(depth):
            stride = 2 if group > 0 and block == 0 else 1
            main = _conv(_conv(z.act(act), layer, stride).act(act), layer)
            z = main + (_conv(z, layer, stride) if block == 0 else z)
    return z.c.flatten(2).mean(2)
