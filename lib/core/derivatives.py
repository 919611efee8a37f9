"""Derivatives in the parameters: Jacobians, tangent kernel, linearization, gradient maps.

A model enters as a function ``f(params, x) -> "n o"`` and its parameters, a dictionary of tensors;
``functional`` makes both from a module. Each row of the output must depend on its own row of ``x``
alone: no batch normalization in training mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

Params = dict[str, Tensor]
Function = Callable[[Params, Tensor], Tensor]
REDUCTIONS = ("none", "diagonal", "trace", "mean")


def functional(model: nn.Module) -> tuple[Function, Params]:
    """``f(params, x)`` and detached parameters of a module; buffers stay as they are."""

    def f(params: Params, x: Tensor) -> Tensor:
        return functional_call(model, params, (x,))

    return f, {name: p.detach() for name, p in model.named_parameters()}


def parameter_jacobian(
    f: Function, params: Params, x: Float[Tensor, "n ..."], chunk: int | None = None
) -> Float[Tensor, "n o p"]:
    """``d f_o(x_n) / d theta_p``, parameters flattened in the dictionary's order.

    ``chunk`` samples are differentiated at a time; the result is n o p numbers in any case.
    """
    rows = _jacobians(f, params, x, chunk)
    return torch.cat([j.flatten(2) for j in rows.values()], 2)


def empirical_ntk(
    f: Function,
    params: Params,
    x1: Float[Tensor, "n ..."],
    x2: Float[Tensor, "m ..."] | None = None,
    method: str = "jacobian",
    reduce: str = "none",
    chunk: int | None = None,
) -> Float[Tensor, "n o m o"] | Float[Tensor, "n m o"] | Float[Tensor, "n m"]:
    """``Theta[n, o, m, o'] = sum_p d_p f_o(x1_n) d_p f_o'(x2_m)``.

    ``method="jacobian"`` contracts two Jacobians, one parameter tensor at a time: fewest
    operations, ``(n + m) o p`` numbers of memory. ``method="product"`` never forms a Jacobian: a
    row of the kernel is a forward derivative along a gradient, ``p`` numbers for each of ``chunk``
    rows.

    Args:
        x2: ``None`` means ``x1``.
        reduce: ``"none"`` keeps both output axes; ``"diagonal"`` is ``"n m o"`` with equal
            outputs; ``"trace"`` sums and ``"mean"`` averages that over the outputs.
        chunk: samples at a time, of both inputs; ``None`` takes all at once.

    Raises:
        ValueError: unknown ``method`` or ``reduce``, or ``chunk`` below 1.
    """
    if method not in ("jacobian", "product"):
        raise ValueError(f"method={method!r}: allowed are 'jacobian' and 'product'")
    check_reduction(reduce)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}: allowed is 1 or more, or None")
    x2 = x1 if x2 is None else x2
    pair = _contract if method == "jacobian" else _product
    rows = []
    for a in _pieces(x1, chunk):
        left = _jacobians(f, params, a, None) if method == "jacobian" else a
        row = [pair(f, params, left, b, reduce) for b in _pieces(x2, chunk)]
        rows.append(torch.cat(row, 2 if reduce == "none" else 1))
    return torch.cat(rows, 0)


def ntk_vector_product(
    f: Function,
    params: Params,
    x1: Float[Tensor, "n ..."],
    x2: Float[Tensor, "m ..."],
    v: Float[Tensor, "m o"],
) -> Float[Tensor, "n o"]:
    """``Theta(x1, x2) v`` without the kernel and without a Jacobian: one backward, one forward.

    ``v`` is pulled back to the parameters (``J2^T v``, a gradient) and pushed forward (``J1``).
    For a gradient step this is how far the function moves at x1 when ``v`` is the residual at x2.
    """
    _, pull = vjp(lambda p: f(p, x2), params)
    return jvp(lambda p: f(p, x1), (params,), pull(v))[1]


def linearize(f: Function, params0: Params) -> Function:
    """First-order Taylor expansion in the parameters: ``f(p0, x) + J(x) (p - p0)``.

    The result has the signature of ``f``. Its kernel does not depend on the parameters, so
    gradient descent on it is exactly solvable.
    """

    def f_lin(params: Params, x: Tensor) -> Tensor:
        shift = {name: params[name] - p0 for name, p0 in params0.items()}
        value, change = jvp(lambda p: f(p, x), (params0,), (shift,))
        return value + change

    return f_lin


def gradient_map(
    losses: Mapping[str, Tensor], groups: Mapping[str, nn.Module | Iterable[Tensor]]
) -> pd.DataFrame:
    """Who teaches whom: the norm of each loss's gradient in each group of parameters.

    Rows are losses, columns are groups. 0 where a loss does not reach a group at all, so a
    diagonal table means that every loss is local. Graphs are kept, ``.grad`` is not touched.

    Args:
        losses: scalars by name; one without history reaches nothing.
        groups: a module, or tensors that require a gradient, by name.

    Raises:
        ValueError: a loss that is not a scalar, or a group without parameters.
    """
    tensors = {}
    for name, group in groups.items():
        members = list(group.parameters() if isinstance(group, nn.Module) else group)
        if not members:
            raise ValueError(f"groups: {name!r} has no parameters")
        tensors[name] = members
    rows = {}
    for name, loss in losses.items():
        if loss.ndim != 0:
            raise ValueError(f"losses: {name!r} has shape {tuple(loss.shape)}, allowed is a scalar")
        row = dict.fromkeys(tensors, 0.0)
        if loss.requires_grad:
            flat = [t for members in tensors.values() for t in members]
            grads = iter(torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True))
            for group, members in tensors.items():
                found = [g for g in (next(grads) for _ in members) if g is not None]
                row[group] = float(sum(g.double().square().sum() for g in found)) ** 0.5
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(tensors))


def check_reduction(reduce: str) -> None:
    """Raise a ``ValueError`` for a reduction that ``reduce_outputs`` does not know."""
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce={reduce!r}: allowed are {', '.join(map(repr, REDUCTIONS))}")


def reduce_outputs(theta: Float[Tensor, "*batch n o m o"], reduce: str) -> Tensor:
    """Reduce the two output axes of a full kernel."""
    check_reduction(reduce)
    if reduce == "none":
        return theta
    same = theta.diagonal(dim1=-3, dim2=-1)
    return {"diagonal": lambda: same, "trace": lambda: same.sum(-1), "mean": lambda: same.mean(-1)}[
        reduce
    ]()


def _pieces(x: Tensor, chunk: int | None) -> tuple[Tensor, ...]:
    return x.split(chunk) if chunk else (x,)


def _jacobians(f: Function, params: Params, x: Tensor, chunk: int | None) -> dict[str, Tensor]:
    """By parameter name: ``n o`` and then the parameter's shape."""

    def one(p: Params, sample: Tensor) -> Tensor:
        return f(p, sample[None])[0]

    return vmap(jacrev(one), (None, 0), chunk_size=chunk)(params, x)


def _contract(f: Function, params: Params, left: dict, x2: Tensor, reduce: str) -> Tensor:
    right = _jacobians(f, params, x2, None)
    form = "nop,mqp->nomq" if reduce == "none" else "nop,mop->nmo"
    theta = sum(torch.einsum(form, left[k].flatten(2), right[k].flatten(2)) for k in params)
    return theta if reduce in ("none", "diagonal") else _last(theta, reduce)


def _product(f: Function, params: Params, x1: Tensor, x2: Tensor, reduce: str) -> Tensor:
    def row(sample: Tensor) -> Tensor:
        value, pull = vjp(lambda p: f(p, sample[None])[0], params)
        basis = torch.eye(value.shape[0], dtype=value.dtype, device=value.device)
        push = lambda e: jvp(lambda p: f(p, x1), (params,), pull(e))[1]
        return vmap(push)(basis)  # o' n o

    full = vmap(row)(x2)  # m o' n o
    if reduce == "none":
        return full.permute(2, 3, 0, 1)
    same = full.diagonal(dim1=1, dim2=3).transpose(0, 1)  # n m o
    return same if reduce == "diagonal" else _last(same, reduce)


def _last(theta: Tensor, reduce: str) -> Tensor:
    return theta.sum(-1) if reduce == "trace" else theta.mean(-1)
