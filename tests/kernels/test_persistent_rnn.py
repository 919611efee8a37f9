"""The persistent PV-RNN against an autograd loop, finite differences and its Triton kernels."""

import pytest
import torch

from lib.kernels import persistent_rnn as module
from lib.kernels.dispatch import interpreting, triton
from lib.kernels.persistent_rnn import pv_rnn
from tests.helpers import assert_close, raises
from tests.kernels.aot import compile_for

LEAVES = (0, 2, 3, 4, 5, 6, 8)  # all but eps and tau
LIMITS = (-0.9, 0.7)  # narrow, so that some values are clamped


def draw(T, n, B, D, Z, gen, dtype=torch.float64, device="cpu"):
    r = lambda *shape: 0.5 * torch.randn(*shape, generator=gen, dtype=torch.float64)
    tensors = [
        r(T, n, B, 2, Z), r(T, n, B, Z), r(n, D, D), r(n, D, Z), r(n, 4, Z, D), r(n, D),
        r(n, 4, Z), 1 + torch.rand(D, generator=gen, dtype=torch.float64), r(n, B, D),
    ]  # fmt: skip
    tensors = [t.to(device, dtype) for t in tensors]
    for i in LEAVES:
        tensors[i].requires_grad_()
    return tensors


def autograd_loop(A, eps, W, U, V, b, c, tau, h, observed, unit_first):
    """The recurrence as the paper writes it, differentiated by PyTorch."""
    hs, stats = [], []
    for t in range(len(A)):
        d = torch.tanh(h)
        a = torch.einsum("nkzd,nbd->nbkz", V, d) + c[:, None]
        mu_q, mu_p = torch.tanh(a[:, :, 0] + A[t, :, :, 0]), torch.tanh(a[:, :, 1])
        logs_q, logs_p = (a[:, :, 2] + A[t, :, :, 1]).clamp(*LIMITS), a[:, :, 3].clamp(*LIMITS)
        if t == 0 and unit_first:
            mu_p, logs_p = torch.zeros_like(mu_p), torch.zeros_like(logs_p)
        mu, logs = (mu_q, logs_q) if t < observed else (mu_p, logs_p)
        z = mu + logs.exp() * eps[t]
        drive = torch.einsum("nij,nbj->nbi", W, d) + torch.einsum("niz,nbz->nbi", U, z)
        h = (1 - 1 / tau) * h + (drive + b[:, None]) / tau
        hs.append(h)
        stats.append(torch.stack([mu_q, mu_p, logs_q, logs_p], 2))
    return torch.stack(hs), torch.stack(stats)


def results(run, tensors, weights=None):
    """States, statistics and the gradients of one weighted sum of both."""
    h, stats = run(*tensors)
    weights = weights or (torch.linspace(0.5, 1.5, h.numel()), torch.linspace(-1, 1, stats.numel()))
    total = sum((t * w.to(t).view_as(t)).sum() for t, w in zip((h, stats), weights))
    return h, stats, *torch.autograd.grad(total, [tensors[i] for i in LEAVES])


def test_the_smallest_case(gen):
    # With one of everything slices are contiguous, and a write in place would reach what is saved.
    tensors = draw(1, 1, 1, 1, 1, gen)
    for unit_first in (True, False):
        options = {"unit_first": unit_first, "limits": LIMITS}
        got = results(lambda *t, options=options: pv_rnn(*t, **options), tensors)
        wanted = results(lambda *t, first=unit_first: autograd_loop(*t, 1, first), tensors)
        for a, b in zip(got, wanted, strict=True):
            assert_close(a, b, 1e-12)


