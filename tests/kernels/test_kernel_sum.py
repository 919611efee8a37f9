import pytest
import torch

import lib.kernels.kernel_sum as op
from lib.kernels.dispatch import interpreting
from lib.kernels.kernel_sum import kernel_sum, log_koenigs
from tests.helpers import assert_close, raises
from tests.kernels.aot import compile_for

CUBIC = torch.tensor([0.0, 0.5, 0.0, 0.5], dtype=torch.float64)  # order 2
FOURTH = torch.tensor([0.0, 0.25, 0.5, 0.25], dtype=torch.float64)  # order 4, with an even part


def draw(*shape, seed=0, dtype=torch.float64, device="cpu"):
    gen = torch.Generator().manual_seed(seed)
    complex_ = dtype.is_complex
    z = torch.randn(*shape, generator=gen, dtype=torch.complex128 if complex_ else torch.float64)
    return z.to(dtype).to(device)


def case(name, n, m, d, c, dtype=torch.float64, device="cpu"):
    """Inputs and options of one variant, of moderate size."""
    x = draw(n, d, seed=1).mul(0.6).to(device, dtype)
    keys = draw(m, d, seed=2).mul(0.6).to(device, dtype)
    values = draw(m, c, seed=3).to(device, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bias = 0.3 * draw(m, seed=4, dtype=wide, device=device)
    if name in ("relu", "cos"):
        return x, keys, values, {"f": name, "bias": bias}
    if name == "power":
        return x, keys, values, {"f": "power", "power": 3}
    if name == "exp":
        return x, keys, values, {"f": "exp", "bias": bias, "rate": 1 + bias, "norm": True}
    flavor = torch.complex128 if wide == torch.float64 else torch.complex64
    more = {
        "f": "exp",
        "norm": True,
        "rate": 0.5 * draw(m, seed=5, dtype=flavor, device=device),
        "bias": 0.3 * draw(m, seed=6, dtype=flavor, device=device),
    }
    return x, keys, draw(m, c, seed=7, dtype=flavor, device=device), more


VARIANTS = ["relu", "cos", "power", "exp", "complex"]


def leaves(x, keys, values, more):
    tensors = {"x": x, "keys": keys, "values": values}
    tensors |= {k: t for k, t in more.items() if isinstance(t, torch.Tensor)}
    tensors = {k: t.detach().clone().requires_grad_() for k, t in tensors.items()}
    rest = {k: t for k, t in more.items() if k not in tensors}
    return tensors, rest


def double(t):
    return t.to(torch.complex128 if t.is_complex() else torch.float64)


def grads(x, keys, values, more, cotangent, backend):
    tensors, rest = leaves(x, keys, values, more)
    y = kernel_sum(**tensors, **rest, backend=backend)
    found = torch.autograd.grad(y, list(tensors.values()), cotangent.to(y))
    return dict(zip(tensors, found))


def points(n, d, seed, device="cpu", dtype=torch.float64):
    z = draw(n, d, seed=seed)
    return (z / z.norm(dim=1, keepdim=True)).to(device, dtype)


# The reference, on any machine.


def test_reference_is_the_definition():
    x, k, v = draw(4, 3, seed=1), draw(5, 3, seed=2), draw(5, 2, seed=3)
    b, r = draw(5, seed=4), draw(5, seed=5)
    t = x @ k.T
    assert_close(kernel_sum(x, k, v), (t.clamp(min=0)) @ v, 1e-14)
    assert_close(kernel_sum(x, k, v, "cos", bias=b), (t + b).cos() @ v, 1e-14)
    assert_close(kernel_sum(x, k, v, "power", power=3), t.pow(3) @ v, 1e-14)
    square = (x * x).sum(1, keepdim=True)
    exact = torch.exp(r * t + b - r * r * square / 2) @ v
    assert_close(kernel_sum(x, k, v, "exp", rate=r, bias=b, norm=True), exact, 1e-14)
    z, rate, bias = (draw(*s, dtype=torch.complex128, seed=6) for s in ((5, 2), (5,), (5,)))
    exact = (torch.exp(rate * t + bias - rate * rate * square / 2) @ z).real
    assert_close(kernel_sum(x, k, z, "exp", rate=rate, bias=bias, norm=True), exact, 1e-14)
    exact = torch.cdist(x, k).pow(-3)
    got = kernel_sum(x, k, v, "singular", order=3.0)
    assert_close(got, exact / exact.amax(1, keepdim=True) @ v, 1e-12)


def test_random_features_of_an_exponential():
    """With norm=True the features' mean is exp(r x.w), also for an imaginary exponent."""
    x, w = 0.5 * draw(3, 4, seed=1), 0.5 * draw(4, seed=2)
    keys = draw(400_000, 4, seed=3)
    for rate, exact in ((1.0, torch.exp(x @ w)), (1j**0.5, torch.cos(x @ w))):
        r = torch.full((len(keys),), rate, dtype=torch.complex128)
        psi = torch.exp(r * (keys @ w) - r * r * (w @ w) / 2)[:, None] / len(keys)
        assert_close(kernel_sum(x, keys, psi, "exp", rate=r, norm=True)[:, 0], exact, 0.01)


@pytest.mark.parametrize("name", VARIANTS)
def test_reference_gradcheck(name):
    tensors, rest = leaves(*case(name, 3, 4, 2, 2))
    f = lambda *t: kernel_sum(**dict(zip(tensors, t)), **rest, backend="reference")
    assert torch.autograd.gradcheck(f, tuple(tensors.values()))


@pytest.mark.parametrize("dual", [CUBIC, FOURTH])
def test_koenigs_equation(dual):
    """psi(g(s)) = A'^2 psi(s), and the order at coincidence."""
    s = torch.linspace(-0.999, 0.999, 41, dtype=torch.float64)
    g = sum(c * s**k for k, c in enumerate(dual))
    (log, sign), (log_g, sign_g) = log_koenigs(1 - s, dual), log_koenigs(1 - g, dual)
    assert_close(sign_g * log_g.exp(), dual[1] * sign * log.exp(), 1e-9)
    gap = torch.tensor([1e-20, 1e-10], dtype=torch.float64)
    log, _ = log_koenigs(gap, dual)
    slope = (log[1] - log[0]) / (gap[1] / gap[0]).log()
    order = -4 * dual[1].sqrt().log() / (dual * torch.arange(4)).sum().log()
    assert_close(slope, -order / 2, 1e-7)  # a ripple, periodic in the logarithm, remains


def test_singular_coincident_empty_and_float32():
    x, keys, v = points(20, 3, 1), points(50, 3, 2), draw(50, 2, seed=3)
    for kind in ({"order": 2.0}, {"dual": CUBIC}, {"dual": FOURTH}):
        exact = kernel_sum(x, keys, v, "singular", **kind)
        narrow = [t.float() for t in (x, keys, v)]
        assert_close(kernel_sum(*narrow, "singular", **kind), exact, 1e-5)
        assert_close(kernel_sum(keys[:4], keys, v, "singular", **kind), v[:4], 1e-8)
        assert kernel_sum(x[:0], keys, v, "singular", **kind).shape == (0, 2)
        assert (kernel_sum(x, keys[:0], v[:0], "singular", **kind) == 0).all()


@pytest.mark.parametrize("order", [1.0, 2.0, 2.5, 3.0, 4.0])
def test_hilbert_orders_in_more_than_one_block(order):
    x, keys, v = points(70, 4, 1), points(1100, 4, 2), draw(1100, 2, seed=3)
    weight = torch.cdist(x, keys, compute_mode="donot_use_mm_for_euclid_dist") ** -order
    exact = weight / weight.amax(1, keepdim=True) @ v
    assert_close(kernel_sum(x, keys, v, "singular", order=order), exact, 1e-13)


@pytest.mark.parametrize("kind", [{"order": 2.0}, {"order": 3.0}, {"dual": CUBIC}])
def test_nan_stays_in_its_row(kind):
    x, keys, v = points(6, 3, 1), points(9, 3, 2), draw(9, 2, seed=3)
    exact = kernel_sum(x, keys, v, "singular", **kind)
    x[2, 1] = float("nan")
    got = kernel_sum(x, keys, v, "singular", **kind)
    assert got[2].isnan().all()
    assert_close(got[[0, 1, 3, 4, 5]], exact[[0, 1, 3, 4, 5]], 1e-12)


def test_errors():
    x, k, v = draw(3, 2), draw(4, 2), draw(4, 1)
    for more, message in (
        ({"f": "tanh"}, "f='tanh'.*relu, cos, exp"),
        ({"power": 0, "f": "power"}, "power=0.*from 1"),
        ({"rate": v[:, 0]}, "rate and norm belong to f='exp', not to f='relu'"),
        ({"order": 2.0}, "belong to f='singular', not to f='relu'"),
        ({"f": "singular"}, "exactly one of order and dual"),
        ({"f": "singular", "order": -1.0}, "order=-1.0.*positive"),
        ({"f": "singular", "order": float("inf")}, "order=inf.*finite"),
        ({"power": 2.5, "f": "power"}, "power=2.5.*whole"),
        ({"f": "singular", "order": 1.0, "bias": v[:, 0]}, "bias.*distances"),
        ({"f": "singular", "dual": torch.tensor([0.0, 1.0, 0.0])}, "dual=.*0 < a_1\\^2 < 1"),
        ({"bias": v}, r"bias must be \(m,\) with m=4"),
        ({"backend": "cuda"}, "backend='cuda'"),
    ):
        with raises(ValueError, match=message):
            kernel_sum(x, k, v, **more)
    with raises(ValueError, match=r"one d > 0, got \(3, 2\) and \(4, 1\)"):
        kernel_sum(x, k[:, :1], v)
    with raises(ValueError, match=r"values must be \(m, c\) with m=4"):
        kernel_sum(x, k, v[:2])
    with raises(ValueError, match="no gradient: detach"):
        kernel_sum(x, k, v.requires_grad_(), "singular", order=2.0)
    with raises(TypeError, match="keys: dtype"):
        kernel_sum(x, k.float(), v)
    with raises(TypeError, match="bias: complex.*f='exp'"):
        kernel_sum(x, k, v, bias=v[:, 0] + 1j)


# Triton: on a GPU, or under the interpreter.


@pytest.mark.triton
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(37, 21, 19, 5), (5, 150, 3, 2)])  # one tile of keys, and more
def test_forward(name, dtype, shape, device):
    if dtype == torch.bfloat16 and interpreting():
        pytest.skip("the interpreter computes with NumPy, which has no bfloat16")
    x, keys, values, more = case(name, *shape, dtype, device)
    wide = {k: double(t) if isinstance(t, torch.Tensor) else t for k, t in more.items()}
    rounded = values.to(dtype) if not values.is_complex() else values
    exact = kernel_sum(double(x), double(keys), double(rounded), **wide, backend="reference")
    got = kernel_sum(x, keys, values, **more, backend="triton")
    assert got.dtype == dtype
    tol = {torch.float64: 1e-13, torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
    assert_close(got, exact, tol[dtype])


@pytest.mark.triton
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("shape", [(35, 18, 7, 5), (6, 150, 5, 2)])
def test_backward(name, shape, device):
    for dtype, tol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        x, keys, values, more = case(name, *shape, dtype, device)
        wide = {k: double(t) if isinstance(t, torch.Tensor) else t for k, t in more.items()}
        cotangent = draw(shape[0], shape[3], seed=9, device=device)
        exact = grads(double(x), double(keys), double(values), wide, cotangent, "reference")
        got = grads(x, keys, values, more, cotangent, "triton")
        for which in exact:
            g, e = (
                torch.view_as_real(t) if t.is_complex() else t for t in (got[which], exact[which])
            )
            assert_close(g, e, tol, f"{name} {which}")


@pytest.mark.triton
@pytest.mark.parametrize("name", ["relu", "cos", "complex"])
def test_gradcheck(name, device):
    tensors, rest = leaves(*case(name, 2, 3, 2, 1, device=device))
    f = lambda *t: kernel_sum(**dict(zip(tensors, t)), **rest, backend="triton")
    assert torch.autograd.gradcheck(f, tuple(tensors.values()))


@pytest.mark.triton
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["hilbert", "cubic", "fourth"])
def test_singular(kind, dtype, device):
    more = {"hilbert": {"order": 3.0}, "cubic": {"dual": CUBIC}, "fourth": {"dual": FOURTH}}[kind]
    x, keys = points(18, 3, 1, device), points(35, 3, 2, device)
    keys[0], keys[1] = x[0], x[1] + 1e-5 * (keys[1] - x[1])
    x, keys, v = x.to(dtype), keys.to(dtype), draw(35, 3, seed=3, dtype=dtype, device=device)
    exact = op.singular_reference(double(x), double(keys), double(v), **more)
    exact[0] = v[0]  # a coincident key alone decides
    got = kernel_sum(x, keys, v, "singular", **more, backend="triton")
    assert_close(got, exact, 1e-8 if dtype == torch.float64 else 1e-4)


