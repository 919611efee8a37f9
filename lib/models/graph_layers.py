"""Graph convolutions: every node gathers from its neighbors, then a learned map.

A layer is called as ``conv(x, edge_index, edge_attr)`` with node features ``x: "n f"`` and directed
edges ``edge_index: "2 e"``, sources in row 0 and targets in row 1. Here are GCN (Kipf and Welling,
arXiv:1609.02907), GraphSAGE with mean aggregation (Hamilton et al., arXiv:1706.02216), GAT
(Velickovic et al., arXiv:1710.10903), GATv2 (Brody et al., arXiv:2105.14491), GIN (Xu et al.,
arXiv:1810.00826) and a sum over edge types of any of them. Weights are Glorot uniform from ``gen``,
biases zero.

GCN and SAGE gather with fixed weights. They take a sparse matrix from :func:`normalized` in place
of ``edge_index``, and their ``aggregate`` has no parameters: where the input stays and the weights
change, it needs to run once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Edges = Tensor
"""``Int[Tensor, "2 e"]``, or a sparse ``"n n"`` matrix (target, source) for GCN and SAGE."""


def normalized(
    edge_index: Int[Tensor, "2 e"],
    n: int,
    r: float = 0.5,
    loops: bool = True,
    weight: Float[Tensor, "e"] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Sparse ``D^(r-1) A D^(-r)``, rows are targets, with ``D`` the (weighted) in-degree.

    ``r=0.5`` is the symmetric form of GCN, ``r=0`` the mean over neighbors, ``r=1`` its transpose.
    Nodes without incoming edges have degree 0; 0 to a negative power counts as 0, ``0^0`` as 1.

    Args:
        loops: add a self-loop of weight one to every node first.
        dtype: of the matrix; the weights' own, or torch's default.

    Raises:
        ValueError: ``r`` outside 0 to 1.
    """
    if not 0 <= r <= 1:
        raise ValueError(f"r={r}: allowed is 0 to 1")
    source, target = edge_index
    value = torch.ones(source.shape, device=source.device, dtype=dtype)
    if weight is not None:
        value = weight if dtype is None else weight.to(dtype)
    if loops:
        each = torch.arange(n, device=source.device)
        source, target = torch.cat([source, each]), torch.cat([target, each])
        value = torch.cat([value, value.new_ones(n)])
    degree = value.new_zeros(n).index_add(0, target, value)
    left, right = (torch.where(degree > 0, degree ** (-p), 0.0**p) for p in (1 - r, r))
    value = left[target] * value * right[source]
    matrix = torch.sparse_coo_tensor(
        torch.stack([target, source]), value, (n, n), check_invariants=False
    )
    return matrix.coalesce() if value.requires_grad else _csr(matrix.coalesce())


def propagate(matrix: Tensor, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
    """``matrix @ x``. Unless the matrix itself is learned, backward keeps no copy of it."""
    return matrix @ x if matrix.requires_grad else _Propagate.apply(matrix, x)


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix, x):
        ctx.matrix = matrix
        return matrix @ x

    @staticmethod
    def backward(ctx, g):
        # Sorted by rows once, then kept: the product with a view of the columns is far slower.
        if not hasattr(ctx.matrix, "transposed"):
            ctx.matrix.transposed = _csr(ctx.matrix.t())
        return None, propagate(ctx.matrix.transposed, g)


