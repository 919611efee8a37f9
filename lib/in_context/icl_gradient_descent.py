"""Transformers that run gradient descent inside their forward pass.

J. von Oswald, E. Niklasson, E. Randazzo, J. Sacramento, A. Mordvintsev, A. Zhmoginov and
M. Vladymyrov, *Transformers learn in-context by gradient descent*, ICML 2023 (arXiv 2212.07677).

Here: regression tasks as tokens; linear self-attention (LSA) with heads, stacked or looped, with
dampening, softmax and norms; the weights that make it gradient descent (GD) or GD++; the tuned
baselines, in closed form in the eigenvalues of the data; alignment of a trained layer with them;
the deep variants (MLP in front, MLP between, separate x and y tokens with the copying measure).
Not here: the paper's appendix on classification, and its language-model speculation.

Symbols: ``d`` inputs, ``n`` examples in the context, tokens ``e = (x, y)`` of ``d + 1`` entries,
the query ``(x_t, 0)`` last. ``gamma`` is written with the factor ``1 / n`` outside, like ``eta``;
the paper's absorbs it (gamma_paper = gamma / n). Losses are mean squared errors without the
paper's 1/2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lib.core.params import Params
from lib.models.positions import sinusoidal
from lib.models.transformer import FeedForward

# ---- Tasks


def sample_regression(
    batch: int | tuple[int, ...],
    n: int,
    d: int,
    *,
    input_range: float = 1.0,
    w_scale: float = 1.0,
    gen: torch.Generator,
) -> tuple[Float[Tensor, "*b n+1 d+1"], Float[Tensor, "*b"]]:
    """Random linear teachers: ``W ~ N(0, w_scale^2 I)``, ``x ~ U(-input_range, input_range)^d``.

    Returns tokens ``(x_i, W x_i)`` for ``i = 1 .. n`` followed by the query ``(x_t, 0)``, and the
    target ``W x_t``. The paper's code divides its range by two: its "1" is 0.5 here.

    Args:
        batch: number of tasks, or a shape such as ``(seeds, tasks)``.
        gen: where the numbers come from; tokens are made on its device.

    Raises:
        ValueError: ``n``, ``d`` or a scale is not positive.
    """
    _positive(n=n, d=d, input_range=input_range, w_scale=w_scale)
    shape = (batch,) if isinstance(batch, int) else tuple(batch)
    where = gen.device
    w = w_scale * torch.randn(*shape, d, 1, generator=gen, device=where)
    tokens = torch.empty(*shape, n + 1, d + 1, device=where)
    x = torch.rand(*shape, n + 1, d, generator=gen, device=where)
    tokens[..., :d] = x.mul_(2 * input_range).sub_(input_range)
    y = (x @ w)[..., 0]
    tokens[..., d] = y
    tokens[..., -1, d] = 0.0
    return tokens, y[..., -1].clone()


def split(
    tokens: Float[Tensor, "*b m e"],
) -> tuple[Float[Tensor, "*b n d"], Float[Tensor, "*b n 1"], Float[Tensor, "*b d"]]:
    """Tokens as inputs ``x``, outputs ``y`` and the query's input ``x_t``."""
    return tokens[..., :-1, :-1], tokens[..., :-1, -1:], tokens[..., -1, :-1]


# ---- Linear self-attention


