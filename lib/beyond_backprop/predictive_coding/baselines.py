"""What the PV-RNN is compared with: a VRNN, a network without noise, an LSTM."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.beyond_backprop.predictive_coding.model import (
    PVRNN,
    Layer,
    Terms,
    channels_of,
    clip_models,
    time_first,
)
from lib.core.fitting import History, progress
from lib.core.losses import gaussian_kl


class VRNN(nn.Module):
    """J. Chung et al. 2015 (arXiv:1506.02216), ``n`` of them side by side.

    The encoder sees ``x_t`` and the state, the recurrence ``x_t`` and ``z_t``, the decoder ``z_t``
    and the state. Every map has one hidden tanh layer less than in that paper, and the recurrence
    is the leaky one of the PV-RNN, so that the two have the same memory.

    Args:
        d, z, tau: units, latents, time constant. ``features``: of ``x`` and of ``z``.
        meta_prior: weight of the KL term, mean over latents, as in :class:`PVRNN`.
    """

    def __init__(
        self,
        d: int,
        z: int,
        tau: float,
        out_dim: int,
        meta_prior: float,
        *,
        gens: Sequence[torch.Generator],
        features: int = 16,
    ) -> None:
        super().__init__()
        if min(d, z, tau, out_dim, features, len(gens)) < 1 or not meta_prior >= 0:
            raise ValueError(
                f"d={d}, z={z}, tau={tau}, out_dim={out_dim}, features={features}, {len(gens)} "
                f"gens: 1 or more each; meta_prior={meta_prior}: 0 or more"
            )
        self.d, self.z, self.tau, self.meta_prior = d, z, tau, meta_prior
        shapes = {
            "phi_x": (features, out_dim),
            "phi_z": (features, z),
            "prior": (2 * z, d),
            "encoder": (2 * z, d + features),
            "decoder": (out_dim, d + features),
            "recur": (d, d + 2 * features),
        }
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        for name, shape in shapes.items():
            values = [0.3 * torch.randn(shape, generator=gen) for gen in gens]
            self.weights[name] = nn.Parameter(torch.stack(values))
            self.biases[name] = nn.Parameter(torch.zeros(len(gens), 1, shape[0]))

    def forward(
        self,
        x: Float[Tensor, "t n b o"],
        eps: Float[Tensor, "s n b z"],
    ) -> tuple[Float[Tensor, "s n b o"], Float[Tensor, "t n b"]]:
        """Means of ``x``, and KL (mean over latents) at the ``t`` observed steps.

        There are as many steps as noise. After the observed ones the prior takes over, and the
        network sees its own output.
        """
        n, b = eps.shape[1:3]
        h, means, kl = eps.new_zeros(n, b, self.d), [], []
        for t, e in enumerate(eps):
            d = torch.tanh(h)
            mu, logs = self._gaussian("prior", d)
            if t < len(x):
                seen = torch.tanh(self._map("phi_x", x[t]))
                mu_q, logs_q = self._gaussian("encoder", torch.cat([d, seen], -1))
                kl.append(gaussian_kl(mu_q, logs_q, mu, logs) / self.z)
                mu, logs = mu_q, logs_q
            z = torch.tanh(self._map("phi_z", mu + logs.exp() * e))
            means.append(torch.tanh(self._map("decoder", torch.cat([d, z], -1))))
            if t >= len(x):
                seen = torch.tanh(self._map("phi_x", means[-1]))
            h = torch.lerp(h, self._map("recur", torch.cat([d, z, seen], -1)), 1 / self.tau)
        return torch.stack(means), torch.stack(kl) if kl else eps.new_zeros(0, n, b)

    def loss(self, x: Float[Tensor, "... t o"], gen: torch.Generator) -> Terms:
        """Half the squared error plus ``w`` KL, summed over time; see :class:`Terms`."""
        x = time_first(x, self._shape(x))
        mean, kl = self(x, self.noise(*x.shape[:3], gen))
        error = 0.5 * (x - mean).square().sum((0, 3)).mean(-1)
        kl = kl.mean(-1)
        return Terms(error + self.meta_prior * kl.sum(0), error, kl.mean(0))

    @torch.no_grad()
    def predict(
        self, x: Float[Tensor, "... t o"], horizon: int, samples: int, gen: torch.Generator
    ) -> Float[Tensor, "r n b future o"]:
        """Futures after ``x``, without error regression: the encoder's state, then the prior.

        Raises:
            ValueError: ``horizon`` or ``samples`` below 1, or channels that do not fit.
        """
        if horizon < 1 or samples < 1:
            raise ValueError(f"horizon={horizon}, samples={samples}: allowed is 1 or more")
        x = time_first(x, self._shape(x))
        t, n, b, _ = x.shape
        more = x.repeat(1, 1, samples, 1)
        mean, _ = self(more, self.noise(t + horizon, n, samples * b, gen))
        return mean[t:].unflatten(2, (samples, b)).permute(2, 1, 3, 0, 4)

    def noise(self, steps: int, n: int, b: int, gen: torch.Generator) -> Tensor:
        like = self.weights["recur"]
        return torch.randn(steps, n, b, self.z, generator=gen, dtype=like.dtype).to(like.device)

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        steps, batch = channels_of(x, self.weights["decoder"].shape[1])
        return steps, len(self.weights["recur"]), batch, x.shape[-1]

    def _map(self, name: str, v: Tensor) -> Tensor:
        return torch.baddbmm(self.biases[name], v, self.weights[name].mT)

    def _gaussian(self, name: str, v: Tensor) -> tuple[Tensor, Tensor]:
        mu, logs = self._map(name, v).chunk(2, -1)
        return torch.tanh(mu), logs.clamp(-4, 2)


class MTRNN(nn.Module):
    """The limit without noise: ``z`` is the prior's mean, and nothing but the start differs.

    A multiple-timescale network. Each training sequence owns its initial state ``h0``; that is
    where a high meta-prior leads a PV-RNN. Its wiring is a :class:`PVRNN`'s, in ``core``.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        out_dim: int,
        *,
        sequences: int,
        gens: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.core = PVRNN(layers, out_dim, 0.0, sequences=sequences, steps=1, gens=gens)
        self.core.A.requires_grad_(False)
        # Different from the start: the same state would give all sequences the same gradient.
        draws = [0.3 * torch.randn(sequences, len(self.core.tau), generator=g) for g in gens]
        self.h0 = nn.Parameter(torch.stack(draws))

    def run(self, steps: int, h0: Float[Tensor, "n b d"], frozen: bool = False):
        """A :class:`Rollout` of ``steps`` steps from ``h0``."""
        batch = h0.shape[1]
        A, eps = self.core.offsets(steps, batch), self.core.noise(steps, batch, None)
        return self.core.run(A, eps, h0, observed=0, frozen=frozen)

    def loss(self, x: Float[Tensor, "... t o"], gen: torch.Generator | None = None) -> Terms:
        run = self.run(channels_of(x, self.core.out_dim)[0], self.h0)
        error = self.core.decoder.error(run.raw, time_first(x, run.x.shape)).sum(0).mean(-1)
        return Terms(error, error, torch.zeros_like(error))

    def predict(
        self,
        x: Float[Tensor, "... t o"],
        horizon: int,
        *,
        iters: int,
        lr: float,
        gen: torch.Generator | None = None,
    ) -> Float[Tensor, "n b steps o"]:
        """Window and future after regressing the initial state on the window, weights frozen.

        The regression starts at 0, or at a small draw of ``gen``.

        Raises:
            ValueError: ``horizon`` or ``iters`` below 0, ``lr`` not positive, channels that do not
                fit.
        """
        if min(horizon, iters) < 0 or not lr > 0:
            raise ValueError(
                f"horizon={horizon}, iters={iters}, lr={lr}: allowed are 0 or more, and a positive "
                "number"
            )
        n, (window, b) = len(self.core), channels_of(x, self.core.out_dim)
        shape = (n, b, len(self.core.tau))
        h0 = torch.zeros(shape) if gen is None else 0.3 * torch.randn(shape, generator=gen)
        h0 = h0.to(self.h0).requires_grad_()
        target = time_first(x, (window, n, b, x.shape[-1]))
        optimizer = torch.optim.Adam([h0], lr=lr)
        for _ in range(iters):
            error = self.core.decoder.error(self.run(window, h0, frozen=True).raw, target)
            (h0.grad,) = torch.autograd.grad(error.sum(), h0)
            optimizer.step()
        with torch.no_grad():
            return self.run(window + horizon, h0).x.permute(1, 2, 0, 3)


