"""Linear self-attention, and the weights that make it gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lib.core.params import Params
from lib.in_context.icl_gradient_descent.tasks import positive

Rates = int | float | Sequence[float] | Tensor  # of one layer, or one for each layer of a stack


def lsa_update(
    tokens: Float[Tensor, "*s b m e"],
    keys: Float[Tensor, "*s b n e"],
    a: Float[Tensor, "*s h e e"],
    c: Float[Tensor, "*s h e e"],
    *,
    softmax: bool = False,
    key_dim: int | None = None,
    mask: Bool[Tensor, "m n"] | None = None,
) -> Float[Tensor, "*s b m e"]:
    """What one attention layer adds to each token: ``sum_h A_h sum_i s(k_i, q_j) e_i``.

    ``A = P W_V`` and ``C = W_K^T W_Q`` are all that matters of a head's four matrices. The score
    of key ``i`` for token ``j`` is ``e_i^T C e_j``, as it is (linear attention), or through a
    softmax over the keys of scores divided by ``sqrt(key_dim)``.

    Leading axes ``s`` of the weights (seeds) are leading axes of the tokens, too.
    """
    queries = torch.einsum("...hef,...bjf->...bhje", c, tokens)
    scores = queries @ keys[..., None, :, :].mT
    if softmax:
        scores = scores / (tokens.shape[-1] if key_dim is None else key_dim) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        scores = scores.softmax(-1)
    elif mask is not None:
        scores = scores * mask
    return torch.einsum("...hef,...bhjf->...bje", a, scores @ keys[..., None, :, :])


class LinearSelfAttention(nn.Module):
    """``layers`` self-attention layers, each ``e_j <- e_j + sum_h P_h V_h K_h^T q_hj``.

    Keys and values come from the context; the query token, the last, is nobody's key. The
    prediction is *minus* the last entry of the updated query token.

    Args:
        dim: entries of a token, ``d + 1``.
        heads: heads in each layer.
        layers: how often attention is applied.
        looped: one set of weights for all layers (the paper's recurrent transformer), or one each.
        softmax: softmax attention, in all layers or layer by layer.
        norm: builds a norm from ``dim`` that the attention reads through, e.g. ``nn.LayerNorm``.
        dampening: factor on every update.
        y_only: update the last entry of each token alone, as GD without the ++ does.
        clip: bound on the tokens' entries after each layer (the paper's code: 10 for deep models).
        key_dim: rows of ``W_K, W_Q, W_V``; ``dim`` by default.
        members: leading axis of all weights, for networks that are trained side by side; tokens
            then have it as well.
        std: standard deviation of the initial weights (the paper's code: 0.0135 for one layer).
        gen: draws the initial weights, which lie on its device.

    Raises:
        ValueError: a size or a ``clip`` that is not positive, or ``softmax`` not one value for
            each layer.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        *,
        layers: int = 1,
        looped: bool = True,
        softmax: bool | Sequence[bool] = False,
        norm: Callable[[int], nn.Module] | None = None,
        dampening: float = 1.0,
        y_only: bool = False,
        clip: float | None = None,
        key_dim: int | None = None,
        members: int | None = None,
        std: float = 0.05,
        gen: torch.Generator | None = None,
    ):
        super().__init__()
        key_dim = dim if key_dim is None else key_dim
        positive(dim=dim, heads=heads, layers=layers, key_dim=key_dim)
        if members is not None:
            positive(members=members)
        if clip is not None:
            positive(clip=clip)
        self.softmax = [softmax] * layers if isinstance(softmax, bool) else list(softmax)
        if len(self.softmax) != layers:
            raise ValueError(f"softmax has {len(self.softmax)} values for layers={layers}")
        self.layers, self.looped, self.members = layers, looped, members
        self.dampening, self.y_only, self.clip, self.key_dim = dampening, y_only, clip, key_dim
        lead = (() if members is None else (members,)) + (1 if looped else layers, heads)
        where = None if gen is None else gen.device
        for name in ("W_K", "W_Q", "W_V", "P"):
            shape = (dim, key_dim) if name == "P" else (key_dim, dim)
            weight = std * torch.randn(*lead, *shape, generator=gen, device=where)
            self.register_parameter(name, nn.Parameter(weight))
        count = 1 if looped else layers
        self.norms = None if norm is None else nn.ModuleList(norm(dim) for _ in range(count))

    def merged(self) -> tuple[Float[Tensor, "*s l h e e"], Float[Tensor, "*s l h e e"]]:
        """``A = P W_V`` and ``C = W_K^T W_Q`` of every layer and head."""
        return self.P @ self.W_V, self.W_K.mT @ self.W_Q

    def states(self, tokens: Float[Tensor, "*s b m e"]) -> list[Float[Tensor, "*s b m e"]]:
        """The tokens before the first layer and after each."""
        states = [tokens]
        for layer in range(self.layers):
            states.append(self._layer(states[-1], layer))
        return states

    def forward(self, tokens: Float[Tensor, "*s b m e"]) -> Float[Tensor, "*s b"]:
        """The prediction for the query, minus the last entry of its token."""
        for layer in range(self.layers):
            # Nobody reads the context after the last layer.
            rows = slice(-1 if layer == self.layers - 1 else None, None)
            tokens = self._layer(tokens, layer, rows)
        return -tokens[..., -1, -1]

    def _layer(
        self, e: Float[Tensor, "*s b m e"], layer: int, rows: slice = slice(None)
    ) -> Float[Tensor, "*s b k e"]:
        """The tokens of ``rows`` after one more layer."""
        if e.shape[-1] != self.P.shape[-2]:
            raise ValueError(f"tokens have {e.shape[-1]} entries: allowed is {self.P.shape[-2]}")
        a, c = self.merged()
        k = 0 if self.looped else layer
        read = e if self.norms is None else self.norms[k](e)
        update = lsa_update(
            read[..., rows, :],
            read[..., :-1, :],
            a[..., k, :, :, :],
            c[..., k, :, :, :],
            softmax=self.softmax[layer],
            key_dim=self.key_dim,
        )
        if self.y_only:
            update = torch.cat([torch.zeros_like(update[..., :-1]), update[..., -1:]], -1)
        e = e[..., rows, :] + self.dampening * update
        return e if self.clip is None else e.clamp(-self.clip, self.clip)


