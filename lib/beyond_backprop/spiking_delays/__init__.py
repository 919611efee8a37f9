"""Spiking networks that learn when a spike arrives, not only how much it weighs.

I. Hammouamri, I. Khalfaoui-Hassani and T. Masquelier, *Learning Delays in Spiking Neural Networks
using Dilated Convolutions with Learnable Spacings*, ICLR 2024, arXiv:2306.17670.

A layer with one delay for every synapse is a temporal convolution whose filters have one tap, at
the delay. A Gaussian in the place of the tap makes its position differentiable; the Gaussian is
wide at first and narrow at the end, and then delays are rounded.

- ``layers``: the layer (Gaussian or triangle, several taps a synapse), its annealed width, its
  evaluation with rounded delays, the network.
- ``training``: two optimizers with a hundred times different rates, and the ablation arms.
- ``recovery``: a teacher with known delays, and students that look for them.
- ``tasks``: spikes in order (procedural), and readers for the paper's SHD, SSC and GSC.

The operator and its fused kernel are ``lib.kernels.delays``; neurons, surrogates and read-outs are
``lib.models.spiking``. Left out: the parametric LIF and synaptic filters that the authors' code
offers and the paper's results do not use, their cut-mix and masking augmentations, and the
waveform augmentations of GSC.
"""

from lib.beyond_backprop.spiking_delays.layers import (
    OFFSET,
    DelayConv1d,
    DelayNetwork,
    delay_to_position,
    position_to_delay,
    rounded,
    width_schedule,
)
from lib.beyond_backprop.spiking_delays.recovery import Recovery, recover
from lib.beyond_backprop.spiking_delays.tasks import (
    Events,
    aligned,
    bin_events,
    load_gsc,
    load_spikes,
    mel_frames,
    order_task,
)
from lib.beyond_backprop.spiking_delays.training import (
    ARMS,
    accuracy,
    arm_network,
    batches,
    connectivity,
    delay_loss,
    for_members,
    parameters_per_member,
    train,
)
from lib.kernels.delays import bump, delay_conv, delay_linear

__all__ = [
    "ARMS",
    "OFFSET",
    "DelayConv1d",
    "DelayNetwork",
    "Events",
    "Recovery",
    "accuracy",
    "aligned",
    "arm_network",
    "batches",
    "bin_events",
    "bump",
    "connectivity",
    "delay_conv",
    "delay_linear",
    "delay_loss",
    "delay_to_position",
    "for_members",
    "load_gsc",
    "load_spikes",
    "mel_frames",
    "order_task",
    "parameters_per_member",
    "position_to_delay",
    "recover",
    "rounded",
    "train",
    "width_schedule",
]
