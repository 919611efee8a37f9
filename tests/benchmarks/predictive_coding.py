"""Several PV-RNNs in one loop beside one after another, and the hand-written backward pass.

``python -m tests.benchmarks.predictive_coding``; ratios above 1 mean that the peer takes longer.
The peers are the same recurrence under autograd, and the networks one by one. Gradients are
compared before anything is timed.
"""

from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from lib.beyond_backprop.predictive_coding import PVRNN, finite_state_machine
from lib.core.losses import gaussian_kl
from lib.core.seeds import child, pick_device
from lib.kernels.persistent_rnn import pv_rnn
from tests.benchmarks._timing import compare


def together(device: torch.device, n: int, steps: int = 24, batch: int = 20) -> dict:
    """The objective's gradient for ``n`` networks: side by side, and in a loop."""
    gens = [child(0, "init", i) for i in range(n)]
    model = PVRNN([(16, 2, 2.0)], 1, 0.05, sequences=batch, steps=steps, gens=gens).to(device)
    alone = [model.select([i]) for i in range(n)]
    x = finite_state_machine(batch, steps, child(0, "x"))[0].to(device)

    def ours():
        return torch.autograd.grad(model.loss(x).total.sum(), model.W)[0]

    def theirs():
        return torch.cat([torch.autograd.grad(m.loss(x).total.sum(), m.W)[0] for m in alone])

    name = f"gradient, {n} networks, {batch} x {steps}, on {device.type}"
    return compare(name, "one after another", ours, theirs, 1e-4)


def backward(device: torch.device, n: int = 12, T: int = 24, B: int = 20) -> dict:
    """Forward and backward of the time loop: the operator, and the loop under autograd."""
    D, Z, gen = 16, 2, child(0, "loop")
    r = lambda *shape: (0.3 * torch.randn(*shape, generator=gen)).to(device)
    A, eps, W, U, V = r(T, n, B, 2, Z), r(T, n, B, Z), r(n, D, D), r(n, D, Z), r(n, 4, Z, D)
    b, c, h0 = r(n, D), r(n, 4, Z), r(n, B, D)
    tau = torch.full((D,), 2.0, device=device)
    leaves = [t.requires_grad_() for t in (A, W, U, V, b, c)]

    def gradients(h, stats):
        grads = torch.autograd.grad(h.square().sum() + stats.square().sum(), leaves)
        return torch.cat([g.flatten() for g in grads])

    def ours():
        return gradients(*pv_rnn(A, eps, W, U, V, b, c, tau, h0))

    def theirs():
        h, hs, stats = h0, [], []
        heads = V.flatten(1, 2).mT
        for t in range(T):
            d = torch.tanh(h)
            a = torch.baddbmm(c.flatten(1)[:, None], d, heads).view(n, B, 4, Z)
            mu_q, logs_q = torch.tanh(a[:, :, 0] + A[t, :, :, 0]), a[:, :, 2] + A[t, :, :, 1]
            mu_p, logs_p = torch.tanh(a[:, :, 1]), a[:, :, 3].clamp(-4, 2)
            logs_q = logs_q.clamp(-4, 2)
            if t == 0:
                mu_p, logs_p = torch.zeros_like(mu_p), torch.zeros_like(logs_p)
            drive = torch.baddbmm(b[:, None], d, W.mT) + (mu_q + logs_q.exp() * eps[t]) @ U.mT
            h = torch.lerp(h, drive, 0.5)
            hs.append(h)
            stats.append(torch.stack([mu_q, mu_p, logs_q, logs_p], 2))
        return gradients(torch.stack(hs), torch.stack(stats))

    name = f"time loop f+b, {n} networks, {B} x {T}, on {device.type}"
    return compare(name, "autograd through the loop", ours, theirs, 1e-4)


def divergence(device: torch.device) -> dict:
    mu_q, logs_q, mu_p, logs_p = torch.randn(4, 200_000, 4, generator=child(0, "kl")).to(device)
    ours = lambda: gaussian_kl(mu_q, logs_q, mu_p, logs_p)
    theirs = lambda: kl_divergence(Normal(mu_q, logs_q.exp()), Normal(mu_p, logs_p.exp())).sum(-1)
    return compare(f"KL, 800,000 pairs, on {device.type}", "torch.distributions", ours, theirs)


def main() -> list[dict]:
    device = pick_device("auto")
    return [*(together(device, n) for n in (3, 12)), backward(device), divergence(device)]


if __name__ == "__main__":
    for row in main():
        print(
            f"{row['name']:<46} {row['seconds'] * 1e3:8.2f} ms  {row['peer']:<26}"
            f"{row['peer_seconds'] * 1e3:8.2f} ms  ratio {row['ratio']:.2f}"
        )
