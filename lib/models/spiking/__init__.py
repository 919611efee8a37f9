"""Spiking neurons and networks: leaky integrate-and-fire, surrogates, encoders, read-outs.

One neuron is an ``nn.Module`` that stands where an activation would stand, so the backbones of
``lib.models`` become spiking networks through their ``act=`` factories. A network runs in one of
two orders, which give the same spikes:

- *step by step*: one call a time step; the neurons remember their membrane. What an online rule
  needs.
- *layer by layer*: time is folded into the batch axis, ``"(t b) ..."``, and each neuron runs its
  whole sequence in one fused scan (``lib.kernels.lif``). Faster where the graph over all steps is
  kept anyway. Batch normalization then sees all steps at once instead of each on its own.

Conventions (Meng et al. 2023, arXiv:2302.14311): ``decay = 1 - 1/tau``, the input is not scaled by
the leak, the membrane starts at zero, the surrogate's argument is ``v - threshold``.

- ``neuron``: the neuron and its gradients.
- ``running``: a network in time, and what can be watched in it.
- ``coding``: numbers and events into spikes, outputs into scores.
- ``networks``: fully connected, convolutional and residual.
"""

from lib.models.spiking.coding import direct, event_frames, poisson_spikes, readout
from lib.models.spiking.networks import (
    MemberLinear,
    spike_gain,
    spiking_cnn,
    spiking_mlp,
    spiking_nf_resnet,
    spiking_resnet18,
    spiking_vgg11,
)
from lib.models.spiking.neuron import (
    LIF,
    RateGradient,
    Surrogate,
    lif,
    membrane,
    rate_weights,
    surrogate,
)
from lib.models.spiking.running import (
    detach,
    firing_rates,
    neurons,
    reset,
    run,
    settings,
    spike_trains,
    temporal_factor,
    watch,
)

__all__ = [
    "LIF",
    "MemberLinear",
    "RateGradient",
    "Surrogate",
    "detach",
    "direct",
    "event_frames",
    "firing_rates",
    "lif",
    "membrane",
    "neurons",
    "poisson_spikes",
    "rate_weights",
    "readout",
    "reset",
    "run",
    "settings",
    "spike_gain",
    "spike_trains",
    "spiking_cnn",
    "spiking_mlp",
    "spiking_nf_resnet",
    "spiking_resnet18",
    "spiking_vgg11",
    "surrogate",
    "temporal_factor",
    "watch",
]
