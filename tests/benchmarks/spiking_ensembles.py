"""One presentation in the batched loop beside other ways to run the same modules.

``python -m tests.benchmarks.spiking_ensembles``; ratios above 1 mean that the peer takes longer.
Two peers return the same numbers, compared first: modules one after the other, and the rule as two
updates and two clips. Brian2, where it is installed, draws input spikes of its own and solves the
same equations on as many synapses for as many steps.
"""

from __future__ import annotations

import copy

import torch

import lib.beyond_backprop.spiking_ensembles as se
from lib.beyond_backprop.spiking_ensembles import plasticity
from lib.core.seeds import child, pick_device
from tests.benchmarks._timing import compare


def network(device, modules: int, cells: int, inputs: int) -> se.STDPModule:
    gens = [child(0, "bench", k) for k in range(modules)]
    net = se.STDPModule(inputs, cells, gens=gens, theta_step=0.1)
    se.normalize_(net.W, net.weight_sum)
    return net.to(device)


def trains(device, steps: int, modules: int, inputs: int, p: float = 0.3) -> torch.Tensor:
    gen = torch.Generator().manual_seed(1)
    return (torch.rand(steps, modules, 1, inputs, generator=gen) < p).float().to(device)


def part(net: se.STDPModule, k: int) -> se.STDPModule:
    one = copy.copy(net)
    one._buffers = {name: None if b is None else b[k : k + 1] for name, b in net._buffers.items()}
    return one


def two_updates(W, state, arrived, spike):
    """The rule as it is written: one half, clip, the other half, clip."""
    state.fade()
    torch.maximum(state.x_pre, arrived, out=state.x_pre)
    W += plasticity.NU_PRE * state.post[:, 0, :, None] * arrived
    W.clamp_(0, 1)
    W += plasticity.NU_POST * (state.post[:, 1:] * spike).mT * state.x_pre
    W.clamp_(0, 1)
    state.post.masked_fill_(spike, 1.0)


def presentations(device, modules: int, cells: int, inputs: int, steps: int) -> list[dict]:
    net, spikes = network(device, modules, cells, inputs), trains(device, steps, modules, inputs)
    start = {name: b.clone() for name, b in net.named_buffers()}

    def run(one_by_one: bool = False, rule=None):
        for name, b in net.named_buffers():
            b.copy_(start[name])
        kept, plasticity.stdp_ = plasticity.stdp_, rule or plasticity.stdp_
        try:
            if one_by_one:
                for k in range(modules):
                    se.present(part(net, k), spikes[:, k : k + 1], True)
            else:
                se.present(net, spikes, True)
        finally:
            plasticity.stdp_ = kept
        return net.W.clone()

    name = f"presentation, {modules} x {cells} x {inputs}, {steps} steps on {device.type}"
    own = lambda: run()
    return [
        compare(name, "module by module", own, lambda: run(True), 1e-5, repeats=3),
        compare(
            name, "two updates, two clips", own, lambda: run(rule=two_updates), 1e-5, repeats=3
        ),
    ]


def brian(steps: int = 100, cells: int = 48, inputs: int = 196) -> list[dict]:
    try:
        import brian2 as b2
    except (ImportError, AttributeError):
        return []
    b2.prefs.codegen.target = "numpy"
    b2.defaultclock.dt = 1 * b2.ms
    exc = b2.NeuronGroup(
        cells,
        """dv/dt = ((-65*mV - v) + ge*(0*mV - v) + gi*(-100*mV - v)) / (100*ms)
            : volt (unless refractory)
        dge/dt = -ge/(1.0*ms) : 1
        dgi/dt = -gi/(0.5*ms) : 1
        theta : volt""",
        threshold="v > theta - 72*mV",
        reset="v = -65*mV; theta += 0.1*mV",
        refractory=5 * b2.ms,
        method="euler",
    )
    exc.v, exc.theta = -65 * b2.mV, 20 * b2.mV
    source = b2.PoissonGroup(inputs, 300 * b2.Hz)
    rule = b2.Synapses(
        source,
        exc,
        """w : 1
        before : 1
        dx/dt = -x/(20*ms) : 1 (event-driven)
        do1/dt = -o1/(20*ms) : 1 (event-driven)
        do2/dt = -o2/(40*ms) : 1 (event-driven)""",
        on_pre="ge_post += w\nx = 1.0\nw = clip(w + 0.0001*o1, 0, 1)",
        on_post="before = o2\nw = clip(w + 0.01*x*before, 0, 1)\no1 = 1.0\no2 = 1.0",
    )
    rule.connect()
    rule.w = "0.3 * rand()"
    others = b2.Synapses(exc, exc, on_pre="gi_post += 17")
    others.connect("i != j")
    model = b2.Network(source, exc, rule, others)
    model.run(1 * b2.ms)
    device = torch.device("cpu")
    net, spikes = network(device, 1, cells, inputs), trains(device, steps, 1, inputs)
    return [
        compare(
            f"presentation, 1 x {cells} x {inputs}, {steps} steps on cpu",
            "Brian2, NumPy target",
            lambda: se.present(net, spikes, True),
            lambda: model.run(steps * b2.ms),
            None,
            repeats=3,
        )
    ]


def main() -> list[dict]:
    device = pick_device("auto")
    rows = presentations(device, 20, 48, 196, 100)
    if device.type == "cuda":
        rows += presentations(device, 100, 400, 784, 100)
    return rows + brian()


if __name__ == "__main__":
    for row in main():
        memory = row.get("memory_ratio")
        print(
            f"{row['name']:<52} {row['seconds'] * 1e3:8.2f} ms  {row['peer']:<24}"
            f"{row['peer_seconds'] * 1e3:9.2f} ms  ratio {row['ratio']:.2f}"
            + ("" if memory is None else f"  memory {memory:.1f}")
        )
