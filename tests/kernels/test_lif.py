"""The fused LIF operator against an autograd loop, finite differences and its Triton kernels."""

import itertools

import pytest
import torch

from lib.kernels import lif as module
from lib.kernels.dispatch import triton
from lib.kernels.lif import KINDS, lif, smooth_step, surrogate_slope
from tests.helpers import assert_close
from tests.kernels.aot import compile_for

RESETS = ("soft", "hard")


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kind, alpha):
        ctx.save_for_backward(x)
        ctx.kind, ctx.alpha = kind, alpha
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        return g * surrogate_slope(*ctx.saved_tensors, ctx.kind, ctx.alpha), None, None


def autograd_loop(current, decay, threshold, reset, kind, alpha, temporal, detach, initial=None):
    """The same neuron, written as the paper writes it and differentiated by PyTorch."""
    u = torch.zeros_like(current[0]) if initial is None else initial
    spikes = []
    for i in current:
        v = decay * (u if temporal else u.detach()) + i
        s = Spike.apply(v - threshold, kind, alpha)
        r = s.detach() if detach else s
        u = v - threshold * r if reset == "soft" else v * (1 - r)
        spikes.append(s)
    return torch.stack(spikes), u


def draw(*shape, gen, dtype=torch.float64, device="cpu"):
    return (0.4 + torch.randn(*shape, generator=gen, dtype=torch.float64)).to(device, dtype)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("temporal", "detach"), itertools.product((True, False), (True, False)))
def test_equals_the_loop_differentiated_by_autograd(reset, kind, temporal, detach, gen):
    current = draw(6, 4, 3, gen=gen).requires_grad_()
    initial = draw(4, 3, gen=gen).requires_grad_()
    weights, end = draw(6, 4, 3, gen=gen), draw(4, 3, gen=gen) * float(temporal)
    args = {
        "decay": 0.7,
        "threshold": 1.2,
        "reset": reset,
        "kind": kind,
        "alpha": 0.8,
        "initial": initial,
    }
    s, u = lif(current, temporal_grad=temporal, detach_reset=detach, **args)
    s0, u0 = autograd_loop(
        current, 0.7, 1.2, reset, kind, 0.8, temporal, detach, initial if temporal else initial * 1
    )
    assert_close(s, s0, 0)
    assert_close(u, u0, 1e-12)
    inputs = (current, initial) if temporal else (current,)
    got = torch.autograd.grad((s * weights).sum() + (u * end).sum(), inputs)
    wanted = torch.autograd.grad((s0 * weights).sum() + (u0 * end).sum(), inputs)
    for a, b in zip(got, wanted, strict=True):
        assert_close(a, b, 1e-12)
    if not temporal:
        assert not u.requires_grad


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_with_the_smooth_step(reset, kind, gen):
    current = draw(4, 5, gen=gen).requires_grad_()
    initial = draw(5, gen=gen).requires_grad_()
    run = lambda i, u: lif(i, decay=0.6, reset=reset, kind=kind, alpha=0.7, initial=u, smooth=True)
    assert torch.autograd.gradcheck(run, (current, initial))


@pytest.mark.parametrize("kind", KINDS)
def test_surrogates_are_densities_and_derivatives(kind):
    x = torch.linspace(-400, 400, 800_001, dtype=torch.float64)
    for alpha in (0.5, 1.0, 3.0):
        slope = surrogate_slope(x, kind, alpha)
        assert_close(torch.trapezoid(slope, x), torch.tensor(1.0), 3e-3)
        assert_close(slope, alpha * surrogate_slope(alpha * x, kind, 1.0), 1e-12)
        step = smooth_step(x, kind, alpha)
        assert step.diff().min() >= 0
        assert_close(step[400_000], torch.tensor(0.5), 1e-9)
        # 5 %: the rectangle jumps between two grid points.
        assert_close(torch.gradient(step, spacing=(x,))[0], slope, 0.05)


