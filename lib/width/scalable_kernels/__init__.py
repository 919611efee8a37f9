"""Scalable neural network kernels: a layer whose inputs and weights meet in one dot product.

A. Sehanobish, K. Choromanski, Y. Zhao, A. Dubey and V. Likhosherstov, "Scalable Neural Network
Kernels", ICLR 2024, arXiv 2310.13225.

A layer ``f(W x + b)`` needs its weights and its inputs in one place before ``f`` can act. Random
features move them apart: ``f(w.x + b) = E[Psi(w, b) . Phi(x)]``. Whatever was ``W`` is then a
matrix that stands behind fixed features of the input, and may be trained as such.

Reading order: ``universal`` (the universal random features and their variance in closed form),
``features`` (what all maps share; ReLU and Fourier features), ``series`` (power series),
``layers`` (the layer, its conversion from a dense one, adapters), ``bundle`` (several layers in
one, and the last map in closed form).

Implemented: everything the paper names for fully connected layers. The layers run on
``lib.kernels.kernel_sum``, which never stores the features. The baselines are elsewhere: LoRA,
bottleneck adapters and BitFit in ``lib.models.adapters``. Not implemented: the paper's BERT and
ViT runs; which closed forms besides the squared error's the paper lists could not be confirmed,
so two that follow at once are offered.

Where the authors' code departs from the formulas, the formulas are followed: it forgets the factor
1/2 of the norm term for 3-D inputs, and draws projections of standard deviation 0.02 in one class.
"""

from lib.width.scalable_kernels.bundle import (
    Bundled,
    bundle,
    fit_bundled_alignment,
    fit_bundled_mse,
)
from lib.width.scalable_kernels.features import (
    Features,
    FourierFeatures,
    ReLUFeatures,
    arc_cosine,
    gaussian_orthogonal_matrix,
)
from lib.width.scalable_kernels.layers import (
    SNNKLinear,
    adapter,
    count_trained,
    from_linear,
    uptrain,
)
from lib.width.scalable_kernels.series import MaclaurinFeatures, taylor_coefficients
from lib.width.scalable_kernels.universal import (
    Spectrum,
    UniversalFeatures,
    bump,
    cosine,
    exponential,
    feature_variance,
    from_transform,
    reflected_series,
    sine,
)

__all__ = [
    "Bundled",
    "Features",
    "FourierFeatures",
    "MaclaurinFeatures",
    "ReLUFeatures",
    "SNNKLinear",
    "Spectrum",
    "UniversalFeatures",
    "adapter",
    "arc_cosine",
    "bump",
    "bundle",
    "cosine",
    "count_trained",
    "exponential",
    "feature_variance",
    "fit_bundled_alignment",
    "fit_bundled_mse",
    "from_linear",
    "from_transform",
    "gaussian_orthogonal_matrix",
    "reflected_series",
    "sine",
    "taylor_coefficients",
    "uptrain",
]
