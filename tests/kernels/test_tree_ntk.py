import math

import pytest
import torch

import lib.kernels.tree_ntk as op
from lib.kernels.dispatch import interpreting
from lib.kernels.nngp_ntk import nngp_ntk
from lib.kernels.tree_ntk import tree_ntk, tree_ntk_reference, tree_recursion
from tests.helpers import assert_close, raises
from tests.kernels.aot import compile_for

TREES = [(8, (2,)), (8, (2, 2, 2)), (24, (3, 2)), (5, (5,)), (12, (2, 1, 3)), (8, (8, 1, 1))]


def inputs(p, q, d, dtype=torch.float64, device="cpu", seed=0):
    gen = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, d, generator=gen, dtype=torch.float64).to(dtype).to(device) for n in (p, q)
    ]


def by_hand(x, y, sizes):
    """One pair of inputs, node by node, with arccos: written apart from the library."""

    def node(u, v, level):
        if level == 0:
            c = (u @ v / (u.norm() * v.norm())).item()
            return c, c
        parts = len(u) // math.prod(sizes[:level]) if level == len(sizes) else sizes[level]
        cs, ts = [], []
        for a, b in zip(u.chunk(parts), v.chunk(parts)):
            c, t = node(a, b, level - 1)
            angle = math.acos(max(-1.0, min(1.0, c)))
            k1 = (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi
            cs.append(k1)
            ts.append((math.pi - angle) / math.pi * t + k1)
        return sum(cs) / parts, sum(ts) / parts

    return node(x, y, len(sizes))


# The reference, on any machine.


@pytest.mark.parametrize(("d", "sizes"), TREES)
def test_reference_is_the_recursion_by_hand(d, sizes):
    x, y = inputs(3, 4, d)
    expected = torch.tensor([[by_hand(a, b, sizes) for b in y] for a in x], dtype=x.dtype)
    sigma, theta = tree_ntk(x, y, sizes)
    assert_close(sigma, expected[..., 0], 1e-13)
    assert_close(theta, expected[..., 1], 1e-13)


@pytest.mark.parametrize("depth", [1, 3])
def test_one_patch_is_the_fully_connected_kernel(depth):
    """The other operator, without biases and with gain 2, on inputs of squared norm d."""
    for d in (8, 40):  # both ways to compare patches
        x, y = (math.sqrt(d) * z / z.norm(dim=1, keepdim=True) for z in inputs(6, 5, d))
        sigma, theta = tree_ntk(x, y, (d,) + (1,) * (depth - 1))
        exact = nngp_ntk(x, y, depth, "relu", 0.0, 2.0, backend="reference")
        assert_close(sigma, exact[0], 1e-13)
        assert_close(theta, exact[1], 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_diagonal_is_exact(dtype):
    x, _ = inputs(9, 1, 24, dtype)
    for sizes in ((2,), (2, 2), (2, 2, 3), (3, 2, 2, 2)):
        sigma, theta = tree_ntk(x, x.clone(), sizes)
        assert (sigma.diagonal() == 1).all()
        assert (theta.diagonal() == len(sizes) + 1).all()


def test_float32_keeps_its_digits_near_coincidence():
    """Inputs that differ by 1e-4: an arccos of a float32 cosine would err by 90 % here."""
    x, noise = inputs(50, 50, 8)
    y = x + 1e-4 * noise
    exact = tree_ntk(x.float().double(), y.float().double(), (2, 2, 2))[1].diagonal() - 4
    got = tree_ntk(x.float(), y.float(), (2, 2, 2))[1].diagonal().double() - 4
    assert_close(got, exact, 2e-3)


def test_antipodes():
    x, _ = inputs(4, 1, 6)
    sigma, theta = tree_ntk(x, -x, (6,))
    assert sigma.diagonal().abs().max() < 1e-15 and theta.diagonal().abs().max() < 1e-7


def test_reference_gradcheck_and_the_cusp():
    x, y = (z.requires_grad_() for z in inputs(4, 3, 8))
    f = lambda a, b: tree_ntk(a, b, (2, 2), backend="reference")
    assert torch.autograd.gradcheck(f, (x, y))
    theta = tree_ntk(x, x, (2, 2))[1]
    assert torch.isfinite(torch.autograd.grad(theta.sum(), x)[0]).all()


def test_which_empty_and_half_inputs():
    x, y = inputs(3, 4, 4)
    both = tree_ntk(x, y, (2, 2))
    assert tree_ntk(x, y, (2, 2), which="ntk")[0] is None
    assert torch.equal(tree_ntk(x, y, (2, 2), which="nngp")[0], both[0])
    assert tree_ntk(x[:0], y, (2,))[1].shape == (0, 4)
    assert tree_ntk(x.half(), y.half(), (2,))[1].dtype == torch.float32
    before = x.clone()
    tree_ntk(x, y, (2,))
    assert torch.equal(x, before), "the caller's tensor was changed"


def test_errors():
    x, y = inputs(3, 4, 8)
    with raises(ValueError, match="which='all'.*'ntk'"):
        tree_ntk(x, y, (2,), which="all")
    with raises(ValueError, match="backend='cuda'"):
        tree_ntk(x, y, (2,), backend="cuda")
    with raises(ValueError, match=r"product 6 must divide.*d=8"):
        tree_ntk(x, y, (2, 3))
    for sizes in ((), (2, 0)):
        with raises(ValueError, match="one or more numbers, each >= 1"):
            tree_ntk(x, y, sizes)
    with raises(ValueError, match=r"one d > 0, got \(3, 8\) and \(4, 7\)"):
        tree_ntk(x, y[:, :7], (2,))
    y[2, 6:] = 0
    with raises(ValueError, match="y: patch 3 of row 2 is zero"):
        tree_ntk(x, y, (2,))
    for sizes in (2, (2.5, 2), "22"):
        with raises(TypeError, match="filter_sizes=.*sequence of whole numbers"):
            tree_ntk(x, x, sizes)
    with raises(ValueError, match=r"m of shape \(4, 3\).*multiples of 3"):
        tree_recursion(torch.rand(4, 3), (2, 3))
    with raises(ValueError, match=r"one d > 0, got \(3, 8\) and \(3, 4\)"):
        tree_ntk_reference(x, x[:, :4], (2,))
    with raises(TypeError, match="one dtype"):
        tree_ntk(x, y.float(), (2,))
    with raises(TypeError, match="x: dtype int64"):
        tree_ntk(x.long(), y.long(), (2,))


# Triton: on a GPU, or under the interpreter.


@pytest.mark.triton
@pytest.mark.parametrize(("d", "sizes"), [*TREES, (40, (20, 2))])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forward(d, sizes, dtype, device):
    x, y = inputs(17, 33, d, dtype, device)  # more than one tile
    y[0] = x[0]
    exact = tree_ntk_reference(x.double(), y.double(), sizes)
    got = tree_ntk(x, y, sizes, backend="triton")
    # Large patches go through a product of cosines, whose angle at coincidence is a root of eps.
    tol = {torch.float64: (1e-14, 1e-8), torch.float32: (3e-6, 1e-3)}[dtype][sizes[0] > 16]
    for g, e in zip(got, exact):
        assert_close(g, e, tol)


@pytest.mark.triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs(dtype, device):
    if dtype == torch.bfloat16 and interpreting():
        pytest.skip("the interpreter computes with NumPy, which has no bfloat16")
    x, y = inputs(5, 6, 8, dtype, device)
    exact = tree_ntk_reference(x.double(), y.double(), (2, 2))
    for g, e in zip(tree_ntk(x, y, (2, 2), backend="triton"), exact):
        assert_close(g, e, 1e-6)


@pytest.mark.triton
def test_diagonal_is_exact_in_triton(device):
    x, _ = inputs(7, 1, 8, torch.float32, device)
    sigma, theta = tree_ntk(x, x.clone(), (2, 2, 2), backend="triton")
    assert (sigma.diagonal() == 1).all() and (theta.diagonal() == 4).all()


@pytest.mark.triton
def test_strides_and_empty(device):
    wide, tall = inputs(12, 8, 24, torch.float32, device)
    x, y = wide[::2, ::3], tall.T.contiguous().T[:, :8]
    assert not x.is_contiguous() and not y.is_contiguous()
    exact = tree_ntk_reference(x, y, (2, 2))
    for g, e in zip(tree_ntk(x, y, (2, 2), backend="triton"), exact):
        assert_close(g, e, 1e-6)
    assert tree_ntk(x[:0], y, (2, 2), backend="triton")[1].shape == (0, 8)


@pytest.mark.triton
@pytest.mark.parametrize("d, sizes", [(4, (2, 2)), (20, (20,))])  # by distance, by product
def test_nan_stays_nan(d, sizes, device):
    x, y = inputs(3, 4, d, torch.float32, device)
    x[1, 1] = float("nan")
    for k in tree_ntk(x, y, sizes, backend="triton"):
        assert torch.isnan(k[1]).all() and torch.isfinite(k[[0, 2]]).all()


@pytest.mark.triton
@pytest.mark.parametrize("which", ["both", "nngp", "ntk"])
def test_every_word_is_written(which, device, monkeypatch):
    """Fresh memory is filled with NaN, so a word that is not written shows."""
    empty = torch.Tensor.new_empty

    def filled(self, *args, **kwargs):
        fresh = empty(self, *args, **kwargs)
        return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)
    x, y = inputs(33, 35, 4, torch.float32, device)
    found = tree_ntk(x, y, (2, 2), which, backend="triton")
    assert [k is None for k in found] == [which == "ntk", which == "nngp"]
    for k in found:
        assert k is None or (k.shape == (33, 35) and torch.isfinite(k).all())


@pytest.mark.triton
def test_operator_registration(device):
    """Fake tensors, autograd registration and schema, as torch.compile relies on them."""
    x, y = (z.requires_grad_() for z in inputs(5, 4, 4, device=device))
    torch.library.opcheck(op._forward, (x, y, [2], "ntk"))


@pytest.mark.triton
@pytest.mark.parametrize("which", ["both", "nngp", "ntk"])
def test_backward(which, device):
    grads = []
    for backend in ("triton", "reference"):
        x, y = (z.requires_grad_() for z in inputs(5, 4, 8, device=device))
        found = tree_ntk(x, y, (2, 2), which, backend)
        loss = sum((k * (i + 2 + k.detach())).sum() for i, k in enumerate(found) if k is not None)
        grads.append(torch.autograd.grad(loss, (x, y)))
    for g, e in zip(*grads):
        assert_close(g, e, 1e-12)


# Ahead of time, without a GPU.


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize(("depth", "chord"), [(1, True), (4, True), (2, False)])
def test_compiles(depth, chord, dtype, arch):
    tl = pytest.importorskip("triton.language")
    constexprs = {
        "DEPTH": depth,
        "CHORD": chord,
        "SIGMA": True,
        "THETA": True,
        "ACC": tl.float64 if dtype == "fp64" else tl.float32,
        "BM": 16 if dtype == "fp64" else 32,
        "BN": 32,
        "BK": 16,
    }
    kind = lambda n: {"table": "*i32", "p": "i32", "q": "i32", "patch": "i32"}.get(n, f"*{dtype}")
    names = op._forward_kernel.arg_names
    signature = {n: "constexpr" if n in constexprs else kind(n) for n in names}
    compiled = compile_for(op._forward_kernel, signature, constexprs, arch)
    ptx = compiled.asm["ptx"]
    assert "tf32" not in ptx
    assert ".local" not in ptx and "call.uni" not in ptx, "the levels must be inlined"
    if dtype == "fp32":  # the interpreter keeps NaN either way, so it cannot tell
        assert "max.NaN.f32" in ptx and "min.NaN.f32" in ptx
