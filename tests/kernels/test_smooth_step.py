import itertools

import pytest
import torch

from lib.kernels import smooth_step as module
from lib.kernels.dispatch import interpreting, triton
from lib.kernels.smooth_step import adjoint, convolve, reference, smooth_step
from tests.helpers import assert_close, raises
from tests.kernels.aot import compile_for

MODES = ("zeros", "circular")


def draw(b, cu, cf, h, w, gen, dtype=torch.float64, device="cpu"):
    shapes = [(b, cu, h, w), (b, cf, h, w), (cf, cu, 3, 3), (cu, cf, 3, 3)]
    return [torch.randn(s, generator=gen, dtype=torch.float64).to(device, dtype) for s in shapes]


def gradients(run, tensors, weights):
    inputs = [t.detach().requires_grad_() for t in tensors]
    out = run(*inputs)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


def test_reference_against_loops(gen):
    u, f, A, S = draw(2, 2, 3, 4, 5, gen)
    for mode in MODES:
        at = lambda t, y, x, m=mode: (
            t[..., y % 4, x % 5]
            if m == "circular" or (0 <= y < 4 and 0 <= x < 5)
            else torch.zeros_like(t[..., 0, 0])
        )
        conv = lambda t, k, at=at: torch.stack(
            [
                torch.stack(
                    [
                        sum(
                            at(t, y + i - 1, x + j - 1) @ k[:, :, i, j].T
                            for i in range(3)
                            for j in range(3)
                        )
                        for x in range(5)
                    ],
                    -1,
                )
                for y in range(4)
            ],
            -2,
        )
        assert_close(smooth_step(u, f, A, S, mode), u + conv(f - conv(u, A), S), 1e-12, mode)


@pytest.mark.parametrize("mode", MODES)
def test_adjoint_is_the_adjoint(mode, gen):
    x, y, weight, _ = draw(2, 3, 4, 5, 6, gen)
    left = (convolve(x, weight, mode) * y).sum()
    assert_close(left, (x * convolve(y, adjoint(weight), mode)).sum(), 1e-12)


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("size", [(4, 5), (1, 3), (2, 2)])
def test_the_operator_s_backward_formula(circular, size, gen):
    # The formulas that the kernels follow, in plain PyTorch, against autograd and finite steps.
    tensors = draw(2, 3, 2, *size, gen)
    weights = torch.randn(tensors[0].shape, generator=gen, dtype=torch.float64)
    run = lambda *t: module._smooth_step(*t, circular, True, "reference")[0]
    want = gradients(lambda *t: reference(*t, MODES[circular]), tensors, weights)
    for a, b in zip(gradients(run, tensors, weights), want, strict=True):
        assert_close(a, b, 1e-12)
    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in tensors], fast_mode=True)


def test_poisson_stencils_make_damped_jacobi(gen):
    # A = the five-point stencil, S = omega / 4: the lowest sine wave shrinks by 1 - w (1 - cos).
    n, omega = 15, 0.8
    A = torch.tensor([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], dtype=torch.float64)[None, None]
    S = torch.zeros_like(A)
    S[..., 1, 1] = omega / 4
    s = torch.sin(torch.pi * torch.arange(1, n + 1, dtype=torch.float64) / (n + 1))
    e = (s[:, None] * s)[None, None]
    rate = 1 - omega * (1 - torch.cos(torch.tensor(torch.pi / (n + 1), dtype=torch.float64)))
    assert_close(smooth_step(e, torch.zeros_like(e), A, S), rate * e, 1e-12)


def test_the_operator_contract(gen):
    tensors = [t.requires_grad_() for t in draw(2, 2, 3, 4, 4, gen, torch.float32)]
    for circular, store in itertools.product((False, True), (True, False)):
        given = tensors if store else [t.detach() for t in tensors]
        torch.library.opcheck(module._smooth_step, (*given, circular, store, "reference"))


