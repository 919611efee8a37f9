"""Feature learning in networks of infinite width: which parametrizations allow it, and the limits.

G. Yang and E. J. Hu, "Feature Learning in Infinite-Width Neural Networks" (Tensor Programs IV),
ICML 2021, arXiv 2011.14522.

How weights, initial variances and the learning rate scale with width decides what the limit of
great width does: its hidden features move, or it trains as a fixed kernel machine, never both.

- ``abc``: abc-parametrizations, their classification, networks built with them, muP for an
  ordinary network under SGD and Adam, and the coordinate check.
- ``limits``: the exact muP limit of the linear network with one hidden layer, which is an ordinary
  network of width d + o; the GP and NTK limits as sums of kernels that grow with training; wide
  networks as stand-ins for limits without a small exact form.
- ``deep``: the exact muP limit of linear networks of any depth, an ordinary network that starts as
  a tree.
- ``word2vec``: CBOW at any width with three losses, a small language of relations, analogies.
- ``maml``: meta-learning of all of these, first and second order.
- ``real``: text8 with its analogies, and Omniglot, for the full scale.

Not implemented: the muP limit of nonlinear networks, whose description the paper gives but which
has no finite form (``wide_proxy`` stands in for it), and biases in the deep linear limit.

Symbols: ``n`` width, ``m = n / base``, ``d`` inputs, ``o`` outputs, ``L`` hidden layers
(the nonlinearities), ``r`` the power of 1/n by which features move.
"""

from lib.width.feature_learning.abc import (
    ABCMLP,
    ABCParam,
    coordinate_check,
    layer_outputs,
    mean_field,
    mup,
    mup_init_,
    mup_optimizer,
    ntk,
    standard,
)
from lib.width.feature_learning.deep import DeepLinear, InfLinear, tree_start, word_tree
from lib.width.feature_learning.limits import (
    GP1LP,
    InfKernel1LP,
    InfLinear1LP,
    Linear1LP,
    wide_proxy,
)
from lib.width.feature_learning.maml import (
    MetaStep,
    Task,
    episode,
    glyphs,
    maml_step,
    meta_accuracy,
    meta_train,
)
from lib.width.feature_learning.real import analogy_questions, omniglot, text8
from lib.width.feature_learning.word2vec import (
    CBOW,
    Relations,
    Tree,
    analogy_accuracy,
    analogy_answers,
    hierarchical_loss,
    huffman,
    most_common,
    negative_loss,
    softmax_loss,
    subsample,
    text_windows,
    unigram_table,
)

__all__ = [
    "ABCMLP",
    "ABCParam",
    "CBOW",
    "DeepLinear",
    "GP1LP",
    "InfKernel1LP",
    "InfLinear",
    "InfLinear1LP",
    "Linear1LP",
    "MetaStep",
    "Relations",
    "Task",
    "Tree",
    "analogy_accuracy",
    "analogy_answers",
    "analogy_questions",
    "coordinate_check",
    "episode",
    "glyphs",
    "hierarchical_loss",
    "huffman",
    "layer_outputs",
    "maml_step",
    "mean_field",
    "meta_accuracy",
    "meta_train",
    "most_common",
    "mup",
    "mup_init_",
    "mup_optimizer",
    "negative_loss",
    "ntk",
    "omniglot",
    "softmax_loss",
    "standard",
    "subsample",
    "text8",
    "text_windows",
    "tree_start",
    "unigram_table",
    "wide_proxy",
    "word_tree",
]
