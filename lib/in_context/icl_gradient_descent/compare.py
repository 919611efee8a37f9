"""How close a trained transformer is to the algorithm it is said to run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lib.in_context.icl_gradient_descent.attention import LinearSelfAttention
from lib.in_context.icl_gradient_descent.tasks import positive


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

    Raises:
        ValueError: no tasks.
    """
    positive(tasks=len(tokens))
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

    Raises:
        ValueError: that mean diagonal is 0, so no factor makes it 1.
    """
    scale = c[..., :-1, :-1].diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    if (scale == 0).any():
        raise ValueError("c has an x-block of mean diagonal 0: allowed is any other")
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


def copying(
    model: LinearSelfAttention, tokens: Float[Tensor, "b m e"], layer: int = 1
) -> Float[Tensor, "m m"]:
    """How strongly each token after ``layer`` depends on each input token.

    Entry ``[k, j]`` is the norm of the mean over tasks of
    ``d (sum of the entries of token k after the layer) / d (input token j)``, the paper's measure.
    A layer that copies the neighbor has its large entries at ``j = k + 1``, beside the diagonal.

    Raises:
        ValueError: the model has no such layer, or is several side by side; no tasks.
    """
    positive(tasks=len(tokens))
    if model.members is not None:
        raise ValueError(f"model has members={model.members}: allowed is one network at a time")
    if not 1 <= layer <= model.layers:
        raise ValueError(f"layer={layer}: allowed is 1 to {model.layers}")

    def sums(e: Tensor) -> Tensor:
        return model.states(e)[layer].sum(-1).sum(0)

    with torch.enable_grad():
        jacobian = torch.func.jacrev(sums)(tokens)
    return jacobian.detach().mean(1).norm(dim=-1)