def test_autocast_is_that_of_convolutions(gen):
    u, f, A, S = draw(2, 2, 3, 6, 5, gen, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = smooth_step(u, f, A, S)
        assert smooth_step(*(t.double() for t in (u, f, A, S))).dtype == torch.float64
    assert got.dtype == torch.bfloat16
    assert_close(got.float(), reference(u, f, A, S), 2e-2)


def test_errors():
    g = torch.Generator().manual_seed(0)
    u, f, A, S = draw(1, 2, 3, 4, 4, g)
    with raises(ValueError, match="padding_mode='wrap'"):
        smooth_step(u, f, A, S, "wrap")
    with raises(ValueError, match="u and f must differ in channels only"):
        smooth_step(u, f[..., 1:], A, S)
    with raises(ValueError, match=r"A: shape \(2, 3, 3, 3\); allowed is \(3, 2, 3, 3\)"):
        smooth_step(u, f, S, S)
    with raises(ValueError, match="A: 3 axes; allowed is 4"):
        smooth_step(u, f, A[0], S)
    with raises(ValueError, match=r"u: shape \(1, 2, 4, 0\); allowed are 1 or more points"):
        smooth_step(u[..., :0], f[..., :0], A, S)
    with raises(ValueError, match="2 or more with padding_mode='reflect'"):
        smooth_step(u[..., :1], f[..., :1], A, S, "reflect")
    with raises(TypeError, match="f: dtype torch.float32"):
        smooth_step(u, f.float(), A, S)
    with raises(TypeError, match="u: dtype int64"):
        smooth_step(u.long(), f, A, S)
    if module.triton is not None and not torch.cuda.is_available() and not interpreting():
        with raises(ValueError, match="needs CUDA tensors"):
            smooth_step(u, f, A, S, backend="triton")


# --------------------------------------------------------------------------- Triton


@pytest.fixture
def nan_empty(monkeypatch):
    """Memory that a kernel leaves unwritten shows as NaN."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)
        monkeypatch.setattr(
            module.torch, name, lambda *a, make=make, **k: make(*a, **k).fill_(float("nan"))
        )


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 3, 15), (1, 17, 4, 15, 2)]


@pytest.mark.triton
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_triton_equals_the_reference(shape, mode, device, gen, nan_empty):
    tensors = draw(*shape, gen, torch.float32, device)
    weights = torch.randn(tensors[0].shape, generator=gen).to(device)
    got = gradients(lambda *t: smooth_step(*t, mode, "triton"), tensors, weights)
    wide = [t.double() for t in tensors]
    want = gradients(lambda *t: reference(*t, mode), wide, weights.double())
    for name, a, b in zip("out u f A S".split(), got, want, strict=True):
        assert_close(a, b, TOLERANCE[torch.float32], f"{name} of {shape}")


@pytest.mark.triton
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_triton_dtypes_and_strides(dtype, device, gen):
    if dtype == torch.bfloat16 and interpreting():
        pytest.skip("the interpreter is NumPy, which has no bfloat16 products")
    u, f, A, S = draw(1, 4, 3, 6, 9, gen, dtype, device)
    layouts = [
        (u, f, A, S),
        (
            u.to(memory_format=torch.channels_last),
            f.transpose(2, 3).contiguous().transpose(2, 3),
            A.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1),
            S.flip(0).flip(0),
        ),
    ]
    weights = torch.randn(u.shape, generator=gen).to(device, dtype)
    wide = gradients(lambda *t: reference(*t), [t.double() for t in (u, f, A, S)], weights.double())
    for tensors in layouts:
        got = gradients(lambda *t: smooth_step(*t, backend="triton"), tensors, weights)
        for a, b in zip(got, wide, strict=True):
            assert a.dtype == dtype
            assert_close(a, b, TOLERANCE[dtype])


@pytest.mark.triton
def test_triton_gradient_along_a_direction(device, gen):
    # gradcheck's idea in two forward passes; the step is linear in each argument, so a central
    # difference along all four at once has an error of third order.
    tensors = draw(1, 2, 3, 3, 4, gen, device=device)
    moves = draw(1, 2, 3, 3, 4, gen, device=device)
    weights = torch.randn(tensors[0].shape, generator=gen, dtype=torch.float64).to(device)
    run = lambda *t: smooth_step(*t, "circular", "triton")
    grads = gradients(run, tensors, weights)[1:]
    at = lambda e: (run(*(t + e * m for t, m in zip(tensors, moves, strict=True))) * weights).sum()
    slope = sum((g * m).sum() for g, m in zip(grads, moves, strict=True))
    with torch.no_grad():
        assert_close(slope, (at(1e-4) - at(-1e-4)) / 2e-4, 1e-6)


@pytest.mark.triton
def test_triton_inference_empty_and_refusals(device, gen):
    u, f, A, S = draw(2, 2, 3, 5, 5, gen, torch.float32, device)
    # In float64, because cuDNN may take TF32 for convolutions in float32.
    exact = reference(*(t.double() for t in (u, f, A, S)))
    assert_close(smooth_step(u, f, A, S, backend="triton"), exact, 1e-6)
    # Fields alone may need a gradient: then no residual is kept.
    u.requires_grad_()
    (a,) = torch.autograd.grad(smooth_step(u, f, A, S, backend="triton").sum(), u)
    wide = [t.detach().double().requires_grad_() for t in (u, f, A, S)]
    (b,) = torch.autograd.grad(reference(*wide).sum(), wide[0])
    assert_close(a, b, 1e-6)
    none = torch.empty(0, 2, 5, 5, device=device, requires_grad=True)
    A.requires_grad_()
    out = smooth_step(none, f[:0], A, S, backend="triton")
    assert out.shape == (0, 2, 5, 5)
    assert torch.autograd.grad(out.sum(), A)[0].abs().sum() == 0
    with raises(ValueError, match="padding_mode='reflect'"):
        smooth_step(u, f, A, S, "reflect", "triton")
    wide = draw(1, 40, 40, 3, 3, gen, torch.float32, device)
    with raises(ValueError, match="with 40 and 40 channels"):
        smooth_step(*wide, backend="triton")


@pytest.mark.parametrize(
    ("arch", "dtype", "channels"), [(80, "fp32", 24), (90, "fp16", 24), (90, "fp64", 8)]
)
def test_compiles_ahead_of_time(arch, dtype, channels):
    if triton is None:
        pytest.skip("pip install triton (Linux only)")
    import triton.language as tl

    def build(kernel, kinds, constants, warps):
        kinds = kinds | dict.fromkeys(constants, "constexpr")
        signature = {name: kinds[name] for name in kernel.arg_names}
        built = compile_for(kernel, signature, constants, arch, num_warps=warps)
        assert "ld.local" not in built.asm["ptx"], "registers spill"
        assert built.metadata.shared <= 160 * 1024

    wide = tl.float64 if dtype == "fp64" else tl.float32
    block = module._block(channels)
    numbers = dict.fromkeys("height width across tiles chunk".split(), "i32") | {"total": "i64"}
    fields = dict.fromkeys("u_ptr f_ptr a_ptr s_ptr out_ptr r_ptr g_ptr x_ptr".split(), f"*{dtype}")
    fields |= {"partial_ptr": "*fp64" if dtype == "fp64" else "*fp32"} | numbers
    step = {"CU": channels, "CF": channels, "BU": block, "BF": block, "CIRCULAR": True}
    step |= {"HAS_F": True, "STORE": True, "WIDE": wide}
    build(module._step_kernel, fields, step, 8 if channels > 16 else 4)
    stencil = {"CO": channels, "CI": channels, "BO": block, "BI": block, "CIRCULAR": True}
    build(module._stencil_kernel, fields, stencil | {"WIDE": wide, "PLACES": 64}, 4)
