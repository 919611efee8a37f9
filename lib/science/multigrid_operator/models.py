"""MgNO and its variants: layers of multigrid operators with a nonlinearity between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.models.operators import CONV
from lib.science.multigrid_operator.operator import BACKSLASH, Iterations, MgLinearOperator

Bias = Literal["none", "constant", "pointwise", "function"]


class MgNO(nn.Module):
    """``u <- act(W_k u + bias)``, ``num_layer`` times, then a linear map of the channels.

    No lifting: the first W takes the input's own channels. No projection but a 1x1 convolution
    without bias.

    Args:
        c_in, c_out: channels of the input and of the output.
        c_u: channels inside.
        num_iteration: smoothing steps for each level, as in :class:`MgLinearOperator`.
        bias: ``"constant"``, one number a channel; ``"function"``, one a channel and place, as the
            theory has it (then ``size`` fixes the grid); ``"pointwise"``, a 1x1 convolution of u
            with its constant, as in the authors' Darcy code; or ``"none"``.
        skip: adds the input to the output (time steps): ``c_out`` must be 1 or ``c_in``.
        size: points along each axis, for ``bias="function"``.
        head: replaces the last 1x1 convolution.
        smoother_bias: gives the smoothing steps biases; every W is then affine.
        operator: further arguments of every W: ``padding_mode``, ``use_residual``, ``cycle``, ...

    Raises:
        ValueError: an argument that is not allowed.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int = 1,
        c_u: int = 24,
        num_layer: int = 5,
        num_iteration: Iterations = BACKSLASH,
        *,
        bias: Bias = "constant",
        act: Callable[[], nn.Module] = nn.GELU,
        dims: int = 2,
        skip: bool = False,
        size: Sequence[int] | None = None,
        head: nn.Module | None = None,
        smoother_bias: bool = False,
        **operator,
    ) -> None:
        super().__init__()
        if num_layer < 1 or c_out < 1:
            raise ValueError(f"num_layer={num_layer}, c_out={c_out}: allowed are 1 or more")
        if bias not in ("none", "constant", "pointwise", "function"):
            raise ValueError(
                f"bias={bias!r}: allowed are 'none', 'constant', 'pointwise' and 'function'"
            )
        if (bias == "function") != (size is not None):
            raise ValueError(f"size={size}: give it with bias='function', and only then")
        if size is not None and len(size) != dims:
            raise ValueError(f"size={tuple(size)}: allowed are {dims} numbers, one an axis")
        if skip and c_out not in (1, c_in):
            raise ValueError(f"skip=True: c_out={c_out}; allowed are 1 and c_in={c_in}")
        self.skip, self.size = skip, None if size is None else tuple(size)
        widths = [c_in, *[c_u] * (num_layer - 1)]
        self.operators = nn.ModuleList(
            MgLinearOperator(c, c_u, num_iteration, dims=dims, bias=smoother_bias, **operator)
            for c in widths
        )
        self.local = nn.ModuleList(
            CONV[dims](c, c_u, 1) if bias == "pointwise" else nn.Identity() for c in widths
        )
        places = size if bias == "function" else [1] * dims
        has_bias = bias in ("constant", "function")
        self.biases = nn.ParameterList(
            nn.Parameter(torch.zeros(c_u, *places)) for _ in range(num_layer if has_bias else 0)
        )
        self.pointwise = bias == "pointwise"
        self.acts = nn.ModuleList(act() for _ in range(num_layer))
        self.head = CONV[dims](c_u, c_out, 1, bias=False) if head is None else head

    def forward(self, x: Float[Tensor, "b c_in *n"]) -> Float[Tensor, "b c_out *n"]:
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            raise ValueError(
                f"x: {tuple(x.shape[2:])} points; bias='function' was made for {self.size}"
            )
        u = x
        for i, (W, act) in enumerate(zip(self.operators, self.acts, strict=True)):
            v = W(u)
            if self.pointwise:
                v = v + self.local[i](u)
            elif len(self.biases):
                v = v + self.biases[i]
            u = act(v)
        u = self.head(u)
        return u + x if self.skip else u


