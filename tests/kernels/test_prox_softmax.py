import pytest
import torch

from lib.kernels import prox_softmax as module
from lib.kernels.dispatch import interpreting, triton
from lib.kernels.prox_softmax import prox_softmax, prox_step, prox_vjp
from tests.helpers import assert_close, raises
from tests.kernels.aot import compile_for

RAGGED = ((5, 2), (3, 4), (2, 1), (1, 10))  # 34 states


def draw(*shape, gen, scale=2.0, dtype=torch.float64, device="cpu"):
    return (scale * torch.randn(shape, generator=gen, dtype=torch.float64)).to(device, dtype)


def distributions(*shape, gen, groups, device="cpu"):
    return prox_softmax(draw(*shape, gen=gen), 1.0, groups).to(device)


def bisection(z, alpha, rounds=60):
    """The same problem solved without Newton's method, one bisection inside another."""
    low = z.amax(-1, keepdim=True) - (1 - alpha)
    high = z.amax(-1, keepdim=True) - alpha * torch.tensor(1.0 / z.shape[-1]).log()
    for _ in range(rounds):
        lam = (low + high) / 2
        y = z - lam
        a, b = (y / alpha - 1 / alpha).clamp_max(0), (y / alpha).clamp_max(0)
        for _ in range(rounds):
            u = (a + b) / 2
            above = (1 - alpha) * u.exp() + alpha * u > y
            a, b = torch.where(above, a, u), torch.where(above, u, b)
        more = u.exp().sum(-1, keepdim=True) > 1
        low, high = torch.where(more, lam, low), torch.where(more, high, lam)
    return u.exp()


@pytest.mark.parametrize("alpha", [0.02, 0.125, 0.6, 0.95])
@pytest.mark.parametrize("k", [2, 3, 10])
def test_against_bisection(alpha, k, gen):
    for scale in (0.01, 1.0, 20.0):
        z = draw(20, k, gen=gen, scale=scale)
        assert_close(prox_softmax(z, alpha), bisection(z, alpha), 1e-9)


def test_it_solves_the_condition_and_minimizes(gen):
    for alpha in (0.01, 0.125, 0.9):
        for scale in (0.01, 1.0, 30.0):
            z = draw(500, 6, gen=gen, scale=scale)
            x = prox_softmax(z, alpha)
            lam = z - (1 - alpha) * x - alpha * x.log()
            sure = x > 1e-290  # below, the logarithm has met its floor
            mean = torch.where(sure, lam, 0).sum(-1, keepdim=True) / sure.sum(-1, keepdim=True)
            assert torch.where(sure, lam - mean, 0).abs().max() < 1e-11 * (1 + scale)
    f = lambda x: (x * x.log()).sum(-1) - x.square().sum(-1) / 2
    value = lambda x: 0.5 * (x - z).square().sum(-1) + 0.3 * f(x)
    z = draw(50, 5, gen=gen)
    x = prox_softmax(z, 0.3)
    for other in (
        torch.softmax(z, -1),
        *(0.99 * x + 0.01 * torch.eye(5).double()[i] for i in range(5)),
    ):
        assert (value(other) > value(x)).all()


def test_alpha_one_is_softmax_and_is_approached(gen):
    z = draw(4, 34, gen=gen)
    want = torch.cat(
        [torch.softmax(t, -1).flatten(-2) for t in module._split(z, [5, 2, 3, 4, 2, 1, 1, 10])], -1
    )
    assert_close(prox_softmax(z, 1.0, RAGGED), want, 1e-15)
    assert_close(prox_softmax(z, 1 - 1e-9, RAGGED), want, 1e-8)


def test_moving_every_number_of_a_group_changes_nothing(gen):
    z = draw(6, 7, gen=gen)
    assert_close(prox_softmax(z + 3.7, 0.2), prox_softmax(z, 0.2), 1e-12)


def test_a_step_starts_anywhere(gen):
    # Newton's start is the previous iterate: it must not decide the result.
    v = draw(40, 34, gen=gen, scale=5.0)
    for scale in (0.1, 3.0, 40.0):
        q = prox_softmax(draw(40, 34, gen=gen, scale=scale), 1.0, RAGGED)
        for alpha in (0.03, 0.125, 0.7, 1.0):
            x, change = prox_step(q, v, alpha, RAGGED)
            assert_close(x, prox_softmax((1 - alpha) * q + alpha * v, alpha, RAGGED), 1e-8)
            assert_close(change, (x - q).square().sum(), 1e-10)
            single, _ = prox_step(q.float(), v.float(), alpha, RAGGED)
            assert_close(single, x, 2e-5)


def test_gradients(gen):
    z = draw(2, 34, gen=gen, scale=1.0).requires_grad_()
    q = distributions(2, 34, gen=gen, groups=RAGGED).requires_grad_()
    for alpha in (0.125, 0.6, 1.0):
        assert torch.autograd.gradcheck(lambda z, a=alpha: prox_softmax(z, a, RAGGED), z)
        assert torch.autograd.gradcheck(lambda q, v, a=alpha: prox_step(q, v, a, RAGGED)[0], (q, z))
    # The Jacobian is symmetric and knows nothing of a common shift.
    x, g, h = (draw(3, 34, gen=gen) for _ in range(3))
    x = prox_softmax(x, 0.3, RAGGED)
    assert_close((prox_vjp(x, g, 0.3, RAGGED) * h).sum(), (g * prox_vjp(x, h, 0.3, RAGGED)).sum())
    assert prox_vjp(x, torch.ones_like(x), 0.3, RAGGED).abs().max() < 1e-14


