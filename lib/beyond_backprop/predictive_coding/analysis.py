"""What a trained model has become: chaotic or not, and how its symbols follow one another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.beyond_backprop.predictive_coding.model import PVRNN
from lib.kernels.persistent_rnn import MU_P


@torch.no_grad()
def lyapunov_exponents(
    model: PVRNN,
    steps: int = 400,
    burn_in: int = 100,
    k: int = 1,
    h0: Float[Tensor, "n d"] | None = None,
) -> Float[Tensor, "n k"]:
    """The ``k`` largest Lyapunov exponents, per step, of the mean dynamics ``z = mu_p``.

    Products of the Jacobians along one trajectory, kept apart by a QR decomposition at each step.
    Positive: chaos; negative: small disturbances die out, and the trajectory ends in a fixed point
    or a cycle; zero: the border between them.

    Raises:
        ValueError: ``steps`` below 1, ``burn_in`` below 0, ``k`` outside 1 to the units, ``h0`` of
            another shape.
    """
    D = len(model.tau)
    if steps < 1 or burn_in < 0 or not 1 <= k <= D:
        raise ValueError(
            f"steps={steps}, burn_in={burn_in}, k={k}: allowed are 1 or more, 0 or more, 1 to {D}"
        )
    if h0 is not None and h0.shape != (len(model), D):
        raise ValueError(f"h0: shape {tuple(h0.shape)}; allowed is (n, d) = {(len(model), D)}")
    weights = model.coupled()
    W, U, V = weights["W"], weights["U"], weights["V"][:, MU_P]
    b, c, rate = model.b, model.c[:, MU_P], model.tau.reciprocal()
    h = model.b.new_zeros(len(model), D) if h0 is None else h0
    frame = torch.eye(D, dtype=h.dtype, device=h.device)[:, :k].expand(len(model), -1, -1)
    total = h.new_zeros(len(model), k)
    times = lambda m, v: (m @ v[..., None])[..., 0]
    for t in range(burn_in + steps):
        d = torch.tanh(h)
        mu = torch.tanh(times(V, d) + c)
        inner = W + U @ ((1 - mu.square())[..., None] * V)
        J = torch.diag_embed((1 - rate).expand_as(h)) + rate[:, None] * inner * (
            1 - d.square()
        ).unsqueeze(1)
        h = (1 - rate) * h + rate * (times(W, d) + times(U, mu) + b)
        frame, R = torch.linalg.qr(J @ frame)
        if t >= burn_in:
            total += R.diagonal(dim1=-2, dim2=-1).abs().clamp_min(1e-30).log()
    return total / steps


@dataclass(frozen=True)
class Cycles:
    """Statistics of ``0, 1, b`` sequences, over all of one model's."""

    ones: float
    """How often b is 1."""
    right: float
    """Share of the cycles whose first two symbols are 0 and 1."""


def cycle_statistics(x: Float[Tensor, "b t"]) -> Cycles:
    """``x`` is cut into cycles of three, above 0 counts as 1, the phase is chosen per sequence.

    The phase is that with the most right cycles.

    Raises:
        ValueError: no sequence, sequences of fewer than five steps, a value that is no number.
    """
    _check("x", x, 5)
    return _cycles(x > 0)


def _cycles(symbols: Bool[Tensor, "b t"]) -> Cycles:
    count = (symbols.shape[-1] - 2) // 3
    phases = torch.stack([symbols[:, p : p + 3 * count].unflatten(1, (-1, 3)) for p in range(3)])
    right = ~phases[..., 0] & phases[..., 1]
    best = right.double().mean(-1).argmax(0)
    row = torch.arange(len(symbols), device=symbols.device)
    chosen = phases[best, row]
    return Cycles(chosen[..., 2].double().mean().item(), right[best, row].double().mean().item())


def ngram_kl(data: Float[Tensor, "a t"], generated: Float[Tensor, "b s"], n: int = 6) -> float:
    """KL of the data's n-grams of symbols from the generated ones', in nats; above 0 counts as 1.

    Half a count is added to each of the ``2^n`` n-grams of both.

    Raises:
        ValueError: ``n`` outside 1..16, sequences shorter than ``n`` or none, a value that is no
            number.
    """
    _check("data", data, 1)
    _check("generated", generated, 1)
    shortest = min(data.shape[-1], generated.shape[-1])
    if not 1 <= n <= min(16, shortest):
        raise ValueError(f"n={n}: allowed is 1 to 16 and to the sequences' {shortest} steps")
    p, q = (_ngrams(t > 0, n) for t in (data, generated))
    return (p * (p / q).log()).sum().item()


def _check(name: str, x: Tensor, least: int) -> None:
    if x.ndim != 2 or len(x) < 1 or x.shape[1] < least:
        raise ValueError(
            f"{name}: shape {tuple(x.shape)}; allowed is (b, t), 1 sequence or more of {least} or "
            "more steps"
        )
    # NaN > 0 is false: it would count as a symbol 0.
    if x.isnan().any():
        raise ValueError(f"{name}: {int(x.isnan().sum())} values are NaN; allowed are numbers")


def _ngrams(symbols: Bool[Tensor, "b t"], n: int) -> Float[Tensor, "k"]:
    powers = 2 ** torch.arange(n, device=symbols.device)
    words = (symbols.long().unfold(1, n, 1) * powers).sum(-1)
    counts = torch.bincount(words.flatten(), minlength=2**n).double() + 0.5
    return counts / counts.sum()
