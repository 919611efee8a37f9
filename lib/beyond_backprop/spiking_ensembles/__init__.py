"""Many small spiking networks, each for one stretch of a route, and the cells that must be ignored.

S. Hussaini, M. Milford and T. Fischer, *Ensembles of Compact, Region-specific & Regularized
Spiking Neural Networks for Scalable Place Recognition*, ICRA 2023, arXiv:2209.08723.

The network of each module is that of P. Diehl and M. Cook (*Unsupervised learning of digit
recognition using spike-timing-dependent plasticity*, Frontiers in Computational Neuroscience 9,
2015), with the constants of the authors' code. Here are its cells with conductances, its
plasticity, the labels and scores of cells, the detection of hyperactive cells with a calibration
traverse, the ensemble, a procedural route, and the baselines: one large network, the ensemble
without mask, sums of absolute differences, HOG and cosine-transform descriptors, and DenseVLAD in
small. All modules, and several routes, run in one batched loop over time steps. Left out: NetVLAD,
which needs trained weights; DenseVLAD's several scales and projection; sequence matching; loaders
of particular data sets (``folder_traverse`` reads a folder of pictures).

- ``neurons``: cells, and how they inhibit one another.
- ``plasticity``: one presentation, the learning rule, a batch of modules.
- ``recognise``: labels, scores, masks, the ensemble, recall and precision.
- ``route``: images and descriptors.
"""

from lib.beyond_backprop.spiking_ensembles.neurons import (
    EXCITATORY,
    INHIBITORY,
    Neuron,
    Population,
    first_to_cross,
    inhibit,
)
from lib.beyond_backprop.spiking_ensembles.plasticity import (
    State,
    STDPModule,
    normalize_,
    present,
    receptive_fields,
    spike_times,
    stdp_,
    synapse_updates,
)
from lib.beyond_backprop.spiking_ensembles.recognise import (
    MODES,
    QUANTILES,
    ModularPlaceRecognizer,
    assign,
    find_hyperactive,
    foreign_share,
    outside_activity,
    precision_recall,
    recall,
    response_table,
    score_places,
    unit_range,
)
from lib.beyond_backprop.spiking_ensembles.route import (
    cosine,
    dct,
    folder_traverse,
    hog,
    local_descriptors,
    patch_normalize,
    sad,
    traverses,
    view,
    vlad,
    vocabulary,
    windows,
)

__all__ = [
    "EXCITATORY",
    "INHIBITORY",
    "MODES",
    "ModularPlaceRecognizer",
    "Neuron",
    "Population",
    "QUANTILES",
    "STDPModule",
    "State",
    "assign",
    "cosine",
    "dct",
    "find_hyperactive",
    "first_to_cross",
    "folder_traverse",
    "foreign_share",
    "hog",
    "inhibit",
    "local_descriptors",
    "normalize_",
    "outside_activity",
    "patch_normalize",
    "precision_recall",
    "present",
    "recall",
    "receptive_fields",
    "response_table",
    "sad",
    "score_places",
    "spike_times",
    "stdp_",
    "synapse_updates",
    "traverses",
    "unit_range",
    "view",
    "vlad",
    "vocabulary",
    "windows",
]
