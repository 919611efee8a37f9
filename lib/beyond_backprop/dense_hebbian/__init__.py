"""Associative memories of order P that learn archetypes from noisy examples of them.

E. Agliari, L. Albanese, F. Alemanno, A. Alessandrelli, A. Barra, F. Giannotti, D. Lotito and
D. Pedreschi, *Dense Hebbian neural networks: a replica symmetric picture of supervised learning*,
2022, arXiv:2212.00606; without a teacher: arXiv:2211.14067.

- ``fields``: the local field and the energy without the coupling tensor, the tensor itself for
  small networks, couplings with noise.
- ``theory``: one step from the archetype, the replica-symmetric fixed point at zero temperature
  (for many examples, and for few) and at positive temperature, phase diagrams.
- ``network``: the network with and without a teacher, Glauber dynamics spin by spin, Plefka's
  expansion, images as spins.

The formulas are derived anew with the prefactors stated in the docstrings; the paper's conventions
may differ by constants. Left out: the proof by Guerra's interpolation, replica-symmetry breaking,
and the fixed point without a teacher (its one-step overlap is here).
"""

from lib.beyond_backprop.dense_hebbian.fields import (
    couplings_field,
    dense_energy,
    dense_field,
    falling,
    noisy_field,
    stored_couplings,
)
from lib.beyond_backprop.dense_hebbian.network import (
    Binarized,
    DenseHebbianNetwork,
    class_means,
    plefka,
    plefka_step,
    sample_means,
    structured_datasets,
)
from lib.beyond_backprop.dense_hebbian.theory import (
    FixedPoint,
    critical_load,
    entropy,
    examples_needed,
    one_step_overlap,
    phase_diagram,
    rs_few_examples,
    rs_finite_temperature,
    rs_zero_temperature,
    storage_load,
)
from lib.models.hopfield import elementary, sequential_sweep

__all__ = [
    "Binarized",
    "DenseHebbianNetwork",
    "FixedPoint",
    "class_means",
    "couplings_field",
    "critical_load",
    "dense_energy",
    "dense_field",
    "elementary",
    "entropy",
    "examples_needed",
    "falling",
    "noisy_field",
    "one_step_overlap",
    "phase_diagram",
    "plefka",
    "plefka_step",
    "rs_few_examples",
    "rs_finite_temperature",
    "rs_zero_temperature",
    "sample_means",
    "sequential_sweep",
    "storage_load",
    "stored_couplings",
    "structured_datasets",
]
