"""Pruning, and training under masks, beside ``torch.nn.utils.prune``.

``python -m tests.benchmarks.lottery_ticket``; ratios above 1 mean that the peer takes longer. The
masks and the trained weights are compared before anything is timed. The main row is the chapter's
work: several sparse LeNet-300-100 trained on batches of 60, stacked here, one after the other with
the peer's masks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from lib.compression.lottery_ticket import IterativeMagnitudePruning, Training, magnitude_mask
from lib.core.masks import Masked, full_mask, random_like
from lib.core.seeds import batch_indices, child, pick_device
from lib.models.cnn import lenet300
from lib.models.init import initialize_
from tests.benchmarks._timing import compare

LR, BATCH = 1.2e-3, 60


def draw(gen: torch.Generator) -> nn.Module:
    model = lenet300(64)
    initialize_(model, "glorot", gen=gen)
    return model


def linear(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def pruning(rate: float = 0.2) -> list[dict]:
    """One round on LeNet-300-100 for MNIST, 266,200 weights."""
    model = lenet300()
    initialize_(model, "glorot", gen=child(0, "pruning"))
    weights = {n: p.detach() for n, p in model.named_parameters()}
    mask, rows = full_mask(model), []

    def theirs(scope: str) -> Tensor:
        layers = [(m, "weight") for m in linear(model)]
        if scope == "global":
            prune.global_unstructured(layers, prune.L1Unstructured, amount=rate)
        else:
            for layer in layers:
                prune.l1_unstructured(*layer, amount=rate)
        found = torch.cat([m.weight_mask.flatten() for m, _ in layers])
        for layer in layers:
            prune.remove(*layer)
        for name, p in model.named_parameters():
            p.data = weights[name].clone()
        return found

    def ours(scope: str) -> Tensor:
        found = magnitude_mask(weights, mask, rate, scope)
        return torch.cat([keep.flatten() for keep in found.values()]).float()

    for scope, peer in (("layer", "l1_unstructured"), ("global", "global_unstructured")):
        rows.append(
            compare(
                f"mask of one round, {scope}",
                f"torch.nn.utils.prune.{peer}",
                lambda scope=scope: ours(scope),
                lambda scope=scope: theirs(scope),
                0.0,
            )
        )
    return rows


def trainings(networks: int, steps: int, device: torch.device) -> dict:
    x = torch.rand(1000, 64, generator=child(0, "x")).to(device)
    y = torch.randint(10, (1000,), generator=child(0, "y")).to(device)
    adam = lambda params: torch.optim.Adam(params, lr=LR, fused=True)
    train = Training(lambda: lenet300(64), (x, y), (x, y), (x, y), steps, adam, BATCH,
                     stack=networks)  # fmt: skip
    search = IterativeMagnitudePruning(draw, train, 0, 0.2)
    starts = []
    for k in range(networks):
        start = search.draw(k)
        some = magnitude_mask(start.init_state, start.mask, 0.8)
        starts.append(start.pruned(random_like(some, child(k, "mask")), 1))

    def ours() -> Tensor:
        return torch.stack([t.final_state["1.weight"] for t in train(starts)]).cpu()

    def theirs() -> Tensor:
        result = []
        for start in starts:
            model = lenet300(64)
            model.load_state_dict(start.init_state)
            model.to(device)
            for module, keep in zip(linear(model), start.mask.values(), strict=True):
                prune.custom_from_mask(module, "weight", keep.to(device))
            opt = adam(model.parameters())
            for step in range(steps):
                index = batch_indices(len(x), BATCH, step, start.seed).to(device)
                opt.zero_grad(set_to_none=True)
                F.cross_entropy(model(x[index]), y[index]).backward()
                opt.step()
            first = linear(model)[0]
            result.append((first.weight_orig * first.weight_mask).detach())
        return torch.stack(result).cpu()

    return compare(
        f"{networks} sparse networks, {steps} steps on {device.type}",
        "torch.nn.utils.prune.custom_from_mask, in turn",
        ours,
        theirs,
        1e-3,
        repeats=3,
    )


def masking(batch: int = BATCH) -> dict:
    """Forward and backward of one masked network: the cost of the reparametrization."""
    plain = draw(child(0, "cost"))
    mask = magnitude_mask(dict(plain.named_parameters()), full_mask(plain), 0.8)
    peer = draw(child(0, "cost"))
    for module, keep in zip(linear(peer), mask.values(), strict=True):
        prune.custom_from_mask(module, "weight", keep)
    masked = Masked(plain, mask)
    x = torch.rand(batch, 64, generator=child(0, "x"))

    def gradients(model: nn.Module) -> Tensor:
        named = [p for p in model.parameters() if p.ndim == 1]  # biases; the order of names differs
        return torch.cat(torch.autograd.grad(model(x).square().sum(), named))

    return compare(
        f"forward and backward under a mask, batch {batch}",
        "torch.nn.utils.prune.custom_from_mask",
        lambda: gradients(masked),
        lambda: gradients(peer),
        1e-5,
        repeats=30,
    )


def main(networks: int = 12, steps: int = 40) -> list[dict]:
    """One row per comparison: name, peer, ratio (above 1: we are faster), seconds, peer_seconds."""
    torch.set_num_threads(1)
    device = pick_device()
    return [*pruning(), masking(), trainings(networks, steps, device)]


if __name__ == "__main__":
    import pandas as pd

    print(pd.DataFrame(main()).to_string())
