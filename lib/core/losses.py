"""Losses that several papers share. None averages over the batch unless it says so."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def gaussian_kl(
    mu_q: Float[Tensor, "*b d"],
    logs_q: Float[Tensor, "*b d"],
    mu_p: Float[Tensor, "*b d"] | float = 0.0,
    logs_p: Float[Tensor, "*b d"] | float = 0.0,
) -> Float[Tensor, "*b"]:
    r"""``KL(q || p)`` in nats of two diagonal Gaussians, summed over the last axis.

    .. math:: \sum_j \log\frac{\sigma_p}{\sigma_q}
              + \frac{\sigma_q^2 + (\mu_q - \mu_p)^2}{2\sigma_p^2} - \frac12

    Args:
        logs_q, logs_p: logarithms of the standard deviations. By default ``p`` is standard normal.
    """
    mu_p, logs_p = (
        torch.as_tensor(t, dtype=mu_q.dtype, device=mu_q.device) for t in (mu_p, logs_p)
    )
    # expm1 keeps the digits where q and p nearly agree: (e^{2d} - 1) / 2 - d is of order d^2.
    d = logs_q - logs_p
    z = (mu_q - mu_p) * torch.exp(-logs_p)
    return (0.5 * torch.expm1(2 * d) - d + 0.5 * z.square()).sum(-1)


def supcon(
    z: Float[Tensor, "n d"], y: Int[Tensor, "n"], temperature: float = 0.07
) -> Float[Tensor, ""]:
    """Supervised contrastive loss (P. Khosla et al., arXiv:2004.11362, eq. 2, "out").

    Rows are normalized. For every sample, minus the mean log-probability of picking one of its
    class mates among all others by similarity; then the mean over samples that have a class mate.

    Raises:
        ValueError: a temperature that is not positive, or no two samples of one class.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: allowed is more than 0")
    mates = (y[:, None] == y) & ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    count = mates.sum(1)
    if not (count > 0).any():
        raise ValueError(f"y holds {len(y)} samples and no two of one class: there is no positive")
    z = F.normalize(z, dim=1)
    scores = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    log_p = torch.log_softmax(scores, 1).masked_fill(~mates, 0.0)
    return -(log_p.sum(1) / count.clamp_min(1))[count > 0].mean()
