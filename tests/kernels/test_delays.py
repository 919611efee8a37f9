"""The delayed layer against the paper's sum written out, finite differences and its kernels."""

import itertools

import pytest
import torch

from lib.kernels import delays as module
from lib.kernels.delays import SHAPES, bump, delay_conv, delay_linear
from lib.kernels.dispatch import interpreting, triton
from tests.helpers import assert_close, raises
from tests.kernels.aot import compile_for


def draw(b, i, o, t, *, gen, m=1, groups=1, bins=9, dtype=torch.float64, device="cpu"):
    wide = module._wide(dtype)
    x = torch.randn(b, groups * i, t, generator=gen, dtype=torch.float64)
    w = torch.randn(groups * o, i, m, generator=gen, dtype=torch.float64)
    p = (bins - 1) * torch.rand(groups * o, i, m, generator=gen, dtype=torch.float64)
    return x.to(device, dtype), w.to(device, dtype), p.to(device, wide)


def written_out(x, w, p, sigma, bins, shape, reach):
    """The layer as its docstring has it, one synapse, tap and step at a time."""
    (batch, ins, steps), outs = x.shape, len(w)
    y = torch.zeros(batch, outs, steps, dtype=x.dtype)
    for o, i, m in itertools.product(range(outs), range(ins), range(w.shape[2])):
        center, h = torch.floor(p[o, i, m] + 0.5), {}
        for n in range(bins):
            if reach is not None and abs(n - center) > reach:
                continue
            z = n - p[o, i, m]
            if shape == "gauss":
                h[n] = torch.exp(-(z**2) / (2 * sigma**2))
            elif shape == "triangle":
                h[n] = torch.relu(sigma - abs(z))
            else:
                h[n] = (n == center).to(x.dtype)
        total = sum(h.values()) + (0 if shape == "tap" else 1e-7)
        for n in h:
            for t in range(n, steps):
                y[:, o, t] += w[o, i, m] * h[n] / total * x[:, i, t - n]
    return y


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reach", [None, 1, 0])
def test_equals_the_sum_written_out_and_its_gradients(shape, reach, gen):
    inputs = draw(2, 2, 2, 6, gen=gen, m=2, bins=5)
    leaves = [t.requires_grad_() for t in inputs]
    g = torch.randn(2, 2, 6, generator=gen, dtype=torch.float64)
    y = delay_conv(*leaves, 1.3, 5, shape=shape, reach=reach)
    want = written_out(*leaves, 1.3, 5, shape, reach)
    assert_close(y, want, 1e-13)
    flat = shape == "tap"
    used = leaves[:2] if flat else leaves
    got, wanted = torch.autograd.grad(y, leaves, g), torch.autograd.grad(want, used, g)
    for a, b in zip(got, wanted, strict=False):
        # With one tap nothing but the 1e-7 in the sum depends on the delay.
        assert_close(a, b, 1e-8 if reach == 0 and a is got[2] else 1e-11)
    if flat:
        assert (got[2] == 0).all()


def test_gradcheck(gen):
    x, w, p = (t.requires_grad_() for t in draw(2, 2, 2, 6, gen=gen, groups=2, bins=5))
    sigma = torch.tensor([0.4, 0.8, 1.5, 4.0], dtype=torch.float64)  # one for each output
    for shape in ("gauss", "triangle"):
        run = lambda *a, s=shape: delay_conv(*a, sigma + 0.7, 5, shape=s, groups=2, right=2)
        assert torch.autograd.gradcheck(run, (x, w, p))