def moment_predict(
    a: Float[Tensor, "*s l h e e"],
    c: Float[Tensor, "*s l h e e"],
    tokens: Float[Tensor, "*s b m e"],
    layers: int | None = None,
) -> Float[Tensor, "*s b"]:
    """The prediction of linear attention from the context's second moments, without its tokens.

    A linear layer multiplies every token by one matrix, ``M_k = I + sum_h A_kh G_k C_kh``, where
    ``G_k = sum_i e_i e_i^T`` is all it knows about the context; afterwards
    ``G_(k+1) = M_k G_k M_k^T``. So the query's path is a chain of products of vectors with ``G_0``:
    (3^layers - 1) / 2 of them for one head, which beats moving all tokens for two and three layers.

    Args:
        layers: how often the weights are applied, where they hold one looped layer.

    Raises:
        ValueError: ``layers`` is not positive, or differs from the number of stacked layers that
            the weights hold; tokens and weights differ in their width, or ``a`` and ``c`` in
            their shape.
    """
    if a.shape != c.shape:
        raise ValueError(f"c has shape {tuple(c.shape)}: allowed is that of a, {tuple(a.shape)}")
    stored = a.shape[-4]
    layers = stored if layers is None else layers
    positive(layers=layers)
    if tokens.shape[-1] != a.shape[-1]:
        raise ValueError(f"tokens have {tokens.shape[-1]} entries: allowed is {a.shape[-1]}")
    if stored not in (1, layers):
        raise ValueError(f"layers={layers}, but the weights hold {stored}: allowed is {stored}")
    context = tokens[..., :-1, :]
    # Tasks last: products with a weight are then one matrix product each, and with G plain sums.
    g = (context.mT @ context).movedim(-3, -1).contiguous()
    heads = [
        [(a[..., k, h, :, :], c[..., k, h, :, :]) for h in range(a.shape[-3])]
        for k in range(stored)
    ]

    def moments(k: int, v: Tensor) -> Tensor:
        """``G_k v``, for one vector in each task: ``v`` is ``"*s e b"``."""
        if k == 0:
            return (g * v[..., None, :, :]).sum(-2)
        return forth(k - 1, moments(k - 1, back(k - 1, v)))

    def forth(k: int, v: Tensor) -> Tensor:
        """``M_k v``."""
        return v + sum(a_h @ moments(k, c_h @ v) for a_h, c_h in heads[k % stored])

    def back(k: int, v: Tensor) -> Tensor:
        """``M_k^T v``."""
        return v + sum(c_h.mT @ moments(k, a_h.mT @ v) for a_h, c_h in heads[k % stored])

    query = tokens[..., -1, :].mT
    for k in range(layers):
        query = forth(k, query)
    return -query[..., -1, :]


