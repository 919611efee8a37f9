"""Local training beside end-to-end autograd and torch.utils.checkpoint; members beside a loop.

``python -m tests.benchmarks.auglocal``; ratios above 1 mean that the peer takes longer. Different
training rules have no numbers in common, so their rows compare cost alone, and ``saved_mib`` and
``peer_saved_mib`` are what autograd holds at its worst moment. What computes the same is compared
before it is timed: networks side by side beside one after another, and our checkpointed step beside
``checkpoint_sequential``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from lib.beyond_backprop import auglocal as al
from lib.core.meters import saved_bytes
from lib.core.seeds import child, pick_device
from lib.models.local_learning import end_to_end_step
from lib.models.side_by_side import side_by_side
from tests.benchmarks._timing import compare

SMALL = [8] * 3 + [16] * 3 + [32] * 2
RESNET32 = [16] * 6 + [32] * 5 + [64] * 5


def gradient(model: nn.Module, run) -> torch.Tensor:
    """Gradients of the primary network after ``run``, in one vector."""
    model.zero_grad()
    run()
    return torch.cat([p.grad.flatten() for p in model.primary_parameters()])


def rules(widths: list[int], side: int, batch: int, depth: int, device, repeats: int) -> list[dict]:
    gen = child(0, "bench")
    net = al.local_network(widths, depth=depth, gen=gen).to(device)
    x = torch.rand(batch, 3, side, side, generator=gen).to(device)
    y = torch.randint(10, (batch,), generator=gen).to(device)

    def peer_checkpoint():
        h = checkpoint_sequential(nn.Sequential(*net.blocks), 3, x, use_reentrant=False)
        F.cross_entropy(net.heads[-1](h), y).backward()

    local = lambda: net.local_step(x, y)
    whole = lambda: end_to_end_step(net, x, y)
    ours_checkpoint = lambda: end_to_end_step(net, x, y, segments=3)
    held = {run: saved_bytes(run, net) / 2**20 for run in (local, whole, ours_checkpoint)}
    name = f"n = {len(widths)}, d = {depth}, batch {batch}"
    pairs = [
        (f"AugLocal step, {name}", "end-to-end autograd", local, whole),
        (f"AugLocal step, {name}", "end to end, checkpointed", local, ours_checkpoint),
    ]
    rows = [
        compare(
            title,
            peer,
            ours,
            theirs,
            None,
            repeats=repeats,
            saved_mib=held[ours],
            peer_saved_mib=held[theirs],
        )
        for title, peer, ours, theirs in pairs
    ]
    rows.append(
        compare(
            f"checkpointed step, {name}",
            "checkpoint_sequential",
            lambda: gradient(net, ours_checkpoint),
            lambda: gradient(net, peer_checkpoint),
            1e-4,
            repeats=repeats,
        )
    )
    return rows


def members(count: int, device, repeats: int) -> dict:
    alone = [
        al.local_network(SMALL, channels=1, depth=3, gen=child(0, "net", k)).to(device)
        for k in range(count)
    ]
    together = side_by_side(alone)
    gen = child(0, "data")
    x = torch.rand(30, 1, 8, 8, generator=gen).to(device)
    y = torch.randint(10, (30,), generator=gen).to(device)
    return compare(
        f"{count} networks side by side, one local step",
        "one after another",
        lambda: torch.stack(together.local_step(x, y)),
        lambda: sum(torch.stack(m.local_step(x, y)) for m in alone),
        1e-4,
        repeats=repeats,
    )


def main(repeats: int = 5) -> list[dict]:
    """One row per comparison: name, peer, seconds, peer_seconds, ratio (above 1: we are faster)."""
    torch.set_num_threads(1)
    device = pick_device()
    rows = [members(3, device, repeats), *rules(SMALL, 8, 60, 3, device, repeats)]
    if device.type == "cuda":
        rows += rules(RESNET32, 32, 1024, 5, device, repeats)
        rows += rules([16] * 19 + [32] * 18 + [64] * 18, 32, 1024, 3, device, repeats)
    return rows


if __name__ == "__main__":
    import pandas as pd

    print(pd.DataFrame(main()).to_string())
