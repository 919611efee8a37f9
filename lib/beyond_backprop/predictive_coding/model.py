"""The PV-RNN: several models side by side, their rollouts, their loss, their training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.beyond_backprop.predictive_coding.outputs import Gaussian, Softmax
from lib.core.fitting import History, progress
from lib.core.losses import gaussian_kl
from lib.kernels.persistent_rnn import LOGS_P, LOGS_Q, MU_Q, pv_rnn

Layer = tuple[int, int, float]
"""One layer, the fastest first: units d, latents z, time constant tau."""


@dataclass(frozen=True)
class Rollout:
    """What one run of a model gives: time, model, sequence, then units, latents or channels."""

    h: Float[Tensor, "t n b d"]
    stats: Float[Tensor, "t n b 4 z"]
    raw: Float[Tensor, "t n b k"]
    """What the output layer gives: the mean's argument, or the logits of the population code."""
    x: Float[Tensor, "t n b o"]
    """The prediction, in units of the data."""

    @property
    def sigma_q(self) -> Tensor:
        return self.stats[..., LOGS_Q, :].exp()

    @property
    def sigma_p(self) -> Tensor:
        return self.stats[..., LOGS_P, :].exp()


@dataclass(frozen=True)
class Terms:
    """The objective and its parts, one number for each model: means over sequences."""

    total: Float[Tensor, "n"]
    error: Float[Tensor, "n"]
    """Summed over time."""
    kl: Float[Tensor, "n"]
    """Mean over time, layers and latents, in nats, not multiplied by anything."""