def test_one_tap_is_a_shifted_copy_and_a_narrow_bump_comes_close(gen):
    x, w, p = draw(3, 4, 5, 30, gen=gen, bins=9)
    d = p.round()
    y = delay_linear(x, w[..., 0], d[..., 0].long())
    want = torch.zeros_like(y)
    for o, i in itertools.product(range(5), range(4)):
        n = int(d[o, i])
        want[:, o, n:] += w[o, i] * x[:, i, : 30 - n]
    assert_close(y, want, 1e-14)
    # The triangle of half-base 1 has one tap at a whole delay, up to the 1e-7 in its sum.
    assert_close(delay_conv(x, w, d, 1.0, 9, shape="triangle"), y, 2e-7)
    # A Gaussian of width 0.23 leaks exp(-1 / (2 0.23^2)) = 8e-5 of its peak to each neighbor.
    assert_close(delay_conv(x, w, d, 0.23, 9), y, 1e-2)
    assert_close(delay_conv(x, w, d, 0.5, 9, reach=0), y, 2e-7)
    # At 0.5 it is another layer: the neighbors hold 0.11 each.
    k, _ = bump(torch.tensor([4.0]), torch.tensor([0.5]), 9)
    assert_close(k[0, 3:6], torch.tensor([0.1065, 0.7870, 0.1065]), 1e-3)


def test_time_shifts_groups_and_the_steps_beyond_the_end(gen):
    x, w, p = draw(2, 3, 4, 20, gen=gen)
    y = delay_conv(x, w, p, 1.0, 9, right=8)
    assert y.shape == (2, 4, 28)
    assert_close(delay_conv(x, w, p, 1.0, 9), y[..., :20], 1e-14)
    later = torch.cat([torch.zeros(2, 3, 5, dtype=x.dtype), x], -1)
    assert_close(delay_conv(later, w, p, 1.0, 9, right=8)[..., 5:], y, 1e-14)
    # Everything that entered has left after the last tap: nothing is lost.
    assert_close(y.sum(-1), torch.einsum("oi,bi->bo", w[..., 0], x.sum(-1)), 1e-6)
    x2, w2, p2 = draw(2, 3, 4, 20, gen=gen)
    both = delay_conv(torch.cat([x, x2], 1), torch.cat([w, w2]), torch.cat([p, p2]), 1.0, 9,
                      groups=2)  # fmt: skip
    assert_close(both[:, :4], y[..., :20], 1e-14)
    assert_close(both[:, 4:], delay_conv(x2, w2, p2, 1.0, 9), 1e-14)


def test_byte_spikes_and_the_operator_contract(gen):
    x, w, p = draw(2, 3, 4, 12, gen=gen, dtype=torch.float32)
    spikes = (x > 0.5).to(torch.uint8)
    w.requires_grad_(), p.requires_grad_()
    y = delay_conv(spikes, w, p, 1.0, 9)
    assert_close(y, delay_conv(spikes.float(), w, p, 1.0, 9), 0)
    assert torch.autograd.grad(y.sum(), [w, p])[1].norm() > 0
    sigma = torch.full((4,), 1.0)
    args = (x.requires_grad_(), w, p, sigma, 9, "gauss", 3, 1, 2, "reference")
    torch.library.opcheck(module._delays, args)
    # Gradients are contiguous whatever the strides of weights and delays: the fake says so, too.
    turned = [t.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0) for t in (w, p)]
    assert not turned[0].is_contiguous()
    args = (x, *(t.requires_grad_() for t in turned), *args[3:])
    torch.library.opcheck(module._delays, args, test_utils=["test_faketensor"])
    total = torch.empty(0)
    back = (torch.ones(2, 4, 14), *(t.detach() for t in args[:3]), sigma, total, *args[4:9], True)
    test = ["test_faketensor"]
    torch.library.opcheck(module._delays_backward, (*back, "reference"), test_utils=test)


