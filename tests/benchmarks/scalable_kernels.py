"""Layers on random features beside eager PyTorch, a dense layer and scikit-learn.

``python -m tests.benchmarks.scalable_kernels``; ratios above 1 mean that the peer takes longer.
The same work on both sides, on one thread of the CPU, or on the GPU where there is one (then the
layer runs the fused kernel). Outputs are compared before anything is timed, except where the rows
say that two different functions are compared: a dense layer is no random-feature layer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from lib.core.seeds import child, pick_device
from lib.width import scalable_kernels as sk
from tests.benchmarks._timing import compare


def layers(n: int, d: int, m: int, device: torch.device) -> list[dict]:
    x = torch.randn(n, d, generator=child(0, "x")).to(device)
    rows = []
    maps = {
        "ReLU": sk.ReLUFeatures(d, m, gen=child(0, "relu")),
        "Fourier": sk.FourierFeatures(d, m, gen=child(0, "fourier"), length=d**0.5),
        "sine, root": sk.UniversalFeatures(d, m, "sin", gen=child(0, "sine"), normalize=1.0),
    }
    dense = nn.Linear(d, d).to(device)
    for name, phi in maps.items():
        phi = phi.to(device)
        W = torch.randn(d, phi.width, generator=child(0, "W")).to(device)
        ours = lambda phi=phi, W=W: phi.sum(x, W)
        eager = lambda phi=phi, W=W: phi(x) @ W.mT
        what = f"{name} features, {n} x {d}, m = {m}"
        rows.append(compare(what, "eager: features, then a product", ours, eager, 1e-3))
        if device.type == "cuda":
            rows.append(compare(what, "torch.compile", ours, torch.compile(eager), 1e-3))
        other = lambda: torch.relu(dense(x))
        rows.append(compare(what, f"dense layer {d} to {d} (another function)", ours, other, None))
    return rows


def bundles(n: int, d: int, width: int, m: int, device: torch.device) -> dict:
    x = torch.randn(n, d, generator=child(0, "x")).to(device)
    gens = [child(0, "bundle", k) for k in range(3)]
    stack = [
        sk.SNNKLinear(sk.ReLUFeatures(a, m, gen=g), b, gen=g).to(device)
        for a, b, g in zip((d, width, width), (width, width, 10), gens)
    ]
    bundled, apart = sk.bundle(stack), nn.Sequential(*stack)

    @torch.no_grad()
    def run(net):
        return net(x)

    name = f"three layers bundled, {n} x {d}, width {width}, m = {m}"
    return compare(name, "the layers", lambda: run(bundled), lambda: run(apart), 1e-4)


def last_map(n: int, m: int) -> dict:
    from sklearn.linear_model import Ridge

    Phi = torch.randn(n, m, generator=child(0, "phi"), dtype=torch.float64)
    Y = torch.randn(n, 10, generator=child(0, "y"), dtype=torch.float64)
    ones = np.concatenate([Phi.numpy(), np.ones((n, 1))], 1)
    peer = Ridge(alpha=1e-3, fit_intercept=False, solver="cholesky")

    def ours():
        W, b = sk.fit_bundled_mse(Phi, Y, 1e-3)
        return torch.cat([W, b[:, None]], 1)

    name = f"last map in closed form, {n} samples, {m} features"
    return compare(name, "scikit-learn, Ridge", ours, lambda: peer.fit(ones, Y.numpy()).coef_, 1e-6)


def sampler(n: int, d: int, m: int) -> dict:
    from sklearn.kernel_approximation import RBFSampler

    x = torch.randn(n, d, generator=child(0, "x"))
    peer = RBFSampler(gamma=0.5 / d, n_components=m, random_state=0).fit(x.numpy())
    phi = sk.FourierFeatures(d, m, gen=child(0, "phi"), length=d**0.5)
    phi.G = torch.as_tensor(peer.random_weights_.T * d**0.5).float()
    phi.phase = torch.as_tensor(peer.random_offset_).float()
    array = x.numpy()
    name = f"random Fourier features, {n} x {d}, m = {m}"
    return compare(name, "RBFSampler", lambda: phi(x), lambda: peer.transform(array), 1e-4)


def main() -> list[dict]:
    """One row per comparison: name, peer, seconds, peer_seconds, ratio (above 1: we are faster)."""
    torch.set_num_threads(1)
    device = pick_device()
    n, d = (65_536, 768) if device.type == "cuda" else (2048, 256)
    rows = layers(n, d, 64, device) + [bundles(n, d, 4 * d, 128, device)]
    return rows + [last_map(2000, 256), sampler(2048, 256, 256)]


if __name__ == "__main__":
    import pandas as pd

    print(pd.DataFrame(main()).to_string())
