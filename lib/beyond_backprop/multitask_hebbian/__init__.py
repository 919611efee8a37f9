"""Hebbian networks that retrieve several diluted patterns at once.

E. Agliari, A. Alessandrelli, A. Barra and F. Ricci-Tersenghi, *Parallel learning by multitasking
neural networks*, 2023, arXiv:2308.04106.

- ``network``: couplings from patterns, from class means (with a teacher) or from single examples
  (without); the Mattis overlaps; the energy as squared losses.
- ``theory``: the equations of low storage (K patterns, N to infinity) at any temperature, for
  stored patterns and for class means; the states of zero temperature in closed form; where they
  stop being stable, and how a finite number of spins blurs that point.

The formulas are derived anew with the prefactors stated in the docstrings. Derived here and not
claimed for the paper: the finite-size laws, the dilution of 2/3 beyond which overlaps start equal,
the exact average over finitely many examples, and the majority state. Noise in the examples flips
entries and never dilutes them further. Left out: the proofs by Guerra's interpolation, and loads K
that grow with N.
"""

from lib.beyond_backprop.multitask_hebbian.network import (
    MultitaskHebbianNetwork,
    MultitaskLoss,
    hebbian_energy,
    hebbian_field,
    hierarchical_state,
    mattis,
)
from lib.beyond_backprop.multitask_hebbian.theory import (
    Overlaps,
    critical_dilution,
    energy_density,
    entropy,
    entry_law,
    equal_dilution,
    finite_step,
    free_energy,
    hierarchical_overlaps,
    hierarchy_margin,
    majority_overlaps,
    one_step_overlap,
    onset,
    overlap_covariance,
    parallel_overlap,
    self_consistency,
    stability,
    survival_probability,
)

__all__ = [
    "MultitaskHebbianNetwork",
    "MultitaskLoss",
    "Overlaps",
    "critical_dilution",
    "energy_density",
    "entropy",
    "entry_law",
    "equal_dilution",
    "finite_step",
    "free_energy",
    "hebbian_energy",
    "hebbian_field",
    "hierarchical_overlaps",
    "hierarchical_state",
    "hierarchy_margin",
    "majority_overlaps",
    "mattis",
    "one_step_overlap",
    "onset",
    "overlap_covariance",
    "parallel_overlap",
    "self_consistency",
    "stability",
    "survival_probability",
]
