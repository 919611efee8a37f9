"""Attention and MLPs together: gradient descent on learned features."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lib.in_context.icl_gradient_descent.attention import LinearSelfAttention, lsa_update
from lib.in_context.icl_gradient_descent.descent import gd_predict
from lib.in_context.icl_gradient_descent.tasks import positive, split
from lib.models.transformer import FeedForward


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

    Raises:
        ValueError: a size that is not positive.
    """

    def __init__(self, d: int, width: int, *, gd: bool = False, gen: torch.Generator | None = None):
        super().__init__()
        positive(d=d, width=width)
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
        return gd_predict(*split(e), self.log_eta.exp())[:, 0]


class LSALayer(nn.Module):
    """Linear self-attention as an ``attention=`` factory of ``lib.models.transformer.Block``.

    For transformers with an MLP between attention layers. Returns the update, without the tokens.
    ``mask`` (True: row may read column) takes the role of leaving the query out of the keys.
    """

    def __init__(
        self, dim: int, heads: int, *, std: float = 0.05, gen: torch.Generator | None = None
    ):
        super().__init__()
        positive(dim=dim, heads=heads)
        where = None if gen is None else gen.device
        for name in ("W_K", "W_Q", "W_V", "P"):
            weight = std * torch.randn(heads, dim, dim, generator=gen, device=where)
            self.register_parameter(name, nn.Parameter(weight))

    def forward(
        self,
        x: Float[Tensor, "b m dim"],
        context: Float[Tensor, "b n dim"] | None = None,
        mask: Bool[Tensor, "m n"] | None = None,
    ) -> Float[Tensor, "b m dim"]:
        keys = x if context is None else context
        return lsa_update(x, keys, self.P @ self.W_V, self.W_K.mT @ self.W_Q, mask=mask)
