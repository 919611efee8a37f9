"""What monotone inference is compared with: other mean-field updates, exact sums, other machines.

- ``parallel_mean_field``: all nodes at once, undamped; it may cycle.
- ``damped_mean_field``: the same with damped logarithms (P. Baque et al., CVPR 2016,
  arXiv:1511.06103).
- ``krahenbuhl_koltun``: the convex-concave procedure (P. Krahenbuhl and V. Koltun, ICML 2013).
- ``sequential_mean_field``: one node after another (coordinate ascent); descends always.
- ``enumerate_marginals``: the true marginals of small machines, which mean-field only approximates.
- ``RBM``: a restricted Boltzmann machine with contrastive divergence (G. Hinton, 2002).
- ``FreeBoltzmann``: the same graph without the constraint.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.beyond_backprop.boltzmann.monotone import Groups, same_node, start_tau
from lib.beyond_backprop.boltzmann.solvers import Solution, _start, multiply
from lib.kernels.prox_softmax import prox_softmax, prox_step

Watch = Callable[[Tensor], None]


@torch.no_grad()
def parallel_mean_field(
    Phi: Tensor,
    b: Float[Tensor, "*#b K"],
    groups: Groups,
    *,
    start: Tensor | None = None,
    free: Tensor | None = None,
    tol: float = 1e-2,
    most: int = 50,
    watch: Watch | None = None,
) -> Solution:
    """``q <- softmax(Phi q + b)``, every node at once."""
    update = lambda q: prox_softmax(multiply(Phi, q) + b, 1.0, groups)
    return _iterate(
        update, _start(Phi, b, groups, start, free, tol, most), free, 1.0, tol, most, watch
    )


@torch.no_grad()
def damped_mean_field(
    Phi: Tensor,
    b: Float[Tensor, "*#b K"],
    groups: Groups,
    eta: float = 0.5,
    *,
    start: Tensor | None = None,
    free: Tensor | None = None,
    tol: float = 1e-2,
    most: int = 50,
    watch: Watch | None = None,
) -> Solution:
    """``q <- softmax((1 - eta) log q + eta (Phi q + b))``: a gradient step in the logarithms.

    Raises:
        ValueError: ``eta`` outside (0, 1].
    """
    if not 0 < eta <= 1:
        raise ValueError(f"eta={eta}: allowed is above 0, up to 1")

    def update(q):
        logs = q.clamp_min(torch.finfo(q.dtype).tiny).log()
        return prox_softmax(torch.lerp(logs, multiply(Phi, q) + b, eta), 1.0, groups)

    return _iterate(
        update, _start(Phi, b, groups, start, free, tol, most), free, eta, tol, most, watch
    )


@torch.no_grad()
def krahenbuhl_koltun(
    Phi: Tensor,
    b: Float[Tensor, "*#b K"],
    groups: Groups,
    bound: float | None = None,
    *,
    start: Tensor | None = None,
    free: Tensor | None = None,
    tol: float = 1e-2,
    most: int = 50,
    watch: Watch | None = None,
) -> Solution:
    """The convex-concave procedure: ``-q^T (Phi + c I) q / 2`` is replaced by its tangent.

    With ``c >= -lambda_min(Phi)`` (``bound``, the smallest such c where absent) that part is
    concave, and the free energy falls at every step. What is left to minimize,
    ``sum q log q + c |q|^2 / 2 - q^T (b + Phi q_k + c q_k)``, has the condition
    ``log q + c q = const``: it is the proximal operator with ``alpha = 1 / (1 + c)``, so the
    procedure is forward-backward splitting with the step ``1 / L``.
    """
    c = float(-torch.linalg.eigvalsh(Phi)[..., 0].min()) if bound is None else bound
    if c < 0:
        raise ValueError(f"bound={bound}: allowed is 0 or more")
    alpha = 1 / (1 + c)
    update = lambda q: prox_step(q, multiply(Phi, q) + b, alpha, groups)[0]
    return _iterate(
        update, _start(Phi, b, groups, start, free, tol, most), free, alpha, tol, most, watch
    )


@torch.no_grad()
def sequential_mean_field(
    Phi: Float[Tensor, "K K"],
    b: Float[Tensor, "*#b K"],
    groups: Groups,
    *,
    start: Tensor | None = None,
    free: Tensor | None = None,
    tol: float = 1e-2,
    most: int = 50,
    watch: Watch | None = None,
) -> Solution:
    """``most`` sweeps; in each, node after node takes ``softmax`` of the field it sees now."""

    def sweep(q):
        q, at = q.clone(), 0
        for count, k in groups:
            for i in range(count):
                here = slice(at + i * k, at + (i + 1) * k)
                new = torch.softmax(q @ Phi[:, here] + b[..., here], -1)
                q[..., here] = (
                    new if free is None else torch.where(free[..., here], new, q[..., here])
                )
            at += count * k
        return q

    return _iterate(
        sweep, _start(Phi, b, groups, start, free, tol, most), free, 1.0, tol, most, watch
    )


def free_energy(
    Phi: Tensor, b: Float[Tensor, "*#b K"], q: Float[Tensor, "*#b K"]
) -> Float[Tensor, "*rows"]:
    """``sum q log q - q^T Phi q / 2 - b^T q``, what mean-field inference minimizes."""
    return (torch.special.entr(q).neg() - 0.5 * q * multiply(Phi, q) - b * q).sum(-1)


def enumerate_marginals(
    Phi: Float[Tensor, "K K"], b: Float[Tensor, "K"], groups: Groups
) -> Float[Tensor, "K"]:
    """True marginals by summing over all joint states.

    Raises:
        ValueError: more than 2^16 joint states.
    """
    sizes = [k for count, k in groups for _ in range(count)]
    total = torch.tensor(sizes, dtype=torch.float64).prod().item()
    if total > 2**16:
        raise ValueError(f"groups: {total:.3g} joint states; allowed are 65,536 (16 binary nodes)")
    eyes = [torch.eye(k, dtype=b.dtype, device=b.device) for k in sizes]
    x = torch.stack([torch.cat(rows) for rows in itertools.product(*eyes)])
    weights = torch.softmax((0.5 * x * (x @ Phi)).sum(-1) + x @ b, 0)
    return weights @ x


def free_weights(W: Float[Tensor, "*s K K"], groups: Groups) -> Float[Tensor, "*s K K"]:
    """``W + W^T`` without its diagonal blocks: any weights, monotone or not."""
    return (W + W.mT).masked_fill(same_node(groups, W.device), 0.0)


class FreeBoltzmann(nn.Module):
    """``MonotoneBoltzmann`` without its constraint: every pair of nodes has weights of its own."""

    def __init__(
        self,
        groups: Groups,
        scale: float = 0.01,
        sharpness: float = 1.0,
        *,
        gens: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.groups = tuple((int(c), int(k)) for c, k in groups)
        K = sum(c * k for c, k in self.groups)
        self.W = nn.Parameter(scale * torch.stack([torch.randn(K, K, generator=g) for g in gens]))
        self.b = nn.Parameter(torch.zeros(len(self.W), K))
        self.tau = start_tau(len(self.W), self.groups, sharpness)

    def Phi(self) -> Float[Tensor, "s K K"]:
        """Symmetric, with empty diagonal blocks, and nothing else."""
        return free_weights(self.W, self.groups)


class RBM(nn.Module):
    """Binary visible and hidden units, ``p(v, h)`` proportional to ``exp(v^T W h + a.v + c.h)``."""

    def __init__(self, visible: int, hidden: int, *, gen: torch.Generator) -> None:
        super().__init__()
        self.W = nn.Parameter(0.01 * torch.randn(visible, hidden, generator=gen))
        self.a, self.c = nn.Parameter(torch.zeros(visible)), nn.Parameter(torch.zeros(hidden))

    @torch.no_grad()
    def contrastive_divergence(
        self, v: Float[Tensor, "b visible"], k: int = 1, *, gen: torch.Generator
    ) -> Float[Tensor, ""]:
        """Put the CD-k gradient into ``.grad``; returns the mean squared reconstruction error."""
        if k < 1:
            raise ValueError(f"k={k}: allowed is 1 or more")
        draw = lambda p: (torch.rand(p.shape, generator=gen).to(p) < p).to(p)
        up, x = self.hidden(v), v
        h = up
        for _ in range(k):
            x = draw(torch.sigmoid(draw(h) @ self.W.T + self.a))
            h = self.hidden(x)
        self.W.grad = (x.T @ h - v.T @ up) / len(v)
        self.a.grad, self.c.grad = (x - v).mean(0), (h - up).mean(0)
        return (torch.sigmoid(up @ self.W.T + self.a) - v).square().mean()

    def hidden(self, v: Float[Tensor, "b visible"]) -> Float[Tensor, "b hidden"]:
        return torch.sigmoid(v @ self.W + self.c)

    @torch.no_grad()
    def complete(
        self, v: Float[Tensor, "b visible"], observed: Tensor, iterations: int = 100
    ) -> Float[Tensor, "b visible"]:
        """Parallel, undamped mean-field from the units' biases; observed units stay as they are."""
        q = torch.where(observed, v, torch.sigmoid(self.a))
        for _ in range(iterations):
            q = torch.where(observed, v, torch.sigmoid(self.hidden(q) @ self.W.T + self.a))
        return q


def _iterate(update, q, free, alpha, tol, most, watch) -> Solution:
    if watch is not None:
        watch(q)
    changes, size = [], float(q.norm()) or 1.0
    for k in range(most):
        x = update(q)
        x = x if free is None else torch.where(free, x, q)
        changes.append(float((x - q).norm()) / size)
        q = x
        if watch is not None:
            watch(q)
        if changes[-1] <= tol:
            return Solution(q, k + 1, changes, alpha, True)
    return Solution(q, most, changes, alpha, False)
