"""A sweep, a field and the equations beside the ways that write the couplings or columns down.

``python -m tests.benchmarks.multitask_hebbian``; ratios above 1 mean that the peer takes longer.
All sides return the same numbers, compared first.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

import lib.beyond_backprop.multitask_hebbian as mh
from lib.core.seeds import pick_device
from lib.models.hopfield import glauber, patterns
from tests.benchmarks._timing import compare


def memories(K, N, B, device):
    gen = torch.Generator().manual_seed(0)
    xi = patterns(K * B, N, 0.4, gen=gen).view(B, K, N)
    return xi.to(device), patterns(B, N, gen=gen).to(device)


def seeded():
    return torch.Generator().manual_seed(3)


def plain_hopfield(xi: np.ndarray, s: np.ndarray) -> np.ndarray:
    """NumPy, couplings written down, one network after the other."""
    order = torch.randperm(s.shape[1], generator=seeded()).tolist()
    s = s.copy()
    for rows, state in zip(xi, s):
        J = rows.T @ rows / len(state)
        np.fill_diagonal(J, 0)
        for i in order:
            h = J[i] @ state
            if abs(h) > 1e-6:
                state[i] = np.sign(h)
    return s


def sweeps(device, N: int, B: int) -> list[dict]:
    # N is a power of two: fields that are zero come out as zero on every side.
    xi, s = memories(3, N, B, device)
    net = mh.MultitaskHebbianNetwork().fit(xi)
    own = lambda: net.run(s, 1, gen=seeded())
    name = f"sweep, K=3, N={N}, {B} networks"
    field = lambda: glauber(net.field, s, math.inf, gen=seeded())
    arrays = xi.cpu().numpy(), s.cpu().numpy()
    numpy = lambda: torch.from_numpy(plain_hopfield(*arrays)).to(device)
    return [
        compare(name, "a field a spin", own, field, 1e-6),
        compare(name, "NumPy, couplings", own, numpy, 1e-6),
    ]


def fields(device, N: int = 2000, B: int = 20) -> list[dict]:
    xi, s = memories(3, N, 1, device)
    s = s.expand(B, N).contiguous()
    net = mh.MultitaskHebbianNetwork().fit(xi[0])
    J = xi[0].T @ xi[0] / N
    J.fill_diagonal_(0)
    name = f"field, K=3, N={N}, {B} states"
    return [compare(name, "couplings", lambda: net.field(s), lambda: s @ J)]


def by_loops(K, d, beta, rho, nodes, steps):
    """The learned equations with one normal variable an entry, on a grid of nodes."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    v = 1 + math.sqrt(rho) * z
    values = np.concatenate([[0.0], v, -v])
    law = np.concatenate([[d], (1 - d) / 2 * w / w.sum(), (1 - d) / 2 * w / w.sum()])
    columns = np.array(list(itertools.product(values, repeat=K)))
    p = np.array([math.prod(c) for c in itertools.product(law, repeat=K)])
    n = np.array([d**k * (1 - d) for k in range(K)])
    for _ in range(steps):
        n = (p * np.tanh(beta / (1 + rho) * columns @ n)) @ columns
    return torch.from_numpy(n)


def equations(K: int = 3, d: float = 0.4, beta: float = 3.0, rho: float = 0.2) -> list[dict]:
    own = lambda: mh.self_consistency(K, d, beta, rho=rho, steps=60, tol=0).n
    peer = lambda: by_loops(K, d, beta, rho, 14, 60)
    return [compare(f"equations, K={K}, rho={rho}, 60 steps", "a rule an entry", own, peer, 1e-3)]


def main() -> list[dict]:
    device = pick_device("auto")
    rows = sweeps(device, 512, 20) + fields(device) + equations()
    if device.type == "cuda":
        rows += fields(device, 20_000, 1000)
    return rows


if __name__ == "__main__":
    for row in main():
        memory = row.get("memory_ratio")
        print(
            f"{row['name']:<44} {row['seconds'] * 1e3:8.2f} ms  {row['peer']:<18}"
            f"{row['peer_seconds'] * 1e3:9.2f} ms  ratio {row['ratio']:.2f}"
            + ("" if memory is None else f"  memory {memory:.1f}")
        )