@pytest.mark.triton
@pytest.mark.parametrize("kind", [{"order": 2.0}, {"dual": CUBIC}])
def test_singular_nan_stays_in_its_row(kind, device):
    """A maximum drops NaN, so a point that is not a number would vote as if it coincided."""
    x, keys, v = points(5, 3, 1, device), points(40, 3, 2, device), draw(40, 2, device=device)
    x[1, 2] = float("nan")
    exact = kernel_sum(x, keys, v, "singular", **kind, backend="reference")
    got = kernel_sum(x, keys, v, "singular", **kind, backend="triton")
    assert got[1].isnan().all()
    assert_close(got[[0, 2, 3, 4]], exact[[0, 2, 3, 4]], 1e-10)


@pytest.mark.triton
def test_strides_and_empty(device):
    wide, tall = draw(20, 30, dtype=torch.float32), draw(30, 12, seed=1, dtype=torch.float32)
    x, keys = wide.to(device)[::2, 1::3][:, :4], tall.to(device).T.contiguous().T[:, :4]
    values = draw(2, 30, dtype=torch.float32, device=device).T
    assert not (x.is_contiguous() or keys.is_contiguous() or values.is_contiguous())
    cotangent = draw(1, 10, dtype=torch.float32, device=device).T.expand(10, 2)
    exact = grads(x, keys, values, {"f": "relu"}, cotangent, "reference")
    got = grads(x, keys, values, {"f": "relu"}, cotangent, "triton")
    for which in exact:
        assert_close(got[which], exact[which], 1e-5, which)
    for more in ({"f": "cos"}, {"f": "singular", "order": 2.0}):
        exact = kernel_sum(x, keys, values, **more, backend="reference")
        assert_close(kernel_sum(x, keys, values, **more, backend="triton"), exact, 1e-5)
        empty = kernel_sum(x, keys[:0], values[:0], **more, backend="triton")
        assert empty.shape == (10, 2) and (empty == 0).all()
        assert kernel_sum(x[:0], keys, values, **more, backend="triton").shape == (0, 2)
    made = grads(x[:0], keys, values, {"f": "cos"}, cotangent[:0], "triton")
    assert made["x"].shape == (0, 4) and (made["keys"] == 0).all()


