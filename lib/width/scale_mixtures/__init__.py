"""Scale mixtures of neural network Gaussian processes: a prior on one number, the last layer's.

H. Lee, E. Yun, H. Yang and J. Lee, "Scale Mixtures of Neural Network Gaussian Processes", ICLR
2022, arXiv 2107.01408.

A network whose last-layer weights have variance ``s``, drawn once for the whole network from a law
``H``, is in the limit of great width a Gaussian process with kernel ``s K``: ``K`` belongs to the
architecture, ``s`` to the draw. Averaged over ``s`` it is a mixture of Gaussian processes that
differ in scale, and for an inverse gamma ``H`` a Student-t process. All inference is about ``s``.

Read in this order: ``process`` (inference, the idea itself), ``priors`` (the laws ``H`` and the
distributions they lead to), ``kernels`` (``K`` for fully connected, residual and convolutional
networks), ``networks`` (finite networks, and the law of trained ones), ``sparse`` (classification
with inducing points).

Not implemented: training of the kernel's own variances by marginal likelihood (a kernel that is a
module has its parameters trained by ``sparse.SVTP``; elsewhere choose by validation), recurrent
architectures.
"""

from lib.width.scale_mixtures.kernels import mlp_kernels, nngp_kernel, prior_variance
from lib.width.scale_mixtures.networks import (
    ScaledMLP,
    last_layer_ensemble,
    last_layer_trained,
    ntk_trained,
    sample_networks,
    train_networks,
)
from lib.width.scale_mixtures.priors import (
    BurrXII,
    Dirac,
    HalfCauchy,
    InverseGamma,
    LogNormal,
    Mixture,
    ScalePrior,
    Scales,
    StudentT,
    excess_kurtosis,
    mix,
)
from lib.width.scale_mixtures.process import (
    SMNNGP,
    EmpiricalBayesNNGP,
    choose_by_validation,
    class_probabilities,
    importance_posterior,
    quadrature_posterior,
    student_t_posterior,
)
from lib.width.scale_mixtures.sparse import SVTP, ScaledKernel, student_t_kl

__all__ = [
    "SMNNGP",
    "SVTP",
    "BurrXII",
    "Dirac",
    "EmpiricalBayesNNGP",
    "HalfCauchy",
    "InverseGamma",
    "LogNormal",
    "Mixture",
    "ScalePrior",
    "ScaledKernel",
    "ScaledMLP",
    "Scales",
    "StudentT",
    "choose_by_validation",
    "class_probabilities",
    "excess_kurtosis",
    "importance_posterior",
    "last_layer_ensemble",
    "last_layer_trained",
    "mix",
    "mlp_kernels",
    "nngp_kernel",
    "ntk_trained",
    "prior_variance",
    "quadrature_posterior",
    "sample_networks",
    "student_t_kl",
    "student_t_posterior",
    "train_networks",
]