def test_two_halves_joined_by_the_membrane_are_the_whole(gen):
    current = draw(7, 9, gen=gen).requires_grad_()
    weights = draw(7, 9, gen=gen)
    for reset in RESETS:
        whole, end = lif(current, decay=0.8, reset=reset)
        first, middle = lif(current[:3], decay=0.8, reset=reset)
        second, last = lif(current[3:], decay=0.8, reset=reset, initial=middle)
        parts = torch.cat([first, second])
        assert_close(parts, whole, 0)
        assert_close(last, end, 1e-14)
        (a,) = torch.autograd.grad((whole * weights).sum() + end.sum(), current)
        (b,) = torch.autograd.grad((parts * weights).sum() + last.sum(), current)
        assert_close(b, a, 1e-13)


def test_limits_where_the_temporal_path_vanishes(gen):
    # One step, or no leak (decay 0): both gradients are g_s s'.
    for steps, decay in ((1, 0.9), (6, 0.0)):
        current = draw(steps, 50, gen=gen).requires_grad_()
        for reset in RESETS:
            grads = []
            for temporal in (True, False):
                s, _ = lif(current, decay=decay, reset=reset, temporal_grad=temporal)
                grads += torch.autograd.grad(s.sum(), current)
            assert_close(grads[0], grads[1], 0)
            assert grads[0].norm() > 0


def test_closed_form_of_a_constant_drive():
    # decay 1, soft reset, 0 < I < threshold: floor(t I / threshold) spikes after t steps.
    drive = torch.tensor([0.11, 0.23, 0.37, 0.71, 0.93], dtype=torch.float64)
    s, _ = lif(drive.expand(40, -1), decay=1.0, reset="soft", kind="rectangle")
    t = torch.arange(1, 41, dtype=torch.float64)[:, None]
    assert_close(s.cumsum(0), torch.floor(t * drive + 1e-12), 0)


def test_bytes_vmap_and_the_operator_contract(gen):
    current = draw(5, 3, 4, gen=gen, dtype=torch.float32)
    args = {"decay": 0.5, "reset": "soft"}
    with torch.no_grad():
        bytes_, _ = lif(current, byte_spikes=True, **args)
    assert bytes_.dtype == torch.uint8
    plain = lif(current, **args)[0]
    assert_close(bytes_, plain, 0)
    current.requires_grad_()
    mapped = torch.func.vmap(lambda c: lif(c, **args)[0], in_dims=1, out_dims=1)
    assert_close(mapped(current), plain, 0)
    weights = torch.arange(4.0)
    (a,) = torch.autograd.grad((mapped(current) * weights).sum(), current)
    (b,) = torch.autograd.grad((lif(current, **args)[0] * weights).sum(), current)
    assert_close(a, b, 0)
    # What torch.compile needs: schema, fake implementation, ahead-of-time autograd.
    for temporal in (True, False):
        torch.library.opcheck(
            module._lif,
            (current, None, 0.5, 1.0, True, "triangle", 1.0, temporal, False, False, False, True,
             "reference"),
        )  # fmt: skip


def test_errors_name_the_argument():
    i = torch.zeros(3, 2)
    good = {"decay": 0.5, "reset": "soft"}
    for change, message in (
        ({"decay": 1.5}, "decay=1.5: allowed is 0 to 1"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"byte_spikes": True}, "byte_spikes=True"),
    ):
        with pytest.raises((ValueError, ModuleNotFoundError), match=message):
            lif(i, **{**good, **change})
    with pytest.raises(ValueError, match=r"initial: shape \(3,\)"):
        module._check(i, torch.zeros(3), 0.5, 1.0, "soft", "triangle", 1.0)
    with pytest.raises(TypeError, match="current: dtype int64"):
        module._check(torch.zeros(3, 2).long(), None, 0.5, 1.0, "soft", "triangle", 1.0)
    with pytest.raises(ValueError, match="kind='step'"):
        module._check(i, None, 0.5, 1.0, "soft", "step", 1.0)
    with pytest.raises(ValueError, match="reset='none'"):
        module._check(i, None, 0.5, 1.0, "none", "triangle", 1.0)
    with pytest.raises(ValueError, match=r"current: shape \(0, 2\)"):
        module._check(i[:0], None, 0.5, 1.0, "soft", "triangle", 1.0)


