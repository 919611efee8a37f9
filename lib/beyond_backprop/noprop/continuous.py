"""NoProp in continuous time (NoProp-CT): one denoiser, a learned noise schedule, an ODE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.beyond_backprop.noprop.embeddings import check_batch, check_noise, check_weight, readout_of
from lib.core.losses import gaussian_kl
from lib.core.ode import euler, heun


class NoiseSchedule(nn.Module):
    """``gamma(t) = g0 + (g1 - g0) (1 - gbar(t))``: falls from ``g1``, noise, to ``g0``, the label.

    ``SNR(t) = exp(-gamma(t))`` and ``alpha_bar(t) = sigmoid(-gamma(t))``. ``gbar`` is a network
    with positive weights, hence monotone, rescaled to 0 at ``t = 0`` and 1 at ``t = 1``. The ends
    are learned too; their distance is the exponential of a parameter and cannot change its sign.
    """

    def __init__(
        self,
        start: float = 6.0,
        end: float = -6.0,
        hidden: int = 16,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not start > end or hidden < 1:
            raise ValueError(
                f"start={start}, end={end}, hidden={hidden}: gamma must fall, hidden is 1 or more"
            )
        self.end = nn.Parameter(torch.tensor(float(end)))  # g0
        self.log_span = nn.Parameter(torch.tensor(start - end).log())  # log(g1 - g0)
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.inner = nn.Parameter(torch.randn(hidden, generator=gen))
        self.bias = nn.Parameter(2 * torch.randn(hidden, generator=gen))
        self.outer = nn.Parameter(torch.full((hidden,), -2.0))

    def _rising(self, t: Float[Tensor, "*b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
        """A rising function of ``t`` and its derivative."""
        line, rate, height = F.softplus(self.slope), F.softplus(self.inner), F.softplus(self.outer)
        bump = torch.sigmoid(rate * t[..., None] + self.bias)
        value = line * t + (height * bump).sum(-1)
        return value, line + (height * rate * bump * (1 - bump)).sum(-1)

    def gamma(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return self.with_slope(t)[0]

    def alpha_bar(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.sigmoid(-self.gamma(t))

    def with_slope(self, t: Float[Tensor, "*b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
        """``gamma(t)`` and ``gamma'(t)``."""
        low, high = self._rising(torch.arange(2, dtype=self.end.dtype, device=self.end.device))[0]
        value, slope = self._rising(t)
        scale = self.log_span.exp() / (high - low)
        return self.end + scale * (high - value), -scale * slope

    def ends(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """``alpha_bar`` at ``t = 0`` and at ``t = 1``, without the network."""
        return torch.sigmoid(-self.end - self.log_span.exp()), torch.sigmoid(-self.end)


class NoPropCT(nn.Module):
    """One denoiser for all times in [0, 1], trained at random times, run as an ODE.

    Args:
        denoiser: a ``LabelDenoiser`` with ``time=True``.
        embedding: ``W_embed``; trained if ``learn_embedding``.
        schedule: the noise schedule; a ``NoiseSchedule`` if None.
        eta: weight of the denoising term.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        embedding: Float[Tensor, "c d"],
        learn_embedding: bool = False,
        schedule: NoiseSchedule | None = None,
        eta: float = 1.0,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_weight(eta=eta)
        self.denoiser, self.eta = denoiser, eta
        self.embedding = nn.Parameter(embedding.clone(), requires_grad=learn_embedding)
        self.schedule = NoiseSchedule(gen=gen) if schedule is None else schedule
        self.readout = readout_of(embedding, gen)

    def noise(
        self, batch: int, gen: torch.Generator | None
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "2 b d"]]:
        """What one evaluation of the loss draws: times, and the noise of ``z_t`` and ``z_1``."""
        W = self.embedding
        t = torch.rand(batch, generator=gen, dtype=W.dtype).to(W.device)
        eps = torch.randn(2, batch, W.shape[1], generator=gen, dtype=W.dtype).to(W.device)
        return t, eps

    def loss(
        self,
        x: Float[Tensor, "b ..."],
        y: Int[Tensor, "b"],
        t: Float[Tensor, "b"],
        eps: Float[Tensor, "2 b d"],
    ) -> Float[Tensor, ""]:
        """``(eta / 2) E_t[SNR'(t) |u_hat(z_t, x, t) - u_y|^2]``, cross-entropy at 1, KL at 0."""
        check_batch(x, y, len(self.embedding))
        check_times(t)
        check_noise(eps, (2, len(y), self.embedding.shape[1]))
        u = self.embedding[y]
        gamma, slope = self.schedule.with_slope(t)
        u_hat, _ = self.denoiser(_noised(u, torch.sigmoid(-gamma), eps[0]), x, self.embedding, t)
        snr_slope = -slope * torch.exp(-gamma)
        miss = (snr_slope * (u_hat - u).square().sum(1)).mean()
        start, end = self.schedule.ends()
        z_end = _noised(u, end.expand_as(t), eps[1])
        mean = start.sqrt() * u
        kl = gaussian_kl(mean, (0.5 * torch.log1p(-start)).expand_as(mean)).mean()
        return 0.5 * self.eta * miss + F.cross_entropy(self.readout(z_end), y) + kl

    def velocity(
        self, t: Float[Tensor, ""], z: Float[Tensor, "b d"], x: Float[Tensor, "b ..."]
    ) -> Float[Tensor, "b d"]:
        """``dz/dt`` for the network's estimate of the label, see :func:`label_velocity`."""
        gamma, slope = self.schedule.with_slope(t)
        u_hat, _ = self.denoiser(z, x, self.embedding, t.expand(len(z)))
        return label_velocity(z, u_hat, gamma, slope)

    def solve(
        self,
        x: Float[Tensor, "b ..."],
        z0: Float[Tensor, "b d"],
        steps: int = 20,
        solver: Literal["euler", "heun"] = "euler",
    ) -> Float[Tensor, "times b d"]:
        """The path of ``z`` from ``z0`` at ``t = 0`` to ``t = 1``, in equal steps.

        Raises:
            ValueError: no steps or an unknown solver.
        """
        return solve(lambda t, z: self.velocity(t, z, x), z0, steps, solver)

    @torch.no_grad()
    def predict(
        self,
        x: Float[Tensor, "b ..."],
        gen: torch.Generator | None = None,
        steps: int = 20,
        solver: Literal["euler", "heun"] = "euler",
    ) -> Float[Tensor, "b c"]:
        """The readout's logits at ``t = 1``, in evaluation mode."""
        return predict(self, x, gen, steps, solver)


def check_times(t: Float[Tensor, "b"]) -> None:
    """Raises ValueError for times outside [0, 1]; a GPU is not waited for."""
    if t.device.type == "cpu" and not ((t >= 0) & (t <= 1)).all():
        raise ValueError(f"t runs from {t.min():g} to {t.max():g}: allowed is 0 to 1")


def label_velocity(
    z: Float[Tensor, "b d"],
    u: Float[Tensor, "b d"],
    gamma: Float[Tensor, "*any"],
    slope: Float[Tensor, "*any"],
) -> Float[Tensor, "b d"]:
    """``dz/dt = -(gamma' / 2) (sqrt(ab) u - ab z)`` with ``ab = sigmoid(-gamma)``.

    Differentiate ``z = sqrt(ab) u + sqrt(1 - ab) eps`` in ``t`` with ``u`` and ``eps`` fixed, put
    ``eps = (z - sqrt(ab) u) / sqrt(1 - ab)`` back in, and use ``ab' = -gamma' ab (1 - ab)``.
    """
    ab = torch.sigmoid(-gamma)
    return -0.5 * slope * (ab.sqrt() * u - ab * z)


def solve(
    field: Callable[[Tensor, Tensor], Tensor],
    z0: Float[Tensor, "b d"],
    steps: int,
    solver: Literal["euler", "heun"] = "euler",
) -> Float[Tensor, "times b d"]:
    """``z' = field(t, z)`` over [0, 1] in equal steps."""
    if not isinstance(steps, int) or steps < 1 or solver not in ("euler", "heun"):
        raise ValueError(
            f"steps={steps}, solver={solver!r}: allowed are 1 or more steps, 'euler' and 'heun'"
        )
    times = torch.linspace(0, 1, steps + 1, dtype=z0.dtype, device=z0.device)
    return (euler if solver == "euler" else heun)(field, z0, times)


def predict(model, x: Tensor, gen, steps: int, solver: str) -> Float[Tensor, "b c"]:
    """Draw ``z_0``, solve, read out; the model's mode is restored."""
    W, mode = model.embedding, model.training
    z0 = torch.randn(len(x), W.shape[1], generator=gen, dtype=W.dtype).to(W.device)
    model.eval()
    try:
        return model.readout(model.solve(x, z0, steps, solver)[-1])
    finally:
        model.train(mode)


def _noised(u: Tensor, ab: Tensor, eps: Tensor) -> Tensor:
    return ab.sqrt()[:, None] * u + (1 - ab).sqrt()[:, None] * eps
