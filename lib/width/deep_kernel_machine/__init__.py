"""Deep kernel machines: an infinite-width limit in which the representation is learned.

A. X. Yang, M. Robeyns, E. Milsom, B. Anson, N. Schoots and L. Aitchison, "A theory of
representation learning gives a deep generalisation of kernel methods", ICML 2023, arXiv 2108.13097.

Widths ``N_l = N nu_l`` go to infinity, and the outputs are replicated N times, so that likelihood
and prior keep their balance. The features of layer l are then exactly Gaussian with a Gram matrix
``G_l`` that maximizes

    L(G_1 .. G_L) = log P(Y | G_L) - sum_l nu_l KL( N(0, G_l) || N(0, K(G_{l-1})) ).

Implemented, by file: ``kernels`` (kernels of Gram matrices, the KL divergence, the closed form of
the linear case), ``machine`` (the full objective over P by P matrices, Gaussian, noiseless and
categorical outputs, prediction, the MAP ablation, ``nu = inf`` and ``nu = 0``), ``sparse``
(inducing points, mini-batches), ``finite`` (the deep Gaussian process or network of finite width,
sampled by HMC or Langevin steps), ``network`` (the limit of a neural network, whose features are
not Gaussian: their law is a normalizing flow, as in the paper's appendix, of our own architecture).
Not implemented: the convolutional machines of later papers.
"""

from lib.width.deep_kernel_machine.finite import FiniteDGP
from lib.width.deep_kernel_machine.kernels import (
    arc_cosine,
    kernel_of,
    kl_gram,
    linear,
    linear_dkm_closed_form,
    polynomial,
    squared_exponential,
    sum_kernel,
)
from lib.width.deep_kernel_machine.machine import (
    Categorical,
    DeepKernelMachine,
    Gaussian,
    TargetGram,
    nngp_predict,
)
from lib.width.deep_kernel_machine.network import NetworkDKM
from lib.width.deep_kernel_machine.sparse import SparseDKM

__all__ = [
    "Categorical",
    "DeepKernelMachine",
    "FiniteDGP",
    "Gaussian",
    "NetworkDKM",
    "SparseDKM",
    "TargetGram",
    "arc_cosine",
    "kernel_of",
    "kl_gram",
    "linear",
    "linear_dkm_closed_form",
    "nngp_predict",
    "polynomial",
    "squared_exponential",
    "sum_kernel",
]