class PVRNN(nn.Module):
    r"""A stack of ``n`` PV-RNNs of one shape, one for each generator in ``gens``.

    .. math:: \mathcal L = \sum_t \Big[ \mathrm{err}(x_t, \hat x_t)
              + \sum_l \frac{w}{\dim z^l} \mathrm{KL}(q^l_t \| p^l_t) \Big]

    Layers are coupled with their neighbors through ``d`` at ``t - 1``, upward and downward; the
    first one drives the output. All layers live in one operator: ``W``, ``U`` and ``V`` are zero
    between those that are not coupled.

    Args:
        layers: ``(d, z, tau)`` for each layer, the fastest first.
        out_dim: channels of the data.
        meta_prior: ``w``, one number, or one for each model.
        sequences, steps: training sequences and their length; each owns ``A`` for every step.
        gens: generators of the initial weights, N(0, 0.3^2); one model for each.
        output: ``"gaussian"`` for tanh and half the squared error, ``"softmax"`` for a population
            code with ``units`` units a channel and cross-entropy, less the code's own entropy.
        posterior: ``"adaptive+state"`` adds ``W' d_{t-1}`` to ``A``; ``"adaptive"`` is ``A`` alone.
        natural_gradient: multiplies the gradients that reach ``A_mu`` by ``sigma_q^2`` and those of
            ``A_sigma`` by ``sigma_q^2 / 2``: the inverse Fisher information of a Gaussian's mean
            and standard deviation.
        w_first: another ``w`` for the first step.
        first_prior: the prior of the first step is N(0, 1), or ``"learned"``: the prior's heads at
            the initial state.

    Raises:
        ValueError: an argument outside what is allowed, or lengths that differ.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        out_dim: int,
        meta_prior: float | Sequence[float],
        *,
        sequences: int,
        steps: int,
        gens: Sequence[torch.Generator],
        output: Literal["gaussian", "softmax"] = "gaussian",
        units: int = 10,
        posterior: Literal["adaptive+state", "adaptive"] = "adaptive+state",
        natural_gradient: bool = False,
        w_first: float | None = None,
        first_prior: Literal["unit", "learned"] = "unit",
    ) -> None:
        super().__init__()
        n = len(gens)
        w = [float(meta_prior)] * n if isinstance(meta_prior, (int, float)) else list(meta_prior)
        _check(layers, out_dim, w, n, sequences, steps, output, posterior, w_first, first_prior)
        self.layers, self.steps, self.posterior = list(layers), steps, posterior
        self.natural_gradient, self.unit_first = natural_gradient, first_prior == "unit"
        self.decoder = Gaussian(out_dim) if output == "gaussian" else Softmax(out_dim, units)
        self.out_dim = out_dim
        D, Z = sum(d for d, _, _ in layers), sum(z for _, z, _ in layers)
        shapes = {
            "W": (D, D), "U": (D, Z), "V": (4, Z, D), "b": (D,), "c": (4, Z),
            "out": (self.decoder.width, layers[0][0]), "out_b": (self.decoder.width,),
        }  # fmt: skip
        masks = _couplings(layers)
        if posterior == "adaptive":
            masks["V"][[MU_Q, LOGS_Q]] = False
        for name, shape in shapes.items():
            values = torch.zeros(n, *shape)
            if len(shape) > 1 and name != "c":
                for i, gen in enumerate(gens):
                    values[i] = 0.3 * torch.randn(shape, generator=gen)
            if name == "c":
                values[:, [LOGS_Q, LOGS_P]] = -0.5
            if name in masks:
                values *= masks[name]
                # One layer couples with all of itself: then there is nothing to mask.
                mask = None if masks[name].all() else masks[name].float()
                self.register_buffer(f"{name}_mask", mask, persistent=False)
            setattr(self, name, nn.Parameter(values))
        self.A = nn.Parameter(torch.zeros(steps, n, sequences, 2, Z))
        self.register_buffer("tau", torch.tensor([t for d, _, t in layers for _ in range(d)]))
        self.register_buffer("w", torch.tensor(w))
        first = self.w if w_first is None else torch.full((n,), float(w_first))
        self.register_buffer("w_first", first.clone())
        share = torch.cat([torch.full((z,), 1 / z) for _, z, _ in layers])
        self.register_buffer("share", share, persistent=False)

    def __len__(self) -> int:
        return len(self.w)

    def select(self, index: Sequence[int]) -> PVRNN:
        """A copy with the models ``index`` alone."""
        if not index or not all(0 <= i < len(self) for i in index):
            raise ValueError(f"index={list(index)}: allowed are models 0 to {len(self) - 1}")
        chosen = copy.deepcopy(self)
        for name, p in chosen.named_parameters():
            p.data = p.data[:, index] if name == "A" else p.data[index]
        chosen.w, chosen.w_first = self.w[index], self.w_first[index]
        return chosen

    # ------------------------------------------------------------------------------- rollouts

    def run(
        self,
        A: Float[Tensor, "t n b 2 z"],
        eps: Float[Tensor, "t n b z"],
        h0: Float[Tensor, "n b d"] | None = None,
        observed: int | None = None,
        frozen: bool = False,
    ) -> Rollout:
        """``t`` steps from ``h0``; without ``h0`` they are the first ones of a sequence.

        ``z`` comes from the posterior for ``observed`` steps (all if None), then from the prior.
        ``frozen`` keeps the weights out of the graph.
        """
        first = h0 is None
        if first:
            h0 = A.new_zeros(A.shape[1], A.shape[2], len(self.tau))
        weights, out, out_b = self.coupled(), self.out, self.out_b
        if frozen:
            weights = {name: p.detach() for name, p in weights.items()}
            out, out_b = out.detach(), out_b.detach()
        scale: list[Tensor] = []
        if self.natural_gradient and A.requires_grad:
            A = A.view_as(A)
            A.register_hook(lambda g: g * scale[0])
        h, stats = pv_rnn(
            A, eps, **weights, tau=self.tau, h0=h0, observed=observed,
            unit_first=first and self.unit_first,
        )  # fmt: skip
        if self.natural_gradient:
            variance = stats.detach()[..., LOGS_Q, :].mul(2).exp()
            scale.append(torch.stack([variance, variance / 2], -2))
        d = torch.tanh(h[..., : self.layers[0][0]])
        raw = d @ out.mT + out_b[:, None]
        return Rollout(h, stats, raw, self.decoder.mean(raw))

    def coupled(self) -> dict[str, Tensor]:
        """``W, U, V, b, c`` with zeros between layers that are not coupled."""
        weights = {name: getattr(self, name) for name in "WUVbc"}
        for name in "WUV":
            if (mask := getattr(self, f"{name}_mask")) is not None:
                weights[name] = weights[name] * mask
        return weights

    def posterior_rollout(
        self, idx: Int[Tensor, "b"] | None = None, gen: torch.Generator | None = None
    ) -> Rollout:
        """The training sequences ``idx`` (all if None), reconstructed with their own ``A``.

        Without ``gen`` the noise is zero: ``z = mu_q``.
        """
        A = self.A if idx is None else self.A[:, :, idx]
        return self.run(A, self.noise(len(A), A.shape[2], gen))

    def prior_rollout(
        self,
        steps: int,
        batch: int,
        gen: torch.Generator | None = None,
        burn_in: int = 0,
    ) -> Rollout:
        """``batch`` sequences made up from the prior: ``burn_in`` steps dropped, ``steps`` kept.

        Without ``gen`` the noise is zero, and all sequences of a model are the same.
        """
        if steps < 1 or burn_in < 0 or batch < 1:
            raise ValueError(
                f"steps={steps}, batch={batch}, burn_in={burn_in}: 1 or more, and 0 or more"
            )
        eps = self.noise(burn_in + steps, batch, gen)
        run = self.run(self.offsets(burn_in + steps, batch), eps, observed=0)
        return Rollout(*(t[burn_in:] for t in (run.h, run.stats, run.raw, run.x)))

    def offsets(self, steps: int, batch: int) -> Float[Tensor, "t n b 2 z"]:
        """``A`` of a sequence about which nothing is known: zero."""
        return self.A.new_zeros(steps, len(self), batch, 2, len(self.share))

    def noise(
        self, steps: int, batch: int, gen: torch.Generator | None
    ) -> Float[Tensor, "t n b z"]:
        shape = (steps, len(self), batch, len(self.share))
        if gen is None:
            return self.A.new_zeros(shape)
        return torch.randn(shape, generator=gen, dtype=self.A.dtype).to(self.A.device)

    # ------------------------------------------------------------------------------- objective

    def loss(
        self,
        x: Float[Tensor, "... t o"],
        idx: Int[Tensor, "b"] | None = None,
        gen: torch.Generator | None = None,
    ) -> Terms:
        """The objective on the training sequences ``x``, ``"b t o"`` or ``"n b t o"``.

        Raises:
            ValueError: ``x`` of another shape than that of ``A[:, :, idx]``.
        """
        run = self.posterior_rollout(idx, gen)
        return self.objective(run, time_first(x, run.x.shape))

    def objective(self, run: Rollout, x: Float[Tensor, "t n b o"], starts: bool = True) -> Terms:
        """The terms of a rollout; ``starts`` says that its first step is a sequence's first.

        Raises:
            ValueError: ``x`` would be broadcast to more channels, sequences or steps.
        """
        wanted = (len(run.x), x.shape[1], *run.x.shape[2:])
        if x.shape != wanted or x.shape[1] not in (1, len(self)):
            raise ValueError(
                f"x: shape {tuple(x.shape)}; allowed is {tuple(run.x.shape)}, or 1 in place of the "
                f"{len(self)} models"
            )
        error = self.decoder.error(run.raw, x).sum(0).mean(-1)
        kl = self.kl(run)
        w = self.w.expand(len(kl), -1)
        if starts and not torch.equal(self.w, self.w_first):
            w = torch.cat([self.w_first[None], w[1:]])
        return Terms(error + (w * kl.mean(-1)).sum(0), error, kl.mean((0, 2)) / len(self.layers))

    def kl(self, run: Rollout) -> Float[Tensor, "t n b"]:
        """What ``w`` multiplies: KL(q || p), mean over a layer's latents, summed over layers."""
        mu_q, mu_p, logs_q, logs_p = run.stats.unbind(-2)
        if len(self.layers) == 1:
            return gaussian_kl(mu_q, logs_q, mu_p, logs_p) * self.share[0]
        each = gaussian_kl(*(t[..., None] for t in (mu_q, logs_q, mu_p, logs_p)))
        return each @ self.share


