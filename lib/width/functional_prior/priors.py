"""Priors over functions: a Gaussian process that is chosen, and networks with random weights.

Weights are written through coordinates ``xi``, numbers of a fixed law: a prior is the map from
``xi`` to weights. Its hyper-parameters ``psi`` are learned through that map, and a sampler of the
posterior walks in ``xi``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lib.core.linalg import chol
from lib.models.gp import rbf
from lib.models.mlp import MLP

Weights = dict[str, Tensor]


class GPPrior:
    """``f ~ GP(0, amplitude^2 kernel)``, the functional prior that the network is to have.

    Args:
        kernel: ``(x1, x2, length=1.0)`` as in ``lib.models.gp``: ``rbf``, ``matern``, ``laplace``.
        length: lengthscale, or one for each input (automatic relevance determination).
        amplitude: standard deviation of ``f(x)``.
        spread: standard deviations of log length and log amplitude. Above 0 every function has
            its own length and amplitude, log-normal around the given ones.
        outputs: independent functions, one for each class or target.

    Raises:
        ValueError: a length or amplitude not above 0, a negative spread, fewer than one output.
    """

    def __init__(
        self,
        kernel: Callable[..., Tensor] = rbf,
        *,
        length: float | Sequence[float] = 1.0,
        amplitude: float = 1.0,
        spread: tuple[float, float] = (0.0, 0.0),
        outputs: int = 1,
    ) -> None:
        self.length = torch.as_tensor(length, dtype=torch.float64)
        good = (self.length > 0) & self.length.isfinite()
        if not self.length.numel() or not good.all() or self.length.ndim > 1:
            raise ValueError(f"length={length}: allowed are numbers above 0, one or one an input")
        if not 0 < amplitude < math.inf:
            raise ValueError(f"amplitude={amplitude}: allowed is a number above 0")
        if len(spread) != 2 or not all(0 <= v < math.inf for v in spread):
            raise ValueError(f"spread={spread}: allowed are two numbers of 0 or more")
        if outputs < 1:
            raise ValueError(f"outputs={outputs}: allowed is 1 or more")
        self.kernel, self.amplitude = kernel, amplitude
        self.spread, self.outputs = tuple(spread), outputs

    def covariance(
        self, x1: Float[Tensor, "*batch n d"], x2: Float[Tensor, "*batch m d"]
    ) -> Float[Tensor, "*batch n m"]:
        """At the central length and amplitude, in float64."""
        if self.length.ndim == 1 and len(self.length) != x1.shape[-1]:
            raise ValueError(f"length has {len(self.length)} numbers, the inputs {x1.shape[-1]}")
        length = self.length.to(x1.device)
        return self.amplitude**2 * self.kernel(x1.double() / length, x2.double() / length)

    def sample(self, x: Float[Tensor, "m *d"], n: int, gen: torch.Generator) -> Tensor:
        """``n`` functions at the points ``x``: "n m outputs", in ``x``'s precision.

        The covariance is factorized in float64, with what jitter it needs; where ``spread`` is
        above 0 there is one for each function, ``8 n outputs m^2`` bytes. Images are flattened.

        Raises:
            ValueError: no functions or points asked for, points that are not finite.
        """
        check_points(x, n)
        x = x.flatten(1)
        draw = lambda *shape: torch.randn(
            *shape, generator=gen, dtype=torch.float64, device=gen.device
        ).to(x.device)
        size = n * self.outputs
        if max(self.spread) > 0:
            stretch, gain = (s * draw(size, 1, 1) for s in self.spread)
            # exp(-stretch) on the inputs is exp(stretch) on the length.
            inputs = x.double() * torch.exp(-stretch)
            K = self.covariance(inputs, inputs) * torch.exp(2 * gain)
        else:
            K = self.covariance(x, x)
        f = (chol(K)[0] @ draw(size, len(x), 1))[..., 0]
        return f.reshape(n, self.outputs, len(x)).mT.to(x.dtype)


class Block(NamedTuple):
    """One tensor of weights (scaled by the root of ``fan_in``) or biases (``fan_in`` 1)."""

    name: str
    shape: tuple[int, ...]
    fan_in: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class BNNPrior(nn.Module):
    """Functions of a network whose weights are drawn: ``w = map(xi) / sqrt(D_in)``.

    Every kind has one law for each weight tensor and one for each bias; ``D_in`` is 1 for biases.

    - ``"gaussian"`` (GPi-G): ``w = sigma_l xi / sqrt(D_in)``; ``psi`` is one ``sigma`` a tensor.
    - ``"hierarchical"`` (GPi-H): ``1/sigma_l^2 ~ Gamma(alpha_l, beta_l)``, and ``psi`` is
      ``alpha``, ``beta``. ``xi`` ends with one log precision a tensor.
    - ``"planar"``, ``"sylvester"`` (GPi-NF): a normalizing flow of each tensor's ``xi``.

    Args:
        net: what is evaluated; its own numbers do not matter. Parameters of two axes and more
            are weights, ``bias`` parameters biases; normalization layers stay as they are.
        sigma: standard deviation at the start, a number or one for each tensor. With ``raw``
            it is that of the weights themselves, and ``D_in`` plays no part at the start.
        shape, rate: ``alpha`` and ``beta`` at the start, for ``"hierarchical"``.
        shared: hierarchical draws of one call share their precisions, as in the official code.
        flows: layers of a flow; ``rank``: columns of a Sylvester layer.

    Attributes:
        blocks: the tensors, in the order in which ``xi`` holds them.
        size: length of ``xi``.

    Raises:
        ValueError: an unknown kind, a scale not above 0 or not one for each tensor, a network
            without weights or with dropout at work.
    """

    def __init__(
        self,
        net: nn.Module,
        kind: Literal["gaussian", "hierarchical", "planar", "sylvester"] = "gaussian",
        *,
        sigma: float | Sequence[float] = 1.0,
        raw: bool = False,
        shape: float = 3.0,
        rate: float = 2.0,
        shared: bool = False,
        flows: int = 4,
        rank: int = 4,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}: allowed are {', '.join(KINDS)}")
        # Not a submodule: its numbers are no hyper-parameters.
        self._net = [net]
        self.kind, self.shared, self.blocks = kind, shared, blocks(net)
        self.count = sum(b.size for b in self.blocks)
        if any(isinstance(m, nn.Dropout) and m.p > 0 and m.training for m in net.modules()):
            raise ValueError("net has dropout at work, and a draw must be one function: net.eval()")
        if flows < 1 or rank < 1:
            raise ValueError(f"flows={flows}, rank={rank}: allowed is 1 or more")
        start = torch.as_tensor(sigma, dtype=torch.float32)
        if start.ndim > 1 or start.ndim == 1 and len(start) != len(self.blocks):
            names = ", ".join(b.name for b in self.blocks)
            raise ValueError(
                f"sigma={sigma}: allowed are one number or {len(self.blocks)}, for {names}"
            )
        start = start.expand(len(self.blocks)).clone()
        if raw:
            start = start * torch.tensor([b.fan_in for b in self.blocks]).sqrt()
        numbers = [*start.tolist(), shape, rate]
        if not all(0 < v < math.inf for v in numbers):
            raise ValueError(
                f"sigma={sigma}, shape={shape}, rate={rate}: allowed are numbers above 0"
            )
        if kind == "hierarchical":
            self.size = self.count + len(self.blocks)
            self.shape_ = nn.Parameter(inverse_softplus(torch.full_like(start, shape)))
            self.rate_ = nn.Parameter(inverse_softplus(torch.full_like(start, rate)))
        else:
            self.size = self.count
            self.rho = nn.Parameter(inverse_softplus(start))
        if kind in ("planar", "sylvester"):
            gen = torch.Generator().manual_seed(0) if gen is None else gen
            make = PlanarFlow if kind == "planar" else SylvesterFlow
            more = {} if kind == "planar" else {"rank": rank}
            self.flows = nn.ModuleList(make(b.size, flows, gen=gen, **more) for b in self.blocks)

    @property
    def sigma(self) -> Float[Tensor, "tensors"]:
        """One standard deviation for each tensor; of a hierarchical prior, ``sqrt(E sigma^2)``."""
        if self.kind == "hierarchical":
            alpha, beta = self.gamma
            return (beta / (alpha - 1)).where(alpha > 1, torch.inf).sqrt()
        return F.softplus(self.rho)

    @property
    def gamma(self) -> tuple[Tensor, Tensor]:
        """``alpha`` and ``beta`` of the precisions, one for each tensor."""
        if self.kind != "hierarchical":
            raise ValueError(f"a {self.kind} prior has no Gamma law; only a hierarchical one has")
        return F.softplus(self.shape_), F.softplus(self.rate_)

    def draw(self, n: int, gen: torch.Generator) -> Float[Tensor, "n p"]:
        """``n`` draws of ``xi``. Precisions carry the gradient in ``psi`` with them.

        Raises:
            ValueError: ``n`` below 1.
        """
        if n < 1:
            raise ValueError(f"n={n}: allowed is 1 or more")
        like = next(self.parameters())
        xi = torch.randn(n, self.count, generator=gen, device=gen.device).to(like)
        if self.kind != "hierarchical":
            return xi
        alpha, beta = self.gamma
        several = alpha.expand(1 if self.shared else n, -1)
        # Its gradient in alpha is implicit.
        draws = torch._standard_gamma(several.to(gen.device), generator=gen)
        precision = draws.to(beta) / beta
        return torch.cat([xi, precision.clamp(min=1e-12).log().expand(n, -1)], 1)

    def log_density(self, xi: Float[Tensor, "n p"]) -> Float[Tensor, "n"]:
        """Of ``xi`` itself, whose law is standard normal but for log precisions."""
        plain = xi[:, : self.count]
        log_p = -0.5 * plain.square().sum(1) - 0.5 * self.count * math.log(2 * math.pi)
        if self.kind == "hierarchical":
            alpha, beta = self.gamma
            u = xi[:, self.count :]
            each = alpha * (beta.log() + u) - beta * u.exp() - torch.lgamma(alpha)
            log_p = log_p + each.sum(1)
        return log_p

    def weights(self, xi: Float[Tensor, "n p"]) -> Weights:
        """The networks' tensors, each with a leading axis ``n``.

        Raises:
            ValueError: ``xi`` has not ``size`` numbers a row.
        """
        if xi.ndim != 2 or xi.shape[1] != self.size:
            raise ValueError(f"xi has shape {tuple(xi.shape)}: allowed is (draws, {self.size})")
        parts = xi[:, : self.count].split([b.size for b in self.blocks], 1)
        if self.kind == "hierarchical":
            scales = torch.exp(-0.5 * xi[:, self.count :]).unbind(1)
        else:
            scales = self.sigma.unbind()
        found = {}
        for i, (block, part, scale) in enumerate(zip(self.blocks, parts, scales, strict=True)):
            if self.kind in ("planar", "sylvester"):
                part = self.flows[i](part)[0]
            part = part * (scale / math.sqrt(block.fan_in)).reshape(-1, 1)
            found[block.name] = part.unflatten(1, block.shape)
        return found

    def functions(self, xi: Float[Tensor, "n p"], x: Tensor) -> Tensor:
        """The networks at ``x``: "n m outputs". ``x`` is "m ...", or "n m ..." for an MLP."""
        return evaluate(self._net[0], self.weights(xi), x)

    def sample(self, x: Tensor, n: int, gen: torch.Generator) -> Tensor:
        """``n`` functions of the prior at the points ``x``: "n m outputs".

        Raises:
            ValueError: no functions or points asked for, points that are not finite.
        """
        check_points(x, n)
        return self.functions(self.draw(n, gen), x)

    def _apply(self, fn, recurse: bool = True):
        # The network's own numbers, those of its normalization layers, move along.
        self._net[0]._apply(fn)
        return super()._apply(fn, recurse)


KINDS = ("gaussian", "hierarchical", "planar", "sylvester")


def check_points(x: Tensor, n: int) -> None:
    """Raises ValueError unless ``n >= 1`` functions can be drawn at ``x``."""
    if n < 1:
        raise ValueError(f"n={n}: allowed is 1 or more")
    if not x.is_floating_point() or x.ndim < 2 or not x.numel():
        raise ValueError(
            f"x has shape {tuple(x.shape)} and {x.dtype}: allowed are floating-point numbers, "
            "one point or more along the first axis"
        )
    if not torch.isfinite(x).all():
        raise ValueError("x has entries that are not finite")


def blocks(net: nn.Module) -> list[Block]:
    """The tensors of ``net`` that a prior draws.

    Raises:
        ValueError: there is none.
    """
    found = []
    for path, module in net.named_modules():
        for name, p in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if p.ndim >= 2:
                found.append(Block(full, tuple(p.shape), math.prod(p.shape[1:])))
            elif name == "bias" and any(q.ndim >= 2 for q in module.parameters(recurse=False)):
                found.append(Block(full, tuple(p.shape), 1))
    if not found:
        raise ValueError(f"net: {type(net).__name__} has no weights of two axes or more")
    return found


def evaluate(net: nn.Module, weights: Weights, x: Tensor) -> Tensor:
    """``net`` at ``x`` with each of ``n`` sets of weights: "n m outputs".

    Raises:
        ValueError: ``x`` does not fit a dense network.
    """
    n = len(next(iter(weights.values())))
    if not isinstance(net, MLP) or any(not isinstance(m, nn.Identity) for m in net.norms):
        return vmap(lambda w: functional_call(net, w, (x,)))(weights)
    if x.ndim not in (2, 3) or x.shape[-1] != net.widths[0] or x.ndim == 3 and len(x) != n:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: allowed are (points, {net.widths[0]}) and "
            f"({n}, points, {net.widths[0]})"
        )
    # The dense network by hand: a batched matrix product a layer, and inputs that may differ.
    h = x if x.ndim == 3 else x.expand(n, *x.shape)
    for i in range(len(net.layers)):
        W, b = weights[f"layers.{i}.weight"], weights.get(f"layers.{i}.bias")
        h = h @ W.mT if b is None else torch.baddbmm(b[:, None], h, W.mT)
        h = net.acts[i](h) if i < len(net.acts) else h
    return h


class PlanarFlow(nn.Module):
    """``K`` layers ``z + u tanh(w z + b)`` (Rezende and Mohamed, 2015), each one invertible."""

    def __init__(self, size: int, layers: int, gen: torch.Generator) -> None:
        super().__init__()
        start = lambda *shape: nn.Parameter(torch.randn(*shape, generator=gen) / math.sqrt(size))
        self.w, self.u = start(layers, size), start(layers, size)
        self.b = nn.Parameter(torch.zeros(layers))

    def forward(self, z: Float[Tensor, "n p"]) -> tuple[Tensor, Float[Tensor, "n"]]:
        """The transformed ``z`` and the logarithm of the Jacobian's determinant."""
        log_det = z.new_zeros(len(z))
        for w, u, b in zip(self.w, self.u, self.b, strict=True):
            dot = w @ u
            # w u > -1 keeps the layer invertible.
            u = u + (F.softplus(dot) - 1 - dot) * w / w.square().sum().clamp(min=1e-12)
            h = torch.tanh(z @ w + b)
            log_det = log_det + torch.log1p((1 - h.square()) * (w @ u))
            z = z + h[:, None] * u
        return z, log_det


