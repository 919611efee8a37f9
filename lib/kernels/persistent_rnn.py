"""A variational recurrent network (PV-RNN) over a whole time axis, in one launch.

For every model of a stack, every sequence and every step, with hidden state ``h``, ``d = tanh h``
and a latent ``z`` that is drawn from a posterior or from a prior (A. Ahmadi and J. Tani, 2019,
arXiv:1811.01339)::

    d    = tanh(h[t-1])
    mu_q = tanh(V_0 d + c_0 + A_mu[t])        log sigma_q = clamp(V_2 d + c_2 + A_sigma[t])
    mu_p = tanh(V_1 d + c_1)                  log sigma_p = clamp(V_3 d + c_3)
    z    = mu + sigma * eps[t]                q while t < observed, p from there on
    h[t] = (1 - 1/tau) h[t-1] + (W d + U z + b) / tau

``tau`` has one value for each unit, so a network of several layers is one layer here, whose
matrices have blocks of zeros. A step is a dozen small operations and needs the step before it.
Run one after another they are nearly all overhead. Here one program holds the weights of one model
on chip and walks a tile of 16 sequences through all steps; the backward pass walks back and adds
up the gradients of the weights on chip, too.

Floor, for ``T`` steps of ``B`` sequences, ``N`` models, ``D`` units and ``Z`` latents of ``w``
bytes. Forward: read ``A`` and ``eps``, write ``h`` and the four statistics: ``w T N B (D + 7 Z)``
bytes, plus the weights, ``w N D (D + 5 Z)``, once. Backward: read ``eps``, ``h``, the statistics
and two gradients, write ``A``'s: ``w T N B (2 D + 11 Z)``, plus the weights and their gradients.
Arithmetic: ``2 T N B D (D + 5 Z)`` FLOPs forward, twice that backward. At the sizes in use (D up
to 64) neither bounds it: the chain of ``T`` dependent steps does.

Gradients: ``clamp`` passes them strictly inside its limits. Unlike a loop under autograd this
stores ``h`` and the statistics alone. The kernel wants float32 (the interpreter float64, too), D
up to 128 and Z up to 32; ``"auto"`` takes the reference elsewhere. Products are in full float32
(``input_precision="ieee"``).
"""

# No `from __future__ import annotations`: custom_op reads the annotations as objects.
from contextlib import nullcontext
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from lib.kernels.dispatch import Backend, check_dtype, interpreting, pick_backend, tl, triton

DTYPES = (torch.float32, torch.float64)
MOST_UNITS, MOST_LATENTS = 128, 32
"""Units and latents of a model that one program of the kernel holds."""
ROWS = 16
"""Sequences of a program, the least that a matrix product in Triton takes."""

MU_Q, MU_P, LOGS_Q, LOGS_P = range(4)
"""Order of the statistics, and of the heads ``V``, ``c`` that give them."""


