"""The delayed layer, its network and the neurons beside DCLS and SpikingJelly.

``python -m tests.benchmarks.spiking_delays``; ratios above 1 mean that the peer takes longer. The
same numbers first: ``tests/peers`` compares every gradient, and ``compare`` the outputs. On a GPU
our side runs its fused kernel, the peer cuDNN; ``python -m book bench kernels`` has more of that.
"""

from __future__ import annotations

import importlib

import torch
import torch.nn.functional as F

import lib.beyond_backprop.spiking_delays as sd
from lib.core.seeds import child, pick_device
from tests.benchmarks._timing import compare


def layers(device, batch, ins, outs, steps, bins) -> list[dict]:
    """Training (forward and backward, wide bumps) and inference (whole delays) of one layer."""
    dcls = _module("DCLS.construct.modules")
    own = sd.DelayConv1d(ins, outs, bins, gen=child(0, "own")).to(device)
    own.set_width(2.0 + sd.OFFSET["gauss"])
    x = (torch.rand(batch, ins, steps, generator=child(0, "x")) < 0.05).float().to(device)
    g = torch.rand(batch, outs, steps, generator=child(0, "g")).to(device)

    def training(layer, parameters, forward):
        def run():
            y = forward(x)
            return torch.cat([t.flatten() for t in torch.autograd.grad(y, parameters, g)])

        return run

    size = f"{batch} x {ins} to {outs}, {steps} steps, {bins} bins on {device.type}"
    rows = []
    if dcls:
        peer = dcls.Dcls1d(ins, outs, 1, dilated_kernel_size=bins, bias=False).to(device)
        with torch.no_grad():
            peer.weight.copy_(own.weight)
            peer.P.copy_(sd.delay_to_position(own.delay, bins)[None])
            peer.SIG.fill_(2.0)
        pad = lambda z: peer(F.pad(z, (bins - 1, 0)))
        ours = training(own, [own.weight], own)
        theirs = training(peer, [peer.weight], pad)
        rows.append(compare(f"delayed layer, gradients, {size}", "DCLS", ours, theirs, 1e-4))
    kernel, _ = sd.bump(own.delay.detach().round(), own.sigma[:, None, None], bins, "tap")
    kernel = (own.weight.detach()[..., None] * kernel).sum(2).flip(-1)

    @torch.no_grad()
    def whole():
        with sd.rounded(own):
            return own(x)

    conv = torch.no_grad()(lambda: F.conv1d(F.pad(x, (bins - 1, 0)), kernel))
    rows.append(compare(f"whole delays, {size}", "conv1d, filters built", whole, conv, 1e-4))
    return rows


def networks(device, members=15) -> list[dict]:
    """The order task's gradients: members side by side, and as one network after another."""
    net = sd.arm_network(["learned delays"], range(members), [5, 8, 8], 21, tau=2.0, right=4)
    net = net.to(device)
    x, y = sd.order_task(25, child(0, "x"))
    x, y = x.to(device), y.to(device)
    many_x, many_y = x.repeat(1, members, 1), y[:, None].repeat(1, members)
    singles = []
    for k in range(members):
        one = sd.arm_network(["learned delays"], [k], [5, 8, 8], 21, tau=2.0, right=4)
        singles.append(one.to(device))

    def gradient(network, x, y):
        loss = sd.delay_loss(network(x), y).sum()
        return torch.autograd.grad(loss, network.layers[0].delay)[0].flatten()

    ours = lambda: gradient(net, many_x, many_y)
    theirs = lambda: torch.cat([gradient(one, x, y[:, None]) for one in singles])
    name = f"order task, gradients of {members} networks on {device.type}"
    rows = [compare(name, "one after another", ours, theirs, 1e-3)]
    dcls, sj = _module("DCLS.construct.modules"), _module("spikingjelly.activation_based.neuron")
    if dcls and sj:
        from spikingjelly.activation_based import surrogate

        def neuron(threshold):
            return sj.LIFNode(
                tau=2.0, v_threshold=threshold, surrogate_function=surrogate.ATan(alpha=5.0),
                detach_reset=True, step_mode="m", decay_input=False, store_v_seq=True,
            ).to(device)  # fmt: skip

        own, norm = singles[0], torch.nn.BatchNorm1d(8).to(device)
        fires, silent = neuron(1.0), neuron(1e9)
        convs = []
        for layer in own.layers:
            o, i, _ = layer.weight.shape
            conv = dcls.Dcls1d(i, o, 1, dilated_kernel_size=21, bias=False).to(device)
            with torch.no_grad():
                conv.weight.copy_(layer.weight)
                conv.P.copy_(sd.delay_to_position(layer.delay, 21)[None])
                conv.SIG.fill_(10.0)
            convs.append(conv)

        def authors():
            for module in (*fires.modules(), *silent.modules()):
                if hasattr(module, "reset"):
                    module.reset()
            pad = lambda z: F.pad(z, (20, 4))
            s = fires(norm(convs[0](pad(x))).permute(2, 0, 1))
            silent(convs[1](pad(s.permute(1, 2, 0))).permute(2, 0, 1))
            loss = F.cross_entropy(torch.softmax(silent.v_seq, 2).sum(0), y)
            return -torch.autograd.grad(loss, convs[0].P)[0].flatten()

        name = f"order task, gradients of one network on {device.type}"
        mine = lambda: gradient(own, x, y[:, None])
        rows.append(compare(name, "DCLS and SpikingJelly", mine, authors, 1e-2))
    return rows


def _module(name: str):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def main() -> list[dict]:
    device = pick_device("auto")
    big = (256, 256, 256, 126, 25) if device.type == "cuda" else (16, 64, 64, 126, 25)
    return layers(device, *big) + networks(device)


if __name__ == "__main__":
    for row in main():
        print(
            f"{row['name']:<70} {row['seconds'] * 1e3:8.2f} ms  {row['peer']:<22}"
            f"{row['peer_seconds'] * 1e3:8.2f} ms  ratio {row['ratio']:.2f}"
        )
