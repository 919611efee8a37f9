"""Mask steps and grafts beside separate operations, and a whole search beside torch's optimizer.

The same tensors on both sides; results are compared before anything is timed. On a CUDA machine
``graft_step`` runs its kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.func import functional_call

from lib.core.masks import top_mask
from lib.core.metrics import ece
from lib.core.seeds import child, pick_device
from lib.kernels.graft_step import graft_step, magnitude_threshold
from lib.language import skill_localization as sl
from lib.models.adapters import tune_only
from lib.models.transformer import Encoder
from tests.benchmarks._timing import compare


def main(parameters: int = 1_000_000) -> list[dict]:
    """One row per comparison: name, peer, seconds, peer_seconds, ratio (above 1: we are faster)."""
    device = pick_device()
    gen = child(0, "bench")
    draw = lambda: torch.randn(parameters, generator=gen).to(device)
    grad, pre, delta, score = draw(), draw(), draw(), draw()
    base = (torch.rand(parameters, generator=gen) < 0.01).to(device)
    ones = base.float()

    def eager():
        """Line by line as in the paper's code, with a mask of zeros and ones."""
        total = 0.5 * (grad * delta)
        new = score - (1 - 2 * ones) * total * torch.sigmoid(score - 1) * (
            1 - torch.sigmoid(score - 1)
        )
        frac = ones + (1 - 2 * ones) * torch.sigmoid(new - 1)
        return torch.stack([new, pre + frac * delta])

    ours = lambda: torch.stack(graft_step(grad, pre, delta, score, base, rate=0.5, bias=1.0))
    k = parameters // 100
    rows = [
        compare("mask step", "separate operations", ours, eager, 1e-5),
        compare(
            "threshold of the top 1 %",
            "sort",
            lambda: torch.tensor(magnitude_threshold(delta, k)),
            lambda: delta.abs().sort(descending=True).values[k - 1].cpu(),
            0.0,
        ),
        compare(
            "top movement mask",
            "torch.topk and scatter",
            lambda: top_mask({"w": delta.abs()}, 0.01)["w"].float(),
            lambda: torch.zeros_like(delta).scatter_(0, delta.abs().topk(k).indices, 1.0),
            0.0,
        ),
    ]
    return [*rows, search(), calibration()]


def search() -> dict:
    """Five steps on a small encoder: the hand-made gradient beside autograd and torch's SGD."""
    torch.manual_seed(0)
    model = sl.PromptClassifier(Encoder(40, 64, 2, 4, positions=16, tie=False))
    tune_only(model, ["model.blocks"])
    gen = child(0, "search")
    x, y = torch.randint(40, (64, 14), generator=gen), torch.randint(2, (64,), generator=gen)
    data = (x, y, torch.tensor([4, 5]).expand(64, 2))
    pre = sl.trainable(model)
    ft = {n: p + 0.05 * torch.randn(p.shape, generator=gen) for n, p in pre.items()}
    base = sl.top_movement_mask(pre, ft, 0.01)

    def ours():
        made = sl.GraftOptimizer(model, pre, ft, base, gen=child(0, "s"), bias=2.0)
        for _ in range(5):
            made.step(data)
        return made.score

    rate = sl.GraftOptimizer(model, pre, ft, base, gen=child(0, "s"), bias=2.0)
    rate.step(data)

    def theirs():
        start = torch.rand(sum(p.numel() for p in pre.values()), generator=child(0, "s"))
        parts = start.split([p.numel() for p in pre.values()])
        scores = {n: s.view(pre[n].shape).clone().requires_grad_() for n, s in zip(pre, parts)}
        optimizer = torch.optim.SGD(list(scores.values()), lr=rate.eta)
        for _ in range(5):
            mixed = {}
            for n, p in pre.items():
                soft = torch.sigmoid(scores[n] - 2.0)
                gamma = torch.where(base[n], 1 - soft, soft)
                mixed[n] = p + gamma * (ft[n] - p)
            optimizer.zero_grad()
            F.cross_entropy(functional_call(model, mixed, (x, data[2])), y).backward()
            optimizer.step()
        return torch.cat([s.flatten() for s in scores.values()])

    return compare("five mask steps", "autograd and torch.optim.SGD", ours, theirs, 1e-4)


def calibration() -> dict:
    probs = (2 * torch.randn(20_000, 5, generator=child(0, "ece"))).softmax(1)
    y = torch.randint(5, (20_000,), generator=child(0, "labels"))
    try:
        from torchmetrics.functional.classification import multiclass_calibration_error as peer

        theirs, name = lambda: peer(probs, y, 5, n_bins=10), "torchmetrics"
    except ImportError:
        name = "a loop over bins"

        def theirs():
            top, answer = probs.max(1)
            total = 0.0
            for i in range(10):
                inside = (top > i / 10) & (top <= (i + 1) / 10)
                if inside.any():
                    right = (answer[inside] == y[inside]).float().mean()
                    total += float((right - top[inside].mean()).abs() * inside.float().mean())
            return total

    return compare("calibration error", name, lambda: ece(probs, y), theirs, 1e-4)


if __name__ == "__main__":
    for row in main():
        print("{name}: {seconds:.4f} s, {peer}: {peer_seconds:.4f} s, x{ratio:.1f}".format(**row))
