"""The linear operator W: a multigrid cycle whose stencils are learned.

On level ``l`` of a hierarchy of grids stand a right-hand side ``f_l`` and a state ``u_l``. A
smoothing step (section 3 of the paper) is ``u <- u + S * (f - A * u)``; going down, ``f`` and ``u``
are restricted by strided convolutions; going up, the coarse state is added to the finer one through
a transposed convolution. No step has a bias or a nonlinearity, so the map ``f -> u_1`` is linear.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lib.kernels.smooth_step import smooth_step

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
UP = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
PADDING = ("zeros", "circular", "reflect", "replicate")
BACKSLASH = ((1, 0), (1, 0), (1, 0), (2, 0), (2, 0))
"""Smoothing steps (on the way down, on the way up) a level in the authors' Darcy runs: without
steps on the way up the V lacks its right arm, which is called a backslash cycle."""

Iterations = Sequence[Sequence[int]]


class MgLinearOperator(nn.Module):
    """``W: f -> u``, one cycle from ``u = 0``; ``f`` has ``c_f`` channels and ``u`` has ``c_u``.

    Every smoothing step has its own ``A`` and ``S``. With the defaults a level costs
    ``2 * 9 c_f c_u`` parameters a step, a coarsening ``9 c_f^2 + 9 c_u^2 + 16 c_u^2``, whatever the
    size of the field.

    Args:
        num_iteration: a pair (steps on the way down, on the way up) for each level, finest first;
            the number of levels ``J`` is its length.
        padding_mode: the boundary condition: ``"zeros"`` Dirichlet, ``"circular"`` periodic,
            ``"reflect"`` or ``"replicate"`` Neumann.
        use_residual: restricts ``f - A u`` instead of ``f``: the correction form of multigrid.
        cycle: ``"v"``; ``"w"`` visits every coarse level twice; ``"full"`` starts on the coarsest
            level and runs a V-cycle from each finer one. Weights are shared among the visits.
        transfer_padding: padding of the strided convolutions; 1 puts coarse node i on fine node
            2 i, 0 on 2 i + 1 (grids of ``2^J - 1`` interior nodes).
        up_kernel: width of the transposed convolutions, 4 or 3; one number, or one a coarsening.
            What comes up larger than the fine grid is cut.
        periodic_up: with circular padding, whether the transposed convolutions are circular too;
            the authors' code leaves them zero-padded.
        grow: level ``l`` has ``(l + 1)`` times the channels (the Helmholtz model).
        norm: factory over (level, channels) of what follows the sum on the way up.
        bias: gives A and S biases; W is then affine, not linear.

    Raises:
        ValueError: an argument that is not allowed, or ``up_kernel`` of another length.
    """

    def __init__(
        self,
        c_f: int,
        c_u: int,
        num_iteration: Iterations = BACKSLASH,
        *,
        dims: int = 2,
        padding_mode: str = "zeros",
        use_residual: bool = False,
        cycle: Literal["v", "w", "full"] = "v",
        transfer_padding: int = 1,
        up_kernel: int | Sequence[int] = 4,
        periodic_up: bool = True,
        grow: bool = False,
        norm: Callable[[int, int], nn.Module] | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        steps = _pairs(num_iteration)
        _check(c_f, c_u, steps, dims, padding_mode, cycle, transfer_padding)
        J = len(steps)
        kernels = (up_kernel,) * (J - 1) if isinstance(up_kernel, int) else tuple(up_kernel)
        if len(kernels) != J - 1 or not set(kernels) <= {3, 4}:
            raise ValueError(f"up_kernel={kernels}: allowed are {J - 1} numbers, each 3 or 4")
        self.c_f, self.num_iteration = c_f, steps
        self.dims, self.padding_mode = dims, padding_mode
        self.cycle, self.transfer_padding = cycle, transfer_padding
        self.periodic_up = periodic_up and padding_mode == "circular"

        def conv(n, m, stride=1, biased=False):
            pad = 1 if stride == 1 else transfer_padding
            # A padding of zero width has no mode; PyTorch would refuse nothing and pad nothing.
            mode = padding_mode if pad else "zeros"
            return CONV[dims](
                n, m, 3, stride=stride, padding=pad, padding_mode=mode, bias=biased
            )  # fmt: skip

        cf = [c_f * (l + 1 if grow else 1) for l in range(J)]
        cu = [c_u * (l + 1 if grow else 1) for l in range(J)]
        self.down, self.post = nn.ModuleList(), nn.ModuleList()
        for l, (pre, post) in enumerate(steps):
            make = lambda first, l=l: MgSmoother(
                None if first else conv(cu[l], cf[l], biased=bias),
                conv(cf[l], cu[l], biased=bias),
            )
            # From u = 0 the first step needs no A; a full cycle never starts from u = 0 there.
            start = l == 0 and not (cycle == "full" and J > 1)
            self.down.append(nn.ModuleList(make(start and i == 0) for i in range(pre)))
            self.post.append(nn.ModuleList(make(False) for _ in range(post)))
        self.restrict, self.prolong, self.norm = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for l in range(J - 1):
            A = conv(cu[l], cf[l], biased=bias) if use_residual else None
            R, Pi = conv(cf[l], cf[l + 1], 2), conv(cu[l], cu[l + 1], 2)
            self.restrict.append(MgRestrict(R, Pi, A))
            self.prolong.append(
                UP[dims](cu[l + 1], cu[l], kernels[l], 2, transfer_padding, bias=False)
            )
            self.norm.append(nn.Identity() if norm is None else norm(l, cu[l]))

    def forward(self, f: Float[Tensor, "b c_f *n"]) -> Float[Tensor, "b c_u *n"]:
        self._check_field(f)
        if self.cycle == "full" and len(self.down) > 1:
            return self._full(f)
        return self._cycle(0, None, f)

    def _cycle(self, l: int, u: Tensor | None, f: Tensor) -> Tensor:
        """From level ``l`` down to the coarsest and back: the state after one cycle."""
        for smooth in self.down[l]:
            u = smooth(u, f)
        if l + 1 < len(self.down):
            coarse_u, coarse_f = self.restrict[l](u, f)
            for _ in range(2 if self.cycle == "w" else 1):
                coarse_u = self._cycle(l + 1, coarse_u, coarse_f)
            u = self.norm[l](u + self._up(l, coarse_u, u.shape[2:]))
        for smooth in self.post[l]:
            u = smooth(u, f)
        return u

    def _full(self, f: Tensor) -> Tensor:
        """Coarsest level first; each result is the start of a V-cycle one level up."""
        sides, shapes = [f], [f.shape[2:]]
        for restrict in self.restrict:
            sides.append(restrict.R(sides[-1]))
            shapes.append(sides[-1].shape[2:])
        channels = self.down[-1][0].S.out_channels
        u = sides[-1].new_zeros(len(f), channels, *shapes[-1])
        for l in reversed(range(len(sides))):
            if l + 1 < len(sides):
                u = self._up(l, u, shapes[l])
            u = self._cycle(l, u, sides[l])
        return u

    def _up(self, l: int, u: Tensor, size: Sequence[int]) -> Tensor:
        """``P u`` on a grid of ``size`` points."""
        P, d = self.prolong[l], self.dims
        if self.periodic_up:
            # One period more on each side; the places that would have read zeros are cut off.
            wide = F.pad(u, [1] * (2 * d), mode="circular")
            up = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[d]
            u = up(wide, P.weight, stride=2, padding=self.transfer_padding + 2)
        else:
            u = P(u)
        short = [m - n for m, n in zip(size, u.shape[2:])]
        if max(short) > 0:  # an odd periodic size, or a kernel of 3 below an even one
            u = F.pad(u, [e for m in reversed(short) for e in (0, max(m, 0))])
        return u[(..., *(slice(n) for n in size))]

    def _check_field(self, f: Tensor) -> None:
        if f.ndim != self.dims + 2 or f.shape[1] != self.c_f:
            raise ValueError(
                f"f: shape {tuple(f.shape)}; allowed is a batch, {self.c_f} channels and "
                f"{self.dims} axes of points"
            )
        n = min(f.shape[2:])
        for l in range(len(self.down)):
            unpadded = self.transfer_padding == 0 and l + 1 < len(self.down)
            need = 3 if unpadded else 2 if self.padding_mode == "reflect" else 1
            if n < need:
                raise ValueError(
                    f"f: shape {tuple(f.shape)} is too small for {len(self.down)} levels: level "
                    f"{l + 1} would have {n} points along an axis; allowed are {need} or more"
                )
            n = (n + 2 * self.transfer_padding - 1) // 2


class MgSmoother(nn.Module):
    """``u + S * (f - A * u)``; without ``A`` the step from ``u = 0``, which is ``S * f``."""

    def __init__(self, A: nn.Module | None, S: nn.Module) -> None:
        super().__init__()
        self.A, self.S = A, S
        plain = isinstance(S, nn.Conv2d) and A is not None and A.bias is None and S.bias is None
        self.fused = plain and S.kernel_size == (3, 3)

    def forward(self, u: Tensor | None, f: Float[Tensor, "b c_f *n"]) -> Float[Tensor, "b c_u *n"]:
        if self.A is None or u is None:
            start = self.S(f)
            return start if u is None else u + start
        if self.fused:
            return smooth_step(u, f, self.A.weight, self.S.weight, self.S.padding_mode)
        return u + self.S(f - self.A(u))


class MgRestrict(nn.Module):
    """``(u, f)`` on the coarser grid: ``Pi * u`` and ``R * f``, or ``R * (f - A * u)`` with A."""

    def __init__(self, R: nn.Module, Pi: nn.Module, A: nn.Module | None = None) -> None:
        super().__init__()
        self.R, self.Pi, self.A = R, Pi, A

    def forward(self, u: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        return self.Pi(u), self.R(f if self.A is None else f - self.A(u))


# --------------------------------------------------------------------------- classical multigrid


def poisson_operator(
    levels: int, pre: int = 1, post: int = 1, dims: int = 2, omega: float = 0.8
) -> MgLinearOperator:
    """W with the weights of classical multigrid, in float64, for ``2^levels - 1`` interior nodes.

    The coarsest grid then is one node. ``e <- e - W(A e)`` is one multigrid iteration.
    """
    W = MgLinearOperator(
        1, 1, [(pre, post)] * levels, dims=dims, use_residual=True, transfer_padding=0, up_kernel=3
    ).double()  # fmt: skip
    set_poisson_weights(W, omega)
    return W.requires_grad_(False)


@torch.no_grad()
def set_poisson_weights(module: MgLinearOperator, omega: float = 0.8) -> None:
    """Hand weights that turn W into multigrid for ``-Laplace(u) = f`` with zero boundary values.

    ``A`` is the stencil -1, 2 d, -1 without ``h^2``, ``S = omega / (2 d)`` in the middle: damped
    Jacobi. ``R`` is full weighting times 4, because ``h^2`` is four times as large one level down;
    ``Pi = 0``, since a correction starts from zero; ``P`` is linear interpolation.

    Raises:
        ValueError: a W that cannot be that: other channels than 1, no residual, padded transfers or
            kernels of 4, biases, or ``omega`` outside 0 to 1.
    """
    d = module.dims
    if not 0 < omega <= 1:
        raise ValueError(f"omega={omega}: allowed is above 0, at most 1")
    fits = module.transfer_padding == 0 and module.padding_mode == "zeros"
    fits &= all(p.kernel_size[0] == 3 for p in module.prolong)
    fits &= all(r.A is not None for r in module.restrict)
    fits &= all(p.shape[:2] == (1, 1) for p in module.parameters())
    if not fits:
        raise ValueError(
            "module: classical multigrid needs c_f = c_u = 1, "
            "padding_mode='zeros', use_residual=True, transfer_padding=0, up_kernel=3 and no bias"
        )
    A = _stencil(d)
    S = torch.zeros_like(A)
    S[(1,) * d] = omega / (2 * d)
    hat = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    outer = hat
    for _ in range(d - 1):
        outer = outer[..., None] * hat
    for smoother in (s for level in (*module.down, *module.post) for s in level):
        smoother.S.weight.copy_(S[None, None])
        if smoother.A is not None:
            smoother.A.weight.copy_(A[None, None])
    for restrict, prolong in zip(module.restrict, module.prolong, strict=True):
        restrict.A.weight.copy_(A[None, None])
        restrict.R.weight.copy_(4 * outer[None, None] / 4**d)
        restrict.Pi.weight.zero_()
        prolong.weight.copy_(outer[None, None] / 2**d)


def _stencil(dims: int) -> Tensor:
    """``-Laplace`` times ``h^2``: 2 d in the middle, -1 beside it."""
    A = torch.zeros((3,) * dims, dtype=torch.float64)
    A[(1,) * dims] = 2 * dims
    for axis in range(dims):
        for side in (0, 2):
            A[tuple(side if i == axis else 1 for i in range(dims))] = -1
    return A


@torch.no_grad()
def convergence(
    W: Callable[[Tensor], Tensor], e: Float[Tensor, "*n"], steps: int
) -> Float[Tensor, "k"]:
    """``||e||`` along ``e <- e - W(A e)`` with the unscaled stencil A, the start included.

    Raises:
        ValueError: a field without points or of more than three axes, or negative ``steps``.
    """
    if e.ndim not in CONV or steps < 0:
        raise ValueError(f"e: {e.ndim} axes, steps={steps}; allowed are 1 to 3 and 0 or more")
    A = _stencil(e.ndim).to(e)[None, None]
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[e.ndim]
    e, norms = e[None, None], [e.norm()]
    for _ in range(steps):
        e = e - W(conv(e, A, padding=1))
        norms.append(e.norm())
    return torch.stack(norms)


@torch.no_grad()
def delta_response(
    W: nn.Module, size: int, at: Sequence[int], channels: int
) -> Float[Tensor, "n n"]:
    """``|W delta|``, summed over output channels: a one in every channel at node ``at``."""
    p = next(W.parameters())
    x = torch.zeros(1, channels, size, size, dtype=p.dtype, device=p.device)
    x[0, :, at[0], at[1]] = 1
    return W(x)[0].abs().sum(0)


def operator_parameters(c_f: int, c_u: int, num_iteration: Iterations, dims: int = 2) -> int:
    """Parameters of a default W, counted from the formula.

    ``3^d c_f c_u`` for every S and A (the very first step has no A), and for every coarsening
    ``3^d (c_f^2 + c_u^2)`` for R and Pi and ``4^d c_u^2`` for P.

    Raises:
        ValueError: arguments that :class:`MgLinearOperator` does not take either.
    """
    num_iteration = _pairs(num_iteration)
    _check(c_f, c_u, num_iteration, dims, "zeros", "v", 1)
    steps = sum(sum(pair) for pair in num_iteration)
    coarsenings = len(num_iteration) - 1
    per_coarsening = 3**dims * (c_f**2 + c_u**2) + 4**dims * c_u**2
    return 3**dims * c_f * c_u * (2 * steps - 1) + coarsenings * per_coarsening


def levels_for(n: int) -> int:
    """How many levels take ``n = 2^J - 1`` nodes down to one.

    Raises:
        ValueError: ``n`` is not of that form.
    """
    J = round(math.log2(max(n, 1) + 1))
    if n != 2**J - 1:
        raise ValueError(f"n={n}: allowed are 2^J - 1, that is 1, 3, 7, 15, ...")
    return J


def _pairs(num_iteration: Iterations) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(tuple(map(operator.index, pair)) for pair in num_iteration)
    except TypeError:
        raise ValueError(
            f"num_iteration={num_iteration}: allowed are pairs of whole numbers (pre, post)"
        ) from None


def _check(c_f, c_u, steps, dims, padding_mode, cycle, transfer_padding) -> None:
    if min(c_f, c_u) < 1:
        raise ValueError(f"c_f={c_f}, c_u={c_u}: allowed are 1 or more")
    if not steps or any(len(pair) != 2 or min(pair) < 0 for pair in steps):
        raise ValueError(f"num_iteration={steps}: allowed are pairs (pre, post), each >= 0")
    if any(pair[0] < 1 for pair in steps):
        raise ValueError(f"num_iteration={steps}: every level needs a step on the way down")
    if dims not in CONV:
        raise ValueError(f"dims={dims}: allowed are 1, 2 and 3")
    if padding_mode not in PADDING:
        raise ValueError(f"padding_mode={padding_mode!r}: allowed are {', '.join(PADDING)}")
    if cycle not in ("v", "w", "full"):
        raise ValueError(f"cycle={cycle!r}: allowed are 'v', 'w' and 'full'")
    if transfer_padding not in (0, 1):
        raise ValueError(f"transfer_padding={transfer_padding}: allowed are 0 and 1")