@pytest.mark.parametrize("observed", [0, 2, 5])
@pytest.mark.parametrize("unit_first", [True, False])
def test_equals_the_loop_differentiated_by_autograd(observed, unit_first, gen):
    tensors = draw(5, 2, 3, 6, 2, gen)
    options = {"observed": observed, "unit_first": unit_first, "limits": LIMITS}
    got = results(lambda *t: pv_rnn(*t, **options), tensors)
    wanted = results(lambda *t: autograd_loop(*t, observed, unit_first), tensors)
    clamped = ((wanted[1] == LIMITS[0]) | (wanted[1] == LIMITS[1])).double()[..., 2:, :].mean()
    assert 0.05 < clamped < 0.95  # both kinds of gradient are there
    for a, b in zip(got, wanted, strict=True):
        assert_close(a, b, 1e-12)


def test_gradcheck(gen):
    tensors = draw(3, 2, 2, 3, 2, gen)
    for observed in (None, 1):
        run = lambda *t, observed=observed: pv_rnn(*t, observed=observed)
        assert torch.autograd.gradcheck(run, tensors)


def test_two_halves_joined_by_the_state_are_the_whole(gen):
    tensors = draw(7, 2, 3, 6, 2, gen)
    h0 = tensors[-1]
    whole = results(lambda *t: pv_rnn(*t, observed=5), tensors)

    def halves(A, eps, *rest):
        first = pv_rnn(A[:3], eps[:3], *rest)
        last = pv_rnn(A[3:], eps[3:], *rest[:-1], first[0][-1], observed=2, unit_first=False)
        return [torch.cat(pair) for pair in zip(first, last)]

    for a, b in zip(results(halves, [*tensors[:-1], h0]), whole, strict=True):
        assert_close(a, b, 1e-12)


def test_limits_in_closed_form(gen):
    A, eps, W, U, V, b, c, tau, h0 = (t.detach() for t in draw(6, 1, 2, 4, 2, gen))
    zero = torch.zeros_like
    # Without weights only the leak is left.
    h, _ = pv_rnn(A, eps, zero(W), zero(U), V, zero(b), c, tau, h0)
    powers = (1 - 1 / tau) ** torch.arange(1, 7, dtype=tau.dtype)[:, None]
    assert_close(h, powers[:, None, None] * h0, 1e-12)
    # tau = 1 forgets the old state; from zero it is W tanh(0) + U z + b.
    h, s = pv_rnn(A, eps, W, U, zero(V), b, zero(c), torch.ones_like(tau), zero(h0))
    z = A[0, :, :, 0].tanh() + A[0, :, :, 1].exp() * eps[0]
    assert_close(h[0], z @ U.mT + b[:, None], 1e-12)
    assert (s[0, :, :, 1::2] == 0).all()
    # A prior rollout does not look at A.
    a, _ = pv_rnn(A, eps, W, U, V, b, c, tau, h0, observed=0)
    b_, _ = pv_rnn(A + 1, eps, W, U, V, b, c, tau, h0, observed=0)
    assert_close(a, b_, 0)


def test_nan_is_not_hidden_and_stays_in_its_sequence(gen):
    tensors = draw(5, 2, 3, 4, 2, gen)
    with torch.no_grad():
        tensors[0][2, 1, 0, 1, 0] = float("nan")
    for backend in ("reference", *(["triton"] if interpreting() and triton else [])):
        h, stats = pv_rnn(*tensors, backend=backend)
        assert h[2:, 1, 0].isnan().all()
        assert stats[2, 1, 0, 2, 0].isnan()
        h = torch.cat([h[:2].flatten(), h[:, 0].flatten(), h[:, 1, 1:].flatten()])
        assert h.isfinite().all()


def test_empty_and_strided_inputs(gen):
    for shape in ((0, 2, 3, 4, 2), (3, 0, 3, 4, 2), (3, 2, 0, 4, 2)):
        T, n, B, D, Z = shape
        h, stats, *grads = results(pv_rnn, draw(*shape, gen))
        assert h.shape == (T, n, B, D)
        assert stats.shape == (T, n, B, 4, Z)
        # Nothing went through the weights; h0 reaches nothing, but for a sequence of no steps.
        assert all((g == 0).all() for g in grads)
    tensors = draw(4, 2, 3, 5, 2, gen)
    strided = [t.detach().movedim(0, -1).contiguous().movedim(-1, 0) for t in tensors]
    for i in LEAVES:
        strided[i].requires_grad_()
    for a, b in zip(results(pv_rnn, strided), results(pv_rnn, tensors), strict=True):
        assert_close(a, b, 1e-12)


