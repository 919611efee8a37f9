"""Transformers that run gradient descent inside their forward pass.

J. von Oswald, E. Niklasson, E. Randazzo, J. Sacramento, A. Mordvintsev, A. Zhmoginov and
M. Vladymyrov, *Transformers learn in-context by gradient descent*, ICML 2023 (arXiv 2212.07677).

Here: regression tasks as tokens; linear self-attention (LSA) with heads, stacked or looped, with
dampening, softmax and norms; the weights that make it gradient descent (GD) or GD++; the tuned
baselines, in closed form in the eigenvalues of the data; alignment of a trained layer with them;
the deep variants (MLP in front, MLP between, separate x and y tokens with the copying measure).
Not here: anything but regression with a squared error.

Symbols: ``d`` inputs, ``n`` examples in the context, tokens ``e = (x, y)`` of ``d + 1`` entries,
the query ``(x_t, 0)`` last. ``gamma`` is written with the factor ``1 / n`` outside, like ``eta``;
the paper's absorbs it (gamma_paper = gamma / n). Losses are mean squared errors without the
paper's 1/2.
"""

from lib.in_context.icl_gradient_descent.attention import (
    LinearSelfAttention,
    constructed,
    gd_construction,
    gdpp_construction,
    lsa_update,
    moment_predict,
    softmax_pair,
)
from lib.in_context.icl_gradient_descent.compare import (
    alignment,
    copying,
    effective_rates,
    rescaled,
)
from lib.in_context.icl_gradient_descent.deep import (
    DeepFeatures,
    LSALayer,
)
from lib.in_context.icl_gradient_descent.descent import (
    Tuned,
    gd_predict,
    one_step_mse,
    residual_factor,
    ridge_predict,
    sample_spectrum,
    tune_gd,
)
from lib.in_context.icl_gradient_descent.tasks import (
    sample_regression,
    sample_sines,
    separate_tokens,
    split,
)

__all__ = [
    "sample_regression",
    "split",
    "sample_sines",
    "separate_tokens",
    "LinearSelfAttention",
    "lsa_update",
    "moment_predict",
    "gd_construction",
    "gdpp_construction",
    "constructed",
    "softmax_pair",
    "gd_predict",
    "ridge_predict",
    "residual_factor",
    "sample_spectrum",
    "Tuned",
    "tune_gd",
    "one_step_mse",
    "alignment",
    "rescaled",
    "effective_rates",
    "copying",
    "DeepFeatures",
    "LSALayer",
]