def test_errors(gen):
    x, w, p = draw(2, 3, 4, 6, gen=gen, dtype=torch.float32)
    good = {"sigma": 1.0, "bins": 9}
    for change, message in (
        ({"shape": "box"}, "shape='box': allowed are 'gauss', 'triangle', 'tap'"),
        ({"bins": 0}, "bins=0"),
        ({"reach": -1}, "reach=-1"),
        ({"right": -2}, "right=-2"),
        ({"sigma": 0.0}, "sigma=0.0: allowed is any positive"),
        ({"sigma": torch.ones(3)}, r"sigma: shape \(3,\).*each of the 4 outputs"),
        ({"groups": 3}, "groups=3: allowed is a divisor of the 4 outputs"),
        ({"groups": 2}, r"x: shape \(2, 3, 6\); allowed is \(batch, 6, steps\)"),
    ):
        with raises(ValueError, match=message):
            delay_conv(x, w, p, **{**good, **change})
    for change, message in (
        ({"shape": "box"}, "shape='box': allowed are 'gauss'"),
        ({"bins": 0}, "bins=0"),
        ({"reach": -1}, "reach=-1"),
    ):
        with raises(ValueError, match=message):
            bump(p, torch.ones(4, 1, 1), **{"bins": 9, **change})
    with raises(ValueError, match=r"weight: shape \(0, 3, 1\); allowed is 1 or more of each"):
        delay_conv(x, w[:0], p[:0], **good)
    with raises(ValueError, match=r"weight: shape \(4, 0, 1\); allowed is 1 or more of each"):
        delay_conv(x[:, :0], w[:, :0], p[:, :0], **good)
    with raises(ValueError, match="allowed is one shape"):
        delay_conv(x, w, p[:, :2], **good)
    with raises(ValueError, match="at least one step"):
        delay_conv(x[..., :0], w, p, **good)
    with raises(TypeError, match="delay: dtype torch.float64"):
        delay_conv(x, w, p.double(), **good)
    with raises(TypeError, match="x: dtype torch.float64"):
        delay_conv(x.double(), w, p, **good)
    with raises(TypeError, match="weight: dtype int64"):
        delay_conv(x, w.long(), p, **good)
    with raises(TypeError, match="delay: dtype torch.float32; allowed are whole numbers"):
        delay_linear(x, w[..., 0], p[..., 0])
    with raises(ValueError, match="delay: the smallest is -1"):
        delay_linear(x, w[..., 0], p[..., 0].long() - p[..., 0].long().min() - 1)
    if triton is not None and not torch.cuda.is_available() and not interpreting():
        with raises(ValueError, match="needs CUDA tensors"):
            delay_conv(x, w, p, **good, backend="triton")


# --------------------------------------------------------------------------- Triton


