"""Random networks of finite width, many at once, and what can be measured on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jacrev, jvp, vmap

from lib.models.infinite_width import slope_of
from lib.width.effective_theory.flow import Function

Weights = list[tuple[Tensor, Tensor]]  # for each layer W: "s out in" and b: "s out"


def sample_ensemble(
    sigma: Function,
    n_nets: int,
    width: int,
    layers: int,
    x: Float[Tensor, "b d"],
    C_b: float,
    C_W: float,
    gen: torch.Generator,
    *,
    gamma: float = 0.0,
    skip: str = "identity",
    route: str = "layers",
    init: str = "gaussian",
    keep: str = "last",
) -> Float[Tensor, "s b n"] | Float[Tensor, "layers s b n"]:
    """``z^L`` of ``n_nets`` random networks, or with ``keep="all"`` of every layer.

    Given the neurons of a layer, those of the next are independent Gaussians with the covariance
    ``C_b + (C_W / n) sigma sigma^T`` over the inputs. ``route="layers"`` draws them directly: n
    numbers a layer and input instead of n^2, and exactly the same law. ``route="matrices"`` draws
    every weight.

    Args:
        gamma: strength of the skip connection of every layer but the first.
        skip: ``"identity"``, or ``"signs"``: a random sign for every neuron and layer.
        init: ``"gaussian"``, or ``"orthogonal"`` (the matrices route): square weights are
            ``sqrt(C_W)`` times a random rotation.

    Raises:
        ValueError: an option that is not in the lists, orthogonal weights by layers, a count below
            1, a negative variance, a ``gamma`` that is not finite, an ``x`` that is not a finite
            matrix of floats.
    """
    for name, value, allowed in (
        ("skip", skip, ("identity", "signs")),
        ("route", route, ("layers", "matrices")),
        ("init", init, ("gaussian", "orthogonal")),
        ("keep", keep, ("last", "all")),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: allowed are {allowed[0]!r} and {allowed[1]!r}")
    if init == "orthogonal" and route == "layers":
        raise ValueError("init='orthogonal' needs route='matrices': its rows are not independent")
    _check_sizes(n_nets, width, layers, C_b, C_W)
    _check_input(x, 2)
    if not math.isfinite(gamma):
        raise ValueError(f"gamma={gamma}: allowed are finite numbers")
    z = kept = None
    for layer in range(layers):
        fed = x.expand(n_nets, *x.shape) if z is None else sigma(z)
        if route == "layers":
            new = _draw_layer(fed, width, C_b, C_W, gen)
        else:
            W, b = _draw_weights(n_nets, fed.shape[-1], width, C_b, C_W, init, gen, x)
            new = fed @ W.mT + b[:, None]
        if layer > 0 and gamma:
            sign = 1.0
            if skip == "signs":
                draw = torch.rand(n_nets, 1, width, generator=gen, device=gen.device)
                sign = torch.where(draw < 0.5, -1.0, 1.0).to(z)
            new = new + gamma * sign * z
        z = new
        if keep == "all":
            kept = [z] if kept is None else [*kept, z]
    return z if keep == "last" else torch.stack(kept)


def _draw_layer(fed: Tensor, width: int, C_b: float, C_W: float, gen: torch.Generator) -> Tensor:
    noise = _normal((*fed.shape[:-1], width), gen, fed)
    if fed.shape[-2] == 1:
        return (C_b + C_W * fed.square().mean(-1, keepdim=True)).sqrt() * noise
    cov = C_b + C_W * (fed @ fed.mT) / fed.shape[-1]
    # A root by eigenvalues: two inputs may coincide, or a ReLU network be dead on one of them.
    values, vectors = torch.linalg.eigh(cov)
    return vectors @ (values.clamp(min=0).sqrt()[..., None] * noise)


def sample_chains(
    n_chains: int,
    width: int,
    layers: int,
    gen: torch.Generator,
    a_plus: float = 1.0,
    a_minus: float = 0.0,
) -> Float[Tensor, "layers chains"]:
    """``Q^1 / K = 1, ..., Q^L / K`` of critical piecewise linear networks without the networks.

    Of the n neurons of a layer, a binomial number k is positive; the squares of these add up to a
    chi-squared number with k degrees of freedom, the others to one with n - k. Two or three random
    numbers replace a layer. The default slopes are ReLU's.

    Raises:
        ValueError: a count below 1, two slopes of 0, or one that is not finite.
    """
    _check_sizes(n_chains, width, layers, 0.0, 1.0)
    a2 = (a_plus**2 + a_minus**2) / 2
    if a2 == 0:
        raise ValueError("a_plus and a_minus are both 0: no signal passes")
    if not math.isfinite(a2):
        raise ValueError(f"a_plus={a_plus}, a_minus={a_minus}: allowed are finite slopes")

    def chi_squared(k: Tensor) -> Tensor:
        draw = 2 * torch._standard_gamma(k.clamp(min=1) / 2, generator=gen)
        return torch.where(k > 0, draw, 0.0)

    Q = [torch.ones(n_chains, dtype=torch.float64, device=gen.device)]
    count = torch.full_like(Q[0], float(width))
    for _ in range(layers - 1):
        if a_plus**2 == a_minus**2:
            factor = a_plus**2 * chi_squared(count)
        else:
            k = torch.binomial(count, torch.full_like(count, 0.5), generator=gen)
            factor = a_plus**2 * chi_squared(k) if a_plus else 0.0
            if a_minus:
                factor = factor + a_minus**2 * chi_squared(count - k)
        Q.append(Q[-1] * factor / (a2 * width))
    return torch.stack(Q)


def connected_correlator(z: Float[Tensor, "s n"], order: int = 4) -> Float[Tensor, ""]:
    """What is left of a moment after the Gaussian part is taken away, over networks and neurons.

    ``order=2`` is the variance of a neuron. ``order=4`` is ``E[z_i^2 z_j^2] - E[z_i^2] E[z_j^2]``
    over pairs of different neurons, an estimate of ``V / n`` which scatters far less than the
    fourth power of one neuron.

    Raises:
        ValueError: another order, fewer than two networks, or for order 4 than two neurons; a
            ``z`` that is not a finite matrix.
    """
    if order not in (2, 4):
        raise ValueError(f"order={order}: allowed are 2 and 4")
    if z.ndim != 2 or not z.isfinite().all():
        raise ValueError(
            f"z has shape {tuple(z.shape)}: allowed are finite numbers, networks by neurons"
        )
    s, n = z.shape
    if s < 2 or n < order // 2:
        raise ValueError(f"z has shape {(s, n)}: too few networks or neurons for order {order}")
    z = z.double()
    if order == 2:
        return z.square().mean()
    square = z.square().sum(1)
    pairs = (square**2 - z.pow(4).sum(1)).mean() / (n * (n - 1))
    return pairs - (square.mean() / n) ** 2


# With weights: gradients and tangent kernels.


def sample_weights(
    n_nets: int,
    widths: Sequence[int],
    C_b: float,
    C_W: float,
    gen: torch.Generator,
    init: str = "gaussian",
    like: Tensor | None = None,
) -> Weights:
    """``(W, b)`` of every layer of ``n_nets`` networks, as dtype and device of ``like``.

    Raises:
        ValueError: unknown ``init``, fewer than two widths, a count below 1, a negative variance.
    """
    if init not in ("gaussian", "orthogonal"):
        raise ValueError(f"init={init!r}: allowed are 'gaussian' and 'orthogonal'")
    _check_sizes(n_nets, min(widths, default=0), len(widths) - 1, C_b, C_W)
    like = torch.zeros(()) if like is None else like
    return [
        _draw_weights(n_nets, n, m, C_b, C_W, init, gen, like) for n, m in zip(widths, widths[1:])
    ]


def forward(sigma: Function, weights: Weights, x: Float[Tensor, "b d"]) -> list[Tensor]:
    """``z^1, ..., z^L`` of every network, each ``s b n_l``."""
    z = [x @ weights[0][0].mT + weights[0][1][:, None]]
    for W, b in weights[1:]:
        z.append(sigma(z[-1]) @ W.mT + b[:, None])
    return z


def backward(sigma: Function, weights: Weights, z: list[Tensor]) -> list[Tensor]:
    """``delta^l = d z^L / d z^l`` for every network: ``s b outputs n_l``, layer 1 first."""
    outputs = z[-1].shape[-1]
    eye = torch.eye(outputs, dtype=z[-1].dtype, device=z[-1].device)
    delta = [eye.expand(*z[-1].shape[:-1], -1, -1)]
    for (W, _), lower in zip(weights[:0:-1], z[-2::-1]):
        delta.insert(0, delta[0] @ W[:, None] * slope_of(sigma)(lower)[..., None, :])
    return delta


def layer_gradients(
    sigma: Function, weights: Weights, x: Float[Tensor, "d"]
) -> tuple[Float[Tensor, "s layers"], Float[Tensor, "s layers"], Float[Tensor, "s layers"]]:
    """``(|delta^l|, |df/dW^l|, <W^l, df/dW^l> / f)`` of networks with one output, for one input.

    The norm of ``delta^l = df/dz^l`` is that of the gradient in the layer's bias. The last is 1 in
    every layer of a piecewise linear network without biases, which is homogeneous of degree one in
    each of its matrices; it is NaN where f is 0, as in a dead network.

    Raises:
        ValueError: more than one output, an ``x`` that is not one finite input of the right size.
    """
    _check_input(x, 1, weights[0][0].shape[-1])
    z = forward(sigma, weights, x[None])
    if z[-1].shape[-1] != 1:
        raise ValueError(f"the networks have {z[-1].shape[-1]} outputs: allowed is 1")
    delta = [d[:, 0, 0] for d in backward(sigma, weights, z)]
    fed = [x.expand(len(z[0]), -1), *(sigma(v[:, 0]) for v in z[:-1])]
    errors = torch.stack([d.norm(dim=1) for d in delta], 1)
    sizes = torch.stack([a.norm(dim=1) for a in fed], 1)
    inner = [torch.einsum("so,soi,si->s", d, W, a) for d, (W, _), a in zip(delta, weights, fed)]
    return errors, errors * sizes, torch.stack(inner, 1) / z[-1][:, 0]


def sample_ntk(
    sigma: Function,
    n_nets: int,
    width: int,
    layers: int,
    x: Float[Tensor, "b d"],
    C_b: float,
    C_W: float,
    gen: torch.Generator,
    *,
    lambda_b: float = 0.0,
    lambda_W: float = 1.0,
    outputs: int = 1,
    init: str = "gaussian",
    chunk: int = 50,
) -> tuple[Float[Tensor, "s b o b o"], Float[Tensor, "s b o"]]:
    """Tangent kernels of random networks, and their outputs.

    ``Theta = sum_l (delta^l delta^l^T) (lambda_b + (lambda_W / n) sigma sigma^T)``, with the input
    in place of sigma in the first layer; a weight's rate is divided by its layer's inputs.

    Args:
        chunk: networks at a time.

    Raises:
        ValueError: a count below 1, a negative variance, unknown ``init``, an ``x`` that is not a
            finite matrix of floats.
    """
    _check_sizes(n_nets, width, layers, C_b, C_W)
    _check_input(x, 2)
    if outputs < 1 or chunk < 1:
        raise ValueError(f"outputs={outputs}, chunk={chunk}: allowed is 1 or more of each")
    widths = [x.shape[1], *[width] * (layers - 1), outputs]
    thetas, outs = [], []
    for first in range(0, n_nets, chunk):
        s = min(chunk, n_nets - first)
        weights = sample_weights(s, widths, C_b, C_W, gen, init, x)
        z = forward(sigma, weights, x)
        fed = [x.expand(s, *x.shape), *map(sigma, z[:-1])]
        theta = 0.0
        for a, d in zip(fed, backward(sigma, weights, z)):
            inputs = lambda_b + lambda_W / a.shape[-1] * a @ a.mT
            errors = torch.einsum("spon,sqmn->spoqm", d, d)
            theta = theta + errors * inputs[:, :, None, :, None]
        thetas.append(theta)
        outs.append(z[-1])
    return torch.cat(thetas), torch.cat(outs)


def estimate_tensors(
    sigma: Function,
    n_nets: int,
    width: int,
    layers: int,
    x: Float[Tensor, "d"],
    C_b: float,
    C_W: float,
    gen: torch.Generator,
    *,
    lambda_b: float = 0.0,
    lambda_W: float = 1.0,
    outputs: int = 3,
    second: bool = True,
    chunk: int = 250,
) -> pd.DataFrame:
    """The eleven tensors of order 1/n on random networks: estimate and standard error, times n.

    V, A, B, D, F, P, Q as in ``vertex.fluctuation_flow``. The kernel's second derivative has two
    parts, and with the rates' sum over repeated parameters

        ddI_{abcd}  = d^3 z_a (g_b, g_c, g_d),        g_b = rates * d z_b
        ddII_{abcd} = (d^2 z_a g_c) . rates . (d^2 z_b g_d)

    R is n E[ddI_{iijj}], S, T, U are n E[ddII] of iijj, ijij and ijji. All derivatives are exact,
    by nested forward differentiation; only the average over networks is an estimate.

    Args:
        outputs: neurons of the last layer; every ordered pair of them is averaged over.
        second: whether to compute R, S, T, U, the costly half.

    Raises:
        ValueError: fewer than 2 outputs or networks, or as ``sample_ensemble``.
    """
    if outputs < 2 or n_nets < 2:
        raise ValueError(f"outputs={outputs}, n_nets={n_nets}: allowed is 2 or more")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: allowed is 1 or more")
    _check_sizes(n_nets, width, layers, C_b, C_W)
    _check_input(x, 1)
    widths = [len(x), *[width] * (layers - 1), outputs]

    def one(weights):
        return _derivatives(sigma, weights, x, lambda_b, lambda_W, second)

    parts = []
    for first in range(0, n_nets, chunk):
        s = min(chunk, n_nets - first)
        parts.append(vmap(one)(sample_weights(s, widths, C_b, C_W, gen, like=x)))
    z, theta, d1, *d2 = (torch.cat(p).double() for p in zip(*parts))
    i, j = (~torch.eye(outputs, dtype=torch.bool)).nonzero().T
    z2, own = z.square(), theta.diagonal(dim1=1, dim2=2)
    z2, own = z2 - z2.mean(0), own - own.mean(0)
    terms = {
        "V": z2[:, i] * z2[:, j],
        "A": own[:, i] * own[:, j],
        "B": theta[:, i, j] ** 2,
        "D": z2[:, i] * own[:, j],
        "F": z[:, i] * z[:, j] * theta[:, i, j],
        "P": d1[:, i, j, j] * z[:, i],
        "Q": d1[:, i, i, j] * z[:, j],
    }
    if second:
        ddI, ddII = d2
        terms |= {"R": ddI[:, i, i, j, j], "S": ddII[:, i, i, j, j]}
        terms |= {"T": ddII[:, i, j, i, j], "U": ddII[:, i, j, j, i]}
    rows = {}
    for name, t in terms.items():
        t = width * t.mean(1)
        rows[name] = {"estimate": t.mean().item(), "error": t.std().item() / math.sqrt(n_nets)}
    return pd.DataFrame.from_dict(rows, orient="index")


def _derivatives(sigma, weights, x, lambda_b, lambda_W, second):
    """Outputs, kernel, its derivative and (if asked) both second derivatives, of one network."""

    def f(p):
        z = x
        for layer, (W, b) in enumerate(p):
            z = W @ (sigma(z) if layer else z) + b
        return z

    def rated(p):  # one gradient for each output, in the leading axis
        return [(lambda_W / W.shape[-1] * W, lambda_b * b) for W, b in p]

    def along(h, *directions):  # the repeated directional derivative of h
        for g in directions:
            h = lambda p, h=h, g=g: jvp(h, (p,), (g,))[1]
        return h

    gradients = jacrev(f)(weights)
    g = rated(gradients)
    flat = lambda p: torch.cat([torch.cat([W.flatten(1), b.flatten(1)], 1) for W, b in p], 1)
    m = gradients[0][0].shape[0]
    pick = lambda i: [(W[i], b[i]) for W, b in g]
    theta = flat(gradients) @ flat(g).T
    pairs = [[along(f, pick(b), pick(c))(weights) for c in range(m)] for b in range(m)]
    d1 = torch.stack([torch.stack(row, -1) for row in pairs], -2)
    if not second:
        return f(weights), theta, d1
    third = [
        [[along(f, pick(b), pick(c), pick(d))(weights) for d in range(m)] for c in range(m)]
        for b in range(m)
    ]
    ddI = torch.stack([torch.stack([torch.stack(c, -1) for c in b], -2) for b in third], -3)
    H = [jacrev(along(f, pick(c)))(weights) for c in range(m)]  # H[c]: d^2 z_a g_c, over a
    left = torch.stack([flat(h) for h in H])  # c a p
    right = torch.stack([flat(rated(h)) for h in H])
    return f(weights), theta, d1, ddI, torch.einsum("cap,dbp->abcd", left, right)


def _draw_weights(n_nets, n_in, n_out, C_b, C_W, init, gen, like) -> tuple[Tensor, Tensor]:
    W = _normal((n_nets, n_out, n_in), gen, like)
    if init == "orthogonal" and n_in == n_out:
        Q, R = torch.linalg.qr(W)
        # Signs of R's diagonal make the rotation uniform over the group.
        W = math.sqrt(C_W) * Q * R.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    else:
        W = math.sqrt(C_W / n_in) * W
    return W, math.sqrt(C_b) * _normal((n_nets, n_out), gen, like)


def _normal(shape, gen: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=gen, device=gen.device, dtype=like.dtype).to(like.device)


def _check_sizes(n_nets: int, width: int, layers: int, C_b: float, C_W: float) -> None:
    if min(n_nets, width, layers) < 1:
        raise ValueError(
            f"n_nets={n_nets}, width={width}, layers={layers}: allowed is 1 or more of each"
        )
    if not (0 <= C_b < math.inf and 0 <= C_W < math.inf):
        raise ValueError(f"C_b={C_b}, C_W={C_W}: variances, allowed is 0 or more and finite")


def _check_input(x: Tensor, ndim: int, size: int | None = None) -> None:
    what = "one input, (d,)" if ndim == 1 else "a batch of inputs, (b, d)"
    if x.ndim != ndim or x.numel() == 0 or (size is not None and x.shape[-1] != size):
        size = "" if size is None else f" with d = {size}"
        raise ValueError(f"x has shape {tuple(x.shape)}: allowed is {what}{size}, not empty")
    if not x.is_floating_point() or not x.isfinite().all():
        raise ValueError(f"x has dtype {x.dtype} or a NaN: allowed are finite floating numbers")
