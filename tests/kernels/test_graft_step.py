import itertools

import pytest
import torch

from lib.kernels import graft_step as module
from lib.kernels.dispatch import triton
from lib.kernels.graft_step import graft_step, magnitude_threshold, relaxed_graft
from tests.helpers import assert_close, raises
from tests.kernels.aot import compile_for

HALF = {torch.float16: 2e-3, torch.bfloat16: 2e-2}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, **HALF}


def draw(shape, gen, dtype=torch.float64, device="cpu"):
    """grad, pre, delta, score, base."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    numbers = [torch.randn(shape, generator=gen, dtype=torch.float64) for _ in range(4)]
    base = torch.rand(shape, generator=gen) < 0.3
    types = (dtype, dtype, dtype, wide)
    return [t.to(device, d) for t, d in zip(numbers, types)] + [base.to(device)]


def test_the_formula_by_hand():
    # sigmoid(log 3) = 3/4: one mask entry leaves 0, the other leaves 1.
    score = torch.full((2,), 3.0, dtype=torch.float64).log() + 2
    pre, delta = torch.tensor([[1.0, 1.0], [4.0, -8.0]], dtype=torch.float64)
    base = torch.tensor([False, True])
    theta = relaxed_graft(pre, delta, score, base, bias=2.0)
    assert_close(theta, torch.tensor([1 + 3.0, 1 - 2.0]), 1e-12)
    moved, _ = graft_step(torch.ones_like(pre), pre, delta, score, base, rate=1.0, bias=2.0)
    # p (1 - p) = 3/16; the sign turns where base is 1.
    assert_close(moved - score, torch.tensor([-4.0, -8.0]) * 3 / 16, 1e-12)


def test_step_is_descent_on_the_relaxed_loss(gen):
    grad, pre, delta, score, base = draw((7, 5), gen)
    leaf = score.clone().requires_grad_()
    (relaxed_graft(pre, delta, leaf, base, 0.7) * grad).sum().backward()
    new, theta = graft_step(grad, pre, delta, score, base, rate=0.9, bias=0.7)
    assert_close(new, score - 0.9 * leaf.grad, 1e-12)
    assert_close(theta, relaxed_graft(pre, delta, new, base, 0.7), 1e-15)


def test_ends_of_the_mask(gen):
    _, pre, delta, score, base = draw((50,), gen)
    far = torch.full_like(score, -800.0)
    assert torch.equal(relaxed_graft(pre, delta, far, base), torch.where(base, pre + delta, pre))
    assert torch.equal(relaxed_graft(pre, delta, -far, base), torch.where(base, pre, pre + delta))


def test_reference_gradcheck(gen):
    _, pre, delta, score, base = draw((6,), gen)
    inputs = [t.requires_grad_() for t in (pre, delta, score)]
    run = lambda a, b, c: relaxed_graft(a, b, c, base, 0.4)
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes(dtype, gen):
    grad, pre, delta, score, base = draw((40,), gen, dtype)
    new, theta = graft_step(grad, pre, delta, score, base, rate=0.5)
    exact = [t if t.dtype == torch.bool else t.double() for t in (grad, pre, delta, score, base)]
    want = graft_step(*exact, rate=0.5)
    assert (new.dtype, theta.dtype) == (score.dtype, dtype)
    assert_close(new, want[0], 1e-6)
    assert_close(theta, want[1], TOLERANCE[dtype])


def test_threshold_counts(gen):
    x = torch.randn(501, generator=gen)
    for k in (1, 7, 250, 501):
        assert int((x.abs() >= magnitude_threshold(x, k)).sum()) == k
    assert magnitude_threshold(torch.tensor([1.0, -3.0, 3.0, 2.0]), 2) == 3.0


def test_errors():
    t = torch.zeros(3)
    b = torch.zeros(3, dtype=torch.bool)
    with raises(ValueError, match=r"delta: shape \(2,\); allowed is that of pre, \(3,\)"):
        relaxed_graft(t, t[:2], t, b)
    with raises(TypeError, match="delta: dtype torch.float16"):
        relaxed_graft(t, t.half(), t, b)
    with raises(TypeError, match="score: dtype torch.float32 does not go"):
        relaxed_graft(t.double(), t.double(), t, b)
    with raises(TypeError, match="score: dtype float16"):
        relaxed_graft(t, t, t.half(), b)
    with raises(TypeError, match="base: dtype float32"):
        relaxed_graft(t, t, t, t)
    with raises(ValueError, match="bias=nan"):
        relaxed_graft(t, t, t, b, bias=float("nan"))
    with raises(ValueError, match="rate=inf"):
        graft_step(t, t, t, t, b, rate=float("inf"))
    with raises(ValueError, match="k=4: allowed is 1 to 3"):
        magnitude_threshold(t, 4)
    with raises(ValueError, match="x: an entry is NaN"):
        magnitude_threshold(t / t, 1)
    with raises(ValueError, match="backend='tritom'"):
        relaxed_graft(t, t, t, b, backend="tritom")


# --------------------------------------------------------------------------- Triton


@pytest.fixture
def nan_empty(monkeypatch):
    """Memory that a kernel leaves unwritten shows as NaN."""
    empty_like = torch.empty_like
    monkeypatch.setattr(
        module.torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(float("nan"))
    )


@pytest.mark.triton
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1,), (3, 341), (1024,), (5, 5, 83), (0,), (2, 0)])
def test_triton_step_equals_the_reference(dtype, shape, device, gen, nan_empty):
    tensors = draw(shape, gen, dtype, device)
    got = graft_step(*tensors, rate=0.8, bias=0.3, backend="triton")
    want = graft_step(*tensors, rate=0.8, bias=0.3, backend="reference")
    assert_close(got[0], want[0], 1e-6 if dtype in HALF else TOLERANCE[dtype])
    assert_close(got[1], want[1], TOLERANCE[dtype])


@pytest.mark.triton
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_triton_forward_and_every_gradient(dtype, device, gen, nan_empty):
    weights, *rest = draw((37, 31), gen, dtype, device)
    rest = [t.T for t in rest]  # other strides
    for wanted in ("pre", "delta", "score", "pre delta score", "delta score"):
        results = []
        for backend in ("triton", "reference"):
            named = dict(zip(("pre", "delta", "score", "base"), rest))
            leaves = []
            for name in wanted.split():
                named[name] = named[name].detach().clone().requires_grad_()
                leaves.append(named[name])
            theta = relaxed_graft(**named, bias=0.2, backend=backend)
            grads = torch.autograd.grad((theta * weights.T).sum(), leaves)
            results.append((theta.detach(), *grads))
        for a, b in zip(*results, strict=True):
            assert a.dtype == b.dtype
            assert_close(a, b, TOLERANCE[dtype])


@pytest.mark.triton
def test_triton_gradcheck_and_operator(device, gen):
    _, pre, delta, score, base = draw((5,), gen, device=device)
    inputs = [t.requires_grad_() for t in (pre, delta, score)]
    run = lambda a, b, c: relaxed_graft(a, b, c, base, 0.4, backend="triton")
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    torch.library.opcheck(module._relaxed_graft, (*inputs, base, 0.4))
    grad = torch.ones_like(pre)
    plain = [t.detach() for t in inputs]
    torch.library.opcheck(module._graft_step, (grad, *plain, base, 0.1, 0.4))
    for of in itertools.product((True, False), repeat=2):
        args = (grad, *plain[1:], base, 0.4, *of)
        torch.library.opcheck(module._relaxed_graft_backward, args)


@pytest.mark.triton
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is numpy
def test_triton_far_scores_and_nan(device):
    score = torch.tensor([-1e4, 1e4, -90.0, 90.0, float("nan"), 0.0], device=device)
    ones = torch.ones_like(score)
    for start in (True, False):
        base = torch.full_like(score, start, dtype=torch.bool)
        got, want = (
            torch.stack(graft_step(ones, ones, ones, score, base, rate=2.0, backend=backend))
            for backend in ("triton", "reference")
        )
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_triton_threshold(dtype, device, gen):
    x = torch.randn(2500, generator=gen).to(device, dtype)
    x[:30] = x[30]  # equal magnitudes
    x[40:50] = 0
    for k in (1, 2, 31, 1200, 2500):
        assert magnitude_threshold(x, k, "triton") == magnitude_threshold(x, k, "reference")
    x[7] = float("inf")
    assert magnitude_threshold(x, 1, "triton") == float("inf")
    x[8] = float("nan")
    with raises(ValueError, match="x: an entry is NaN"):
        magnitude_threshold(x, 5, "triton")


KINDS = {"fp16": "*fp16", "bf16": "*bf16", "fp32": "*fp32", "fp64": "*fp64"}


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", KINDS)
def test_compiles_ahead_of_time(arch, dtype):
    if triton is None:
        pytest.skip("pip install triton (Linux only)")
    double = dtype == "fp64"
    pointers = dict.fromkeys("grad pre delta theta grad_delta".split(), KINDS[dtype])
    wide = dict.fromkeys("score new_score grad_score".split(), "*fp64" if double else "*fp32")
    types = {**pointers, **wide, "base": "*u8", "bias": "fp64", "rate": "fp64", "n": "i64"}
    constants = {"BLOCK": 1024, "DOUBLE": double, "DELTA": True, "SCORE": True}

    def build(kernel):
        used = {k: v for k, v in constants.items() if k in kernel.arg_names}
        signature = {k: "constexpr" if k in used else types[k] for k in kernel.arg_names}
        return compile_for(kernel, signature=signature, constexprs=used, arch=arch)

    for kernel in (module._forward_kernel, module._backward_kernel, module._step_kernel):
        assert "ld.local" not in build(kernel).asm["ptx"], "registers spill"
    if not double:
        compile_for(
            module._count_kernel,
            signature={"x": KINDS[dtype], "counts": "*i32", "prefix": "i64", "n": "i64",
                       "SHIFT": "constexpr", "BLOCK": "constexpr"},
            constexprs={"SHIFT": 16, "BLOCK": 1024},
            arch=arch,
        )  # fmt: skip