def gd_construction(d: int, eta: Rates, n: int, w0: Float[Tensor, "d"] | None = None) -> Params:
    """Weights of a one-head LSA layer that is one step of gradient descent (Proposition 1).

    ``W_K = W_Q`` read ``x``, ``W_V`` computes the residual ``W_0 x - y``, and ``P = eta / n``. The
    layer maps ``(x_j, y_j)`` to ``(x_j, y_j - dW x_j)`` with the GD step
    ``dW = -eta / n sum_i (W_0 x_i - y_i) x_i^T`` on ``1/(2n) sum_i |W x_i - y_i|^2``. Every layer
    holds ``w0``: with ``y_i' = y_i - dW x_i``, the value ``W_0 x_i - y_i'`` is the residual of
    ``W_0 + dW``. The query starts as ``(x_t, -W_0 x_t)``, minus what ``W_0`` predicts.

    Args:
        eta: rate, or one rate for each layer of a stack.
        n: examples in the context.
        w0: starting point of the descent; zero if left out.

    Returns:
        A state dict for ``LinearSelfAttention(d + 1, layers=..., looped=...)``, in float64.

    Raises:
        ValueError: a size is not positive, no rate, or ``w0`` not of ``d`` entries.
    """
    etas = torch.as_tensor(eta, dtype=torch.float64).flatten()
    positive(d=d, n=n, layers=len(etas))
    read_x = torch.eye(d + 1, dtype=torch.float64)
    read_x[d, d] = 0.0
    values = torch.zeros(len(etas), 1, d + 1, d + 1, dtype=torch.float64)
    values[..., d, d] = -1.0
    if w0 is not None:
        if w0.shape != (d,):
            raise ValueError(f"w0 has shape {tuple(w0.shape)}: allowed is ({d},)")
        values[:, 0, d, :d] = w0
    project = etas[:, None, None, None] / n * torch.eye(d + 1)
    reads = read_x.expand(len(etas), 1, d + 1, d + 1)
    return {"W_K": reads.clone(), "W_Q": reads.clone(), "W_V": values, "P": project}


def gdpp_construction(d: int, eta: Rates, gamma: Rates, n: int) -> Params:
    """Weights of GD++: a GD step, and ``x_j <- (I - gamma / n sum_i x_i x_i^T) x_j`` beside it.

    Both parts use the old ``x``. One value each makes a layer to loop, sequences a stack; the last
    layer's ``gamma`` has no effect on the prediction.

    Raises:
        ValueError: as many rates as corrections are needed.
    """
    etas, gammas = (torch.as_tensor(v, dtype=torch.float64).flatten() for v in (eta, gamma))
    if len(etas) != len(gammas):
        raise ValueError(f"eta has {len(etas)} values and gamma {len(gammas)}: allowed is as many")
    params = gd_construction(d, etas, n)
    diagonals = torch.cat([-gammas[:, None].expand(-1, d), -etas[:, None]], 1)
    params["W_V"] = torch.diag_embed(diagonals)[:, None]
    params["P"] = (torch.eye(d + 1, dtype=torch.float64) / n).expand_as(params["P"]).clone()
    return params


def constructed(
    d: int,
    params: Params,
    layers: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    **options,
) -> LinearSelfAttention:
    """A ``LinearSelfAttention`` with constructed weights, as a stack or as one layer looped.

    Args:
        layers: how often one layer is applied; a stack has as many as it has rates.
        options: passed on, e.g. ``dampening``.

    Raises:
        ValueError: ``layers`` is not positive, or not the number of layers of a stack; the weights
            are of another ``d``.
    """
    stored, _, dim, _ = params["P"].shape
    if dim != d + 1:
        raise ValueError(f"d={d}, but the weights are of d={dim - 1}: allowed is {dim - 1}")
    layers = stored if layers is None else layers
    if stored not in (1, layers):
        raise ValueError(f"layers={layers}, but the weights hold {stored}: allowed is {stored}")
    model = LinearSelfAttention(d + 1, layers=layers, looped=stored == 1, **options)
    model = model.to(dtype).requires_grad_(False)
    model.load_state_dict(params)
    return model


def softmax_pair(
    a: Float[Tensor, "e e"], c: Float[Tensor, "e e"], epsilon: float, n: int
) -> Params:
    """Two softmax heads whose difference is a linear head, up to centering and ``epsilon^2``.

    For small scores ``softmax(eps s)_i = (1 + eps (s_i - mean s)) / n + O(eps^2)``. A head with
    ``+eps`` minus a head with ``-eps`` loses the constant (and all even orders); what is left is
    ``2 eps / n sum_i (s_i - mean s) v_i``: the linear head on a centered context.

    Returns:
        A state dict for ``LinearSelfAttention(e, heads=2, softmax=True)``.

    Raises:
        ValueError: ``epsilon`` or ``n`` is not positive.
    """
    positive(epsilon=epsilon, n=n)
    e = len(a)
    scale = n / (2 * epsilon)
    eye = torch.eye(e).to(a)
    queries = epsilon * e**0.5 * c  # undoes the softmax's 1 / sqrt(key_dim)
    return {
        "W_K": eye.expand(1, 2, e, e).clone(),
        "W_Q": torch.stack([queries, -queries])[None],
        "W_V": eye.expand(1, 2, e, e).clone(),
        "P": torch.stack([scale * a, -scale * a])[None],
    }
