"""All blocks in one product beside block after block, and an update beside back-propagation.

``python -m tests.benchmarks.noprop``; ratios above 1 mean that the peer takes longer. The peers are
torch.nn modules run by autograd in a loop. Gradients or outputs are compared before anything is
timed, except for back-propagation, which computes other gradients at the same cost of arithmetic.
"""

from __future__ import annotations

import torch

from lib.beyond_backprop.noprop import (
    LabelDenoiser,
    MLPEncoder,
    NoPropDT,
    Stacked,
    backprop_loss,
)
from lib.core.meters import saved_bytes
from lib.core.seeds import pick_device
from tests.benchmarks._timing import compare


def chain(steps: int, device: torch.device, width: int = 64) -> NoPropDT:
    gen = torch.Generator().manual_seed(0)
    blocks = [LabelDenoiser(MLPEncoder(64, width), 10, 10, width, gen=gen) for _ in range(steps)]
    return NoPropDT(blocks, torch.eye(10), gen=gen).to(device)


def grouped(device: torch.device, steps: int, batch: int = 128) -> dict:
    """Forward and backward of every block: stacked, and one after another."""
    model = chain(steps, device)
    x, z = (torch.randn(steps, batch, n, device=device) for n in (64, 10))
    W = model.embedding.expand(steps, -1, -1)
    stacked = Stacked(list(model.blocks))
    weights = [b.lift.weight for b in model.blocks]

    def ours():
        out = stacked(z, x, W)[0]
        return torch.autograd.grad(out.square().sum(), stacked.params["lift.weight"])[0]

    def theirs():
        outs = [block(zt, xt, model.embedding)[0] for block, zt, xt in zip(model.blocks, z, x)]
        return torch.stack(torch.autograd.grad(sum(o.square().sum() for o in outs), weights))

    name = f"gradients of {steps} blocks, batch {batch} on {device.type}"
    return compare(name, "torch.nn, in a loop", ours, theirs, 1e-3)


def update(device: torch.device, steps: int, batch: int = 128) -> dict:
    """One update's gradients for every block: T local losses, or one loss through the chain.

    The terms that all local losses share are evaluated once.
    """
    model = chain(steps, device)
    x = torch.rand(batch, 64, device=device)
    y = torch.randint(10, (batch,), device=device)
    z = torch.randn(batch, 10, device=device)
    gen = torch.Generator().manual_seed(0)

    def ours():
        eps = model.noise(batch, gen, steps + 1)
        model.shared_loss(y, eps[-1]).backward()
        for t in range(1, steps + 1):  # one block's graph at a time
            model.denoising_loss(t, x, y, eps[t - 1]).backward()

    def theirs():
        backprop_loss(model, x, y, z).backward()

    name = f"an update of {steps} blocks, batch {batch} on {device.type}"
    held = {"saved": saved_bytes(ours, [x]), "peer_saved": saved_bytes(theirs, [x])}
    return compare(name, "back-propagation", ours, theirs, None, **held)


def main() -> list[dict]:
    device = pick_device("auto")
    return [
        *(grouped(device, steps) for steps in (8, 32)),
        *(update(device, steps) for steps in (8, 32)),
    ]


if __name__ == "__main__":
    for row in main():
        held = (
            f"  saved {row['saved'] / 1e6:.2f} against {row['peer_saved'] / 1e6:.2f} MB"
            if "saved" in row
            else ""
        )
        print(
            f"{row['name']:<48} {row['seconds'] * 1e3:8.2f} ms  {row['peer']:<20}"
            f"{row['peer_seconds'] * 1e3:8.2f} ms  ratio {row['ratio']:.2f}{held}"
        )