@pytest.mark.triton
def test_every_word_is_written(device, monkeypatch):
    """Fresh memory is filled with NaN, so a word that is not written shows."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *a, **k: empty(self, *a, **k).fill_(float("nan"))
    )
    for name in ("relu", "complex"):
        x, keys, values, more = case(name, 33, 47, 5, 3, torch.float32, device)
        assert torch.isfinite(kernel_sum(x, keys, values, **more, backend="triton")).all()
        for grad in grads(x, keys, values, more, torch.ones(33, 3), "triton").values():
            assert torch.isfinite(torch.view_as_real(grad) if grad.is_complex() else grad).all()
    out = kernel_sum(x, keys, values.real, "singular", order=2.0, backend="triton")
    assert torch.isfinite(out).all()


@pytest.mark.triton
def test_operator_registration(device):
    """Fake tensors, autograd registration and schema, as torch.compile relies on them."""
    x, keys, values, _ = case("relu", 5, 4, 3, 2, device=device)
    table = op._table(x, keys, None, None, "relu")
    tensors = [t.requires_grad_() for t in (x, keys, values, values[:0].detach(), table)]
    torch.library.opcheck(op._forward, (*tensors, "relu", False, False, 1))
    plain = [t.detach() for t in (x, keys, values)]
    coefficients = values.new_tensor([[2.0, -1.5, 0.5], [0.5, 0.0, 0.5]])
    torch.library.opcheck(op._singular_sum, (*plain, coefficients, 0.0, 1e-9, 100))


# Ahead of time, without a GPU.

DENSE = ["_forward_kernel", "_dx_kernel", "_dkeys_kernel", "_dvalues_kernel"]


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(
    ("kernel", "dtype", "name"),
    [
        *((kernel, "fp32", "complex") for kernel in DENSE),
        *((kernel, "bf16", "relu") for kernel in DENSE),
        ("_dvalues_kernel", "fp32", "power"),
        ("_forward_kernel", "fp64", "cos"),
        ("_dkeys_kernel", "fp64", "exp"),
        ("_singular_kernel", "fp32", "cubic"),
        ("_singular_kernel", "fp64", "cubic"),
        ("_singular_kernel", "fp32", "hilbert"),
    ],
)
def test_compiles(kernel, dtype, name, arch):
    tl = pytest.importorskip("triton.language")
    wide = "fp64" if dtype == "fp64" else "fp32"
    jit = getattr(op, kernel)
    size = 64 if dtype == "bf16" else 32
    constexprs = {
        "F": "exp" if name == "complex" else name,
        "NORM": name in ("complex", "exp"),
        "PHASE": name == "complex",
        "IMAG": name == "complex",
        "POWER": 3 if name == "power" else 1,
        "HOLD": dtype == "bf16",
        "DEGREE": 3 if name == "cubic" else 0,
        "LEAST": op._LEAST,
        "ACC": tl.float64 if wide == "fp64" else tl.float32,
        "BM": size,
        "BN": 128 if dtype == "bf16" and "HOLD" in jit.arg_names else size,
        "BC": {"bf16": 128, "fp32": 64, "fp64": 32}[dtype],
        "BK": 16 if wide == "fp64" else 32,
    }
    if kernel == "_singular_kernel":
        size = 16 if dtype == "fp64" else 32
        constexprs |= {"BM": size, "BN": size, "BC": 16}
    constexprs = {k: v for k, v in constexprs.items() if k in jit.arg_names}
    given = {"x", "keys", "real", "imag", "values", "g", "dx", "out"}
    sums = {"table", "coefficients", "scalars", "dkeys", "dtable", "dreal", "dimag"}
    kind = lambda k: f"*{dtype}" if k in given else f"*{wide}" if k in sums else "i32"
    signature = {k: "constexpr" if k in constexprs else kind(k) for k in jit.arg_names}
    warps = 8 if dtype == "bf16" else 4
    compiled = compile_for(jit, signature, constexprs, arch, num_warps=warps)
    if dtype == "bf16":
        assert "mma" in compiled.asm["ptx"], "half inputs must reach the matrix unit"
    assert "tf32" not in compiled.asm["ptx"]


@pytest.mark.triton
def test_members_under_vmap_are_members_alone(device, gen):
    """An ensemble of layers: members have their own keys and values and share the inputs."""
    x = torch.randn(9, 4, generator=gen).to(device)
    keys, values = (torch.randn(3, 7, k, generator=gen).to(device) for k in (4, 2))

    def slopes(call, k, v):
        leaves = [t.clone().requires_grad_() for t in (k, v)]
        return torch.autograd.grad(call(*leaves).square().sum(), leaves)

    one = lambda k, v: kernel_sum(x, k, v, "relu", backend="triton")
    together = slopes(torch.func.vmap(one), keys, values)
    for i in range(3):
        for found, alone in zip(together, slopes(one, keys[i], values[i])):
            assert_close(found[i], alone, 1e-6)