def test_operator_registration(gen):
    A, eps, W, U, V, b, c, tau, h0 = draw(3, 2, 2, 3, 2, gen)
    M = torch.cat([W, U], -1).detach().requires_grad_()
    args = (A, eps, M, V, b, c, 1 - 1 / tau, h0, 2, True, -4.0, 2.0, "reference")
    torch.library.opcheck(module._pv_rnn, args)


def test_errors(gen):
    names = ["A", "eps", "W", "U", "V", "b", "c", "tau", "h0"]
    good = dict(zip(names, (t.detach() for t in draw(3, 2, 2, 4, 2, gen))))
    for name, change, message in (
        ("A", lambda t: t[..., 0, :], r"A: shape \(3, 2, 2, 2\)"),
        ("eps", lambda t: t[:2], r"eps: shape \(2, 2, 2, 2\)"),
        ("W", lambda t: t[0], r"W: shape \(4, 4\)"),
        ("U", lambda t: t[:, :3], r"U: shape \(2, 3, 2\); with A \(3, 2, 2, 2, 2\) and 4 units"),
        ("V", lambda t: t[:, :2], r"V: shape \(2, 2, 2, 4\)"),
        ("tau", lambda t: t * 0.1, "allowed is 1 or more for every unit"),
        ("h0", lambda t: t[:, :1], r"h0: shape \(2, 1, 4\)"),
    ):
        with raises(ValueError, match=message):
            pv_rnn(**{**good, name: change(good[name])})
    with raises(TypeError, match="b: dtype torch.float32; allowed is that of A"):
        pv_rnn(**{**good, "b": good["b"].float()})
    with raises(TypeError, match="A: dtype float16"):
        pv_rnn(**{name: t.half() for name, t in good.items()})
    with raises(ValueError, match="observed=4: allowed is 0 to the 3 steps"):
        pv_rnn(**good, observed=4)
    with raises(ValueError, match=r"limits=\(1.0, 0.0\)"):
        pv_rnn(**good, limits=(1.0, 0.0))
    for name in ("eps", "tau"):
        with raises(ValueError, match=f"{name}: wants a gradient"):
            pv_rnn(**{**good, name: good[name].clone().requires_grad_()})
    with raises(ValueError, match="all tensors must be on one device, got cpu, meta"):
        pv_rnn(**{**good, "V": good["V"].to("meta")})
    none = dict(zip(names, (t.detach() for t in draw(3, 2, 2, 4, 0, gen))))
    with raises(ValueError, match="4 units and 0 latents"):
        pv_rnn(**none)
    if triton is not None and not torch.cuda.is_available() and not interpreting():
        with raises(ValueError, match="needs CUDA tensors"):
            pv_rnn(**good, backend="triton")


# --------------------------------------------------------------------------- Triton


@pytest.fixture
def nan_empty(monkeypatch):
    """Memory that a kernel leaves unwritten shows as NaN."""
    for name in ("new_empty", "empty_like"):
        owner = torch.Tensor if name == "new_empty" else module.torch
        plain = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *a, _plain=plain, **k: _plain(*a, **k).fill_(float("nan"))
        )


# Steps, models, sequences, units, latents: one tile and several, powers of two and not.
SHAPES = [(1, 1, 1, 1, 1), (3, 2, 2, 5, 3), (3, 2, 17, 18, 3), (2, 1, 33, 5, 17)]


