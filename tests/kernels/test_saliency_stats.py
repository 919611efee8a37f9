import itertools

import pytest
import torch

from lib.kernels import saliency_stats as module
from lib.kernels.dispatch import interpreting
from lib.kernels.saliency_stats import reference, saliency_stats
from tests.helpers import assert_close
from tests.kernels.aot import compile_for


def pair(shape, gen, dtype=torch.float32, device="cpu"):
    return [torch.randn(shape, generator=gen).to(device, dtype) for _ in range(2)]


def stacked(stats):
    return torch.cat([t for moments in stats if moments for t in moments], 1)


def test_reference_against_loops(gen):
    f, g = pair((2, 3, 4, 5), gen, torch.float64)
    stats = saliency_stats(f, g, "fgpd", backend="reference")
    padded = torch.nn.functional.pad(f, (1, 1, 1, 1))
    for b in range(2):
        for i in range(4):
            for j in range(5):
                a, s = f[b, :, i, j], g[b, :, i, j]
                near = (padded[b, :, i : i + 3, j : j + 3] * s[:, None, None]).flatten()
                for name, t in {"f": a, "g": s, "p": a * s, "d": near}.items():
                    got = [float(m[b, 0, i, j]) for m in getattr(stats, name)]
                    up, down = t[t > 0], t[t < 0]
                    want = [t.sum(), (up**2).sum(), (down**2).sum(), t.max(), t.min()]
                    assert_close(got, [float(v) for v in want], 1e-12, name)


def parts(of):
    """Every choice of letters, in an order of its own."""
    return ["".join(c) for n in range(1, 5) for c in itertools.combinations(of, n)]


def test_only_what_was_asked_for(gen):
    f, g = pair((2, 3, 4, 5), gen)
    every = saliency_stats(f, g, "fgpd")
    for of in parts("dpgf"):
        stats = saliency_stats(f, g, of)
        for name, got, want in zip("fgpd", stats, every):
            assert (got is not None) == (name in of)
            if got:
                assert all(torch.equal(a, b) for a, b in zip(got, want)), (of, name)


@pytest.mark.triton
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 33, 9, 9), (3, 8, 1, 70), (0, 4, 3, 3), (2, 4, 0, 3)]
)
@pytest.mark.parametrize("of", ["fgp", "fgpd"])
def test_triton_against_float64(gen, device, shape, of):
    f, g = pair(shape, gen, device=device)
    got = stacked(saliency_stats(f, g, of, backend="triton"))
    assert got.shape == (shape[0], 5 * len(of), *shape[2:])
    if got.numel():
        assert_close(got, reference(f.double(), g.double(), of), 1e-6)


@pytest.mark.triton
def test_triton_computes_only_what_was_asked_for(gen, device):
    f, g = pair((2, 3, 3, 4), gen, device=device)
    for of in parts("fgpd"):
        got = stacked(saliency_stats(f, g, of, backend="triton"))
        assert_close(got, reference(f.double(), g.double(), of), 1e-6, of)


@pytest.mark.triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_triton_dtypes(gen, device, dtype):
    f, g = pair((2, 5, 4, 6), gen, dtype, device)
    got = stacked(saliency_stats(f, g, "fgpd", backend="triton"))
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # The inputs are what they are in their dtype; sums are accumulated wide.
    assert_close(got, reference(f.double(), g.double(), "fgpd"), 1e-6)


@pytest.mark.triton
def test_triton_strides(gen, device):
    f, g = pair((2, 6, 5, 4), gen, device=device)
    want = reference(f, g, "fgpd")
    wide = torch.randn(2, 12, 5, 8, generator=gen).to(device)
    wide[:, ::2, :, ::2] = f
    layouts = [
        (f.to(memory_format=torch.channels_last), g),
        (wide[:, ::2, :, ::2], g.to(memory_format=torch.channels_last)),
        (f.transpose(2, 3).contiguous().transpose(2, 3), g.flip(0).contiguous().flip(0)),
        (f, g[:, :, :1, :1].expand_as(g)),
    ]
    for i, (a, s) in enumerate(layouts):
        got = stacked(saliency_stats(a, s, "fgpd", backend="triton"))
        assert_close(got, want if i < 3 else reference(a, s, "fgpd"), 1e-6, f"layout {i}")


@pytest.mark.triton
def test_every_output_is_written(gen, device, monkeypatch):
    empty = torch.empty

    def poisoned(*args, **kwargs):
        return empty(*args, **kwargs).fill_(float("nan"))

    f, g = pair((2, 3, 5, 5), gen, device=device)
    monkeypatch.setattr(module.torch, "empty", poisoned)
    got = stacked(saliency_stats(f, g, "fgpd", backend="triton"))
    assert got.isfinite().all()


def test_half_precision_does_not_overflow():
    f = torch.full((1, 64, 2, 2), 300.0, dtype=torch.float16)
    stats = saliency_stats(f, f)
    assert stats.f.pos.dtype == torch.float32
    assert_close(stats.f.pos, torch.full((1, 1, 2, 2), 64 * 300.0**2), 1e-6)


@pytest.mark.triton
def test_torch_compile_sees_the_operator(gen, device):
    f, g = pair((1, 3, 4, 4), gen, device=device)
    torch.library.opcheck(
        module._saliency_stats, (f, g, "gd"), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(
    ("of", "dtype"),
    [("fgp", "fp32"), ("fgp", "fp16"), ("fgpd", "fp32"), ("fgpd", "fp16"), ("p", "fp32")],
)
def test_compiles_ahead_of_time(arch, of, dtype):
    kernel = module._stats_kernel
    size = {"f_ptr": f"*{dtype}", "g_ptr": f"*{dtype}", "out_ptr": "*fp32"}
    size |= dict.fromkeys(["channels", "height", "width", "tiles"], "i32")
    size |= dict.fromkeys(["fb", "fc", "fh", "fw", "gb", "gc", "gh", "gw"], "i64")
    size |= dict.fromkeys(["OF_F", "OF_G", "OF_P", "OF_D"], "constexpr")
    size |= dict.fromkeys(["DOUBLE", "BLOCK_C", "BLOCK_S"], "constexpr")
    fixed = {f"OF_{name.upper()}": name in of for name in "fgpd"}
    fixed |= {"DOUBLE": False, "BLOCK_C": 8, "BLOCK_S": 64}
    compiled = compile_for(kernel, size, fixed, arch)
    # Up to 20 accumulators live through the channel loop; they must stay in registers.
    assert ".local" not in compiled.asm["ptx"]


def test_errors(gen):
    f, g = pair((1, 3, 4, 4), gen)
    # The run-time shape checker of the test run may speak first, with its own TypeError.
    with pytest.raises((ValueError, TypeError)):
        saliency_stats(f, g[..., :3])
    with pytest.raises(ValueError, match="no channels"):
        saliency_stats(f[:, :0], g[:, :0])
    for of in ("", "ff", "fx"):
        with pytest.raises(ValueError, match=f"of='{of}': allowed are the letters f, g, p and d"):
            saliency_stats(f, g, of)
    with pytest.raises(TypeError, match="g: dtype torch.float64"):
        saliency_stats(f, g.double())
    if not torch.cuda.is_available() and module.triton is not None and not interpreting():
        with pytest.raises(ValueError, match="needs CUDA tensors"):
            saliency_stats(f, g, backend="triton")
