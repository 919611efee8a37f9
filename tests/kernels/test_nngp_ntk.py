import pytest
import torch

import lib.kernels.nngp_ntk as op
from lib.kernels.dispatch import interpreting
from lib.kernels.nngp_ntk import nngp_ntk, nngp_ntk_reference
from tests.helpers import assert_close, raises
from tests.kernels.aot import compile_for

ACTS = ["relu", "erf"]


def inputs(p, q, d, dtype=torch.float64, device="cpu", seed=0):
    gen = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, d, generator=gen, dtype=torch.float64).to(dtype).to(device) for n in (p, q)
    ]


def grads(x1, x2, w, **settings):
    leaves = [x.detach().clone().requires_grad_() for x in (x1, x2)]
    outputs = nngp_ntk(*leaves, **settings)
    loss = sum((k * v.to(k)).sum() for k, v in zip(outputs, w) if k is not None)
    return torch.autograd.grad(loss, leaves)


# The reference, on any machine.


@pytest.mark.parametrize("act", ACTS)
def test_reference_gradcheck(act):
    x1, x2 = (x.requires_grad_() for x in inputs(4, 3, 5))
    f = lambda a, b: nngp_ntk(a, b, 3, act, 0.2, 1.5, backend="reference")
    assert torch.autograd.gradcheck(f, (x1, x2))


@pytest.mark.parametrize("act", ACTS)
def test_reference_gradient_is_finite_at_coincident_inputs(act):
    """Moving a pair together is smooth, although each of the two alone meets a cusp."""
    x, _ = inputs(5, 1, 3)
    x = torch.cat([x, x[:1]]).requires_grad_()
    theta = nngp_ntk(x, x, 3, act, 0.1)[1]
    total = (theta * torch.arange(36.0).view(6, 6)).sum()
    grad = torch.autograd.grad(total, x)[0]
    assert torch.isfinite(grad).all()
    diagonal = torch.autograd.grad(nngp_ntk(x, x, 3, act, 0.1)[1].diagonal().sum(), x)[0]
    step = 1e-6
    ahead, behind = (nngp_ntk(s * x, s * x, 3, act, 0.1)[1] for s in (1 + step, 1 - step))
    along = ((ahead - behind).diagonal().sum() / (2 * step)).detach()
    assert_close((diagonal * x).sum().detach(), along, 1e-6)


@pytest.mark.parametrize("act", ACTS)
def test_reference_float32_near_and_at_coincidence(act):
    """The angle of equal inputs is a square root of rounding: 1e-3 there, 1e-6 apart."""
    x, y = inputs(20, 20, 40)
    exact = nngp_ntk(x, y, 3, act)[1]
    assert_close(nngp_ntk(x.float(), y.float(), 3, act)[1], exact, 1e-6)
    exact = nngp_ntk(x, x, 3, act)[1]
    assert_close(nngp_ntk(x.float(), x.float(), 3, act)[1], exact, 1e-3)


def test_reference_float32_keeps_its_range():
    """The product of two variances leaves float32 long before a kernel does."""
    x, y = inputs(6, 5, 4)
    for scale, depth, gain in ((1e-12, 3, 2.0), (1e11, 3, 2.0), (1.0, 100, 1.0), (1e-6, 40, 1.0)):
        exact = nngp_ntk(scale * x, scale * y, depth, "relu", 0.0, gain)
        got = nngp_ntk((scale * x).float(), (scale * y).float(), depth, "relu", 0.0, gain)
        for g, e in zip(got, exact):
            assert_close(g.double() / e.abs().max(), e / e.abs().max(), 1e-4, f"{scale} {depth}")


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("chunk", [1, 30, 77, 10**6])
def test_reference_in_blocks_of_rows(act, chunk, monkeypatch):
    x1, x2 = inputs(17, 11, 5)
    leaf = x1.clone().requires_grad_()  # whole, as autograd needs it
    whole = [t.detach() for t in nngp_ntk_reference(leaf, x2, 3, act)]
    monkeypatch.setattr(op, "CHUNK", chunk)
    for blocks, one in zip(nngp_ntk_reference(x1, x2, 3, act), whole):
        assert_close(blocks, one, 1e-14)
    together = torch.func.vmap(lambda x: nngp_ntk_reference(x, x2, 3, act)[1])(x1[None])
    assert_close(together[0], whole[1], 1e-14)


