"""NoProp by flow matching (NoProp-FM): straight lines from noise to the label's embedding."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.beyond_backprop.noprop.continuous import check_times, predict, solve
from lib.beyond_backprop.noprop.embeddings import (
    check_batch,
    check_noise,
    check_weight,
    readout_of,
)


class NoPropFM(nn.Module):
    """A velocity field ``v(z, x, t)`` that leads from ``z_0 ~ N(0, I)`` to ``u_y``.

    Args:
        denoiser: a ``LabelDenoiser`` with ``time=True, output="direct"``: its point is ``v``.
        embedding: ``W_embed``; trained if ``learn_embedding``.
        sigma: noise around the line, 0 for the line itself.
        anchor: weight of the cross-entropy at the line's predicted end; 1 for a learned embedding
            and 0 for a fixed one if None. Without it a learned embedding collapses to a point.

    Raises:
        ValueError: a denoiser of another kind, or a negative ``sigma`` or ``anchor``.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        embedding: Float[Tensor, "c d"],
        learn_embedding: bool = False,
        sigma: float = 0.0,
        anchor: float | None = None,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        anchor = float(learn_embedding) if anchor is None else anchor
        check_weight(sigma=sigma, anchor=anchor)
        if getattr(denoiser, "output", "direct") != "direct":
            raise ValueError(
                f"denoiser has output={denoiser.output!r}: a velocity needs output='direct'"
            )
        self.denoiser, self.sigma, self.anchor = denoiser, sigma, anchor
        self.embedding = nn.Parameter(embedding.clone(), requires_grad=learn_embedding)
        self.readout = readout_of(embedding, gen)

    def noise(
        self, batch: int, gen: torch.Generator | None
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "2 b d"]]:
        """What one evaluation of the loss draws: times, and ``z_0`` and the noise on the line."""
        W = self.embedding
        t = torch.rand(batch, generator=gen, dtype=W.dtype).to(W.device)
        return t, torch.randn(2, batch, W.shape[1], generator=gen, dtype=W.dtype).to(W.device)

    def loss(
        self,
        x: Float[Tensor, "b ..."],
        y: Int[Tensor, "b"],
        t: Float[Tensor, "b"],
        eps: Float[Tensor, "2 b d"],
    ) -> Float[Tensor, ""]:
        """``E |v(z_t, x, t) - (u_y - z_0)|^2`` on ``z_t = t u_y + (1 - t) z_0``, and the readout.

        The readout's cross-entropy is taken at the predicted end ``z_t + (1 - t) v`` where that is
        the anchor; otherwise at ``u_y`` itself, where it trains the readout and nothing else.
        """
        check_batch(x, y, len(self.embedding))
        check_times(t)
        check_noise(eps, (2, len(y), self.embedding.shape[1]))
        u, z0, s = self.embedding[y], eps[0], t[:, None]
        z = s * u + (1 - s) * z0 + self.sigma * eps[1]
        v, _ = self.denoiser(z, x, self.embedding, t)
        miss = (v - (u - z0)).square().sum(1).mean()
        if self.anchor:
            end = self.readout(z + (1 - s) * v)
            return miss + self.anchor * F.cross_entropy(end, y)
        return miss + F.cross_entropy(self.readout(u.detach()), y)

    def velocity(
        self, t: Float[Tensor, ""], z: Float[Tensor, "b d"], x: Float[Tensor, "b ..."]
    ) -> Float[Tensor, "b d"]:
        return self.denoiser(z, x, self.embedding, t.expand(len(z)))[0]

    def solve(
        self,
        x: Float[Tensor, "b ..."],
        z0: Float[Tensor, "b d"],
        steps: int = 20,
        solver: Literal["euler", "heun"] = "euler",
    ) -> Float[Tensor, "times b d"]:
        """The path of ``z`` from ``z0`` at ``t = 0`` to ``t = 1``, in equal steps."""
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