@pytest.fixture
def nan_empty(monkeypatch):
    """Memory that a kernel leaves unwritten shows as NaN."""
    make = torch.empty_like

    def filled(*args, **kwargs):
        out = make(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    monkeypatch.setattr(module.torch, "empty_like", filled)


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# shape, reach, sigma; batch, in, out, steps; synapses, groups, steps beyond the end, bins
CASES = [
    ("gauss", None, 2.0, (2, 2, 3, 7), (1, 2, 0, 5)),
    ("gauss", 1, 0.5, (1, 1, 17, 65), (1, 1, 3, 9)),
    ("triangle", 2, 1.4, (2, 1, 2, 1), (2, 3, 4, 4)),
    ("tap", None, 1.0, (2, 4, 3, 5), (1, 1, 1, 31)),
]


@pytest.mark.triton
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_triton_equals_the_reference(dtype, case, device, gen, nan_empty):
    if dtype == torch.bfloat16 and interpreting():
        pytest.skip("the interpreter is NumPy, which has no bfloat16")
    shape, reach, sigma, (b, i, o, t), (m, groups, right, bins) = case
    inputs = draw(b, i, o, t, gen=gen, m=m, groups=groups, bins=bins, dtype=dtype, device=device)
    g = torch.randn(b, groups * o, t + right, generator=gen).to(device, dtype)
    widths = sigma + torch.rand(groups * o, generator=gen).to(device, inputs[2].dtype)
    window = {"shape": shape, "reach": reach, "groups": groups, "right": right}

    def run(x, w, p, g, backend):
        leaves = [t.detach().requires_grad_() for t in (x, w, p)]
        y = delay_conv(*leaves, widths.to(p), bins, **window, backend=backend)
        return y.detach(), *torch.autograd.grad(y, leaves, g)

    got = run(*inputs, g, "triton")
    want = run(*(t.double() for t in inputs), g.double(), "reference")
    for name, a, z in zip(("y", "gx", "gw", "gp"), got, want, strict=True):
        assert a.isfinite().all(), name
        if z.norm() == 0:
            assert (a == 0).all(), name
        else:
            assert_close(a, z, TOLERANCE[dtype], name)


@pytest.mark.triton
def test_triton_strides_bytes_empty_and_gradcheck(device, gen):
    x, w, p = draw(2, 3, 4, 6, gen=gen, bins=5, device=device)
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not turned.is_contiguous()
    want = delay_conv(x, w, p, 1.0, 5, backend="reference")
    assert_close(delay_conv(turned, w, p, 1.0, 5, backend="triton"), want, 1e-12)
    spikes = (x > 0).to(torch.uint8)
    d = p[..., 0].round().long()
    a, b = (delay_linear(spikes, w[..., 0], d, backend=k) for k in ("triton", "reference"))
    assert_close(a, b, 1e-13)
    # A bump may be centered before the first tap or after the last: all taps count all the same.
    far = torch.tensor([-7.0, -0.6, 4.6, 9.0, 1e12, 2.0] * 2, dtype=p.dtype).view(4, 3, 1).to(p)
    for reach in (None, 6, 1):
        a, b = (delay_conv(x, w, far, 3.0, 5, reach=reach, backend=k)
                for k in ("triton", "reference"))  # fmt: skip
        assert_close(a, b, 1e-12, str(reach))
    args = (x, *(t.permute(2, 1, 0).contiguous().permute(2, 1, 0) for t in (w, p)))
    wide = torch.ones(4, dtype=p.dtype, device=device)
    total = torch.ones_like(p)
    for op, given in (
        (module._delays, (*args, wide)),
        (module._delays_backward, (x.new_ones(2, 4, 6), *args, wide, total)),
    ):
        more = (True, "triton") if op is module._delays_backward else ("triton",)
        given = (*given, 5, "gauss", 2, 1, 0, *more)
        torch.library.opcheck(op, given, test_utils=["test_faketensor"])
    leaves = [t[:0] if t is x else t for t in (x, w, p)]
    leaves = [t.detach().requires_grad_() for t in leaves]
    y = delay_conv(*leaves, 1.0, 5, backend="triton")
    assert y.shape == (0, 4, 6)
    assert all((g == 0).all() for g in torch.autograd.grad(y.sum(), leaves))
    small = [t.detach().requires_grad_() for t in draw(1, 1, 2, 3, gen=gen, bins=3, device=device)]
    run = lambda *a: delay_conv(*a, 0.9, 3, backend="triton")
    assert torch.autograd.gradcheck(run, small, fast_mode=True)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "shape", "full"),
    [("fp32", "gauss", True), ("bf16", "gauss", False), ("fp64", "triangle", True),
     ("fp16", "tap", False)],
)  # fmt: skip
def test_compiles_ahead_of_time(arch, dtype, shape, full):
    if triton is None:
        pytest.skip("pip install triton (Linux only)")
    import triton.language as tl

    wide = "fp64" if dtype == "fp64" else "fp32"
    constants = {"KIND": shape, "FULL": full, "M": 2, "BLOCK": 256, "BLOCK_R": module.BLOCK_R}
    constants |= {"BLOCK_O": module.BLOCK_R, "BLOCK_T": module.BLOCK_T, "BACK": full}
    constants |= {"WIDE": tl.float64 if wide == "fp64" else tl.float32}
    for kernel in (module._total_kernel, module._gather_kernel, module._synapse_kernel):
        chosen = {k: v for k, v in constants.items() if k in kernel.arg_names}
        kinds = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(chosen, "constexpr")
        for name in kernel.arg_names:
            if name.endswith("_ptr"):
                of_weights = name[:-4] in ("x", "y", "grad", "weight", "gw")
                kinds[name] = f"*{dtype if of_weights else wide}"
            elif name == "eps":
                kinds[name] = "fp32"
        if kernel is module._gather_kernel and not full:
            kinds["x_ptr"] = "*u8"  # spikes as bytes
        built = compile_for(kernel, kinds, chosen, arch)
        assert "ld.local" not in built.asm["ptx"], "registers spill"
