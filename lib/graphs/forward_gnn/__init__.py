"""Forward learning of graph neural networks: no backward pass across layers.

N. Park, X. Wang, A. Simoulin, S. Yang, G. Yang, R. Rossi, P. Trivedi and N. Ahmed, *Forward
Learning of Graph Neural Networks*, ICLR 2024, arXiv:2403.11004.

Reading order: ``virtual`` (labels onto a graph), ``local`` (layers with losses of their own:
forward-forward, single forward, top-down), ``model`` (ForwardGNN, its training and inference),
``links`` (link prediction), ``baselines`` (backpropagation, local heads, cascaded forward,
PEPITA, random feedback). Goodness and its loss are in ``lib.models.feedback``, the convolutions in
``lib.models.graph_layers``, graphs in ``lib.core.data.graphs``. Left out: the paper's data loaders
beyond Planetoid, and mini-batches of sampled neighborhoods.
"""

from lib.graphs.forward_gnn.baselines import (
    BackpropGNN,
    LocalHeads,
    accuracy,
    fit_backprop,
    fit_pepita,
    pepita_updates,
)
from lib.graphs.forward_gnn.links import (
    ForwardLinks,
    LinkSplit,
    auc,
    link_loss,
    non_edges,
    split_links,
)
from lib.graphs.forward_gnn.local import (
    Layer,
    bottom_up,
    class_logits,
    class_node_loss,
    forward_forward,
    single_forward,
    top_down,
)
from lib.graphs.forward_gnn.model import CONVS, MODES, ForwardGNN, NoGraph, train_layer
from lib.graphs.forward_gnn.virtual import VirtualNodeAugmenter, append_labels, wrong_labels
from lib.models.feedback import ff_loss, goodness

__all__ = [
    "accuracy",
    "append_labels",
    "auc",
    "BackpropGNN",
    "bottom_up",
    "class_logits",
    "class_node_loss",
    "CONVS",
    "ff_loss",
    "fit_backprop",
    "fit_pepita",
    "forward_forward",
    "ForwardGNN",
    "ForwardLinks",
    "goodness",
    "Layer",
    "link_loss",
    "LinkSplit",
    "LocalHeads",
    "MODES",
    "NoGraph",
    "non_edges",
    "pepita_updates",
    "single_forward",
    "split_links",
    "top_down",
    "train_layer",
    "VirtualNodeAugmenter",
    "wrong_labels",
]
