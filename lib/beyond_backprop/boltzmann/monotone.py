"""The weights of a monotone Boltzmann machine (Feng, Winston and Kolter, 2023, section 3).

A state of the machine gives every node i one of ``k_i`` values, written as a one-hot vector
``x_i``; all of them one after another are a vector of ``K = sum k_i`` numbers. Its probability is
proportional to ``exp(x^T Phi x / 2 + b^T x)``, ``Phi`` symmetric with zero blocks on the diagonal.

Runs of equal nodes describe the layout: ``((64, 2), (32, 4), (1, 10))`` are 64 binary nodes, 32
nodes of four states and one of ten. A leading axis of ``A`` and ``b`` holds several machines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Groups = Sequence[tuple[int, int]]


def monotone_weights(
    A: Float[Tensor, "*s p K"],
    groups: Groups,
    m: float = 0.1,
    gains: Float[Tensor, "*s n"] | None = None,
) -> Float[Tensor, "*s K K"]:
    """``Phi = blockdiag(A^T A) - A^T A`` with every block ``A_i`` of norm at most ``sqrt(1 - m)``.

    Then ``I - Phi = I - blockdiag(A^T A) + A^T A >= m I``: the block diagonal takes at most
    ``1 - m``, and ``A^T A`` takes nothing. The diagonal blocks of the result are exactly zero.
    """
    A_hat = project_blocks(A, groups, m, gains)
    return (A_hat.mT @ A_hat).neg().masked_fill(same_node(groups, A.device), 0.0)


def project_blocks(
    A: Float[Tensor, "*s p K"],
    groups: Groups,
    m: float = 0.1,
    gains: Float[Tensor, "*s n"] | None = None,
) -> Float[Tensor, "*s p K"]:
    """``A_i <- min(1, sqrt(1 - m) / |A_i|_2) A_i`` for every node's ``k_i`` columns.

    ``gains`` in (0, 1] shrink the blocks further; any such factor keeps the bound.

    Raises:
        ValueError: ``m`` or ``gains`` outside (0, 1], or groups that do not fill the columns.
    """
    if not 0 < m <= 1:
        raise ValueError(f"m={m}: allowed is above 0, up to 1")
    norms = block_norms(A, groups)
    scale = (math.sqrt(1 - m) / norms.clamp_min(1e-12)).clamp_max(1.0)
    if gains is not None:
        if not bool(((gains > 0) & (gains <= 1)).all()):
            low, high = float(gains.min()), float(gains.max())
            raise ValueError(f"gains: from {low:g} to {high:g}; allowed is above 0, up to 1")
        scale = scale * gains
    return A * scale.repeat_interleave(states(groups, A.device), -1).unsqueeze(-2)


def block_norms(A: Float[Tensor, "*s p K"], groups: Groups) -> Float[Tensor, "*s n"]:
    """Spectral norm of every node's block, from the largest eigenvalue of ``A_i^T A_i``."""
    _check_groups(groups, A.shape[-1])
    norms, at = [], 0
    for count, k in groups:
        block = A[..., at : at + count * k].unflatten(-1, (count, k)).movedim(-2, -3)
        at += count * k
        gram = block.mT @ block
        if k == 1:
            top = gram[..., 0, 0]
        elif k == 2:  # the formula is many times faster than LAPACK on 64 small matrices
            a, b, c = gram[..., 0, 0], gram[..., 1, 1], gram[..., 0, 1]
            # The tiny number keeps the root's slope finite where both eigenvalues agree.
            top = (a + b) / 2 + ((a - b).square() / 4 + c.square() + 1e-24).sqrt()
        else:
            top = torch.linalg.eigvalsh(gram)[..., -1]
        norms.append(top.clamp_min(1e-24).sqrt())
    return torch.cat(norms, -1)