class LSTMPredictor(nn.Module):
    """The next value from all values so far; ``tanh`` output. One network."""

    def __init__(self, out_dim: int, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = nn.LSTM(out_dim, width, batch_first=True)
            self.out = nn.Linear(width, out_dim)

    def forward(self, x: Float[Tensor, "b t o"]) -> Float[Tensor, "b t o"]:
        """Entry ``t`` predicts ``x[:, t + 1]``."""
        return torch.tanh(self.out(self.lstm(x)[0]))

    def loss(self, x: Float[Tensor, "b t o"], gen: torch.Generator | None = None) -> Terms:
        """Half the squared error of the next values, summed over time, mean over sequences."""
        error = 0.5 * (x[:, 1:] - self(x[:, :-1])).square().sum((1, 2)).mean()[None]
        return Terms(error, error, torch.zeros_like(error))

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "b t o"], horizon: int) -> Float[Tensor, "b future o"]:
        """The steps after ``x``; every prediction is the next step's input.

        Raises:
            ValueError: ``horizon`` below 1, ``x`` without a step or with other channels.
        """
        steps, _ = channels_of(x, self.out.out_features)
        if horizon < 1 or steps < 1:
            raise ValueError(f"horizon={horizon}, {steps} steps of x: allowed is 1 or more")
        out, state = self.lstm(x)
        values = [torch.tanh(self.out(out[:, -1:]))]
        for _ in range(horizon - 1):
            out, state = self.lstm(values[-1], state)
            values.append(torch.tanh(self.out(out)))
        return torch.cat(values, 1)


