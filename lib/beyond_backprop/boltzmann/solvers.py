"""Mean-field inference by operator splitting, and its gradient (Feng et al., 2023, section 4).

All solvers find ``q = softmax(Phi q + b)``, softmax over each node's states. ``Phi`` is a matrix
``"*s K K"`` (a leading axis of machines goes with ``q: "*s b K"``) or a function that multiplies.
Numbers where ``free`` is False are observed: they keep the values they have in ``start``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.kernels.prox_softmax import prox_softmax, prox_step, prox_vjp

Groups = Sequence[tuple[int, int]]
Weights = Tensor | Callable[[Tensor], Tensor]


@dataclass
class Solution:
    """``q``, how many iterations it took, the relative change of each, and the step size used."""

    q: Tensor
    iterations: int
    changes: list[float]
    alpha: float
    converged: bool


@torch.no_grad()
def forward_backward(
    Phi: Weights,
    b: Float[Tensor, "*#b K"],
    groups: Groups,
    alpha: float = 0.125,
    *,
    start: Float[Tensor, "*#b K"] | None = None,
    free: Bool[Tensor, "*#b K"] | None = None,
    tol: float = 1e-2,
    most: int = 50,
    halve: bool = True,
    watch: Callable[[Tensor], None] | None = None,
) -> Solution:
    """``q <- prox((1 - alpha) q + alpha (Phi q + b))`` until ``|change| <= tol |q|``.

    For monotone weights it converges from any start if ``alpha <= 2 / L``, ``L = 1 -
    lambda_min(Phi)``. ``halve``: where the change has not fallen for eight steps, alpha is
    halved, so that a step too long for weights that have grown in training costs iterations and
    not the result.

    Args:
        watch: called with q before the first step and after every one.

    Raises:
        ValueError: ``Phi``, ``start`` or ``free`` not of b's size, ``free`` without ``start``,
            ``alpha`` outside (0, 1], ``most`` below 1, ``tol`` below 0. (All solvers.)
    """
    q = _start(Phi, b, groups, start, free, tol, most)
    if watch is not None:
        watch(q)
    if free is not None:
        moving = free.to(q.dtype)
        held = q * (1 - moving)
    changes: list[float] = []
    best, stalled = float("inf"), 0
    size = float(q.norm()) or 1.0
    for k in range(most):
        x, change = prox_step(q, multiply(Phi, q) + b, alpha, groups)
        if free is not None:
            x = x.mul_(moving).add_(held)
            change = (x - q).square().sum()
        changes.append(float(change.sqrt()) / size)
        q = x
        if watch is not None:
            watch(q)
        if changes[-1] <= tol:
            return Solution(q, k + 1, changes, alpha, True)
        stalled = 0 if changes[-1] < 0.99 * best else stalled + 1
        best = min(best, changes[-1])
        if halve and stalled == 8:
            alpha, best, stalled = alpha / 2, changes[-1], 0
    return Solution(q, most, changes, alpha, False)


@torch.no_grad()
def anderson(
    Phi: Weights,
    b: Float[Tensor, "*#b K"],
    groups: Groups,
    alpha: float = 0.125,
    *,
    memory: int = 5,
    start: Float[Tensor, "*#b K"] | None = None,
    free: Bool[Tensor, "*#b K"] | None = None,
    tol: float = 1e-2,
    most: int = 50,
    watch: Callable[[Tensor], None] | None = None,
) -> Solution:
    """Anderson acceleration of the forward-backward step, for each row of the batch by itself.

    The next iterate is the combination of the last ``memory`` results whose changes cancel best.
    A combination may leave the simplex; a step brings it back, so the result of a plain step is
    what is returned.

    Raises:
        ValueError: ``memory`` below 1.
    """
    if memory < 1:
        raise ValueError(f"memory={memory}: allowed is 1 or more")
    q = _start(Phi, b, groups, start, free, tol, most)
    if watch is not None:
        watch(q)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    changes: list[float] = []
    size = float(q.norm()) or 1.0
    x = q
    for k in range(most):
        x, _ = prox_step(q.clamp_min(0), multiply(Phi, q) + b, alpha, groups)
        x = x if free is None else torch.where(free, x, q)
        changes.append(float((x - q).norm()) / size)
        if watch is not None:
            watch(x)
        if changes[-1] <= tol:
            return Solution(x, k + 1, changes, alpha, True)
        inputs, outputs = [*inputs, q][-memory:], [*outputs, x][-memory:]
        F = torch.stack([o - i for i, o in zip(inputs, outputs)], -2)  # "*b memory K"
        gram = F @ F.mT
        eye = torch.eye(len(inputs), dtype=q.dtype, device=q.device)
        trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        gram = gram + (1e-7 * trace + torch.finfo(q.dtype).tiny) * eye
        weights = torch.linalg.solve(gram, torch.ones_like(gram[..., :1]))
        weights = weights / weights.sum(-2, keepdim=True)
        mixed = (weights * torch.stack(outputs, -2)).sum(-2)
        # The step is not linear: where the mixture is far outside the simplex, it is not used.
        sane = (mixed.amin(-1, keepdim=True) > -0.5) & mixed.isfinite().all(-1, keepdim=True)
        q = torch.where(sane, mixed, x)
    return Solution(x, most, changes, alpha, False)


@torch.no_grad()
def peaceman_rachford(
    Phi: Float[Tensor, "*s K K"],
    b: Float[Tensor, "*#b K"],
    groups: Groups,
    alpha: float = 1.0,
    *,
    start: Float[Tensor, "*#b K"] | None = None,
    tol: float = 1e-2,
    most: int = 50,
    watch: Callable[[Tensor], None] | None = None,
) -> Solution:
    """Alternates the resolvents of both parts: a linear solve, and the proximal operator.

    ``V = (I + alpha (I - Phi))^{-1}`` is formed once. With ``alpha = 1`` the proximal operator is
    softmax itself. It converges for every alpha, in few iterations, each with a dense product even
    where ``Phi`` is a convolution; it has no notion of observed nodes: fold them into ``b``.
    """
    q = _start(Phi, b, groups, start, None, tol, most)
    if watch is not None:
        watch(q)
    eye = torch.eye(Phi.shape[-1], dtype=Phi.dtype, device=Phi.device)
    V = torch.linalg.inv(eye + alpha * (eye - Phi))
    u, changes, size = q.clone(), [], float(q.norm()) or 1.0
    for k in range(most):
        half = 2 * q - u
        u = 2 * ((half + alpha * b) @ V.mT) - half
        x = prox_softmax(u, alpha, groups)
        changes.append(float((x - q).norm()) / size)
        q = x
        if watch is not None:
            watch(q)
        if changes[-1] <= tol:
            return Solution(q, k + 1, changes, alpha, True)
    return Solution(q, most, changes, alpha, False)


def implicit_mean_field(
    Phi: Weights,
    b: Float[Tensor, "*#b K"],
    groups: Groups,
    alpha: float = 0.125,
    *,
    start: Float[Tensor, "*#b K"] | None = None,
    free: Bool[Tensor, "*#b K"] | None = None,
    tol: float = 1e-2,
    most: int = 50,
) -> Float[Tensor, "*#b K"]:
    """The solution, with the gradient of the equation instead of the iterations'.

    With ``D`` the proximal operator's Jacobian at the solution and ``g`` the incoming gradient, the
    field ``Phi q + b`` receives ``w``, the fixed point of ``w = D ((1 - alpha) w + alpha (Phi w +
    g))``, found as the solution itself was. From the field, gradients flow to ``b`` and to whatever
    ``Phi`` is made of. Nothing of the iterations is kept.
    """
    found = forward_backward(Phi, b, groups, alpha, start=start, free=free, tol=tol, most=most)
    q = found.q
    field = multiply(Phi, q) + b
    held = Phi.detach() if isinstance(Phi, Tensor) else Phi
    settings = (held, groups, found.alpha, tol, most)
    return _Attach.apply(field, q, free, settings)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, field, q, free, settings):
        ctx.save_for_backward(q, free)
        ctx.settings = settings
        return q.clone()

    @staticmethod
    def backward(ctx, g):
        (q, free), (Phi, *rest) = ctx.saved_tensors, ctx.settings
        return adjoint(Phi, q, g, *rest, free=free), None, None, None


@torch.no_grad()
def adjoint(
    Phi: Weights,
    q: Float[Tensor, "*#b K"],
    g: Float[Tensor, "*#b K"],
    groups: Groups,
    alpha: float,
    tol: float,
    most: int,
    free: Bool[Tensor, "*#b K"] | None = None,
) -> Float[Tensor, "*#b K"]:
    """Gradient of the field at the solution ``q``, by the iteration above; zero where observed."""
    moving = None if free is None else free.to(q.dtype)
    if free is not None:
        g = g * moving
    w = torch.zeros_like(q)
    for _ in range(most):
        new = prox_vjp(q, torch.lerp(w, multiply(Phi, w) + g, alpha), alpha, groups)
        if free is not None:
            new = new.mul_(moving)
        change, w = (new - w).norm(), new
        if change <= tol * w.norm():
            break
    return w


def residual(
    Phi: Weights,
    b: Float[Tensor, "*#b K"],
    groups: Groups,
    q: Float[Tensor, "*#b K"],
    free: Bool[Tensor, "*#b K"] | None = None,
) -> Float[Tensor, "*rows"]:
    """``|softmax(Phi q + b) - q|`` over the free nodes, for every row."""
    gap = prox_softmax(multiply(Phi, q) + b, 1.0, groups) - q
    return (gap if free is None else torch.where(free, gap, 0.0)).norm(dim=-1)


def multiply(Phi: Weights, q: Float[Tensor, "*#b K"]) -> Float[Tensor, "*#b K"]:
    """``Phi q`` for symmetric weights."""
    return q @ Phi if isinstance(Phi, Tensor) else Phi(q)


def _start(
    Phi: Weights,
    b: Tensor,
    groups: Groups,
    start: Tensor | None,
    free: Tensor | None,
    tol: float,
    most: int,
) -> Tensor:
    """Where to begin; and what every solver checks."""
    K = b.shape[-1]
    if isinstance(Phi, Tensor) and tuple(Phi.shape[-2:]) != (K, K):
        raise ValueError(
            f"Phi: shape {tuple(Phi.shape)}; for b of {K} numbers allowed is {K} x {K}"
        )
    if most < 1:
        raise ValueError(f"most={most}: allowed is 1 or more")
    if not tol >= 0:
        raise ValueError(f"tol={tol}: allowed is 0 or more")
    if free is not None and free.shape[-1] != K:
        raise ValueError(f"free: {free.shape[-1]} numbers in a row; b has {K}")
    if start is None:
        if free is not None:
            raise ValueError("free: give start, too; it holds the values of the observed nodes")
        return prox_softmax(torch.zeros_like(b), 1.0, groups)
    if start.shape[-1] != K:
        raise ValueError(f"start: {start.shape[-1]} numbers in a row; b has {K}")
    return start.detach().expand(torch.broadcast_shapes(start.shape, b.shape)).clone()