def test_operator_registration(gen):
    z = draw(2, 34, gen=gen, dtype=torch.float32).requires_grad_()
    q = distributions(2, 34, gen=gen, groups=RAGGED).float()
    runs = [n for pair in RAGGED for n in pair]
    for given in (None, q):
        torch.library.opcheck(module._prox, (z, given, 0.125, runs, "reference"))


def test_errors(gen):
    z = draw(3, 4, gen=gen)
    with raises(ValueError, match="alpha=0"):
        prox_softmax(z, 0)
    with raises(ValueError, match="alpha=1.5: allowed is above 0, up to 1"):
        prox_softmax(z, 1.5)
    with raises(ValueError, match=r"groups=\(\(3, 2\),\).*fill the last axis of z, 4 long"):
        prox_softmax(z, 0.5, ((3, 2),))
    with raises(TypeError, match="z: dtype int64"):
        prox_softmax(z.long(), 0.5)
    with raises(ValueError, match=r"q: shape \(2, 4\)"):
        prox_step(z[:2], z, 0.5)
    with raises(TypeError, match="q: dtype torch.float32"):
        prox_step(z.float(), z, 0.5)
    if triton is not None and not torch.cuda.is_available() and not interpreting():
        with raises(ValueError, match="needs CUDA tensors"):
            prox_softmax(z, 0.5, backend="triton")


# --------------------------------------------------------------------------- Triton


@pytest.fixture
def nan_empty(monkeypatch):
    """Memory that a kernel leaves unwritten shows as NaN."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)
        monkeypatch.setattr(
            module.torch, name, lambda *a, make=make, **k: make(*a, **k).fill_(float("nan"))
        )


TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
CASES = [(None, (7, 5)), (((300, 2),), (3, 600)), (RAGGED, (2, 3, 34)), (((2, 33),), (1, 66))]


@pytest.mark.triton
@pytest.mark.parametrize("alpha", [0.125, 1.0])
@pytest.mark.parametrize(("groups", "shape"), CASES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_triton_equals_the_reference(dtype, groups, shape, alpha, device, gen, nan_empty):
    if dtype == torch.bfloat16 and interpreting():
        pytest.skip("the interpreter is NumPy, which has no bfloat16")
    z, g = (draw(*shape, gen=gen, dtype=dtype, device=device) for _ in range(2))
    q = prox_softmax(draw(*shape, gen=gen), 1.0, groups).to(device, dtype)
    tol = TOLERANCE[dtype]

    def run(z, q, g, backend):
        z, q = z.detach().requires_grad_(), q.detach().requires_grad_()
        x = prox_softmax(z, alpha, groups, backend)
        y, change = prox_step(q, z, alpha, groups, backend)
        first = torch.autograd.grad(x, z, g)
        return [x.detach(), y.detach(), change, *first, *torch.autograd.grad(y, (q, z), g)]

    got = run(z, q, g, "triton")
    want = run(z.double(), q.double(), g.double(), "reference")
    for name, a, b in zip("x y change gx gq gv".split(), got, want, strict=True):
        assert a.dtype == dtype or name == "change"
        if b.abs().max() == 0:  # with alpha = 1, nothing reaches q
            assert (a == 0).all()
        else:
            assert_close(a, b, tol * (3 if name == "change" else 1), name)


@pytest.mark.triton
def test_triton_strides_empty_and_gradcheck(device, gen):
    z = draw(34, 4, gen=gen, device=device).T
    assert not z.is_contiguous()
    want = prox_softmax(z, 0.2, RAGGED, "reference")
    assert_close(prox_softmax(z, 0.2, RAGGED, "triton"), want, 1e-9)
    assert prox_softmax(z[:0], 0.2, RAGGED, "triton").shape == (0, 34)
    x, change = prox_step(z[:0], z[:0], 0.2, RAGGED, "triton")
    assert x.shape == (0, 34) and change == 0
    small = draw(2, 3, gen=gen, scale=1.0, device=device).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: prox_softmax(t, 0.3, None, "triton"), small)
    with raises(ValueError, match="1500 states; allowed is 1024"):
        prox_softmax(draw(2, 1500, gen=gen, device=device), 0.2, backend="triton")


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(("dtype", "states"), [("fp32", 4), ("bf16", 20), ("fp64", 2)])
def test_compiles_ahead_of_time(arch, dtype, states):
    if triton is None:
        pytest.skip("pip install triton (Linux only)")
    import triton.language as tl

    wide = "fp64" if dtype == "fp64" else "fp32"
    block = triton.next_power_of_2(states)
    constants = {"STATES": states, "BLOCK": block, "ROWS": 512 // block, "STEP": True}
    constants |= {"SOFTMAX": False, "WIDE": tl.float64 if dtype == "fp64" else tl.float32}
    for kernel in (module._forward_kernel, module._backward_kernel):
        chosen = {k: v for k, v in constants.items() if k in kernel.arg_names}
        kinds = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(chosen, "constexpr")
        for name in kernel.arg_names:
            if name.endswith("_ptr"):
                kinds[name] = f"*{wide}" if name == "partial_ptr" else f"*{dtype}"
            elif name in ("alpha_high", "alpha_low", "least", "tol"):
                kinds[name] = "fp32"
        built = compile_for(kernel, kinds, chosen, arch)
        assert "ld.local" not in built.asm["ptx"], "registers spill"
