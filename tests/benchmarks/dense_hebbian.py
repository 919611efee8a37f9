"""The distinct-index field and a sweep of Glauber dynamics beside the ways without matrix products.

``python -m tests.benchmarks.dense_hebbian``; ratios above 1 mean that the peer takes longer. All
sides return the same numbers, compared first.
"""

from __future__ import annotations

import itertools
import math

import torch

import lib.beyond_backprop.dense_hebbian as dh
from lib.core.seeds import pick_device
from lib.models.hopfield import glauber, patterns
from tests.benchmarks._timing import compare


def left_out_one_by_one(s, eb):
    """P = 4: every spin's partners without it, as arrays of shape (states, patterns, spins)."""
    a = s[:, None] * eb
    y = a.sum(-1, keepdim=True) - a
    q = (a**2).sum(-1, keepdim=True) - a**2
    c = (a**3).sum(-1, keepdim=True) - a**3
    return ((y**3 - 3 * q * y + 2 * c) * eb).sum(1) / eb.shape[1] ** 3


def two_products(s, eb, P):
    n = eb.shape[1]
    return (s @ eb.T / n) ** (P - 1) @ eb


def fields(device, N: int, K: int, B: int) -> list[dict]:
    gen = torch.Generator().manual_seed(0)
    eb = dh.sample_means(patterns(K, N, gen=gen), 0.6, 20, gen).to(device)
    s = patterns(B, N, gen=gen).to(device)
    size = f"N={N}, K={K:,}, {B} states on {device.type}"
    own = lambda: dh.dense_field(s, eb, 4)
    rows = []
    if B * K * N < 10**8:  # the peer holds several arrays of this size
        peer = lambda: left_out_one_by_one(s, eb)
        rows.append(compare(f"P=4 field, {size}", "spin by spin", own, peer))
    return rows + [
        compare(
            f"P=4 field, all indices, {size}",
            "two matmuls",
            lambda: dh.dense_field(s, eb, 4, "all"),
            lambda: two_products(s, eb, 4),
        ),
        compare(
            f"P=4 distinct beside all indices, {size}",
            "two matmuls",
            own,
            lambda: two_products(s, eb, 4),
            None,
        ),
    ]


def tensor(device, N: int = 24, K: int = 200, B: int = 50) -> list[dict]:
    """Couplings written down once, then contracted: what N^P costs already at N = 24."""
    gen = torch.Generator().manual_seed(1)
    eb, s = (patterns(k, N, gen=gen).to(device) for k in (K, B))
    J, sets = dh.stored_couplings(eb, 4)
    dense = torch.zeros(N, N, N, N, device=device)
    for order in itertools.permutations(range(4)):
        dense[tuple(sets[:, i] for i in order)] = J
    contract = lambda: torch.einsum("ijkl,bj,bk,bl->bi", dense, s, s, s) / N**3
    own = lambda: dh.dense_field(s, eb, 4)
    name = f"P=4 field, N={N}, K={K}, {B} states, {math.comb(N, 4):,} couplings"
    listed = lambda: dh.couplings_field(s, J, sets)
    return [
        compare(name, "tensor, einsum", own, contract),
        compare(name, "stored couplings", own, listed),
    ]


def sweeps(device, N: int = 60, K: int = 700, B: int = 50) -> list[dict]:
    gen = torch.Generator().manual_seed(2)
    eb, s = (patterns(k, N, gen=gen).to(device) for k in (K, B))
    seeded = lambda: torch.Generator().manual_seed(3)
    own = lambda: dh.sequential_sweep(s, eb, 3, 2.0, gen=seeded())
    plain = lambda: glauber(lambda v: dh.dense_field(v, eb, 3), s, 2.0, gen=seeded())
    return [compare(f"P=3 sweep, N={N}, K={K}, {B} states", "a field a spin", own, plain, 1e-6)]


def main() -> list[dict]:
    device = pick_device("auto")
    rows = fields(device, 60, 3600, 20)
    if device.type == "cuda":
        rows += fields(device, 200, 160_000, 1024)
    return rows + tensor(device) + sweeps(device)


if __name__ == "__main__":
    for row in main():
        memory = row.get("memory_ratio")
        print(
            f"{row['name']:<62} {row['seconds'] * 1e3:8.2f} ms  {row['peer']:<18}"
            f"{row['peer_seconds'] * 1e3:9.2f} ms  ratio {row['ratio']:.2f}"
            + ("" if memory is None else f"  memory {memory:.1f}")
        )