def time_first(x: Tensor, shape: Sequence[int]) -> Float[Tensor, "t n b o"]:
    """Data ``"b t o"`` or ``"n b t o"`` in the order of a rollout of ``shape``."""
    moved = x.movedim(-2, 0) if x.ndim in (3, 4) else x
    if x.ndim == 3:
        moved = moved[:, None].expand(-1, shape[1], -1, -1)
    if moved.shape != torch.Size(shape):
        raise ValueError(
            f"x: shape {tuple(x.shape)}; allowed is (b, t, o) or (n, b, t, o) with (t, n, b, o) = "
            f"{tuple(shape)}"
        )
    return moved


def train(
    model: PVRNN,
    x: Float[Tensor, "... t o"],
    *,
    steps: int,
    gen: torch.Generator,
    lr: float = 0.01,
    adaptive_lr: float = 0.05,
    clip: float = 1.0,
    log: Sequence[int] = (),
) -> History:
    """Adam on all weights and all ``A`` at once, full batch; each model has its own clipped norm.

    ``A`` has a rate of its own, ``adaptive_lr``. ``log``: steps at which ``total``, ``error`` and
    ``kl`` are recorded, lists with one number for each model.

    Raises:
        FloatingPointError: the loss is not finite; the last update is not made.
    """
    if steps < 0 or not min(lr, adaptive_lr, clip) > 0:
        raise ValueError(
            f"steps={steps}, lr={lr}, adaptive_lr={adaptive_lr}, clip={clip}: allowed are 0 or "
            "more steps, positive numbers"
        )
    weights = [p for name, p in model.named_parameters() if name != "A"]
    groups = [{"params": weights}, {"params": [model.A], "lr": adaptive_lr}]
    optimizer, history = torch.optim.Adam(groups, lr=lr, fused=True), History()
    for step in progress(range(steps), "training"):
        terms = model.loss(x, gen=gen)
        if not torch.isfinite(terms.total).all():
            raise FloatingPointError(f"the loss is {terms.total.tolist()} at step {step}")
        if step in log:
            row = {name: t.detach().tolist() for name, t in vars(terms).items()}
            history.rows.append({"step": step, **row})
        optimizer.zero_grad(set_to_none=True)
        terms.total.sum().backward()
        clip_models(weights, clip)
        optimizer.step()
    return history