def lsa_update(
    tokens: Float[Tensor, "*b m e"],
    keys: Float[Tensor, "*b n e"],
    a: Float[Tensor, "*s h e e"],
    c: Float[Tensor, "*s h e e"],
    *,
    softmax: bool = False,
    key_dim: int | None = None,
    mask: Bool[Tensor, "m n"] | None = None,
) -> Float[Tensor, "*b m e"]:
    """What one attention layer adds to each token: ``sum_h A_h sum_i s(k_i, q_j) e_i``.

    ``A = P W_V`` and ``C = W_K^T W_Q`` are all that matters of a head's four matrices. The score
    of key ``i`` for token ``j`` is ``e_i^T C e_j``, as it is (linear attention), or through a
    softmax over the keys of scores divided by ``sqrt(key_dim)``.

    Leading axes ``s`` of the weights (seeds) are leading axes of the tokens, too.
    """
    queries = torch.einsum("...hef,...jf->...hje", c[..., None, :, :, :], tokens)
    scores = queries @ keys[..., None, :, :].mT
    if softmax:
        scores = scores / (key_dim or tokens.shape[-1]) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        scores = scores.softmax(-1)
    elif mask is not None:
        scores = scores * mask
    return torch.einsum(
        "...hef,...hjf->...je", a[..., None, :, :, :], scores @ keys[..., None, :, :]
    )


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
        clip: bound on the tokens' entries after each layer (the paper: 10 for deep models).
        key_dim: rows of ``W_K, W_Q, W_V``; ``dim`` by default.
        members: leading axis of all weights, for networks that are trained side by side; tokens
            then have it as well.
        std: standard deviation of the initial weights (the paper's code: 0.0135 for one layer).
        gen: draws the initial weights.

    Raises:
        ValueError: a size that is not positive, or ``softmax`` not one value for each layer.
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
        key_dim = key_dim or dim
        _positive(dim=dim, heads=heads, layers=layers, key_dim=key_dim, members=members or 1)
        self.softmax = [softmax] * layers if isinstance(softmax, bool) else list(softmax)
        if len(self.softmax) != layers:
            raise ValueError(f"softmax has {len(self.softmax)} values for layers={layers}")
        self.layers, self.looped, self.members = layers, looped, members
        self.dampening, self.y_only, self.clip, self.key_dim = dampening, y_only, clip, key_dim
        lead = (() if members is None else (members,)) + (1 if looped else layers, heads)
        for name in ("W_K", "W_Q", "W_V", "P"):
            shape = (dim, key_dim) if name == "P" else (key_dim, dim)
            weight = std * torch.randn(*lead, *shape, generator=gen)
            self.register_parameter(name, nn.Parameter(weight))
        count = 1 if looped else layers
        self.norms = None if norm is None else nn.ModuleList(norm(dim) for _ in range(count))

    def merged(self) -> tuple[Float[Tensor, "*s l h e e"], Float[Tensor, "*s l h e e"]]:
        """``A = P W_V`` and ``C = W_K^T W_Q`` of every layer and head."""
        return self.P @ self.W_V, self.W_K.mT @ self.W_Q

    def states(self, tokens: Float[Tensor, "*b m e"]) -> list[Float[Tensor, "*b m e"]]:
        """The tokens before the first layer and after each."""
        a, c = self.merged()
        states = [tokens]
        for layer in range(self.layers):
            k = 0 if self.looped else layer
            e = states[-1]
            read = e if self.norms is None else self.norms[k](e)
            update = lsa_update(
                read,
                read[..., :-1, :],
                a[..., k, :, :, :],
                c[..., k, :, :, :],
                softmax=self.softmax[layer],
                key_dim=self.key_dim,
            )
            if self.y_only:
                update = torch.cat([torch.zeros_like(update[..., :-1]), update[..., -1:]], -1)
            e = e + self.dampening * update
            states.append(e if self.clip is None else e.clamp(-self.clip, self.clip))
        return states

    def forward(self, tokens: Float[Tensor, "*b m e"]) -> Float[Tensor, "*b"]:
        """The prediction for the query, minus the last entry of its token."""
        return -self.states(tokens)[-1][..., -1, -1]


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
    (3^layers - 1) / 2 of them for one head, which beats moving all tokens up to three layers.

    Args:
        layers: how often the weights are applied, where they hold one looped layer.

    Raises:
        ValueError: ``layers`` differs from the number of stacked layers that the weights hold.
    """
    stored = a.shape[-4]
    layers = layers or stored
    if stored not in (1, layers):
        raise ValueError(
            f"layers={layers}, but the weights hold {stored}: allowed is 1 or {layers}"
        )
    context = tokens[..., :-1, :]
    g = context.mT @ context
    heads = [
        [(a[..., k, h, :, :], c[..., k, h, :, :]) for h in range(a.shape[-3])]
        for k in range(stored)
    ]

    def moments(k: int, v: Tensor) -> Tensor:
        """``G_k v``."""
        if k == 0:
            return (g @ v[..., None])[..., 0]
        return forth(k - 1, moments(k - 1, back(k - 1, v)))

    def forth(k: int, v: Tensor) -> Tensor:
        """``M_k v``: vectors are rows here, so a matrix acts from the right, transposed."""
        return v + sum(moments(k, v @ c_h.mT) @ a_h.mT for a_h, c_h in heads[k % stored])

    def back(k: int, v: Tensor) -> Tensor:
        """``M_k^T v``."""
        return v + sum(moments(k, v @ a_h) @ c_h for a_h, c_h in heads[k % stored])

    query = tokens[..., -1, :]
    for k in range(layers):
        query = forth(k, query)
    return -query[..., -1]


# ---- The constructions: weights that are gradient descent


def gd_construction(
    d: int, eta: float | Sequence[float], n: int, w0: Float[Tensor, "d"] | None = None
) -> Params:
    """Weights of a one-head LSA layer that is one step of gradient descent (Proposition 1).

    ``W_K = W_Q`` read ``x``, ``W_V`` computes the residual ``W_0 x - y``, and ``P = eta / n``. The
    layer maps ``(x_j, y_j)`` to ``(x_j, y_j - dW x_j)`` with the GD step
    ``dW = -eta / n sum_i (W_0 x_i - y_i) x_i^T`` on ``1/(2n) sum_i |W x_i - y_i|^2``. The next
    layer then starts from zero on the residuals, so ``w0`` enters the first layer alone, and
    the query starts as ``(x_t, -W_0 x_t)``.

    Args:
        eta: rate, or one rate for each layer of a stack.
        n: examples in the context.

    Returns:
        A state dict for ``LinearSelfAttention(d + 1, layers=..., looped=...)``.
    """
    etas = [float(eta)] if isinstance(eta, (int, float)) else [float(r) for r in eta]
    _positive(d=d, n=n, layers=len(etas))
    read_x = torch.eye(d + 1)
    read_x[d, d] = 0.0
    values = torch.zeros(len(etas), 1, d + 1, d + 1)
    values[..., d, d] = -1.0
    if w0 is not None:
        values[0, 0, d, :d] = w0
    project = torch.tensor(etas)[:, None, None, None] / n * torch.eye(d + 1)
    reads = read_x.expand(len(etas), 1, d + 1, d + 1)
    return {"W_K": reads.clone(), "W_Q": reads.clone(), "W_V": values, "P": project}


def gdpp_construction(
    d: int, eta: float | Sequence[float], gamma: float | Sequence[float], n: int
) -> Params:
    """Weights of GD++: a GD step, and ``x_j <- (I - gamma / n sum_i x_i x_i^T) x_j`` beside it.

    Both parts use the old ``x``. One value each makes a layer to loop, sequences a stack; the last
    layer's ``gamma`` has no effect on the prediction.

    Raises:
        ValueError: as many rates as corrections are needed.
    """
    etas = [float(eta)] if isinstance(eta, (int, float)) else [float(r) for r in eta]
    gammas = [float(gamma)] if isinstance(gamma, (int, float)) else [float(g) for g in gamma]
    if len(etas) != len(gammas):
        raise ValueError(f"eta has {len(etas)} values and gamma {len(gammas)}: allowed is as many")
    params = gd_construction(d, etas, n)
    params["P"] = torch.eye(d + 1).expand_as(params["P"]) / n
    diagonals = torch.tensor([[-g] * d + [-r] for r, g in zip(etas, gammas, strict=True)])
    params["W_V"] = torch.diag_embed(diagonals)[:, None]
    return params


def constructed(
    d: int, params: Params, layers: int | None = None, **options
) -> LinearSelfAttention:
    """An ``LinearSelfAttention`` with constructed weights: a stack, or one layer looped."""
    stored = params["P"].shape[0]
    model = LinearSelfAttention(
        d + 1, layers=layers or stored, looped=stored == 1, **options
    ).requires_grad_(False)
    own = model.state_dict()
    model.load_state_dict({**own, **params})
    return model.to(params["P"].dtype)


# ---- The same algorithms, written out


def gd_predict(
    x: Float[Tensor, "*b n d"],
    y: Float[Tensor, "*b n o"],
    xq: Float[Tensor, "*b d"],
    eta: float | Sequence[float],
    steps: int = 1,
    gamma: float | Sequence[float] = 0.0,
) -> Float[Tensor, "*b o"]:
    """Predict at ``xq`` after ``steps`` of gradient descent from ``W = 0`` on the context.

    ``gamma > 0`` is GD++: after each step, inputs and query are multiplied by
    ``I - gamma / n sum_i x_i x_i^T``. Rates are one number, or one for each step.
    """
    etas, gammas = _per_step("eta", eta, steps), _per_step("gamma", gamma, steps)
    n, prediction = x.shape[-2], 0.0
    for rate, correction in zip(etas, gammas, strict=True):
        step = rate / n * (y.mT @ x)  # dW: residuals times inputs
        prediction = prediction + (step @ xq[..., None])[..., 0]
        y = y - x @ step.mT
        if correction:
            h = x.mT @ x / n
            x, xq = x - correction * x @ h, xq - correction * (h @ xq[..., None])[..., 0]
    return prediction


def ridge_predict(
    x: Float[Tensor, "*b n d"],
    y: Float[Tensor, "*b n o"],
    xq: Float[Tensor, "*b d"],
    lam: float = 0.0,
) -> Float[Tensor, "*b o"]:
    """Ridge regression on the context, ``min sum_i |W x_i - y_i|^2 + lam |W|^2``.

    ``lam = 0`` is ordinary least squares, of smallest norm where the context does not decide.

    Raises:
        ValueError: ``lam`` is negative.
    """
    if lam < 0:
        raise ValueError(f"lam={lam}: allowed is 0 or more")
    if lam == 0:
        w = torch.linalg.pinv(x) @ y
    else:
        w = torch.linalg.solve(x.mT @ x + lam * torch.eye(x.shape[-1]).to(x), x.mT @ y)
    return (xq[..., None, :] @ w)[..., 0, :]


# ---- How well GD and GD++ can do: polynomials in the eigenvalues of the data


def residual_factor(
    lam: Float[Tensor, "*b"],
    eta: float | Sequence[float],
    gamma: float | Sequence[float],
    steps: int,
) -> Float[Tensor, "*b"]:
    """What is left of an error along an eigenvector of ``H = 1/n sum_i x_i x_i^T``.

    ``r(lam) = prod_k (1 - eta_k lam_k)`` with ``lam_(k+1) = lam_k (1 - gamma_k lam_k)^2``: GD++ is
    GD on data whose spectrum it reshapes between the steps. ``gamma = 0`` is GD.
    """
    left = torch.ones_like(lam)
    etas, gammas = _per_step("eta", eta, steps), _per_step("gamma", gamma, steps)
    for rate, correction in zip(etas, gammas, strict=True):
        left = left * (1 - rate * lam)
        lam = lam * (1 - correction * lam) ** 2
    return left


def sample_spectrum(
    batch: int, n: int, d: int, *, input_range: float = 1.0, gen: torch.Generator
) -> Float[Tensor, "{batch} {d}"]:
    """Eigenvalues of ``1/n sum_i x_i x_i^T`` for ``batch`` contexts, in ascending order."""
    _positive(batch=batch, n=n, d=d, input_range=input_range)
    x = input_range * (2 * torch.rand(batch, n, d, generator=gen, device=gen.device) - 1)
    return torch.linalg.eigvalsh(x.mT @ x / n)


@dataclass(frozen=True)
class Tuned:
    """Best rates found, one for each step, and the mean squared error they reach."""

    eta: tuple[float, ...]
    gamma: tuple[float, ...]
    mse: float


def tune_gd(
    steps: int,
    spectrum: Float[Tensor, "b d"],
    *,
    gdpp: bool = False,
    shared: bool = True,
    input_range: float = 1.0,
) -> Tuned:
    """Rates of GD or GD++ that are best on average over tasks with these spectra.

    For ``W ~ N(0, I)`` and a query of covariance ``input_range^2 / 3``, the mean squared error is
    ``input_range^2 / 3`` times the mean of ``sum_i r(lam_i)^2``. No task has to be solved: the
    error over all teachers and queries is known exactly, only the contexts are a sample.

    Args:
        gdpp: tune ``gamma`` as well, instead of leaving it at zero.
        shared: one rate for all steps (a looped layer), or one each (a stack).

    Raises:
        ValueError: ``steps`` is not positive.
    """
    _positive(steps=steps, input_range=input_range)
    lam = spectrum.double()
    free = 1 if shared else steps

    def risk(theta: Tensor) -> Tensor:
        eta, gamma = theta[:free], theta[free:] if gdpp else torch.zeros_like(theta)
        left = residual_factor(
            lam, eta.expand(steps) if shared else eta, _stretch(gamma, steps), steps
        )
        return input_range**2 / 3 * left.square().sum(-1).mean()

    best = None
    scale = float(lam.square().sum() / lam.pow(3).sum())  # about 1 / (largest eigenvalue)
    for start in (0.6, 1.0, 2.0):  # equal rates are a saddle of the per-step problem: fan them out
        fan = torch.linspace(0.6, 1.8, free) if free > 1 else torch.ones(1)
        theta = torch.cat([start * fan, torch.full((free,), 0.15)]).double()[
            : 2 * free if gdpp else free
        ]
        theta = (scale * theta).requires_grad_()
        optimizer = torch.optim.LBFGS([theta], max_iter=200, line_search_fn="strong_wolfe")

        def closure(theta=theta, optimizer=optimizer):
            optimizer.zero_grad()
            loss = risk(theta)
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            found = float(risk(theta))
        if best is None or found < best[0]:
            best = found, theta.detach()
    mse, theta = best
    eta, gamma = theta[:free], theta[free:] if gdpp else torch.zeros(free)
    return Tuned(tuple(_stretch(eta, steps).tolist()), tuple(_stretch(gamma, steps).tolist()), mse)


def one_step_mse(eta: float, n: int, d: int, input_range: float = 1.0) -> float:
    """Mean squared error of one GD step, exactly: a parabola in ``eta``.

    ``d a^2/3 (1 - 2/3 eta a^2 + c eta^2 a^4)`` with ``a = input_range`` and
    ``c = 1/9 + (1/5 + (d - 1)/9 - 1/9) / n``; from the second and fourth moments of the uniform
    distribution, 1/3 and 1/5.
    """
    a2 = input_range**2
    c = 1 / 9 + (1 / 5 + (d - 1) / 9 - 1 / 9) / n
    return d * a2 / 3 * (1 - 2 / 3 * eta * a2 + c * (eta * a2) ** 2)


# ---- Comparing a trained layer with the algorithm


def alignment(
    model: Callable[[Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
    tokens: Float[Tensor, "b m e"],
) -> dict[str, Tensor]:
    """How alike two predictors are, task by task, then averaged over the tasks.

    ``pred_l2``: mean absolute difference of the predictions; ``pred_relative``: RMS difference
    over the RMS of the reference; ``sens_l2`` and ``sens_cos``: distance and cosine of the
    sensitivities, the derivatives of the prediction in the query's input.

    Args:
        model, reference: from tokens to predictions ``"b"``, or ``"s b"`` for seeds side by side.

    Returns:
        Numbers, or one for each seed.
    """
    query = tokens[:, -1, :-1]

    def summed(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def at(xq: Tensor) -> Tensor:
            last = torch.cat([xq, tokens[:, -1, -1:]], -1)
            # Tasks do not see each other: the derivative of the sum is each task's own.
            return f(torch.cat([tokens[:, :-1], last[:, None]], 1)).sum(-1)

        return at

    with torch.no_grad():
        p, q = model(tokens), reference(tokens)
    s, r = (torch.func.jacrev(summed(f))(query).detach() for f in (model, reference))
    return {
        "pred_l2": (p - q).abs().mean(-1),
        "pred_relative": ((p - q).square().mean(-1) / q.square().mean(-1)).sqrt(),
        "sens_l2": (s - r).norm(dim=-1).mean(-1),
        "sens_cos": torch.cosine_similarity(s, r.expand_as(s), dim=-1).mean(-1),
    }


def rescaled(
    a: Float[Tensor, "*s l h e e"], c: Float[Tensor, "*s l h e e"]
) -> tuple[Float[Tensor, "*s l h e e"], Float[Tensor, "*s l h e e"]]:
    """The same heads, scaled so that the x-block of ``C`` has mean diagonal 1.

    Only the product of ``A`` and ``C`` acts: a factor can move from one to the other, and both
    can change sign. This fixes the factor as the construction has it, so weights can be averaged.
    """
    scale = c[..., :-1, :-1].diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return a * scale, c / scale


def effective_rates(
    a: Float[Tensor, "*s l h e e"], c: Float[Tensor, "*s l h e e"], n: int
) -> tuple[Float[Tensor, "*s l"], Float[Tensor, "*s l"]]:
    """``eta`` and ``gamma`` that layers run with, read off their weights.

    ``eta = -n A_yy mean diag C_xx`` and ``gamma = -n mean diag A_xx mean diag C_xx``, summed over
    heads.
    """
    x_scale = c[..., :-1, :-1].diagonal(dim1=-2, dim2=-1).mean(-1)
    eta = -n * (a[..., -1, -1] * x_scale).sum(-1)
    gamma = -n * (a[..., :-1, :-1].diagonal(dim1=-2, dim2=-1).mean(-1) * x_scale).sum(-1)
    return eta, gamma


# ---- Softmax heads in pairs


def softmax_pair(
    a: Float[Tensor, "e e"], c: Float[Tensor, "e e"], epsilon: float, n: int
) -> Params:
    """Two softmax heads whose difference is a linear head, up to centering and ``epsilon^2``.

    For small scores ``softmax(eps s)_i = (1 + eps (s_i - mean s)) / n + O(eps^2)``. A head with
    ``+eps`` minus a head with ``-eps`` loses the constant (and all even orders); what is left is
    ``2 eps / n sum_i (s_i - mean s) v_i``: the linear head on a centered context.

    Returns:
        A state dict for ``LinearSelfAttention(e, heads=2, softmax=True)``.
    """
    e = len(a)
    scale = n / (2 * epsilon)
    eye = torch.eye(e, dtype=a.dtype)
    queries = epsilon * e**0.5 * c  # undoes the softmax's 1 / sqrt(key_dim)
    return {
        "W_K": eye.expand(1, 2, e, e).clone(),
        "W_Q": torch.stack([queries, -queries])[None],
        "W_V": eye.expand(1, 2, e, e).clone(),
        "P": torch.stack([scale * a, -scale * a])[None],
    }


# ---- Deep features: an MLP in front of attention


def sample_sines(
    batch: int, n: int, *, input_range: float = 5.0, gen: torch.Generator
) -> tuple[Float[Tensor, "{batch} n+1 2"], Float[Tensor, "{batch}"]]:
    """Waves ``y = a sin(x + rho)``, ``a ~ U(0.1, 0.5)``, ``rho ~ U(0, pi)``, as tokens and targets.

    Amplitude, phase and the range ``|x| < 5`` are those of the paper's code.
    """
    _positive(batch=batch, n=n, input_range=input_range)
    where = gen.device
    x = input_range * (2 * torch.rand(batch, n + 1, generator=gen, device=where) - 1)
    amplitude = 0.1 + 0.4 * torch.rand(batch, 1, generator=gen, device=where)
    phase = torch.pi * torch.rand(batch, 1, generator=gen, device=where)
    y = amplitude * torch.sin(x + phase)
    tokens = torch.stack([x, y], -1)
    tokens[:, -1, 1] = 0.0
    return tokens, y[:, -1]


class DeepFeatures(nn.Module):
    """Tokens ``(x, y)`` to ``(m(x), y)``, then attention: GD on the last layer of a network.

    ``m`` is a linear embedding plus an MLP of its output. With a trained ``attention`` this is the
    paper's MLP and LSA; with ``gd=True`` the attention's weights are those of one GD step and
    only ``m`` and the rate ``eta`` are trained, which is what the paper compares with. (The
    paper's code feeds ``y`` through the MLP, too; here it passes by, as in the paper's text.)

    Args:
        d: entries of ``x``.
        width: features ``m(x)``.
        gd: one GD step instead of free attention weights.
    """

    def __init__(self, d: int, width: int, *, gd: bool = False, gen: torch.Generator | None = None):
        super().__init__()
        self.embed = nn.Linear(d, width)
        self.mlp = FeedForward(width, 4 * width)
        self.attention = None if gd else LinearSelfAttention(width + 1, gen=gen)
        self.log_eta = nn.Parameter(torch.zeros(())) if gd else None

    def features(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b width"]:
        """``m(x)``."""
        h = self.embed(x)
        return h + self.mlp(h)

    def forward(self, tokens: Float[Tensor, "b m e"]) -> Float[Tensor, "b"]:
        e = torch.cat([self.features(tokens[..., :-1]), tokens[..., -1:]], -1)
        if self.attention is not None:
            return self.attention(e)
        x, y, xq = split(e)
        step = y.mT @ x / x.shape[-2]
        return self.log_eta.exp() * (step @ xq[..., None])[..., 0, 0]


class LSALayer(nn.Module):
    """Linear self-attention as an ``attention=`` factory of ``lib.models.transformer.Block``.

    For transformers with an MLP between attention layers. Returns the update, without the tokens.
    ``mask`` (True: row may read column) takes the role of leaving the query out of the keys.
    """

    def __init__(self, dim: int, heads: int, *, std: float = 0.05):
        super().__init__()
        _positive(dim=dim, heads=heads)
        for name in ("W_K", "W_Q", "W_V", "P"):
            self.register_parameter(name, nn.Parameter(std * torch.randn(heads, dim, dim)))

    def forward(
        self,
        x: Float[Tensor, "b m dim"],
        context: Float[Tensor, "b n dim"] | None = None,
        mask: Bool[Tensor, "m n"] | None = None,
    ) -> Float[Tensor, "b m dim"]:
        keys = x if context is None else context
        return lsa_update(x, keys, self.P @ self.W_V, self.W_K.mT @ self.W_Q, mask=mask)


# ---- Ordinary tokens: x and y apart


def separate_tokens(
    tokens: Float[Tensor, "*b m e"], positions: int = 10
) -> Float[Tensor, "*b k f"]:
    """``(x_i, y_i)`` as two tokens ``(x_i, 0)`` and ``(0, y_i)``, in turn, then the query.

    Each carries a sinusoidal code of its position, in front, so ``y`` stays the last entry:
    ``2n + 1`` tokens of ``positions + d + 1`` entries.
    """
    x, y, _ = split(tokens)
    first = torch.cat([x, torch.zeros_like(y)], -1)
    second = torch.cat([torch.zeros_like(x), y], -1)
    turns = torch.stack([first, second], -2).flatten(-3, -2)
    content = torch.cat([turns, tokens[..., -1:, :]], -2)
    code = sinusoidal(torch.arange(content.shape[-2]), positions).to(tokens)
    return torch.cat([code.expand(*content.shape[:-1], positions), content], -1)


def copying(
    model: LinearSelfAttention, tokens: Float[Tensor, "b m e"], layer: int = 1
) -> Float[Tensor, "m m"]:
    """How strongly each token after ``layer`` depends on each input token.

    Entry ``[k, j]`` is the norm of the mean over tasks of
    ``d (sum of the entries of token k after the layer) / d (input token j)``, the paper's measure.
    A layer that copies the neighbor has its large entries at ``j = k + 1``, beside the diagonal.
    """

    def sums(e: Tensor) -> Tensor:
        return model.states(e)[layer].sum(-1).sum(0)

    with torch.enable_grad():
        jacobian = torch.func.jacrev(sums)(tokens)
    return jacobian.detach().mean(1).norm(dim=-1)


# ---- Helpers


def _per_step(name: str, value: float | Sequence[float] | Tensor, steps: int) -> list:
    if isinstance(value, (int, float)):
        return [value] * steps
    if len(value) != steps:
        raise ValueError(
            f"{name} has {len(value)} values for steps={steps}: allowed is 1 or {steps}"
        )
    return list(value)


def _stretch(values: Tensor, steps: int) -> Tensor:
    return values.expand(steps) if len(values) == 1 else values[:steps]


def _positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name}={value}: allowed is more than 0")
