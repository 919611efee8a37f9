"""One step of MAN beside the plain local step, end-to-end autograd and checkpointing; the average.

``python -m tests.benchmarks.momentum_auxiliary``; ratios above 1 mean that the peer takes longer.
The average of all heads is compared with ``torch.optim.swa_utils`` before it is timed, and so are
networks side by side and one after another. Different training rules have no numbers in common:
their rows compare cost alone, and ``saved_mib`` and ``peer_saved_mib`` are what autograd holds at
its worst moment.
"""

from __future__ import annotations

import copy

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.beyond_backprop import momentum_auxiliary as ma
from lib.core.meters import saved_bytes
from lib.core.seeds import child, pick_device
from lib.models.local_learning import end_to_end_step
from lib.models.side_by_side import side_by_side
from tests.benchmarks._timing import compare

SMALL = [8] * 2 + [16] * 3 + [32] * 2
RESNET32 = [16] * 5 + [32] * 5 + [64] * 5
RESNET110 = [16] * 18 + [32] * 18 + [64] * 18
NONE = {"learnable_bias": False, "use_ema": False}


def flat(modules) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])


def average(widths: list[int], device, repeats: int) -> dict:
    """All averages of a network, n updates after a change of the weights."""
    net = ma.local_network(widths, momentum=0.9, gen=child(0, "bench")).to(device)
    layers = [block[0] for block in net.blocks[1:]]
    peers = [AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.9)) for layer in layers]
    for peer, layer in zip(peers, layers):
        peer.update_parameters(layer)  # its first call copies
    copies = copy.deepcopy([head[0] for head in net.heads[:-1]])
    with torch.no_grad():
        for p in net.blocks.parameters():
            p.add_(0.1)

    def ours():
        for part, layer in zip(copies, layers):
            part.update(layer)
        return flat(part.average for part in copies)

    def theirs():
        for peer, layer in zip(peers, layers):
            peer.update_parameters(layer)
        return flat(peer.module for peer in peers)

    name = f"averages of {len(layers)} layers, one update"
    return compare(name, "swa_utils.AveragedModel", ours, theirs, 1e-5, repeats=repeats)


def rules(widths: list[int], side: int, batch: int, device, repeats: int) -> list[dict]:
    gen = child(0, "data")
    x = torch.rand(batch, 3, side, side, generator=gen).to(device)
    y = torch.randint(10, (batch,), generator=gen).to(device)
    man, plain = (
        ma.local_network(widths, gen=child(0, "net"), **options).to(device)
        for options in ({}, NONE)
    )
    ours = lambda: man.local_step(x, y)
    peers = {
        "plain local step": lambda: plain.local_step(x, y),
        "end-to-end autograd": lambda: end_to_end_step(plain, x, y),
        "end to end, checkpointed": lambda: end_to_end_step(plain, x, y, segments=3),
    }
    held = saved_bytes(ours, man) / 2**20
    return [
        compare(
            f"MAN step, K = {len(widths) + 1}, batch {batch}",
            name,
            ours,
            peer,
            None,
            repeats=repeats,
            saved_mib=held,
            peer_saved_mib=saved_bytes(peer, plain) / 2**20,
        )
        for name, peer in peers.items()
    ]


def members(count: int, device, repeats: int) -> dict:
    alone = [
        ma.local_network(SMALL, channels=1, gen=child(0, "net", k)).to(device) for k in range(count)
    ]
    together = side_by_side(alone)
    gen = child(0, "data")
    x = torch.rand(30, 1, 8, 8, generator=gen).to(device)
    y = torch.randint(10, (30,), generator=gen).to(device)
    return compare(
        f"{count} MAN networks side by side, one local step",
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
    rows = [average(RESNET32, device, repeats), members(3, device, repeats)]
    rows += rules(SMALL, 8, 60, device, repeats)
    if device.type == "cuda":
        rows += rules(RESNET32, 32, 1024, device, repeats)
        rows += rules(RESNET110, 32, 1024, device, repeats)
    return rows


if __name__ == "__main__":
    import pandas as pd

    print(pd.DataFrame(main()).to_string())