def pv_rnn(
    A: Float[Tensor, "t n b 2 z"],
    eps: Float[Tensor, "t n b z"],
    W: Float[Tensor, "n d d"],
    U: Float[Tensor, "n d z"],
    V: Float[Tensor, "n 4 z d"],
    b: Float[Tensor, "n d"],
    c: Float[Tensor, "n 4 z"],
    tau: Float[Tensor, "d"],
    h0: Float[Tensor, "n b d"],
    *,
    observed: int | None = None,
    unit_first: bool = True,
    limits: tuple[float, float] = (-4.0, 2.0),
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "t n b d"], Float[Tensor, "t n b 4 z"]]:
    """States ``h`` after every step, and ``(mu_q, mu_p, log sigma_q, log sigma_p)`` at every step.

    Differentiable in all tensors but ``eps`` and ``tau``.

    Args:
        A: offsets of the posterior's mean (before tanh) and log sigma, one pair for each step.
        eps: standard normal noise.
        observed: steps at the beginning whose ``z`` comes from the posterior; all if None, and 0
            generates from the prior.
        unit_first: the prior of the first step is N(0, 1) in place of its heads' value.
        limits: between which log sigma is clamped.

    Raises:
        ValueError: shapes that do not fit, no unit or no latent, ``tau`` below 1, ``observed``
            outside 0..t, limits that do not rise; ``eps`` or ``tau`` wants a gradient; tensors on
            different devices; with ``backend="triton"`` more than 128 units or 32 latents.
        TypeError: a dtype other than float32 and float64; float64 with ``backend="triton"``.
    """
    tensors = {"A": A, "eps": eps, "W": W, "U": U, "V": V, "b": b, "c": c, "tau": tau, "h0": h0}
    _check(tensors, observed, limits)
    chosen = _choose(backend, tensors)
    steps = len(A)
    rate = tau.reciprocal()
    M = torch.cat([W, U], -1) * rate[:, None]
    numbers = (steps if observed is None else observed, unit_first, *map(float, limits))
    return _pv_rnn(A, eps, M, V, b * rate, c, 1 - rate, h0, *numbers, chosen)


# --------------------------------------------------------------------------- plain PyTorch


def _forward_reference(A, eps, M, V, b, c, keep, h0, observed, unit_first, low, high):
    T, n, B, _, Z = A.shape
    D = h0.shape[-1]
    W, U = M[..., :D].mT, M[..., D:].mT
    heads_mu, heads_logs = V[:, :2].flatten(1, 2).mT, V[:, 2:].flatten(1, 2).mT
    # Every buffer whole and in order: on slices of a larger one tanh and exp run ten times slower.
    h, mu, logs = A.new_empty(T, n, B, D), c[:, None, :2], c[:, None, 2:]
    mu, logs = (v.repeat(T, 1, B, 1, 1) for v in (mu, logs))
    mu[:, :, :, 0] += A[:, :, :, 0]
    logs[:, :, :, 0] += A[:, :, :, 1]
    drift, bias, before = torch.empty_like(h0), b[:, None], h0
    views = (mu, mu.flatten(3), logs, logs.flatten(3), h, eps)
    for t, (m, flat_m, s, flat_s, after, e) in enumerate(
        zip(*(v.unbind() for v in views), strict=True)
    ):
        d = torch.tanh(before)
        flat_m.baddbmm_(d, heads_mu).tanh_()
        flat_s.baddbmm_(d, heads_logs).clamp_(low, high)
        if t == 0 and unit_first:
            m[:, :, 1], s[:, :, 1] = 0, 0
        k = 0 if t < observed else 1
        z = torch.addcmul(m[:, :, k], s.exp()[:, :, k], e)
        torch.addcmul(bias, keep, before, out=drift)
        before = torch.baddbmm(drift.baddbmm_(d, W), z, U, out=after)
    return h, torch.cat([mu, logs], -2)


