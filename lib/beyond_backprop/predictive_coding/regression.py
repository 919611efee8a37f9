"""Recognition: the weights are frozen, and prediction errors move the offsets A of a window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.beyond_backprop.predictive_coding.model import PVRNN, Rollout, channels_of, time_first


@dataclass(frozen=True)
class Recognition:
    """What sliding a window over a sequence gives; window ``k`` ends before step ``ends[k]``."""

    ends: list[int]
    predictions: Float[Tensor, "k n b future o"]
    """Means over the samples of the steps after each window."""
    samples: Float[Tensor, "k r n b future o"]
    windows: Float[Tensor, "k n b window o"]
    """The window's own reconstruction, as it was rewritten."""
    A: Float[Tensor, "k window n b 2 z"]


@torch.enable_grad()
def fit_window(
    model: PVRNN,
    x: Float[Tensor, "... t o"],
    *,
    iters: int,
    lr: float,
    gen: torch.Generator | None,
    h0: Float[Tensor, "n b d"] | None = None,
    A: Float[Tensor, "t n b 2 z"] | None = None,
) -> Float[Tensor, "t n b 2 z"]:
    """``A`` of a new sequence, by ``iters`` steps of Adam on error and ``w`` KL, from ``A`` or 0.

    ``x`` is ``"b t o"`` or ``"n b t o"``. The graph never holds a weight. ``h0`` is the state
    before the window, None at the beginning of a sequence. Without ``gen``, ``z = mu_q``.

    Raises:
        ValueError: ``iters`` below 0, ``lr`` not positive, ``x`` of a shape that does not fit.
    """
    if iters < 0 or not lr > 0:
        raise ValueError(f"iters={iters}, lr={lr}: allowed are 0 or more, and a positive number")
    steps, batch = channels_of(x, model.out_dim)
    A = model.offsets(steps, batch) if A is None else A.detach().clone()
    A.requires_grad_()
    target = time_first(x, (steps, len(model), batch, x.shape[-1]))
    optimizer = torch.optim.Adam([A], lr=lr, fused=True)
    for _ in range(iters):
        run = model.run(A, model.noise(steps, batch, gen), h0, frozen=True)
        loss = model.objective(run, target, starts=h0 is None).total.sum()
        (A.grad,) = torch.autograd.grad(loss, A)
        optimizer.step()
    return A.detach()


@torch.no_grad()
def continue_from(
    model: PVRNN,
    A: Float[Tensor, "t n b 2 z"],
    horizon: int,
    gen: torch.Generator | None,
    h0: Float[Tensor, "n b d"] | None = None,
) -> Rollout:
    """The window with its ``A``, and ``horizon`` steps of the prior after it, in one run."""
    if horizon < 0:
        raise ValueError(f"horizon={horizon}: allowed is 0 or more")
    if A.ndim != 5:
        raise ValueError(f"A: shape {tuple(A.shape)}; allowed is (t, n, b, 2, z)")
    batch = A.shape[2]
    padded = torch.cat([A, model.offsets(horizon, batch)])
    return model.run(padded, model.noise(len(padded), batch, gen), h0, observed=len(A))


def error_regression(
    model: PVRNN,
    x: Float[Tensor, "... t o"],
    *,
    window: int,
    iters: int,
    lr: float,
    horizon: int,
    gen: torch.Generator,
    lr_scale: float = 1.0,
    samples: int = 8,
) -> Recognition:
    """Slides a window along ``x`` one step at a time, rewriting it and predicting after it.

    The first window starts at step 0 with ``A = 0``. To slide, the oldest step is dropped, the
    state after it becomes the start of the window, the other steps keep their ``A`` and the new
    one gets 0. The network does not see ``x``: only errors inside the window reach ``A``.

    Args:
        lr_scale: factor of ``lr`` in all windows after the first, which start warm.
        samples: futures drawn for each window.

    Raises:
        ValueError: a window longer than ``x``, or ``samples`` below 1; see :func:`fit_window`.
    """
    total, _ = channels_of(x, model.out_dim)
    if not 1 <= window <= total:
        raise ValueError(f"window={window}: allowed is 1 to the {total} steps of x")
    if samples < 1 or not lr_scale > 0:
        raise ValueError(f"samples={samples}, lr_scale={lr_scale}: 1 or more, and positive")
    ends, drawn, windows, history = list(range(window, total + 1)), [], [], []
    A = h0 = None
    for end in ends:
        rate = lr if A is None else lr * lr_scale
        if A is not None:
            # The oldest step is fixed now: what it led to is where the window starts.
            h0 = model.run(A[:1], model.noise(1, A.shape[2], None), h0, frozen=True).h[0].detach()
            A = torch.cat([A[1:], model.offsets(1, A.shape[2])])
        part = x[..., end - window : end, :]
        A = fit_window(model, part, iters=iters, lr=rate, gen=gen, h0=h0, A=A)
        futures = _futures(model, A, horizon, samples, gen, h0)
        drawn.append(futures)
        windows.append(continue_from(model, A, 0, None, h0).x.movedim(0, 2))
        history.append(A)
    drawn = torch.stack(drawn)
    return Recognition(ends, drawn.mean(1), drawn, torch.stack(windows), torch.stack(history))


def _futures(model, A, horizon, samples, gen, h0) -> Float[Tensor, "r n b future o"]:
    """Several futures of the same window, side by side as more sequences."""
    batch = A.shape[2]
    more = A.repeat(1, 1, samples, 1, 1)
    start = None if h0 is None else h0.repeat(1, samples, 1)
    x = continue_from(model, more, horizon, gen, start).x[len(A) :]
    return x.unflatten(2, (samples, batch)).permute(2, 1, 3, 0, 4)
