"""Distances, draws and critic steps beside SciPy, POT and the plain way to write them.

``python -m tests.benchmarks.functional_prior``; ratios above 1 mean that the peer takes longer. The
same work on both sides, on one thread; outputs are compared before anything is timed. POT's rows
are there where it is installed (``pip install pot``).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.func import functional_call, vmap

from lib.core.seeds import child
from lib.models.mlp import MLP
from lib.width.functional_prior import (
    BNNPrior,
    Critic,
    critic_objective,
    difference,
    empirical_w1_1d,
)
from tests.benchmarks._timing import compare


def distances(n: int, m: int) -> list[dict]:
    from scipy.stats import wasserstein_distance

    f, g = (torch.randn(n, m, generator=child(0, k), dtype=torch.float64) for k in "fg")

    def scipy():
        return [wasserstein_distance(f[:, i].numpy(), g[:, i].numpy()) for i in range(m)]

    name, ours = f"W1 of {n} numbers at {m} points", lambda: empirical_w1_1d(f, g)
    rows = [compare(name, "SciPy", ours, scipy, 1e-9)]
    try:
        import ot
    except ImportError:
        return rows
    theirs = lambda: ot.wasserstein_1d(f.numpy(), g.numpy(), p=1)
    return [*rows, compare(name, "POT wasserstein_1d", ours, theirs, 1e-9)]


def functions(n: int) -> dict:
    prior = BNNPrior(MLP((1, 50, 1), nn.Tanh))
    net, x = MLP((1, 50, 1), nn.Tanh), torch.linspace(-3, 3, 24)[:, None]
    xi = prior.draw(n, child(0, "xi"))

    def theirs():
        return vmap(lambda w: functional_call(net, w, (x,)))(prior.weights(xi))

    name = f"{n} functions at 24 points"
    return compare(name, "torch.func, vmap", lambda: prior.functions(xi, x), theirs, 1e-5)


def critic_step(n: int) -> dict:
    """The gradient of the objective: slope in closed form, beside two backward passes."""
    critic = Critic(24, child(0, "critic"), width=64)
    f, g = (torch.randn(n, 24, generator=child(0, k)) for k in "fg")

    def ours():
        goal = critic_objective(critic, f, g, child(0, "u"))
        return torch.cat([p.flatten() for p in torch.autograd.grad(goal, wanted)])

    def theirs():
        u = torch.rand(n, 1, generator=child(0, "u"))
        between = (u * f + (1 - u) * g).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        goal = difference(critic, f, g) - 10 * (slope.norm(dim=1) - 1).square().mean()
        return torch.cat([p.flatten() for p in torch.autograd.grad(goal, wanted)])

    # The last bias drops out of the objective: its gradient is rounding.
    wanted = [p for p in critic.parameters() if p.numel() > 1]
    return compare(f"gradient of a critic's step, {n} functions", "double backward", ours, theirs)


def main(scale: int = 1) -> list[dict]:
    """One row per comparison: name, peer, seconds, peer_seconds, ratio (above 1: we are faster)."""
    torch.set_num_threads(1)
    n = math.ceil(4000 / scale)
    return [*distances(n, 25), functions(n), critic_step(64), critic_step(128)]


if __name__ == "__main__":
    import pandas as pd

    print(pd.DataFrame(main()).to_string())
