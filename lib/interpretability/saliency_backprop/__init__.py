"""Saliency by backpropagation, seen as a grid: extract per site, then aggregate to one number.

S.-A. Rebuffi, R. Fong, X. Ji and A. Vedaldi, "There and Back Again: Revisiting Backpropagation
Saliency Methods", CVPR 2020, arXiv:2004.02866.

Put an identity layer with parameters w into a network. The gradient of a class score with respect
to w is a sum over image sites. Phase 1 (extract) takes one site's summand, a vector; phase 2
(aggregate) turns it into a number, and the numbers form the saliency map. The kind of identity
layer and the kind of aggregation span a grid whose points include the gradient, the linear
approximation (gradient times input) and Grad-CAM, and whose free places suggest NormGrad: the norm
of the weight gradient of an identity convolution.

Here: every phase and aggregation with closed forms and the materialized definition they must equal,
real convolutions, the named methods, combination of layers, class sensitivity, meta-saliency, and
the model-randomization check. Symbols: f is the activation "b c h w" at the probed layer, g the
gradient of the explained logit with respect to it, u a site. Signs are those of the logit.

Read ``grid`` first, then ``maps``, ``checks`` and ``scenes``.
"""

from lib.interpretability.saliency_backprop.checks import (
    OneStep,
    cascade,
    class_sensitivity,
    meta_saliency,
    randomization_curve,
)
from lib.interpretability.saliency_backprop.grid import (
    AGGREGATES,
    NAMED,
    NEEDS,
    PHASES,
    aggregate,
    closed_form,
    extract,
    from_statistics,
)
from lib.interpretability.saliency_backprop.maps import (
    combine_layers,
    grad_cam_point,
    grid_maps,
    grid_saliency,
    identity_gradient,
    min_max,
    normgrad,
)
from lib.interpretability.saliency_backprop.scenes import (
    ShapeScenes,
    shape_scenes,
)

__all__ = [
    "PHASES",
    "AGGREGATES",
    "NAMED",
    "NEEDS",
    "extract",
    "aggregate",
    "closed_form",
    "from_statistics",
    "grid_saliency",
    "normgrad",
    "grad_cam_point",
    "grid_maps",
    "identity_gradient",
    "combine_layers",
    "min_max",
    "class_sensitivity",
    "meta_saliency",
    "OneStep",
    "cascade",
    "randomization_curve",
    "ShapeScenes",
    "shape_scenes",
]