@pytest.mark.triton
@pytest.mark.parametrize("shape", SHAPES)
def test_triton_equals_the_reference(shape, device, gen, nan_empty):
    # The interpreter is slow: float64 there, whose tolerance is the sharper one; a GPU has float32.
    dtype, tol = (torch.float64, 1e-12) if device.type == "cpu" else (torch.float32, 1e-5)
    tensors, T = draw(*shape, gen, dtype, device), shape[0]
    every = [(o, first) for o in sorted({0, T // 2, T}) for first in (True, False)]
    for observed, unit_first in [(T // 2, True), (T, False)] if shape[2] > 16 else every:
        options = {"observed": observed, "unit_first": unit_first, "limits": LIMITS}
        run = lambda backend, more=options: results(
            lambda *t: pv_rnn(*t, **more, backend=backend), tensors
        )
        got, wanted = run("triton"), run("reference")
        for a, b in zip(got, wanted, strict=True):
            assert a.isfinite().all()
            assert (a - b).norm() <= tol * max(b.norm().item(), 1e-3)


@pytest.mark.triton
def test_triton_in_float32(device, gen, nan_empty):
    tensors = draw(3, 2, 4, 6, 2, gen, torch.float32, device)
    run = lambda backend: results(lambda *t: pv_rnn(*t, observed=2, backend=backend), tensors)
    for a, b in zip(run("triton"), run("reference"), strict=True):
        assert a.dtype == torch.float32
        assert_close(a, b, 1e-5)


@pytest.mark.triton
def test_triton_strides_frozen_weights_and_empty(device, gen, nan_empty):
    tensors = [t.detach() for t in draw(4, 2, 5, 6, 2, gen, torch.float32, device)]
    want = pv_rnn(*tensors)
    strided = [t.movedim(0, -1).contiguous().movedim(-1, 0) for t in tensors]
    for a, b in zip(pv_rnn(*strided, backend="triton"), want):
        assert_close(a, b, 1e-5)
    # Recognition: the gradient of A alone.
    grads = []
    for backend in ("triton", "reference"):
        A = tensors[0].clone().requires_grad_()
        h, _ = pv_rnn(A, *tensors[1:], backend=backend)
        grads.append(torch.autograd.grad(h.square().sum(), A)[0])
    assert_close(*grads, 1e-5)
    none = [t[:, :, :0] if i < 2 else t for i, t in enumerate(tensors)]
    none[-1] = tensors[-1][:, :0]
    assert pv_rnn(*none, backend="triton")[0].shape == (4, 2, 0, 6)
    large = draw(1, 1, 1, 129, 1, gen, torch.float32, device)
    with raises(ValueError, match="129 units"):
        pv_rnn(*large, backend="triton")


@pytest.mark.triton
def test_triton_gradcheck(device, gen):
    if device.type != "cpu":
        pytest.skip("float64 runs in the interpreter only")
    tensors = draw(2, 1, 1, 1, 1, gen, device=device)
    run = lambda *t: pv_rnn(*t, observed=1, backend="triton")
    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)


@pytest.mark.parametrize(("arch", "D", "Z"), [(80, 16, 2), (90, 64, 8)])
def test_compiles_ahead_of_time(arch, D, Z):
    if triton is None:
        pytest.skip("pip install triton (Linux only)")
    import triton.language as tl

    def build(kernel, **more):
        constants = {
            "D": D, "Z": Z, **module._sizes(D, Z), "UNIT": True, "low": -4.0, "high": 2.0,
            "WIDE": tl.float32, **more,
        }  # fmt: skip
        integers = dict.fromkeys(("steps", "models", "batch", "tiles", "observed"), "i32")
        signature = {
            name: "*fp32" if name.endswith("_ptr") else integers.get(name, "constexpr")
            for name in kernel.arg_names
        }
        warps = 4 if D <= 32 else 8
        return compile_for(kernel, signature, constants, arch, num_warps=warps)

    built = [build(module._forward_kernel)]
    built += [build(module._backward_kernel, WEIGHTS=flag) for flag in (True, False)]
    for kernel in built:
        assert kernel.metadata.shared <= 96 * 1024