def _backward_reference(
    gh, gs, eps, M, V, keep, h0, h, stats, observed, unit_first, low, high, weights=True
):
    """Gradients of A, M, V, b, c and h0; those of the weights are None without ``weights``."""
    T, n, B, D = h.shape
    d = torch.cat([h0[None], h[:-1]]).tanh_() if T else h
    sigma = stats[..., 2:, :].contiguous().exp()
    # What a gradient is multiplied by on its way to the heads' inputs: 1 - mu^2, or the clamp's 0/1
    slope = torch.cat(
        [
            1 - stats[..., :2, :].square(),
            ((stats[..., 2:, :] > low) & (stats[..., 2:, :] < high)).to(stats.dtype),
        ],
        -2,
    )
    if unit_first and T:
        slope[0, :, :, 1::2] = 0
    spread = torch.cat([sigma[:observed, :, :, 0], sigma[observed:, :, :, 1]]) * eps
    bend = 1 - d.square()
    ga = gs.contiguous().clone()  # becomes the gradient of the heads' inputs
    g_all = gh.contiguous().clone()  # becomes the whole gradient of h[t]
    heads = V.flatten(1, 2)
    k = [0 if t < observed else 1 for t in range(T)]
    g, g_mu, g_logs = torch.zeros_like(h0), ga[:, :, :, :2], ga[:, :, :, 2:]
    everything = (g_all, ga, ga.flatten(3), g_mu, g_logs, spread, slope, bend)
    for t, (g_t, a, flat, mu, logs, e, s, f) in reversed(
        list(enumerate(zip(*(v.unbind() for v in everything), strict=True)))
    ):
        g = g_t.add_(g)
        gx = torch.bmm(g, M)
        gz = gx[..., D:]
        mu[:, :, k[t]].add_(gz)
        logs[:, :, k[t]].addcmul_(gz, e)
        a.mul_(s)
        gd = torch.baddbmm(gx[..., :D], flat, heads)
        g = torch.addcmul(gd.mul_(f), keep, g)
    gA = ga[:, :, :, ::2].contiguous()
    if not weights:
        return gA, None, None, None, None, g
    gV = torch.einsum("tnbk,tnbd->nkd", ga.flatten(3), d).view_as(V)
    source = torch.cat([stats[:observed, :, :, 0], stats[observed:, :, :, 1]]) + spread
    gM = torch.einsum("tnbi,tnbj->nij", g_all, torch.cat([d, source], -1))
    return gA, gM, gV, g_all.sum((0, 2)), ga.sum((0, 2)), g


# --------------------------------------------------------------------------- Triton