def test_which_empty_and_half_inputs():
    x1, x2 = inputs(3, 4, 2)
    both = nngp_ntk(x1, x2, 2)
    assert nngp_ntk(x1, x2, 2, which="ntk")[0] is None
    assert torch.equal(nngp_ntk(x1, x2, 2, which="nngp")[0], both[0])
    assert nngp_ntk(x1[:0], x2, 2)[1].shape == (0, 4)
    assert nngp_ntk(x1.half(), x2.half(), 2)[1].dtype == torch.float32


def test_errors():
    x1, x2 = inputs(3, 4, 2)
    for kwargs, message in (
        ({"act": "gelu"}, "act='gelu'.*relu, erf"),
        ({"which": "all"}, "which='all'.*'ntk'"),
        ({"beta": -1.0}, "beta=-1"),
        ({"gain": 0.0}, "gain=0"),
        ({"backend": "cuda"}, "backend='cuda'"),
    ):
        with raises(ValueError, match=message):
            nngp_ntk(x1, x2, 2, **kwargs)
    with raises(ValueError, match="depth=-1"):
        nngp_ntk(x1, x2, -1)
    with raises(ValueError, match=r"one d > 0, got \(3, 2\) and \(4, 1\)"):
        nngp_ntk(x1, x2[:, :1], 2)
    with raises(TypeError, match="one dtype"):
        nngp_ntk(x1, x2.float(), 2)


# Triton: on a GPU, or under the interpreter.


@pytest.mark.triton
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shape", [(37, 70, 21), (1, 3, 1), (64, 65, 40)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_forward(act, shape, dtype, device):
    if dtype == torch.bfloat16 and interpreting():
        pytest.skip("the interpreter computes with NumPy, which has no bfloat16")
    x1, x2 = inputs(*shape, dtype, device)
    exact = nngp_ntk_reference(x1.double(), x2.double(), 3, act, 0.1, 1.5)
    got = nngp_ntk(x1, x2, 3, act, 0.1, 1.5, backend="triton")
    # The Gram matrix of half inputs is summed in float32, so it is as good as float32's.
    tol = 1e-14 if dtype == torch.float64 else 1e-6
    for g, e in zip(got, exact):
        assert_close(g, e, tol)


@pytest.mark.triton
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("which", ["both", "nngp", "ntk"])
def test_backward(act, which, device):
    for dtype, tol in ((torch.float64, 1e-13), (torch.float32, 3e-6)):
        x1, x2 = inputs(35, 18, 7, dtype, device)
        w = torch.randn(2, 35, 18, generator=torch.Generator().manual_seed(1)).double()
        settings = {"depth": 3, "act": act, "beta": 0.2, "gain": 1.5, "which": which}
        exact = grads(x1.double(), x2.double(), w.to(device), **settings, backend="reference")
        got = grads(x1, x2, w.to(device), **settings, backend="triton")
        for g, e in zip(got, exact):
            assert_close(g, e, tol)


@pytest.mark.triton
@pytest.mark.parametrize("act", ACTS)
def test_gradcheck(act, device):
    x1, x2 = (x.requires_grad_() for x in inputs(3, 2, 2, device=device))
    f = lambda a, b: nngp_ntk(a, b, 2, act, 0.2, 1.5, backend="triton")
    assert torch.autograd.gradcheck(f, (x1, x2))


@pytest.mark.triton
def test_backward_at_coincident_inputs(device):
    x, _ = inputs(9, 1, 3, device=device)
    w = torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(1)).double().to(device)
    exact = grads(x, x, w, depth=3, backend="reference")
    got = grads(x, x, w, depth=3, backend="triton")
    assert_close(got[0] + got[1], exact[0] + exact[1], 1e-6)