def _csr(matrix: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "CSR is in beta"
        return matrix.to_sparse_csr()


def is_matrix(edges: Edges) -> bool:
    """Whether ``edges`` is a sparse matrix and not a list of pairs."""
    return edges.layout is not torch.strided


class GCN(nn.Module):
    """``D^-1/2 (A + I) D^-1/2 x W^T + b``; ``edge_attr`` holds one weight per edge.

    Args:
        linear: makes the map from ``(n_in, n_out)``; a Glorot ``nn.Linear`` by default.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        linear: Callable[[int, int], nn.Module] | None = None,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.linear = linear(n_in, n_out) if linear else glorot(n_in, n_out, gen=gen)

    def forward(
        self, x: Float[Tensor, "n f"], edge_index: Edges, edge_attr: Tensor | None = None
    ) -> Float[Tensor, "n o"]:
        return self.linear(self.aggregate(x, edge_index, edge_attr))

    @staticmethod
    def matrix(
        edge_index: Int[Tensor, "2 e"],
        n: int,
        edge_attr: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The matrix that ``forward`` takes in place of the edges."""
        return normalized(edge_index, n, 0.5, True, edge_attr, dtype)

    def aggregate(self, x: Tensor, edge_index: Edges, edge_attr: Tensor | None = None) -> Tensor:
        """The normalized sum over neighbors and oneself; no parameters.

        Raises:
            ValueError: ``edge_attr`` beside a matrix, which holds the weights already.
        """
        if is_matrix(edge_index) and edge_attr is not None:
            raise ValueError("edge_attr: a matrix holds the weights already; give them to `matrix`")
        if not is_matrix(edge_index):
            edge_index = self.matrix(edge_index, len(x), edge_attr, x.dtype)
        return propagate(edge_index, x)


class SAGE(nn.Module):
    """``[x, mean over neighbors of x] W^T + b``."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        linear: Callable[[int, int], nn.Module] | None = None,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.linear = linear(2 * n_in, n_out) if linear else glorot(2 * n_in, n_out, gen=gen)

    def forward(
        self, x: Float[Tensor, "n f"], edge_index: Edges, edge_attr: Tensor | None = None
    ) -> Float[Tensor, "n o"]:
        return self.linear(self.aggregate(x, edge_index, edge_attr))

    @staticmethod
    def matrix(
        edge_index: Int[Tensor, "2 e"],
        n: int,
        edge_attr: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The matrix that ``forward`` takes in place of the edges."""
        return normalized(edge_index, n, 0.0, False, edge_attr, dtype)

    def aggregate(self, x: Tensor, edge_index: Edges, edge_attr: Tensor | None = None) -> Tensor:
        """Oneself beside the mean over neighbors; no parameters."""
        if not is_matrix(edge_index):
            edge_index = self.matrix(edge_index, len(x), edge_attr, x.dtype)
        return torch.cat([x, propagate(edge_index, x)], -1)


class GAT(nn.Module):
    """Attention whose scores are a sum of two parts: ``LeakyReLU(a_s . W x_j + a_t . W x_i)``.

    The scores of a node's incoming edges, its self-loop included, go through a softmax and weigh
    the neighbors' ``W x_j``. Heads stand side by side in the output: ``n_out`` is their total.

    Raises:
        ValueError: ``n_out`` is not a multiple of ``heads``.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        heads: int = 1,
        slope: float = 0.2,
        loops: bool = True,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.slope, self.loops = heads, slope, loops
        width = _per_head(n_out, heads)
        self.linear = glorot(n_in, n_out, bias=False, gen=gen)
        self.source = nn.Parameter(_glorot(torch.empty(heads, width), gen))
        self.target = nn.Parameter(_glorot(torch.empty(heads, width), gen))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(
        self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"], edge_attr: None = None
    ) -> Float[Tensor, "n o"]:
        n = len(x)
        if self.loops:
            edge_index = with_loops(edge_index, n)
        s, t = edge_index
        h = self.linear(x).unflatten(-1, (self.heads, -1))
        score = (h * self.source).sum(-1)[s] + (h * self.target).sum(-1)[t]
        share = segment_softmax(F.leaky_relu(score, self.slope), t, n)
        return _sum_at(share[..., None] * h[s], t, n).flatten(1) + self.bias


class GATv2(nn.Module):
    """Attention that scores the pair: ``a . LeakyReLU(W_s x_j + W_t x_i + W_e e_ij)``.

    Unlike GAT's, the ranking of the neighbors can differ from node to node. A bipartite graph is a
    pair ``x = (sources, targets)``; then there are no self-loops.

    Args:
        edge_dim: length of ``edge_attr``'s rows; self-loops get the mean of the incoming ones.

    Raises:
        ValueError: ``n_out`` is not a multiple of ``heads``, or ``edge_attr`` is missing or not
            expected.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        heads: int = 1,
        edge_dim: int | None = None,
        slope: float = 0.2,
        loops: bool = True,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.slope, self.loops = heads, slope, loops
        width = _per_head(n_out, heads)
        self.source = glorot(n_in, n_out, gen=gen)
        self.target = glorot(n_in, n_out, gen=gen)
        self.edge = None if edge_dim is None else glorot(edge_dim, n_out, bias=False, gen=gen)
        self.score = nn.Parameter(_glorot(torch.empty(heads, width), gen))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(
        self,
        x: Float[Tensor, "n f"] | tuple[Float[Tensor, "p f"], Float[Tensor, "q f"]],
        edge_index: Int[Tensor, "2 e"],
        edge_attr: Float[Tensor, "e k"] | None = None,
    ) -> Float[Tensor, "m o"]:
        if (self.edge is None) != (edge_attr is None):
            wanted = "no edge_attr" if self.edge is None else "edge_attr"
            raise ValueError(f"edge_attr: this layer was made for {wanted}; see edge_dim")
        bipartite = isinstance(x, tuple)
        xs, xt = x if bipartite else (x, x)
        n = len(xt)
        if self.loops and not bipartite:
            if edge_attr is not None:
                edge_attr = torch.cat([edge_attr, _mean_at(edge_attr, edge_index[1], n)])
            edge_index = with_loops(edge_index, n)
        s, t = edge_index
        hs = self.source(xs).unflatten(-1, (self.heads, -1))
        pair = hs[s] + self.target(xt).unflatten(-1, (self.heads, -1))[t]
        if edge_attr is not None:
            pair = pair + self.edge(edge_attr).unflatten(-1, (self.heads, -1))
        score = (F.leaky_relu(pair, self.slope) * self.score).sum(-1)
        share = segment_softmax(score, t, n)
        return _sum_at(share[..., None] * hs[s], t, n).flatten(1) + self.bias


class GIN(nn.Module):
    """``MLP((1 + eps) x_i + sum_j x_j)``; with ``edge_dim``, ``relu(x_j + W_e e_ij)`` is summed.

    Args:
        hidden: width of the two-layer MLP; ``n_out`` by default.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        edge_dim: int | None = None,
        hidden: int | None = None,
        act: Callable[[], nn.Module] = nn.ReLU,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden or n_out
        self.eps = nn.Parameter(torch.zeros(()))
        self.edge = None if edge_dim is None else glorot(edge_dim, n_in, gen=gen)
        self.mlp = nn.Sequential(
            glorot(n_in, hidden, gen=gen), act(), glorot(hidden, n_out, gen=gen)
        )

    def forward(
        self,
        x: Float[Tensor, "n f"],
        edge_index: Int[Tensor, "2 e"],
        edge_attr: Float[Tensor, "e k"] | None = None,
    ) -> Float[Tensor, "n o"]:
        if (self.edge is None) != (edge_attr is None):
            wanted = "no edge_attr" if self.edge is None else "edge_attr"
            raise ValueError(f"edge_attr: this layer was made for {wanted}; see edge_dim")
        s, t = edge_index
        message = x[s] if edge_attr is None else F.relu(x[s] + self.edge(edge_attr))
        return self.mlp((1 + self.eps) * x + _sum_at(message, t, len(x)))


class Relational(nn.Module):
    """One convolution for each type of edge; their outputs are added.

    Args:
        make: builds the convolution of one type.
        relations: number of edge types, ``edge_type`` counts them from 0.
    """

    def __init__(self, make: Callable[[], nn.Module], relations: int) -> None:
        super().__init__()
        if relations < 1:
            raise ValueError(f"relations={relations}: allowed is 1 or more")
        self.convs = nn.ModuleList(make() for _ in range(relations))

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Int[Tensor, "2 e"],
        edge_attr: Float[Tensor, "e *k"] | None = None,
        *,
        edge_type: Int[Tensor, "e"],
    ) -> Tensor:
        if edge_type.numel() and not 0 <= int(edge_type.min()) <= int(edge_type.max()) < len(
            self.convs
        ):
            raise ValueError(
                f"edge_type goes from {int(edge_type.min())} to {int(edge_type.max())}; "
                f"this layer knows 0 to {len(self.convs) - 1}"
            )
        parts = []
        for kind, conv in enumerate(self.convs):
            at = edge_type == kind
            parts.append(conv(x, edge_index[:, at], None if edge_attr is None else edge_attr[at]))
        return torch.stack(parts).sum(0)


# --------------------------------------------------------------------------- pieces


def segment_softmax(
    score: Float[Tensor, "e *heads"], index: Int[Tensor, "e"], n: int
) -> Float[Tensor, "e *heads"]:
    """Softmax over the entries that share an index, such as the edges into one node."""
    where = index.view(-1, *[1] * (score.ndim - 1)).expand_as(score)
    top = score.new_full((n, *score.shape[1:]), -torch.inf)
    top = top.scatter_reduce(0, where, score.detach(), "amax")
    weight = (score - top[index]).exp()
    return weight / _sum_at(weight, index, n)[index]


def pool(
    x: Float[Tensor, "n f"],
    batch: Int[Tensor, "n"],
    how: Literal["mean", "sum", "max"] = "mean",
    graphs: int | None = None,
) -> Float[Tensor, "b f"]:
    """One vector for each graph of a batch; ``batch[i]`` is the graph of node ``i``.

    A graph without nodes gets zeros. ``graphs`` is their number, the largest index plus one by
    default.

    Raises:
        ValueError: no nodes and no ``graphs``, an index that is none of the graphs, lengths of
            ``x`` and ``batch`` that differ, or an unknown ``how``.
    """
    if len(batch) != len(x):
        raise ValueError(f"batch has {len(batch)} entries for {len(x)} nodes")
    if graphs is None and not len(batch):
        raise ValueError("batch is empty: give the number of graphs as `graphs`")
    b = graphs if graphs is not None else int(batch.max()) + 1
    if len(batch) and not 0 <= int(batch.min()) <= int(batch.max()) < b:
        raise ValueError(
            f"batch goes from {int(batch.min())} to {int(batch.max())}; graphs are 0 to {b - 1}"
        )
    if how == "sum":
        return _sum_at(x, batch, b)
    if how == "mean":
        return _mean_at(x, batch, b)
    if how == "max":
        where = batch[:, None].expand_as(x)
        return x.new_zeros(b, x.shape[1]).scatter_reduce(0, where, x, "amax", include_self=False)
    raise ValueError(f"how={how!r}: allowed are 'mean', 'sum' and 'max'")


def with_loops(edge_index: Int[Tensor, "2 e"], n: int) -> Int[Tensor, "2 e_plus_n"]:
    """The edges, and after them a self-loop for every node."""
    each = torch.arange(n, device=edge_index.device)
    return torch.cat([edge_index, each.expand(2, -1)], 1)


def glorot(
    n_in: int, n_out: int, bias: bool = True, gen: torch.Generator | None = None
) -> nn.Linear:
    """A linear layer, weights Glorot uniform from ``gen``, bias zero."""
    layer = nn.Linear(n_in, n_out, bias=bias)
    _glorot(layer.weight.data, gen)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _glorot(weight: Tensor, gen: torch.Generator | None) -> Tensor:
    return nn.init.xavier_uniform_(weight, generator=gen)


def _sum_at(values: Tensor, index: Tensor, n: int) -> Tensor:
    return values.new_zeros(n, *values.shape[1:]).index_add(0, index, values)


def _mean_at(values: Tensor, index: Tensor, n: int) -> Tensor:
    count = _sum_at(torch.ones_like(index, dtype=values.dtype), index, n).clamp_min(1)
    return _sum_at(values, index, n) / count.view(-1, *[1] * (values.ndim - 1))


def _per_head(n_out: int, heads: int) -> int:
    if heads < 1 or n_out % heads:
        raise ValueError(f"heads={heads}: n_out={n_out} must be a multiple of it")
    return n_out // heads
