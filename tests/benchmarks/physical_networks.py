"""The local update beside back-propagation through a twin, and the simulated devices' arithmetic.

``python -m tests.benchmarks.physical_networks``; ratios above 1 mean that the peer takes longer.
Numbers are compared first wherever both sides compute the same.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from sklearn.linear_model import RidgeClassifier
from torch import nn

from lib.beyond_backprop.physical_networks import (
    AcousticCavity,
    BlackBox,
    DigitalTwin,
    MultimodeFiber,
    PhysicalClassifier,
    PhysicalNetwork,
    Reservoir,
    train_in_silico,
    unit_magnitude,
)
from lib.core.meters import saved_bytes
from lib.core.seeds import child, pick_device
from tests.benchmarks._timing import compare


def scattering(device: torch.device, modes: int, batch: int = 256) -> list[dict]:
    """The formulas in real products beside torch's complex ones."""
    x = unit_magnitude(torch.rand(batch, modes, device=device))
    fiber = MultimodeFiber(modes, modes, child(0, "fiber")).to(device)
    cavity = AcousticCavity(modes, modes, child(0, "cavity")).to(device)
    T, A, B = (torch.complex(*m) for m in (fiber.matrices["T"], *map(cavity.matrices.get, "AB")))

    def light():
        phase = math.pi * fiber.scale * math.sqrt(modes) * x
        return (torch.polar(torch.ones_like(phase), phase) @ T.T).abs().square()

    def sound():
        p = x.to(A) @ A.T
        return (torch.polar(torch.tanh(6 * p.abs()), p.angle()) @ B.T).abs()

    where = f"{modes} modes, batch {batch} on {device.type}"
    return [
        compare(f"fiber, {where}", "complex torch", lambda: fiber.response(x), light),
        compare(f"acoustic cavity, {where}", "complex torch", lambda: cavity.response(x), sound),
    ]


def update(device: torch.device, modes: int = 1024, batch: int = 64) -> dict:
    """One update of two stages: local, its devices answering from memory, or through twins.

    A laboratory's device costs no digital time, so the local side is given recorded answers. The
    two compute different gradients; what is compared is what a computer has to do.
    """
    gen = child(0, "update")
    layers = [MultimodeFiber(n, modes, gen).to(device) for n in (74, 256)]
    answer = torch.rand(2 * batch, modes, generator=gen)
    recorded = [BlackBox(lambda x: answer.numpy()[: len(x)], layer.n_in, modes) for layer in layers]
    net = PhysicalNetwork(recorded, [256, 256], classes=10, gen=gen).to(device)
    x = torch.rand(batch, 64, generator=gen).to(device)
    y = torch.randint(10, (batch,), generator=gen).to(device)
    deep = PhysicalClassifier(layers, [256, 10], gen).to(device)
    twins = [DigitalTwin(layer, 0.0) for layer in layers]

    def ours():
        net.step(x, y, gen)

    def theirs():
        train_in_silico(deep, twins, x, y, 1)

    held = {"saved": saved_bytes(ours, [x]), "peer_saved": saved_bytes(theirs, [x])}
    name = f"an update, 2 stages of {modes} modes, batch {batch} on {device.type}"
    return compare(name, "through a twin", ours, theirs, None, **held)


def plain(device: torch.device, width: int = 512, batch: int = 64) -> dict:
    """The stage's gradient by hand-written module code and by plain torch.nn: same numbers."""
    gen = child(0, "plain")
    box = BlackBox(lambda x: x, width, width)
    net = PhysicalNetwork([box], [width], classes=10, gen=gen).to(device)
    q = torch.rand(2 * batch, width, generator=gen).to(device)
    m, r = net.maps[0], net.directions[0]
    peer = nn.Linear(width, width).to(device)
    peer.load_state_dict(m.state_dict())

    def ours():
        return torch.autograd.grad(net.stage_loss(0, q), m.weight)[0]

    def theirs():
        a, b = (F.cosine_similarity(peer(z).abs(), r.expand(batch, -1)) for z in q.chunk(2))
        return torch.autograd.grad(torch.log(1 + torch.exp(-4 * (a - b))).mean(), peer.weight)[0]

    return compare(
        f"gradient of a stage, width {width} on {device.type}", "plain torch", ours, theirs
    )


def reservoir(device: torch.device, n: int = 1000) -> dict:
    gen = child(0, "reservoir")
    fiber = MultimodeFiber(74, 512, gen, bits=None, photons=None).to(device)
    x = torch.rand(n, 64, generator=gen).to(device)
    y = torch.randint(10, (n,), generator=gen).to(device)
    features = Reservoir(fiber, x, y, 10)._features(x)[:, :-1].cpu().numpy()

    def ours():
        return Reservoir(fiber, x, y, 10, lam=1.0).scores(x)

    def theirs():
        fiber(F.pad(unit_magnitude(x), (10, 0)))  # asking the device is part of the work
        return RidgeClassifier(alpha=1.0).fit(features, y.cpu()).decision_function(features)

    # scikit-learn does not shrink the constant: tests/peers compares the predictions.
    return compare(f"reservoir read-out, {n} samples", "RidgeClassifier", ours, theirs, None)


def main() -> list[dict]:
    device = pick_device("auto")
    modes = 2048 if device.type == "cuda" else 512
    return [*scattering(device, modes), update(device), plain(device), reservoir(device)]


if __name__ == "__main__":
    for row in main():
        held = (
            f"  saved {row['saved'] / 1e6:.2f} against {row['peer_saved'] / 1e6:.2f} MB"
            if "saved" in row
            else ""
        )
        print(
            f"{row['name']:<56} {row['seconds'] * 1e3:8.2f} ms  {row['peer']:<16}"
            f"{row['peer_seconds'] * 1e3:8.2f} ms  ratio {row['ratio']:.2f}{held}"
        )