def broken(dtype=torch.float64):
    """Five neurons; at step 2: nothing, NaN, inf, -inf; the fifth meets its NaN at the end."""
    current = torch.full((6, 5), 0.6, dtype=dtype)
    current[2, 1:4] = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
    current[5, 4] = torch.nan
    return current


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_are_not_hidden(reset, kind):
    args = {"decay": 0.5, "reset": reset, "kind": kind}
    current = broken().requires_grad_()
    s, u = lif(current, **args)
    grad = torch.autograd.grad(s.sum(), current)[0]
    clean, v = lif(torch.full((6, 1), 0.6, dtype=torch.float64), **args)
    assert ((s == 0) | (s == 1)).all()  # a spike is a spike; NaN >= threshold is false
    assert_close(s[:2], clean[:2].expand(2, 5), 0)
    assert s[2:, 1].sum() == s[2:, 3].sum() == s[5, 4] == 0
    assert u.isnan().tolist() == [False, True, reset == "hard", False, True]
    assert u[3] == -torch.inf
    assert_close(u[0], v[0], 0)
    # Back in time nothing before a NaN is trusted; what comes after it is NaN as well.
    assert grad[:, [1, 4]].isnan().all()
    assert grad[:, 0].isfinite().all()
    assert grad[:, 2:4].isfinite().all() == (reset == "soft")
    # One step at a time only the steps that saw the NaN are lost.
    s, _ = lif(current, temporal_grad=False, **args)
    spatial = torch.autograd.grad(s.sum(), current)[0]
    assert spatial[:, 1].isnan().tolist() == [False, False, True, True, True, True]
    assert spatial[:, 4].isnan().tolist() == [False] * 5 + [True]
    for bad in (torch.inf, -torch.inf):
        x = torch.tensor([bad, torch.nan], dtype=torch.float64)
        slope, step = surrogate_slope(x, kind, 0.7), smooth_step(x, kind, 0.7)
        assert slope[0] == 0
        assert slope[1].isnan()
        assert step[0] == float(bad > 0)
        assert step[1].isnan()


# --------------------------------------------------------------------------- Triton