def train_baseline(
    model: VRNN | MTRNN | LSTMPredictor,
    x: Float[Tensor, "... t o"],
    *,
    steps: int,
    gen: torch.Generator | None = None,
    lr: float = 0.01,
    clip: float = 1.0,
    optimizer: Callable = torch.optim.Adam,
) -> History:
    """Full-batch training of a baseline on its ``loss``; gradients clipped per model.

    Raises:
        ValueError: ``steps`` below 0, ``lr`` or ``clip`` not positive, a VRNN without ``gen``.
        FloatingPointError: the loss is not finite; the last update is not made.
    """
    if steps < 0 or not min(lr, clip) > 0:
        raise ValueError(
            f"steps={steps}, lr={lr}, clip={clip}: allowed are 0 or more steps, positive numbers"
        )
    if gen is None and isinstance(model, VRNN):
        raise ValueError("gen=None: a VRNN draws its noise from a generator")
    parameters = [p for p in model.parameters() if p.requires_grad]
    opt, history = optimizer(parameters, lr=lr), History()
    for step in progress(range(steps), "training"):
        terms = model.loss(x, gen)
        if not torch.isfinite(terms.total).all():
            raise FloatingPointError(f"the loss is {terms.total.tolist()} at step {step}")
        opt.zero_grad(set_to_none=True)
        terms.total.sum().backward()
        if isinstance(model, LSTMPredictor):  # one network: no axis of models
            nn.utils.clip_grad_norm_(parameters, clip)
        else:
            clip_models(parameters, clip)
        opt.step()
    if steps:
        history.rows.append({"step": steps, "total": terms.total.detach().tolist()})
    return history
