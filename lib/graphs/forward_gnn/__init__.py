"""Forward learning of graph neural networks: no backward pass across layers.

N. Park, X. Wang, A. Simoulin, S. Yang, G. Yang, R. Rossi, P. Trivedi and N. Ahmed, *Forward
Learning of Graph Neural Networks*, ICLR 2024, arXiv:2403.11004.

Reading order: ``virtual`` (labels onto a graph), ``local`` (layers with losses of their own:
forward-forward, single forward, top-down), ``model`` (ForwardGNN, its inference, and its training
with the loops of ``training``), ``links`` (link prediction), ``baselines`` (backpropagation, local
heads, cascaded forward, signal propagation, PEPITA, random feedback). ``convs`` has the
convolutions by name; they live in ``lib.models.graph_layers``, goodness and its loss in
``lib.models.feedback``, graphs in ``lib.core.data.graphs``.

Defaults are those of the authors' program (github.com/facebookresearch/forwardgnn): goodness as a
sum with theta 2, every wrong class as a negative, temperature 1, Adam at 1e-3 with weight decay
5e-4, ten time steps at inference of which the last eight count. Two differ: links to class nodes
run one way in the SF modes (theirs run both ways), and "relational" has two kinds of edges (theirs
one for each class and direction). Left out: its option to append the labels in the SF modes too,
and its data sets (CitationFull, Amazon, GitHub); the chapter uses Cora and CiteSeer of Planetoid.
"""

from lib.graphs.forward_gnn.baselines import (
    BackpropGNN,
    LocalHeads,
    SignalPropagation,
    accuracy,
    fit_backprop,
    fit_pepita,
    pepita_updates,
)
from lib.graphs.forward_gnn.convs import CONVS, NoGraph
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
from lib.graphs.forward_gnn.model import MODES, ForwardGNN
from lib.graphs.forward_gnn.training import train_layer
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
    "SignalPropagation",
    "single_forward",
    "split_links",
    "top_down",
    "train_layer",
    "VirtualNodeAugmenter",
    "wrong_labels",
]
