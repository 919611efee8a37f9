"""Physical networks trained without back-propagation: physical local learning.

A. Momeni, B. Rahmani, M. Mallejac, P. del Hougne and R. Fleury, *Backpropagation-free Training of
Deep Physical Neural Networks*, 2023, arXiv:2304.11042 (Science 382, 1297).

``devices`` simulates the paper's three kinds of physical layer and their digital twins, ``local``
is the method (``PhysicalNetwork``, and ``mlp_trainer`` for a plain network), ``baselines`` what it
is compared with, ``vowels`` makes the small task.

The projection loss, the order of updates, the label scan, the normalized device input, the skip and
Adam follow the authors' released programs. The other two losses are read out of the paper's words
only. The running normalization of a device's answer is ours: simulated intensities have a common
offset that hides their differences. Unsupervised negatives follow Hinton's recipe; the authors'
program for them is not released. The simulations are formulas; the authors' program for the
acoustic and the microwave experiment uses networks fitted to measurements instead.
"""

from lib.beyond_backprop.physical_networks.baselines import (
    PhysicalClassifier,
    Reservoir,
    feedback_gradients,
    physics_aware,
    train_dfa,
    train_in_silico,
    train_pat,
)
from lib.beyond_backprop.physical_networks.devices import (
    AcousticCavity,
    BlackBox,
    DigitalTwin,
    MicrowaveCavity,
    MultimodeFiber,
    PermutedOutputs,
    PhysicalLayer,
    SimulatedDevice,
)
from lib.beyond_backprop.physical_networks.local import (
    PhysicalNetwork,
    RunningNorm,
    Trainer,
    label_input,
    local_contrast_loss,
    mixed_negatives,
    mlp_trainer,
    projection_gradient,
    score_gradient,
    stage_score,
    unit_magnitude,
    wrong_labels,
)
from lib.beyond_backprop.physical_networks.vowels import FORMANTS, vowels

__all__ = [
    "FORMANTS",
    "AcousticCavity",
    "BlackBox",
    "DigitalTwin",
    "MicrowaveCavity",
    "MultimodeFiber",
    "PermutedOutputs",
    "PhysicalClassifier",
    "PhysicalLayer",
    "PhysicalNetwork",
    "Reservoir",
    "RunningNorm",
    "SimulatedDevice",
    "Trainer",
    "feedback_gradients",
    "label_input",
    "local_contrast_loss",
    "mixed_negatives",
    "mlp_trainer",
    "physics_aware",
    "projection_gradient",
    "score_gradient",
    "stage_score",
    "train_dfa",
    "train_in_silico",
    "train_pat",
    "unit_magnitude",
    "vowels",
    "wrong_labels",
]
