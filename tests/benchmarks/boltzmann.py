"""Monotone inference and its gradient beside unrolling, torchdeq, bisection and scikit-learn.

``python -m tests.benchmarks.boltzmann``; ratios above 1 mean that the peer takes longer or more
memory. The same fixed points and gradients on both sides, compared before they are timed.
"""

from __future__ import annotations

import importlib

import torch

import lib.beyond_backprop.boltzmann as bm
from lib.core.data import digits
from lib.core.seeds import child, pick_device
from lib.kernels.prox_softmax import prox_softmax, prox_step
from tests.benchmarks._timing import compare

GROUPS = ((64, 2), (32, 4), (1, 10))  # the chapter's machine
STEPS = 60


def bisection(z, alpha, rounds=30):
    """The proximal operator as one would first write it: nested bisection, one node layout."""
    low = z.amax(-1, keepdim=True) - (1 - alpha)
    high = z.amax(-1, keepdim=True) + alpha * torch.tensor(float(z.shape[-1])).log()
    for _ in range(rounds):
        lam = (low + high) / 2
        y = z - lam
        a, b = (y / alpha - 1 / alpha).clamp_max(0), (y / alpha).clamp_max(0)
        for _ in range(rounds):
            u = (a + b) / 2
            above = (1 - alpha) * u.exp() + alpha * u > y
            a, b = torch.where(above, a, u), torch.where(above, u, b)
        more = u.exp().sum(-1, keepdim=True) > 1
        low, high = torch.where(more, lam, low), torch.where(more, high, lam)
    return u.exp()


def operator(device) -> list[dict]:
    z = 2 * torch.randn(64 * 32, 4, generator=child(0, "z"), dtype=torch.float32).to(device)
    ours = lambda: prox_softmax(z, 0.125)
    name = f"proximal operator, {len(z):,} nodes of 4 states on {device.type}"
    return [compare(name, "nested bisection", ours, lambda: bisection(z, 0.125), 1e-4)]


def gradients(device) -> list[dict]:
    """Gradient of b and A of 64 questions, both sides iterated as far."""
    K = sum(c * k for c, k in GROUPS)
    A = (torch.randn(64, K, generator=child(0, "A")) * 0.1).to(device).requires_grad_()
    b = torch.randn(64, K, generator=child(0, "b")).to(device)
    wish = torch.randn(64, K, generator=child(0, "wish")).to(device)
    start = prox_softmax(torch.zeros_like(b), 1.0, GROUPS)

    def grad(q):
        return torch.autograd.grad((q * wish).sum(), A)[0]

    def ours():
        Phi = bm.monotone_weights(A, GROUPS)
        return grad(bm.implicit_mean_field(Phi, b, GROUPS, 0.25, tol=1e-6, most=STEPS))

    def unrolled():
        Phi, q = bm.monotone_weights(A, GROUPS), start
        for _ in range(STEPS):
            q = prox_step(q, q @ Phi + b, 0.25, GROUPS)[0]
        return grad(q)

    name = f"gradient of 64 questions, {K} numbers on {device.type}"
    rows = [compare(name, f"unrolled, {STEPS} steps", ours, unrolled, 1e-3)]
    if deq := _module("torchdeq"):
        solve = deq.get_deq(
            f_solver="fixed_point_iter", b_solver="fixed_point_iter",
            f_max_iter=STEPS, b_max_iter=STEPS, f_tol=1e-6, b_tol=1e-6, ift=True,
        )  # fmt: skip

        def theirs():
            Phi = bm.monotone_weights(A, GROUPS)
            f = lambda q: prox_step(q, q @ Phi + b, 0.25, GROUPS)[0]
            return grad(solve(f, start)[0][-1])

        rows.append(compare(name, "torchdeq, fixed-point iteration", ours, theirs, 1e-3))
    return rows


def machines() -> list[dict]:
    """One epoch of a 64-64 RBM: CD-1 here, persistent CD in scikit-learn, as many products."""
    from sklearn.neural_network import BernoulliRBM

    x = (digits().x > 0.5).float()
    rbm, gen = bm.RBM(64, 64, gen=child(0, "rbm")), child(0, "coin")
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1)

    def ours():
        for batch in x.split(64):
            rbm.contrastive_divergence(batch, 1, gen=gen)
            optimizer.step()

    peer = BernoulliRBM(64, learning_rate=0.1, batch_size=64, n_iter=1, random_state=0)
    theirs = lambda: peer.fit(x.numpy())
    return [compare("one epoch of a 64-64 RBM, 1,197 digits", "BernoulliRBM", ours, theirs, None)]


def _module(name: str):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def main() -> list[dict]:
    device = pick_device("auto")
    return operator(device) + gradients(device) + machines()


if __name__ == "__main__":
    for row in main():
        more = f"  memory {row['memory_ratio']:.1f}" if row.get("memory_ratio") else ""
        print(
            f"{row['name']:<58} {row['seconds'] * 1e3:8.2f} ms  {row['peer']:<32}"
            f"{row['peer_seconds'] * 1e3:8.2f} ms  ratio {row['ratio']:.2f}{more}"
        )