if triton is not None:
    # no_type_check: a kernel must reach the compiler as it is written, also where tests wrap every
    # function in a type checker.

    @triton.jit
    @no_type_check
    def _tanh(x):
        # libdevice has one, but the interpreter cannot call it. No overflow on either side.
        e = tl.exp(-2 * tl.abs(x))
        y = (1 - e) / (1 + e)
        return tl.where(x < 0, -y, y)

    @triton.jit
    @no_type_check
    def _clamp(x, low, high):
        # A bare number would come as float32. tl.minimum returns the other number for a NaN;
        # x == x brings the NaN back.
        zero = tl.zeros_like(x)
        return tl.where(x == x, tl.minimum(tl.maximum(x, zero + low), zero + high), x)

    @triton.jit
    @no_type_check
    def _forward_kernel(
        A_ptr, eps_ptr, M_ptr, V_ptr, b_ptr, c_ptr, keep_ptr, h0_ptr, h_ptr, s_ptr,
        steps, models, batch, tiles, observed,
        D: tl.constexpr, Z: tl.constexpr, DB: tl.constexpr, ZB: tl.constexpr, ROWS: tl.constexpr,
        UNIT: tl.constexpr, low: tl.constexpr, high: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        """One program: ``ROWS`` sequences of one model, all steps. Weights stay on chip."""
        n = (tl.program_id(0) // tiles).to(tl.int64)
        row = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
        i, k = tl.arange(0, DB), tl.arange(0, ZB)
        unit, latent, live = i < D, k < Z, row < batch
        # Transposed as they are loaded: [from, to].
        at = M_ptr + n * D * (D + Z)
        W = tl.load(at + i[None, :] * (D + Z) + i[:, None], unit[:, None] & unit[None, :], 0.0).to(
            WIDE
        )
        U = tl.load(
            at + i[None, :] * (D + Z) + D + k[:, None], latent[:, None] & unit[None, :], 0.0
        ).to(WIDE)
        at = V_ptr + n * 4 * Z * D + k[None, :] * D + i[:, None]
        head = unit[:, None] & latent[None, :]
        V0 = tl.load(at, head, 0.0).to(WIDE)
        V1 = tl.load(at + Z * D, head, 0.0).to(WIDE)
        V2 = tl.load(at + 2 * Z * D, head, 0.0).to(WIDE)
        V3 = tl.load(at + 3 * Z * D, head, 0.0).to(WIDE)
        at = c_ptr + n * 4 * Z + k
        c0 = tl.load(at, latent, 0.0).to(WIDE)[None, :]
        c1 = tl.load(at + Z, latent, 0.0).to(WIDE)[None, :]
        c2 = tl.load(at + 2 * Z, latent, 0.0).to(WIDE)[None, :]
        c3 = tl.load(at + 3 * Z, latent, 0.0).to(WIDE)[None, :]
        b = tl.load(b_ptr + n * D + i, unit, 0.0).to(WIDE)[None, :]
        keep = tl.load(keep_ptr + i, unit, 0.0).to(WIDE)[None, :]
        here = n * batch + row  # 64-bit: the sequence, among all of a step
        in_h, in_z = live[:, None] & unit[None, :], live[:, None] & latent[None, :]
        h = tl.load(h0_ptr + here[:, None] * D + i[None, :], in_h, 0.0).to(WIDE)
        for t in range(0, steps):
            at_z = here[:, None] * Z + k[None, :]
            at_A = here[:, None] * (2 * Z) + k[None, :]
            at_s = here[:, None] * (4 * Z) + k[None, :]
            d = _tanh(h)
            a0 = tl.dot(d, V0, input_precision="ieee", out_dtype=WIDE) + c0
            a1 = tl.dot(d, V1, input_precision="ieee", out_dtype=WIDE) + c1
            a2 = tl.dot(d, V2, input_precision="ieee", out_dtype=WIDE) + c2
            a3 = tl.dot(d, V3, input_precision="ieee", out_dtype=WIDE) + c3
            mu_q = _tanh(a0 + tl.load(A_ptr + at_A, in_z, 0.0).to(WIDE))
            logs_q = _clamp(a2 + tl.load(A_ptr + at_A + Z, in_z, 0.0).to(WIDE), low, high)
            mu_p, logs_p = _tanh(a1), _clamp(a3, low, high)
            if UNIT:
                mu_p = tl.where(t == 0, 0.0, mu_p)
                logs_p = tl.where(t == 0, 0.0, logs_p)
            mu = tl.where(t < observed, mu_q, mu_p)
            logs = tl.where(t < observed, logs_q, logs_p)
            e = tl.load(eps_ptr + at_z, in_z, 0.0).to(WIDE)
            z = tl.where(in_z, mu + tl.exp(logs) * e, 0.0)
            h = keep * h + b
            h = tl.dot(d, W, h, input_precision="ieee", out_dtype=WIDE)
            h = tl.dot(z, U, h, input_precision="ieee", out_dtype=WIDE)
            tl.store(h_ptr + here[:, None] * D + i[None, :], h, in_h)
            tl.store(s_ptr + at_s, mu_q, in_z)
            tl.store(s_ptr + at_s + Z, mu_p, in_z)
            tl.store(s_ptr + at_s + 2 * Z, logs_q, in_z)
            tl.store(s_ptr + at_s + 3 * Z, logs_p, in_z)
            here += models * batch  # 64-bit

    @triton.jit
    @no_type_check
    def _backward_kernel(
        gh_ptr, gs_ptr, eps_ptr, M_ptr, V_ptr, keep_ptr, h0_ptr, h_ptr, s_ptr,
        gA_ptr, gM_ptr, gV_ptr, gb_ptr, gc_ptr, g0_ptr,
        steps, models, batch, tiles, observed,
        D: tl.constexpr, Z: tl.constexpr, DB: tl.constexpr, ZB: tl.constexpr, ROWS: tl.constexpr,
        UNIT: tl.constexpr, WEIGHTS: tl.constexpr, low: tl.constexpr, high: tl.constexpr,
        WIDE: tl.constexpr,
    ):  # fmt: skip
        """The same tile from the last step to the first; weights' gradients add up on chip.

        Every program writes its own sums, ``"models tiles ..."``; the caller adds the tiles, in a
        fixed order.
        """
        n = (tl.program_id(0) // tiles).to(tl.int64)
        row = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
        i, k = tl.arange(0, DB), tl.arange(0, ZB)
        unit, latent, live = i < D, k < Z, row < batch
        # As they lie in memory: [to, from], which is what a gradient is multiplied by.
        square, into = unit[:, None] & unit[None, :], unit[:, None] & latent[None, :]
        head = latent[:, None] & unit[None, :]
        at_W = i[:, None] * (D + Z) + i[None, :]
        at_U = i[:, None] * (D + Z) + D + k[None, :]
        at_V = k[:, None] * D + i[None, :]
        W = tl.load(M_ptr + n * D * (D + Z) + at_W, square, 0.0).to(WIDE)
        U = tl.load(M_ptr + n * D * (D + Z) + at_U, into, 0.0).to(WIDE)
        at = V_ptr + n * 4 * Z * D + at_V
        V0 = tl.load(at, head, 0.0).to(WIDE)
        V1 = tl.load(at + Z * D, head, 0.0).to(WIDE)
        V2 = tl.load(at + 2 * Z * D, head, 0.0).to(WIDE)
        V3 = tl.load(at + 3 * Z * D, head, 0.0).to(WIDE)
        keep = tl.load(keep_ptr + i, unit, 0.0).to(WIDE)[None, :]
        start = n * batch + row
        step = models.to(tl.int64) * batch
        here = start + (steps - 1) * step
        in_h, in_z = live[:, None] & unit[None, :], live[:, None] & latent[None, :]
        g = tl.zeros((ROWS, DB), WIDE)
        if WEIGHTS:
            gW, gU = tl.zeros((DB, DB), WIDE), tl.zeros((DB, ZB), WIDE)
            g0, g1 = tl.zeros((ZB, DB), WIDE), tl.zeros((ZB, DB), WIDE)
            g2, g3 = tl.zeros((ZB, DB), WIDE), tl.zeros((ZB, DB), WIDE)
            gb = tl.zeros((DB,), WIDE)
            gc0, gc1 = tl.zeros((ZB,), WIDE), tl.zeros((ZB,), WIDE)
            gc2, gc3 = tl.zeros((ZB,), WIDE), tl.zeros((ZB,), WIDE)
        for back in range(0, steps):
            t = steps - 1 - back
            at_h = here[:, None] * D + i[None, :]
            at_s = here[:, None] * (4 * Z) + k[None, :]
            at_A = here[:, None] * (2 * Z) + k[None, :]
            # The state before this step: the one stored a step earlier, or the initial one.
            h = tl.load(h_ptr + at_h - step * D, in_h & (t > 0), 0.0).to(WIDE)
            h += tl.load(h0_ptr + start[:, None] * D + i[None, :], in_h & (t == 0), 0.0).to(WIDE)
            d = _tanh(h)
            mu_q = tl.load(s_ptr + at_s, in_z, 0.0).to(WIDE)
            mu_p = tl.load(s_ptr + at_s + Z, in_z, 0.0).to(WIDE)
            logs_q = tl.load(s_ptr + at_s + 2 * Z, in_z, 0.0).to(WIDE)
            logs_p = tl.load(s_ptr + at_s + 3 * Z, in_z, 0.0).to(WIDE)
            e = tl.load(eps_ptr + here[:, None] * Z + k[None, :], in_z, 0.0).to(WIDE)
            spread = tl.exp(tl.where(t < observed, logs_q, logs_p)) * e
            g += tl.load(gh_ptr + at_h, in_h, 0.0).to(WIDE)
            gz = tl.dot(g, U, input_precision="ieee", out_dtype=WIDE)
            zero = tl.zeros_like(gz)
            gz_q, gz_p = tl.where(t < observed, gz, zero), tl.where(t < observed, zero, gz)
            a0 = tl.load(gs_ptr + at_s, in_z, 0.0).to(WIDE) + gz_q
            a1 = tl.load(gs_ptr + at_s + Z, in_z, 0.0).to(WIDE) + gz_p
            a2 = tl.load(gs_ptr + at_s + 2 * Z, in_z, 0.0).to(WIDE) + gz_q * spread
            a3 = tl.load(gs_ptr + at_s + 3 * Z, in_z, 0.0).to(WIDE) + gz_p * spread
            a0 = a0 * (1 - mu_q * mu_q)
            a1 = a1 * (1 - mu_p * mu_p)
            # Multiplied, so that the gradient of a NaN stays one.
            a2 = a2 * ((logs_q > low) & (logs_q < high)).to(WIDE)
            a3 = a3 * ((logs_p > low) & (logs_p < high)).to(WIDE)
            if UNIT:
                a1 = tl.where(t == 0, 0.0, a1)
                a3 = tl.where(t == 0, 0.0, a3)
            tl.store(gA_ptr + at_A, a0, in_z)
            tl.store(gA_ptr + at_A + Z, a2, in_z)
            gd = tl.dot(g, W, input_precision="ieee", out_dtype=WIDE)
            gd = tl.dot(a0, V0, gd, input_precision="ieee", out_dtype=WIDE)
            gd = tl.dot(a1, V1, gd, input_precision="ieee", out_dtype=WIDE)
            gd = tl.dot(a2, V2, gd, input_precision="ieee", out_dtype=WIDE)
            gd = tl.dot(a3, V3, gd, input_precision="ieee", out_dtype=WIDE)
            if WEIGHTS:
                z = tl.where(in_z, tl.where(t < observed, mu_q, mu_p) + spread, 0.0)
                gT = tl.trans(g)
                gW = tl.dot(gT, d, gW, input_precision="ieee", out_dtype=WIDE)
                gU = tl.dot(gT, z, gU, input_precision="ieee", out_dtype=WIDE)
                g0 = tl.dot(tl.trans(a0), d, g0, input_precision="ieee", out_dtype=WIDE)
                g1 = tl.dot(tl.trans(a1), d, g1, input_precision="ieee", out_dtype=WIDE)
                g2 = tl.dot(tl.trans(a2), d, g2, input_precision="ieee", out_dtype=WIDE)
                g3 = tl.dot(tl.trans(a3), d, g3, input_precision="ieee", out_dtype=WIDE)
                gb += tl.sum(g, 0)
                gc0 += tl.sum(a0, 0)
                gc1 += tl.sum(a1, 0)
                gc2 += tl.sum(a2, 0)
                gc3 += tl.sum(a3, 0)
            g = keep * g + gd * (1 - d * d)
            here -= step
        tl.store(g0_ptr + start[:, None] * D + i[None, :], g, in_h)
        if WEIGHTS:
            p = tl.program_id(0).to(tl.int64)
            tl.store(gM_ptr + p * D * (D + Z) + at_W, gW, square)
            tl.store(gM_ptr + p * D * (D + Z) + at_U, gU, into)
            at = gV_ptr + p * 4 * Z * D + at_V
            tl.store(at, g0, head)
            tl.store(at + Z * D, g1, head)
            tl.store(at + 2 * Z * D, g2, head)
            tl.store(at + 3 * Z * D, g3, head)
            tl.store(gb_ptr + p * D + i, gb, unit)
            at = gc_ptr + p * 4 * Z + k
            tl.store(at, gc0, latent)
            tl.store(at + Z, gc1, latent)
            tl.store(at + 2 * Z, gc2, latent)
            tl.store(at + 3 * Z, gc3, latent)


def _launch(kernel, tensors, T, n, B, D, Z, observed, low, high, **constants):
    tiles = triton.cdiv(B, ROWS)
    first = next(t for t in tensors if t is not None)
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        kernel[(n * tiles,)](
            *tensors, T, n, B, tiles, observed, low=low, high=high, D=D, Z=Z, **_sizes(D, Z),
            WIDE=tl.float64 if first.dtype == torch.float64 else tl.float32, **constants,
            num_warps=4 if D <= 32 else 8,
        )  # fmt: skip


def _sizes(D: int, Z: int) -> dict[str, int]:
    """Powers of two, at least 16: what a matrix product in Triton takes."""
    return {"DB": max(16, triton.next_power_of_2(D)), "ZB": max(16, triton.next_power_of_2(Z)),
            "ROWS": ROWS}  # fmt: skip


def _forward_triton(A, eps, M, V, b, c, keep, h0, observed, unit_first, low, high):
    T, n, B, _, Z = A.shape
    D = h0.shape[-1]
    h, stats = A.new_empty(T, n, B, D), A.new_empty(T, n, B, 4, Z)
    if h0.numel():
        tensors = [t.contiguous() for t in (A, eps, M, V, b, c, keep, h0)]
        _launch(
            _forward_kernel, [*tensors, h, stats], T, n, B, D, Z, observed, low, high,
            UNIT=unit_first,
        )  # fmt: skip
    return h, stats


def _backward_triton(
    gh, gs, eps, M, V, keep, h0, h, stats, observed, unit_first, low, high, weights=True
):
    T, n, B, D = h.shape
    Z = stats.shape[-1]
    tiles = triton.cdiv(B, ROWS)
    gA, g0 = h.new_empty(T, n, B, 2, Z), torch.empty_like(h0)
    shapes = [(n, tiles, D, D + Z), (n, tiles, 4, Z, D), (n, tiles, D), (n, tiles, 4, Z)]
    parts = [h.new_empty(shape) for shape in shapes] if weights else [gA] * 4
    if h0.numel():
        tensors = [t.contiguous() for t in (gh, gs, eps, M, V, keep, h0, h, stats)]
        _launch(
            _backward_kernel, [*tensors, gA, *parts, g0], T, n, B, D, Z, observed, low, high,
            UNIT=unit_first, WEIGHTS=weights,
        )  # fmt: skip
    if not weights:
        return gA, None, None, None, None, g0
    return gA, *(part.sum(1) for part in parts), g0


# --------------------------------------------------------------------------- the operators


@torch.library.custom_op("lib::pv_rnn", mutates_args=())
def _pv_rnn(
    A: Tensor, eps: Tensor, M: Tensor, V: Tensor, b: Tensor, c: Tensor, keep: Tensor, h0: Tensor,
    observed: int, unit_first: bool, low: float, high: float, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    forward = _forward_triton if backend == "triton" else _forward_reference
    return forward(A, eps, M, V, b, c, keep, h0, observed, unit_first, low, high)


@_pv_rnn.register_fake
def _(A, eps, M, V, b, c, keep, h0, observed, unit_first, low, high, backend):
    T, n, B, _, Z = A.shape
    return A.new_empty(T, n, B, h0.shape[-1]), A.new_empty(T, n, B, 4, Z)


@torch.library.custom_op("lib::pv_rnn_backward", mutates_args=())
def _pv_rnn_backward(
    gh: Tensor, gs: Tensor, eps: Tensor, M: Tensor, V: Tensor, keep: Tensor, h0: Tensor, h: Tensor,
    stats: Tensor, observed: int, unit_first: bool, low: float, high: float, weights: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of A, M, V, b, c, h0; empty tensors for the weights' unless ``weights``."""
    args = (gh, gs, eps, M, V, keep, h0, h, stats, observed, unit_first, low, high, weights)
    backward = _backward_triton if backend == "triton" else _backward_reference
    return tuple(gh.new_empty(0) if g is None else g for g in backward(*args))


@_pv_rnn_backward.register_fake
def _(gh, gs, eps, M, V, keep, h0, h, stats, observed, unit_first, low, high, weights, backend):
    T, n, B, D = h.shape
    Z = stats.shape[-1]
    shapes = [(n, D, D + Z), (n, 4, Z, D), (n, D), (n, 4, Z)]
    if not weights:
        shapes = [(0,)] * 4
    return gh.new_empty(T, n, B, 2, Z), *map(gh.new_empty, shapes), gh.new_empty(n, B, D)


def _setup_context(ctx, inputs, output):
    _, eps, M, V, _, _, keep, h0, *ctx.numbers, ctx.backend = inputs
    ctx.save_for_backward(eps, M, V, keep, h0, *output)


def _backward(ctx, gh, gs):
    # Recognition regresses A alone, many times: then the weights' gradients are left out.
    weights = any(ctx.needs_input_grad[2:6])
    eps, M, V, keep, h0, h, stats = ctx.saved_tensors
    gA, *rest, g0 = _pv_rnn_backward(
        gh, gs, eps, M, V, keep, h0, h, stats, *ctx.numbers, weights, ctx.backend
    )
    gM, gV, gb, gc = rest if weights else [None] * 4
    return gA, None, gM, gV, gb, gc, None, g0, *[None] * 5


_pv_rnn.register_autograd(_backward, setup_context=_setup_context)


def _choose(backend: str, tensors: dict[str, Tensor]) -> str:
    chosen = pick_backend(backend, *tensors.values())
    if chosen == "reference":
        return chosen
    A = tensors["A"]
    D, Z = tensors["W"].shape[-1], A.shape[-1]
    large = D > MOST_UNITS or Z > MOST_LATENTS
    if large and backend == "triton":
        raise ValueError(
            f"backend='triton': {D} units and {Z} latents; allowed are {MOST_UNITS}, {MOST_LATENTS}"
        )
    double = A.dtype == torch.float64 and not interpreting()
    if double and backend == "triton":
        raise TypeError("backend='triton': dtype float64; allowed is float32")
    return "reference" if large or double else "triton"


def _check(tensors: dict[str, Tensor], observed: int | None, limits: tuple[float, float]) -> None:
    A, W = tensors["A"], tensors["W"]
    if A.ndim != 5 or A.shape[3] != 2:
        raise ValueError(f"A: shape {tuple(A.shape)}; allowed is (t, n, b, 2, z)")
    T, n, B, _, Z = A.shape
    if W.ndim != 3:
        raise ValueError(f"W: shape {tuple(W.shape)}; allowed is (n, d, d)")
    D = W.shape[-1]
    if D < 1 or Z < 1:
        raise ValueError(f"W, A: {D} units and {Z} latents; allowed is 1 or more of each")
    wanted = {
        "eps": (T, n, B, Z), "W": (n, D, D), "U": (n, D, Z), "V": (n, 4, Z, D), "b": (n, D),
        "c": (n, 4, Z), "tau": (D,), "h0": (n, B, D),
    }  # fmt: skip
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{name}: shape {tuple(tensors[name].shape)}; with A {tuple(A.shape)} and {D} "
                f"units it is {shape}"
            )
    for name, tensor in tensors.items():
        check_dtype(name, tensor, DTYPES)
        if tensor.dtype != A.dtype:
            raise TypeError(f"{name}: dtype {tensor.dtype}; allowed is that of A, {A.dtype}")
    for name in ("eps", "tau"):
        # tau would get a part of its gradient, silently.
        if tensors[name].requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: wants a gradient; allowed are all others, detach this one")
    if observed is not None and not 0 <= observed <= T:
        raise ValueError(f"observed={observed}: allowed is 0 to the {T} steps of A")
    if not limits[0] < limits[1]:
        raise ValueError(f"limits={limits}: allowed are two rising numbers")
    if not bool((tensors["tau"] >= 1).all()):
        raise ValueError(f"tau={tensors['tau'].tolist()}: allowed is 1 or more for every unit")