class MonotoneBoltzmann(nn.Module):
    """``members`` machines over ``groups``: ``.A: "s p K"``, ``.b: "s K"``, ``.tau: "s n"``.

    ``tau_i^2`` multiplies node i's field where an answer is read (``conditional.read_out``), never
    in the fixed point itself: it sharpens answers that the bound on attraction keeps soft.

    Args:
        p: rows of A. Every attraction or repulsion is an inner product of p numbers.
        m: the margin of monotonicity, in (0, 1].
        scale: entries of A start as ``N(0, scale^2 / p)``.
        sharpness: where ``tau^2`` starts, above 0.
        gens: one generator for each member.

    Raises:
        ValueError: groups, ``p``, ``m`` or ``sharpness`` out of range, no generators.
    """

    def __init__(
        self,
        groups: Groups,
        p: int = 64,
        m: float = 0.1,
        scale: float = 0.3,
        sharpness: float = 1.0,
        *,
        gens: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.groups, self.m = tuple((int(c), int(k)) for c, k in groups), m
        K = sum(c * k for c, k in self.groups)
        _check_groups(self.groups, K)
        if p < 1:
            raise ValueError(f"p={p}: allowed is 1 or more")
        if not 0 < m <= 1:
            raise ValueError(f"m={m}: allowed is above 0, up to 1")
        if not gens:
            raise ValueError("gens: none; allowed is one generator for each member, 1 or more")
        draws = [torch.randn(p, K, generator=g) for g in gens]
        self.A = nn.Parameter(torch.stack(draws) * scale / math.sqrt(p))
        self.b = nn.Parameter(torch.zeros(len(draws), K))
        self.tau = start_tau(len(draws), self.groups, sharpness)

    def Phi(self) -> Float[Tensor, "s K K"]:
        """The weights, monotone whatever A is."""
        return monotone_weights(self.A, self.groups, self.m)


def start_tau(members: int, groups: Groups, sharpness: float) -> nn.Parameter:
    """``tau: "s n"``, one number a node, whose squares are ``sharpness``."""
    if not sharpness > 0:
        raise ValueError(f"sharpness={sharpness}: allowed is above 0")
    return nn.Parameter(torch.full((members, sum(c for c, _ in groups)), math.sqrt(sharpness)))


def lipschitz(Phi: Float[Tensor, "*s K K"], iterations: int | None = None) -> Float[Tensor, "*s"]:
    """``L = 1 - lambda_min(Phi)``, the largest eigenvalue of ``I - Phi``.

    ``iterations=None`` takes all eigenvalues; a number runs that many steps of the power method on
    ``I - Phi``, which approaches L from below. Weights that are not monotone may have attraction
    larger than repulsion; the iteration then subtracts the negative value that it meets.

    Raises:
        ValueError: ``iterations`` below 1.
    """
    if iterations is not None and iterations < 1:
        raise ValueError(f"iterations={iterations}: allowed is 1 or more, or None")
    if iterations is None:
        return 1 - torch.linalg.eigvalsh(Phi)[..., 0]
    v = torch.ones_like(Phi[..., :1])
    v[..., ::2, :] = -1.0  # constant vectors mean little to a machine: they shift all states alike
    v = v + 0.1 * torch.linspace(0, 1, v.shape[-2], dtype=v.dtype, device=v.device)[:, None]
    lowest = torch.zeros_like(Phi[..., :1, :1])
    for _ in range(iterations):
        w = v - Phi @ v
        lowest = torch.minimum(lowest, v.mT @ w / (v.mT @ v))
        v = w - lowest * v
        v = v / v.norm(dim=-2, keepdim=True)
    return 1 - (v.mT @ Phi @ v)[..., 0, 0]


def aligned_weights(
    n: int, k: int, rank: int, m: float = 0.1, *, gen: torch.Generator, spread: float = 0.1
) -> Float[Tensor, "K K"]:
    """Weights (float64) of ``n`` nodes that all repel one another in the same directions.

    Every block of A is one common ``rank x k`` matrix, plus a share ``spread`` of noise, at the
    largest norm allowed, so that ``A^T A`` has an eigenvalue of nearly ``(1 - m) n``.

    Raises:
        ValueError: ``n``, ``k`` or ``rank`` below 1, ``m`` outside (0, 1].
    """
    for name, value in (("n", n), ("k", k), ("rank", rank)):
        if value < 1:
            raise ValueError(f"{name}={value}: allowed is 1 or more")
    common = torch.randn(rank, 1, k, generator=gen, dtype=torch.float64)
    noise = torch.randn(rank, n, k, generator=gen, dtype=torch.float64)
    A = (common + spread * noise).flatten(1)
    groups = ((n, k),)
    A = A / block_norms(A, groups).repeat_interleave(k)
    return monotone_weights(A, groups, m)


def states(groups: Groups, device: torch.device | None = None) -> Int[Tensor, "n"]:
    """The number of states of every node."""
    return torch.tensor([k for count, k in groups for _ in range(count)], device=device)


def node_of(groups: Groups, device: torch.device | None = None) -> Int[Tensor, "K"]:
    """For every one of the K numbers, the node it belongs to."""
    sizes = states(groups, device)
    return torch.arange(len(sizes), device=device).repeat_interleave(sizes)


def same_node(groups: Groups, device: torch.device | None = None) -> Bool[Tensor, "K K"]:
    """Where two of the K numbers belong to one node: the diagonal blocks."""
    node = node_of(groups, device)
    return node[:, None] == node


def _check_groups(groups: Groups, K: int) -> None:
    if any(c < 1 or k < 1 for c, k in groups) or sum(c * k for c, k in groups) != K:
        raise ValueError(
            f"groups={tuple(groups)}: pairs (count, states), 1 or more each, that fill {K} columns"
        )
