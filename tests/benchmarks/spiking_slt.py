"""The fused scan and a training step beside snnTorch, SpikingJelly and a plain autograd loop.

``python -m tests.benchmarks.spiking_slt``; ratios above 1 mean that the peer takes longer. The
same work on both sides: forward and backward of one sequence, or gradients of one mini-batch.
"""

from __future__ import annotations

import importlib

import torch
from torch import nn

from lib.beyond_backprop.spiking_slt import backward, sltt_loss
from lib.core.seeds import pick_device
from lib.models.spiking import lif, reset, spiking_mlp, surrogate
from tests.benchmarks._timing import compare


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0].abs()).clamp_min(0)


def autograd_loop(x, decay=0.5):
    u, out = torch.zeros_like(x[0]), []
    for i in x:
        v = decay * u + i
        s = Spike.apply(v - 1)
        u = v - s
        out.append(s)
    return torch.stack(out)


def scans(device, steps: int, neurons: int) -> list[dict]:
    x = torch.rand(steps, neurons, device=device).requires_grad_()
    g = torch.rand(steps, neurons, device=device)

    def work(forward):
        return lambda: torch.autograd.grad(forward(x), x, g)

    name = f"LIF forward and backward, {steps} x {neurons:,} on {device.type}"
    own = lambda z: lif(z, 0.5, 1.0, "soft", surrogate())[0]
    peers = {"autograd loop": autograd_loop}
    if snn := _module("snntorch"):
        leaky = snn.Leaky(beta=0.5, spike_grad=snn.surrogate.atan(alpha=2.0), reset_delay=False).to(
            device
        )

        def snntorch_loop(z):
            u, out = leaky.reset_mem(), []
            for i in z:
                s, u = leaky(i, u)
                out.append(s)
            return torch.stack(out)

        peers["snnTorch Leaky"] = snntorch_loop
    if sj := _module("spikingjelly.activation_based.neuron"):
        from spikingjelly.activation_based import surrogate as sj_surrogate

        node = sj.LIFNode(
            tau=2.0,
            decay_input=False,
            v_reset=None,
            surrogate_function=sj_surrogate.PiecewiseQuadratic(alpha=1.0),
            step_mode="m",
        ).to(device)

        def spikingjelly(z):
            for module in node.modules():
                if hasattr(module, "reset"):
                    module.reset()
            return node(z)

        peers["SpikingJelly LIFNode"] = spikingjelly
    # tests/peers compares the numbers: snnTorch and SpikingJelly use other surrogates.
    return [compare(name, k, work(own), work(f), None) for k, f in peers.items()]


def training(device, mode: str, steps: int = 6, batch: int = 128) -> list[dict]:
    """Gradients of one mini-batch through 64-128-128-10."""
    x = torch.rand(batch, 64, device=device).expand(steps, -1, -1)
    y = torch.randint(10, (batch,), device=device)
    net = spiking_mlp([64, 128, 128, 10], gen=torch.Generator().manual_seed(0), tau=2.0).to(device)

    def own():
        net.zero_grad()
        backward(net, x, y, mode, order="layer" if mode == "bptt" else "step")
        reset(net)

    peers = {}
    if (snn := _module("snntorch")) and mode == "bptt":
        nodes = [
            snn.Leaky(beta=0.5, spike_grad=snn.surrogate.atan(alpha=2.0), reset_delay=False)
            for _ in range(2)
        ]
        layers = nn.ModuleList([nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 10)])
        layers.to(device)

        def snntorch_net():
            layers.zero_grad()
            u = [n.reset_mem() for n in nodes]
            loss = 0.0
            for frame in x:
                h = frame
                for i, (layer, node) in enumerate(zip(layers, nodes, strict=False)):
                    h, u[i] = node(layer(h), u[i])
                loss = loss + sltt_loss(layers[-1](h), y) / steps
            loss.backward()

        peers["snnTorch"] = snntorch_net
    if sj := _module("spikingjelly.activation_based.neuron"):
        from spikingjelly.activation_based import surrogate as sj_surrogate

        cls = sj.SLTTLIFNode if mode == "sltt" else sj.LIFNode
        node = lambda: cls(
            tau=2.0,
            decay_input=False,
            v_reset=None,
            surrogate_function=sj_surrogate.PiecewiseQuadratic(alpha=1.0),
        )
        peer = nn.Sequential(
            nn.Linear(64, 128), node(), nn.Linear(128, 128), node(), nn.Linear(128, 10)
        ).to(device)

        def spikingjelly_net():
            peer.zero_grad()
            for module in peer.modules():
                if hasattr(module, "reset"):
                    module.reset()
            loss = 0.0
            for frame in x:
                step = sltt_loss(peer(frame), y) / steps
                if mode == "sltt":
                    step.backward()
                else:
                    loss = loss + step
            if mode == "bptt":
                loss.backward()

        peers["SpikingJelly"] = spikingjelly_net
    name = f"{mode} gradients, MLP, T={steps}, batch {batch} on {device.type}"
    return [compare(name, peer, own, run, None) for peer, run in peers.items()]


def _module(name: str):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def main() -> list[dict]:
    device = pick_device("auto")
    big = 10_000_000 if device.type == "cuda" else 200_000
    rows = scans(device, 8, big) + scans(device, 8, 16_384)
    return rows + training(device, "bptt") + training(device, "sltt")


if __name__ == "__main__":
    for row in main():
        print(
            f"{row['name']:<60} {row['seconds'] * 1e3:8.2f} ms  {row['peer']:<22}"
            f"{row['peer_seconds'] * 1e3:8.2f} ms  ratio {row['ratio']:.2f}"
        )