@pytest.mark.triton
def test_strides_depth_zero_and_empty(device):
    wide, tall = inputs(20, 30, 12, torch.float32, device)
    x1, x2 = wide[::2, 1::3], tall.T.contiguous().T[:, :4]
    assert not x1.is_contiguous() and not x2.is_contiguous()
    for depth in (0, 2):
        exact = nngp_ntk_reference(x1, x2, depth)
        for g, e in zip(nngp_ntk(x1, x2, depth, backend="triton"), exact):
            assert_close(g, e, 1e-6)
    assert nngp_ntk(x1[:0], x2, 2, backend="triton")[1].shape == (0, 30)
    g1, g2 = grads(x1[:0], x2, torch.zeros(2, 0, 30), depth=2, backend="triton")
    assert g1.shape == (0, 4) and (g2 == 0).all()


@pytest.mark.triton
def test_float32_keeps_its_range(device):
    """Variances whose product is below or above float32, forward and backward."""
    for scale, depth, gain in ((1e-12, 3, 2.0), (1e11, 3, 2.0), (1.0, 100, 1.0)):
        x1, x2 = (scale * x for x in inputs(6, 5, 4, device=device))
        exact = nngp_ntk_reference(x1, x2, depth, "relu", 0.0, gain)
        narrow = x1.float(), x2.float()
        got = nngp_ntk(*narrow, depth, "relu", 0.0, gain, backend="triton")
        for g, e in zip(got, exact):
            assert_close(g.double() / e.abs().max(), e / e.abs().max(), 1e-4, f"{scale} {depth}")
        w = torch.ones(2, 6, 5, dtype=torch.float64, device=device)
        settings = {"depth": depth, "beta": 0.0, "gain": gain}
        exact = grads(x1, x2, w, **settings, backend="reference")
        for g, e in zip(grads(*narrow, w, **settings, backend="triton"), exact):
            assert_close(g.double() / e.abs().max(), e / e.abs().max(), 1e-4, f"{scale} {depth}")


@pytest.mark.triton
def test_every_word_is_written(device, monkeypatch):
    """Fresh memory is filled with NaN, so a word that is not written shows."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *a, **k: empty(self, *a, **k).fill_(float("nan"))
    )
    x1, x2 = inputs(33, 47, 5, torch.float32, device)
    for out in nngp_ntk(x1, x2, 2, backend="triton"):
        assert torch.isfinite(out).all()
    w = torch.ones(2, 33, 47, device=device)
    for grad in grads(x1, x2, w, depth=2, backend="triton"):
        assert torch.isfinite(grad).all()


@pytest.mark.triton
def test_operator_registration(device):
    """Fake tensors, autograd registration and schema, as torch.compile relies on them."""
    x1, x2 = (x.requires_grad_() for x in inputs(5, 4, 3, device=device))
    for which in ("both", "ntk"):
        torch.library.opcheck(op._forward, (x1, x2, 2, "relu", 0.1, 1.0, which))


# Ahead of time, without a GPU.


BUILDS = [("fp32", act, arch) for act in ACTS for arch in (80, 90)]
BUILDS += [("bf16", "relu", 80), ("bf16", "relu", 90), ("fp64", "relu", 90)]


@pytest.mark.parametrize(("dtype", "act", "arch"), BUILDS)
@pytest.mark.parametrize("kernel", ["_forward_kernel", "_backward_kernel"])
def test_compiles(kernel, dtype, act, arch):
    tl = pytest.importorskip("triton.language")
    wide = "fp64" if dtype == "fp64" else "fp32"
    jit = getattr(op, kernel)
    block = 64 if kernel == "_forward_kernel" and wide == "fp32" else 32
    constexprs = {
        "ERF": act == "erf",
        "SIGMA": True,
        "THETA": True,
        "ACC": tl.float64 if wide == "fp64" else tl.float32,
        "BM": block,
        "BN": block,
        "BK": 32,
    }
    integers = {"p", "q", "d", "s1m", "s1k", "s2m", "s2k", "depth"}
    kind = lambda n: "i32" if n in integers else f"*{dtype if n in ('x1', 'x2') else wide}"
    signature = {n: "constexpr" if n in constexprs else kind(n) for n in jit.arg_names}
    warps = 8 if kernel == "_backward_kernel" and wide == "fp64" else 4
    compiled = compile_for(jit, signature, constexprs, arch, num_warps=warps)
    if dtype == "bf16":
        assert "mma" in compiled.asm["ptx"], "half inputs must reach the matrix unit"
    assert "tf32" not in compiled.asm["ptx"]