@pytest.fixture
def nan_empty(monkeypatch):
    """Memory that a kernel leaves unwritten shows as NaN."""
    empty_like = torch.empty_like

    def filled(*args, **kwargs):
        out = empty_like(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out.fill_(255)

    monkeypatch.setattr(module.torch, "empty_like", filled)


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def both(current, weights, initial, device, **args):
    out = []
    for backend in ("triton", "reference"):
        c = current.detach().to(device).requires_grad_()
        u = None if initial is None else initial.detach().to(device).requires_grad_()
        s, end = lif(c, initial=u, backend=backend, **args)
        objective = (s * weights.to(device)).sum()
        if args.get("temporal_grad", True):
            objective = objective + (end * weights[0].to(device)).sum()
        inputs = [c] if u is None or not args.get("temporal_grad", True) else [c, u]
        out.append((s, end, *torch.autograd.grad(objective, inputs)))
    return out


@pytest.mark.triton
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", [(1, 1), (4, 1023), (5, 3, 343), (3, 2, 1025)])
def test_triton_equals_the_reference(dtype, shape, device, gen, nan_empty):
    for reset, temporal in itertools.product(RESETS, (True, False)):
        current = draw(*shape, gen=gen, dtype=dtype)
        initial = draw(*shape[1:], gen=gen, dtype=dtype) if temporal else None
        weights = draw(*shape, gen=gen, dtype=dtype)
        got, wanted = both(
            current, weights, initial, device, decay=0.75, reset=reset, temporal_grad=temporal
        )
        assert_close(got[0], wanted[0], 0)
        for a, b in zip(got[1:], wanted[1:], strict=True):
            assert_close(a, b, TOLERANCE[dtype])


@pytest.mark.triton
@pytest.mark.parametrize("kind", KINDS)
def test_triton_surrogates_strides_and_reset_path(kind, device, gen, nan_empty):
    base = draw(130, 2, 6, gen=gen, dtype=torch.float32)
    current = base.permute(2, 0, 1)  # time last in memory
    weights = draw(130, 2, 6, gen=gen, dtype=torch.float32).permute(2, 0, 1)
    for reset, detach in itertools.product(RESETS, (True, False)):
        got, wanted = both(
            current, weights, None, device, decay=0.9, reset=reset, kind=kind, alpha=0.6,
            detach_reset=detach,
        )  # fmt: skip
        for a, b in zip(got, wanted, strict=True):
            assert_close(a, b, 1e-6)


@pytest.mark.triton
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter is numpy
@pytest.mark.parametrize("kind", KINDS)
def test_triton_agrees_on_nan_and_infinity(kind, device):
    current = broken(torch.float32)
    weights = torch.linspace(0.5, 1.5, 30).view(6, 5)
    for reset, temporal, smooth in itertools.product(RESETS, (True, False), (True, False)):
        if smooth and kind == "arctan":
            continue
        got, wanted = both(
            current, weights, None, device, decay=0.5, reset=reset, kind=kind,
            temporal_grad=temporal, smooth=smooth,
        )  # fmt: skip
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.triton
@pytest.mark.parametrize("kind", KINDS[:3])
def test_triton_gradcheck(kind, device, gen):
    current = draw(3, 4, gen=gen, device=device).requires_grad_()
    initial = draw(4, gen=gen, device=device).requires_grad_()
    for reset in RESETS:
        run = lambda i, u, r=reset: lif(
            i, decay=0.6, reset=r, kind=kind, alpha=0.7, initial=u, smooth=True, backend="triton"
        )
        assert torch.autograd.gradcheck(run, (current, initial), fast_mode=True)


@pytest.mark.triton
def test_triton_bytes_and_empty(device, gen):
    current = draw(4, 70, gen=gen, dtype=torch.float32, device=device)
    args = {"decay": 0.5, "reset": "soft"}
    with torch.no_grad():
        a, _ = lif(current, byte_spikes=True, backend="triton", **args)
        b, _ = lif(current, backend="reference", **args)
    assert a.dtype == torch.uint8
    assert_close(a, b, 0)
    none = torch.empty(4, 0, device=device, requires_grad=True)
    for temporal in (True, False):
        s, u = lif(none, backend="triton", temporal_grad=temporal, **args)
        assert s.shape == (4, 0)
        assert u.shape == (0,)
        assert torch.autograd.grad(s.sum(), none)[0].shape == (4, 0)
    with pytest.raises(ValueError, match="smooth=True with kind='arctan'"):
        lif(current, kind="arctan", smooth=True, backend="triton", **args)


POINTERS = {"fp16": "*fp16", "bf16": "*bf16", "fp32": "*fp32", "fp64": "*fp64"}


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", POINTERS)
@pytest.mark.parametrize("steps", [None, 1])
def test_compiles_ahead_of_time(arch, dtype, steps):
    if triton is None:
        pytest.skip("pip install triton (Linux only)")
    import triton.language as tl

    # The launcher turns an integer argument of 1 into a compile-time constant.
    def build(kernel, pointers, integers, constants):
        if steps == 1 and "steps" in integers:
            integers = {name: kind for name, kind in integers.items() if name != "steps"}
            constants = {**constants, "steps": 1}
        signature = {
            **dict.fromkeys(pointers.split(), POINTERS[dtype]),
            **integers,
            **dict.fromkeys(constants, "constexpr"),
        }
        order = kernel.arg_names
        signature = {name: signature[name] for name in order}
        return compile_for(kernel, signature=signature, constexprs=constants, arch=arch)

    wide = tl.float64 if dtype == "fp64" else tl.float32
    small = {"WIDE": wide, "BLOCK": 1024}
    scan = {"decay": 0.09, "threshold": 1.0, "HARD": True, "DETACH": False, **small}
    forward = dict(scan, alpha=1.0, KIND="sigmoid", SMOOTH=False, STORE=True, START=True)
    built = build(
        module._forward_kernel,
        "current initial spikes membrane slope keep",
        {"n": "i32", "steps": "i32"},
        forward,
    )
    assert "ld.local" not in built.asm["ptx"], "registers spill"
    build(
        module._scan_kernel,
        "grad_spikes grad_state slope keep grad grad_initial",
        {"n": "i32", "steps": "i32", "last": "i64"},
        scan,
    )
    build(module._product_kernel, "grad_spikes slope grad", {"n": "i64"}, small)
