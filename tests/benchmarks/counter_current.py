"""One step of counter-current learning beside autograd's and back-propagation's; members at once.

``python -m tests.benchmarks.counter_current``; ratios above 1 mean that the peer takes longer. The
pair's gradients by hand and by autograd are compared before they are timed, and so are networks
side by side and one after another. Back-propagation computes something else: its row compares the
cost, and ``saved_kib`` and ``peer_saved_kib`` are what autograd holds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lib.beyond_backprop import counter_current as cc
from lib.core.meters import saved_bytes
from lib.core.seeds import batch_indices, child, pick_device
from tests.benchmarks._timing import compare

WIDTHS = [64, 128, 128, 10]


def pair(device, batch: int, n: int) -> dict:
    gen = child(0, "pair")
    draw = lambda *size: torch.randn(*size, generator=gen).to(device)
    x, t, y = draw(batch, n), draw(10, n), torch.randint(10, (batch,), generator=gen).to(device)
    W, V = (draw(n, n) / n**0.5 for _ in range(2))

    def ours():
        both = cc.local_gradients(x, x @ W.T, t, t @ V.T, y)
        return torch.cat([g.flatten() for g in both])

    def autograd():
        w, v = W.detach().requires_grad_(), V.detach().requires_grad_()
        loss = cc.prototype_loss(F.elu(x @ w.T), F.elu(t @ v.T), y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, (w, v))])

    return compare(f"pair by hand, {batch} x {n} on {device.type}", "autograd", ours, autograd)


def step(device, widths: list[int], batch: int) -> dict:
    gen = child(0, "step")
    x = torch.rand(batch, widths[0], generator=gen).to(device)
    y = torch.randint(10, (batch,), generator=gen).to(device)
    ours = cc.mlp_trainer(widths, seed=0)
    theirs = cc.baseline_trainer("backprop", widths, seed=0)
    ours.model.to(device)
    theirs.model.to(device)
    runs = [lambda: ours.step(x, y), lambda: theirs.step(x, y)]
    held = [saved_bytes(run, [x]) / 1024 for run in runs]
    return compare(
        f"a step, {widths}, batch {batch} on {device.type}",
        "back-propagation",
        *runs,
        None,
        saved_kib=held[0],
        peer_saved_kib=held[1],
    )


def members(device, count: int, steps: int = 20) -> dict:
    gen = child(0, "members")
    x = torch.rand(200, 64, generator=gen).to(device)
    y = torch.randint(10, (200,), generator=gen).to(device)
    make = lambda k: cc.ccl_mlp(WIDTHS, gen=child(k, "net")).to(device)

    def together():
        nets = [make(k) for k in range(count)]
        out = cc.train_ccl(nets, x, y, steps=steps, batch=60, seeds=range(count))
        return out.params["layers.0.up.0.weight"].detach()

    def one_by_one():
        found = []
        for k in range(count):
            net = make(k)
            sides = net.forward_parameters(), net.feedback_parameters()
            opts = [torch.optim.SGD(p, lr=0.03, momentum=0.9) for p in sides]
            for i in range(steps):
                index = batch_indices(200, 60, i, k).to(device)
                cc.ccl_step(net, x[index], y[index], opts)
            found.append(net.layers[0].W.detach())
        return torch.stack(found)

    name = f"{count} networks, {steps} steps on {device.type}"
    return compare(name, "one by one", together, one_by_one, 1e-3, repeats=5)


def main() -> list[dict]:
    device = pick_device("auto")
    big = [3072, 1024, 1024, 1024, 10]
    return [
        pair(device, 60, 128),
        pair(device, 256, 1024),
        step(device, WIDTHS, 60),
        step(device, big, 256),
        members(device, 10),
    ]


if __name__ == "__main__":
    for row in main():
        print(
            f"{row['name']:<58} {row['seconds'] * 1e3:8.2f} ms  {row['peer']:<17}"
            f"{row['peer_seconds'] * 1e3:8.2f} ms  ratio {row['ratio']:.2f}"
        )