def rollout(
    model: nn.Module, history: Float[Tensor, "b t *n"], steps: int
) -> Float[Tensor, "b steps *n"]:
    """Step in time: each prediction is appended to the history, whose oldest field drops out.

    The ``t`` fields of the history are the model's input channels; it predicts the next one.

    Raises:
        ValueError: ``steps`` below 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: allowed is 1 or more")
    out = []
    for _ in range(steps):
        out.append(model(history)[:, -1:])
        history = torch.cat([history[:, 1:], out[-1]], 1)
    return torch.cat(out, 1)


class FieldNorm(nn.LayerNorm):
    """LayerNorm over channels and places: its weights tie a model to one grid."""

    def forward(self, x: Float[Tensor, "b c *n"]) -> Float[Tensor, "b c *n"]:
        if tuple(x.shape[1:]) != tuple(self.normalized_shape):
            channels, *made_for = self.normalized_shape
            raise ValueError(
                f"x: {x.shape[1]} channels on {tuple(x.shape[2:])} points; the LayerNorm here was "
                f"made for {channels} on {tuple(made_for)}: give the model its size"
            )
        return super().forward(x)


# --------------------------------------------------------------------------- the authors' models


def mgno_dc(
    c_in: int = 1, c_u: int = 24, num_layer: int = 5, num_iteration: Iterations = BACKSLASH
) -> MgNO:
    """``MgNO_DC``: Dirichlet problems on grids whose sizes halve evenly; zero padding."""
    return MgNO(c_in, 1, c_u, num_layer, num_iteration, bias="pointwise")


def mgno_dc_smooth(
    size: int = 211, c_in: int = 1, c_u: int = 24, num_layer: int = 5,
    num_iteration: Iterations = (*BACKSLASH[:3], (1, 0), (1, 0), (2, 0)),
) -> MgNO:  # fmt: skip
    """``MgNO_DC_smooth``: as ``mgno_dc`` for sizes such as 211, 106, 53, 27, 14, 7.

    A transposed convolution of width 3 leads to an odd size, one of width 4 to an even size.
    """
    kernels = []
    for _ in num_iteration[1:]:
        kernels.append(3 if size % 2 else 4)
        size = (size + 1) // 2
    return MgNO(c_in, 1, c_u, num_layer, num_iteration, bias="pointwise", up_kernel=kernels)


def mgno_ns(
    c_in: int = 1, c_u: int = 32, num_layer: int = 5, size: int = 64,
    num_iteration: Iterations = BACKSLASH, periodic_up: bool = True, bias: bool = True,
) -> MgNO:  # fmt: skip
    """``MgNO_NS``: one time step of a periodic flow. LayerNorm on the way up, a skip, no bias.

    LayerNorm runs over channels and places and has a weight for every one of them, which ties the
    model to ``size``. ``periodic_up=False`` leaves the transposed convolutions zero-padded, as in
    the authors' code, and breaks the translation symmetry of the flow.

    Raises:
        ValueError: a ``size`` that the levels cannot halve evenly.
    """
    if size < 1 or size % 2 ** (len(num_iteration) - 1):
        raise ValueError(
            f"size={size}: allowed are multiples of {2 ** (len(num_iteration) - 1)}, so that "
            f"{len(num_iteration)} levels halve evenly"
        )
    norm = lambda l, c: FieldNorm([c, size // 2**l, size // 2**l])
    return MgNO(
        c_in, 1, c_u, num_layer, num_iteration, bias="none", skip=True, norm=norm,
        padding_mode="circular", periodic_up=periodic_up, smoother_bias=bias,
    )  # fmt: skip


def mgno_helmholtz(
    size: int = 101, c_in: int = 1, c_u: int = 20, num_layer: int = 4,
    num_iteration: Iterations = ((1, 0), (1, 0), (1, 0), (1, 0), (2, 0)),
) -> MgNO:  # fmt: skip
    """``MgNO_helm``: reflected borders, channels that grow with the level, a W as last layer.

    Transfers are not padded (101, 50, 24, 11, 5 points). LayerNorm stands before each activation.

    Raises:
        ValueError: a ``size`` with too few points for that many levels.
    """
    kernels, n = [], size
    for _ in num_iteration[1:]:
        if n < 5:  # reflection needs two points on the next grid
            raise ValueError(f"size={size}: too few points for {len(num_iteration)} levels")
        coarse = (n - 3) // 2 + 1
        kernels.append(n - 2 * (coarse - 1))
        n = coarse
    settings = {"padding_mode": "reflect", "transfer_padding": 0, "up_kernel": kernels}
    settings["grow"] = True
    head = MgLinearOperator(c_u, 1, num_iteration, bias=True, **settings)
    act = lambda: nn.Sequential(FieldNorm([c_u, size, size]), nn.GELU())
    return MgNO(
        c_in, 1, c_u, num_layer, num_iteration, bias="none", act=act, head=head,
        smoother_bias=True, **settings,
    )  # fmt: skip
