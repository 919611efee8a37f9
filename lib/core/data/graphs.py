"""Graphs: the record that all graph chapters share, generators with known structure, Planetoid.

Edges are directed pairs (source, target). An undirected edge is stored both ways, a self-loop
never: layers that want self-loops add them. m undirected edges are thus 2m columns.
"""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.core.data.real import SOURCES, DataError, Source, fetch


@dataclass(frozen=True)
class Graph:
    """Node features ``x``, directed edges, and what may be known about edges and nodes.

    ``train``, ``val`` and ``test`` are masks over the nodes; a label of -1 means none.

    Raises:
        ValueError: an edge ends at a node that does not exist, or a length does not fit.
    """

    x: Float[Tensor, "n f"]
    edge_index: Int[Tensor, "2 e"]
    edge_attr: Float[Tensor, "e *features"] | None = None
    y: Int[Tensor, "n"] | None = None
    train: Bool[Tensor, "n"] | None = None
    val: Bool[Tensor, "n"] | None = None
    test: Bool[Tensor, "n"] | None = None

    def __post_init__(self) -> None:
        if self.edge_index.ndim != 2 or len(self.edge_index) != 2:
            raise ValueError(f"edge_index: shape {tuple(self.edge_index.shape)}, allowed is (2, e)")
        if self.edge_index.numel():
            low, high = self.edge_index.min().item(), self.edge_index.max().item()
            if low < 0 or high >= self.n:
                raise ValueError(
                    f"edge_index goes from {low} to {high}; nodes are 0 to {self.n - 1}"
                )
        if self.edge_attr is not None and len(self.edge_attr) != self.edge_index.shape[1]:
            raise ValueError(
                f"edge_attr has {len(self.edge_attr)} entries for {self.edge_index.shape[1]} edges"
            )
        for name in ("y", "train", "val", "test"):
            given = getattr(self, name)
            if given is not None and len(given) != self.n:
                raise ValueError(f"{name} has {len(given)} entries for {self.n} nodes")

    @property
    def n(self) -> int:
        """Number of nodes."""
        return len(self.x)

    @property
    def classes(self) -> int:
        """Number of classes: the largest label plus one.

        Raises:
            ValueError: the graph has no labels, or every node's label is -1.
        """
        if self.y is None:
            raise ValueError("the graph has no labels y")
        if not (self.y >= 0).any():
            raise ValueError(f"y: none of the {self.n} nodes has a label (all are below 0)")
        return int(self.y.max()) + 1

    def to(self, device: torch.device | str) -> Graph:
        """The same graph on ``device``."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def sbm(
    sizes: Sequence[int],
    degree: float,
    homophily: float,
    features: int,
    gen: torch.Generator,
    sep: float = 1.0,
) -> Graph:
    """Stochastic block model: one block of nodes per class, Gaussian features around class means.

    Two nodes of one block are joined with one probability, two nodes of different blocks with
    another, so that the mean degree is ``degree`` and the share ``homophily`` of the edges stays
    inside blocks, both in expectation.

    Args:
        sizes: nodes in each block; the label is the block.
        features: length of the feature vectors, mean plus noise of unit variance per entry.
        sep: norm of every class mean; its direction is uniform on the sphere.

    Raises:
        ValueError: bad ``sizes`` or ``homophily``, or a density that a simple graph cannot have.
    """
    if len(sizes) < 1 or min(sizes) < 1:
        raise ValueError(f"sizes={list(sizes)}: allowed are one or more numbers, each >= 1")
    if not 0 <= homophily <= 1:
        raise ValueError(f"homophily={homophily}: allowed is 0 to 1")
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(list(sizes)))
    n = len(y)
    i, j = torch.triu_indices(n, n, 1)
    same = y[i] == y[j]
    inside, edges = int(same.sum()), n * degree / 2
    p = {
        True: homophily * edges / max(inside, 1),
        False: (1 - homophily) * edges / max(len(same) - inside, 1),
    }
    if degree < 0 or max(p.values()) > 1:
        raise ValueError(
            f"degree={degree} with homophily={homophily}: an edge would have probability "
            f"{max(p.values()):.3g} within or between blocks of {list(sizes)} nodes; at most 1"
        )
    drawn = torch.rand(len(i), generator=gen) < torch.where(same, p[True], p[False])
    means = torch.randn(len(sizes), features, generator=gen)
    means = sep * means / means.norm(dim=1, keepdim=True)
    x = means[y] + torch.randn(n, features, generator=gen)
    return Graph(x, both_ways(i[drawn], j[drawn]), y=y)


def erdos_renyi(n: int, degree: float, gen: torch.Generator) -> Int[Tensor, "2 e"]:
    """Every pair is joined with the same probability; mean degree ``degree`` in expectation."""
    if n < 2 or not 0 <= degree <= n - 1:
        raise ValueError(f"n={n}, degree={degree}: allowed are n >= 2 and degree from 0 to n - 1")
    i, j = torch.triu_indices(n, n, 1)
    drawn = torch.rand(len(i), generator=gen) < degree / (n - 1)
    return both_ways(i[drawn], j[drawn])


def ring(n: int) -> Int[Tensor, "2 e"]:
    """A closed chain of ``n >= 3`` nodes."""
    if n < 3:
        raise ValueError(f"n={n}: a ring has 3 nodes or more")
    i = torch.arange(n)
    return both_ways(i, (i + 1) % n)


def lattice(rows: int, columns: int, periodic: bool = False) -> Int[Tensor, "2 e"]:
    """A square grid, nodes counted row by row; ``periodic`` closes it to a torus."""
    least = 3 if periodic else 1
    if min(rows, columns) < least:
        raise ValueError(f"rows={rows}, columns={columns}: allowed are {least} or more")
    node = torch.arange(rows * columns).view(rows, columns)
    pairs = [(node, node.roll(-1, 1)), (node, node.roll(-1, 0))]
    if not periodic:
        pairs = [(node[:, :-1], node[:, 1:]), (node[:-1], node[1:])]
    return both_ways(*(torch.cat([p[k].flatten() for p in pairs]) for k in (0, 1)))


def knn_graph(x: Float[Tensor, "n f"], k: int) -> Int[Tensor, "2 e"]:
    """Joins every point with its ``k`` nearest ones (Euclidean), both ways."""
    if not 1 <= k < len(x):
        raise ValueError(f"k={k}: allowed is 1 to {len(x) - 1}, the number of other points")
    distance = torch.cdist(x, x).fill_diagonal_(float("inf"))
    near = distance.topk(k, largest=False).indices
    return both_ways(torch.arange(len(x)).repeat_interleave(k).to(near), near.flatten())


def both_ways(i: Int[Tensor, "m"], j: Int[Tensor, "m"]) -> Int[Tensor, "2 e"]:
    """Undirected edges from pairs: both directions, each once, sorted, no self-loops."""
    i, j = i[i != j], j[i != j]
    return torch.unique(torch.stack([torch.cat([i, j]), torch.cat([j, i])]), dim=1)


def split_nodes(graph: Graph, train: float, val: float, gen: torch.Generator) -> Graph:
    """The graph with random masks: shares ``train`` and ``val`` of all nodes, test is the rest.

    Raises:
        ValueError: shares that are not positive or leave nothing to train or to test on.
    """
    if min(train, val) < 0 or train == 0 or train + val >= 1:
        raise ValueError(f"train={train}, val={val}: allowed are train > 0, val >= 0, sum < 1")
    order = torch.randperm(graph.n, generator=gen).to(graph.x.device)
    a, b = round(train * graph.n), round((train + val) * graph.n)
    if a == 0 or b == graph.n:
        raise ValueError(f"train={train}, val={val}: {graph.n} nodes are too few for these shares")
    masks = {}
    for name, part in (("train", order[:a]), ("val", order[a:b]), ("test", order[b:])):
        masks[name] = torch.zeros(graph.n, dtype=torch.bool, device=order.device)
        masks[name][part] = True
    return replace(graph, **masks)


# --------------------------------------------------------------------------- Planetoid

_URL = "https://github.com/kimiyoung/planetoid/raw/master/data/"
_SHA256 = {
    "cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    "cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "cora.x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
    "cora.y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
    "citeseer.allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
    "citeseer.ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
    "citeseer.graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
    "citeseer.test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    "citeseer.tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
    "citeseer.ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
    "citeseer.x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
    "citeseer.y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
}
SOURCES.update(
    {
        f"planetoid/{name}": Source(
            f"{_URL}ind.{name}", digest, (f"planetoid/ind.{name}", f"ind.{name}")
        )
        for name, digest in _SHA256.items()
    }
)


def planetoid(name: Literal["cora", "citeseer"]) -> Graph:
    """A citation graph: papers with bags of words, citations as undirected edges, a topic each.

    Z. Yang, W. Cohen and R. Salakhutdinov, arXiv:1603.08861, with its public split: 20 labels per
    class, 500 nodes for validation, 1,000 for testing. Cora: 2,708 nodes, 5,278 edges, 1,433 words,
    7 topics. CiteSeer: 3,327 nodes, 4,552 edges, 3,703 words, 6 topics; 15 nodes have neither
    words nor a label (-1). The files are Python pickles; only plain arrays, sparse matrices and
    dictionaries of lists are let in.

    Raises:
        ValueError: an unknown name.
        DataError: a file is missing, cannot be downloaded, is truncated, or holds something else.
    """
    if name not in ("cora", "citeseer"):
        raise ValueError(f"name={name!r}: there are 'cora' and 'citeseer'")
    part = {
        k: _unpickle(f"planetoid/{name}.{k}") for k in ("y", "tx", "ty", "allx", "ally", "graph")
    }
    path = fetch(f"planetoid/{name}.test.index")
    try:
        order = np.array([int(line) for line in path.read_text().split()])
        head, n = part["allx"].shape[0], int(order.max()) + 1
        x = np.zeros((n, part["allx"].shape[1]), np.float32)
        x[:head], x[order] = part["allx"], part["tx"]
        y = np.full(n, -1)
        # Nodes that the files leave out have a row of zeros instead of a one-hot label.
        for rows, hot in ((slice(0, head), part["ally"]), (order, part["ty"])):
            y[rows] = np.where(hot.any(1), hot.argmax(1), -1)
        pairs = [(i, j) for i, near in part["graph"].items() for j in near]
        edges = torch.tensor(pairs, dtype=torch.int64).T
        graph = Graph(torch.tensor(x), both_ways(edges[0], edges[1]), y=torch.tensor(y))
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"{path.parent}: the files ind.{name}.* do not belong together ({error}). "
            "Delete them and fetch them again."
        ) from error
    masks = {k: torch.zeros(n, dtype=torch.bool) for k in ("train", "val", "test")}
    first = len(part["y"])
    masks["train"][:first] = True
    masks["val"][first : first + 500] = True
    masks["test"][torch.tensor(order)] = True
    return replace(graph, **masks)


class _Matrix:
    """Takes the state of a pickled sparse matrix without running any of its code."""

    def __setstate__(self, state: dict) -> None:
        self.state = state

    def dense(self) -> np.ndarray:
        from scipy.sparse import csr_matrix

        s = self.state
        shape = s.get("_shape", s.get("shape"))
        return csr_matrix((s["data"], s["indices"], s["indptr"]), shape=shape).toarray()


class _Unpickler(pickle.Unpickler):
    """Knows arrays, sparse rows, dictionaries and lists, and nothing that could run a program."""

    def find_class(self, module: str, name: str):
        if name == "csr_matrix" and module.startswith("scipy.sparse"):
            return _Matrix
        if (module, name) == ("collections", "defaultdict"):
            return defaultdict
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them here
            return lambda text, _: text.encode("latin1")
        if name == "list" and module in ("__builtin__", "builtins"):
            return list
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _reconstruct
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")


def _reconstruct(kind: type, shape: tuple, code: bytes | str) -> np.ndarray:
    return np.ndarray(0, np.dtype(code.decode() if isinstance(code, bytes) else code))


def _unpickle(name: str):
    path = fetch(name)
    try:
        # latin1: the bytes of Python 2's strings, which numpy reads its numbers from.
        value = _Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        return value.dense() if isinstance(value, _Matrix) else value
    except (
        pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError,
        IndexError, UnicodeDecodeError,
    ) as error:  # fmt: skip
        raise DataError(
            f"{path} is truncated or altered: expected arrays of a citation graph ({error}). "
            "Delete it and fetch it again."
        ) from error