class SylvesterFlow(nn.Module):
    """``K`` layers ``z + Q R tanh(R' Q^T z + b)`` (van den Berg et al., 2018).

    ``Q`` has ``rank`` orthonormal columns, ``R`` and ``R'`` are upper triangular with diagonals
    in (-1, 1), whose products are above -1.
    """

    def __init__(self, size: int, layers: int, gen: torch.Generator, rank: int = 4) -> None:
        super().__init__()
        rank = min(rank, size)
        start = lambda *shape: nn.Parameter(0.1 * torch.randn(*shape, generator=gen))
        self.basis = nn.Parameter(torch.randn(layers, size, rank, generator=gen))
        self.upper, self.upper2 = start(layers, rank, rank), start(layers, rank, rank)
        self.b = nn.Parameter(torch.zeros(layers, rank))

    def forward(self, z: Float[Tensor, "n p"]) -> tuple[Tensor, Float[Tensor, "n"]]:
        """The transformed ``z`` and the logarithm of the Jacobian's determinant."""
        log_det = z.new_zeros(len(z))
        Q = torch.linalg.qr(self.basis)[0]
        for q, a, c, b in zip(Q, self.upper, self.upper2, self.b, strict=True):
            R, S = (m.triu(1) + torch.diag_embed(m.diagonal().tanh()) for m in (a, c))
            h = torch.tanh(z @ q @ S.T + b)
            diagonal = R.diagonal() * S.diagonal()
            log_det = log_det + torch.log1p((1 - h.square()) * diagonal).sum(1)
            z = z + h @ R.T @ q.T
        return z, log_det


def inverse_softplus(value: Tensor) -> Tensor:
    """The number whose softplus is ``value``; no overflow for large ones."""
    return value + torch.log(-torch.expm1(-value))