def clip_models(parameters: Sequence[nn.Parameter], limit: float) -> None:
    """Scales the gradients of each model, the leading axis, to a norm of at most ``limit``."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = sum(g.flatten(1).square().sum(1) for g in grads).sqrt()
    factor = (limit / norm.clamp_min(1e-12)).clamp_max(1)
    for g in grads:
        g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))


def channels_of(x: Tensor, out_dim: int) -> tuple[int, int]:
    """Steps and sequences of data ``"b t o"`` or ``"n b t o"``, whose channels are checked."""
    if x.ndim not in (3, 4) or x.shape[-1] != out_dim:
        raise ValueError(
            f"x: shape {tuple(x.shape)}; allowed is (b, t, o) or (n, b, t, o) with o = {out_dim}"
        )
    return x.shape[-2], x.shape[-3]


def _couplings(layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Which units and latents belong together: W joins neighbors, U and V stay in their layer."""
    unit = torch.tensor([i for i, (d, _, _) in enumerate(layers) for _ in range(d)])
    latent = torch.tensor([i for i, (_, z, _) in enumerate(layers) for _ in range(z)])
    own = unit[:, None] == latent
    return {
        "W": (unit[:, None] - unit).abs() <= 1,
        "U": own,
        "V": own.T.expand(4, -1, -1).clone(),
    }


def _check(layers, out_dim, w, n, sequences, steps, output, posterior, w_first, first_prior):
    sizes = [
        len(layer) == 3
        and all(isinstance(size, int) and size >= 1 for size in layer[:2])
        and 1 <= layer[2] < math.inf
        for layer in layers
    ]
    if not layers or not all(sizes):
        raise ValueError(
            f"layers={list(layers)}: allowed is one or more (d, z, tau), each number at least 1, "
            "d and z whole"
        )
    if n < 1 or len(w) != n:
        raise ValueError(
            f"{n} gens and {len(w)} meta_prior: one generator or more, one w for each or for all"
        )
    if not all(math.isfinite(v) and v >= 0 for v in (*w, 0.0 if w_first is None else w_first)):
        raise ValueError(f"meta_prior={w}, w_first={w_first}: allowed are numbers from 0 on")
    if min(out_dim, sequences, steps) < 1:
        raise ValueError(
            f"out_dim={out_dim}, sequences={sequences}, steps={steps}: allowed is 1 or more"
        )
    for name, value, allowed in (
        ("output", output, ("gaussian", "softmax")),
        ("posterior", posterior, ("adaptive+state", "adaptive")),
        ("first_prior", first_prior, ("unit", "learned")),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: allowed are {' and '.join(map(repr, allowed))}")
