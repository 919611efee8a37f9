"""Gaussian averages, critical points and random ensembles beside scipy, torch and neural-tangents.

``python -m tests.benchmarks.effective_theory``; ratios above 1 mean that the peer takes longer. One
thread of the CPU; results are compared before anything is timed. How to install neural-tangents:
``tests/peers/test_ntk.py``.
"""

from __future__ import annotations

import math
import os
import sys
import types

# JAX reads this when it starts; PyTorch is told below. One thread each, or the ratio means nothing.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import numpy as np
import torch
from scipy.integrate import quad
from torch import nn

import lib.width.effective_theory as et
from lib.core.quadrature import gaussian_mean
from lib.core.seeds import child
from lib.models.mlp import MLP
from tests.benchmarks._timing import compare


def averages() -> list[dict]:
    K = torch.linspace(0.5, 14, 50, dtype=torch.float64)
    f = lambda z: torch.nn.functional.silu(z) ** 2

    def scipy_quad():
        found = []
        for k in K.tolist():
            density = lambda z, k=k: math.exp(-z * z / (2 * k)) / math.sqrt(2 * math.pi * k)
            swish = lambda z: z / (1 + math.exp(-z))
            g = lambda z, d=density, s=swish: s(z) ** 2 * d(z)
            found.append(quad(g, -40, 40, epsabs=1e-10)[0])
        return torch.tensor(found)

    ours = lambda: et.gaussian_expect(f, K)
    name = "50 averages of SWISH squared"
    hermite = lambda: gaussian_mean(f, K, 300)
    return [
        compare(name, "scipy.integrate.quad", ours, scipy_quad, 1e-6),
        compare(name, "Gauss-Hermite, 300 nodes", ours, hermite, 1e-6),
    ]


def ensembles(nets: int = 50, width: int = 128, layers: int = 17) -> list[dict]:
    """The second moment of the last layer: by layers, by matrices, and by modules one by one."""
    x = torch.ones(1, width)

    def by(route):
        z = et.sample_ensemble(
            torch.tanh, nets, width, layers, x, 0.0, 1.5, child(0, "bench"), route=route
        )
        return z.square().mean()

    def modules():
        found = []
        for _ in range(nets):
            net = MLP([width] * (layers + 1), act=nn.Tanh, bias=False)
            with torch.no_grad():
                for layer in net.layers:
                    nn.init.normal_(layer.weight, 0, math.sqrt(1.5 / width))
                found.append(net(x).square().mean())
        return torch.stack(found).mean()

    name = f"{nets} tanh networks, width {width}, {layers} layers"
    return [
        compare(name, "every weight drawn", lambda: by("layers"), lambda: by("matrices"), 0.1),
        compare(name, "torch modules, one by one", lambda: by("layers"), modules, 0.1),
    ]


def neural_tangents(points: int = 300, layers: int = 6) -> list[dict]:
    try:
        import jax

        stub = types.ModuleType("neural_tangents.experimental")
        sys.modules.setdefault("neural_tangents.experimental", stub)
        import neural_tangents as nt
    except ImportError:
        return []
    jax.config.update("jax_enable_x64", True)
    x = torch.randn(points, 64, generator=child(0, "bench"), dtype=torch.float64)
    rows = []
    for name, layer in (("relu", nt.stax.Relu), ("sin", nt.stax.Sin)):
        dense = lambda: nt.stax.Dense(64, W_std=math.sqrt(1.5), b_std=math.sqrt(0.1))
        stack = [dense(), *[m for _ in range(layers - 1) for m in (layer(), dense())]]
        kernel_fn = nt.stax.serial(*stack)[2]
        jitted = jax.jit(lambda a, k=kernel_fn: k(a, None, "nngp"))
        K1, sigma = et.first_kernel(x, 0.1, 1.5), et.ACTIVATIONS[name]
        ours = lambda s=sigma, K1=K1: et.gram_flow(s, 0.1, 1.5, K1, layers)[-1]
        theirs = lambda j=jitted: np.asarray(j(np.asarray(x)))
        title = f"Gram of {points} points, {name}, {layers} layers"
        rows.append(compare(title, "neural-tangents, jit", ours, theirs, 1e-6))
    return rows


def main() -> list[dict]:
    """One row per comparison: name, peer, seconds, peer_seconds, ratio (above 1: we are faster)."""
    torch.set_num_threads(1)
    return averages() + ensembles() + neural_tangents()


if __name__ == "__main__":
    import pandas as pd

    print(pd.DataFrame(main()).to_string())
