"""Each fused kernel beside eager PyTorch and torch.compile, with its share of the GPU's ceiling.

``python -m book bench kernels``, on a machine with a CUDA GPU; without one it measures nothing and
says so. Values are compared before anything is timed, and the same tensors go into all three.
``ceiling`` is the share of the floor: the bytes that the kernel must move (its docstring), at the
bandwidth that a plain copy reaches in the same run, over the time it took. Half the rows are
backward passes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from lib.core.seeds import child
from lib.kernels.lif import lif
from lib.kernels.nngp_ntk import nngp_ntk
from lib.kernels.saliency_stats import saliency_stats
from tests.helpers import assert_close


def main() -> list[dict]:
    if not torch.cuda.is_available():
        print("kernels: needs a CUDA GPU; nothing was measured")
        return []
    name = torch.cuda.get_device_name()
    print(f"{name}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
    bandwidth = copy_bandwidth()
    print(f"a copy reaches {bandwidth / 1e12:.2f} TB/s")
    rows = []
    for measure in (spikes, limit_kernel, statistics):
        rows += measure(bandwidth)
    return rows


def spikes(bandwidth: float) -> list[dict]:
    rows = []
    for dtype in (torch.float16, torch.float32):
        current = random((6, 64 * 128 * 32 * 32), dtype)
        for temporal in (True, False):
            settings = {"decay": 0.09, "reset": "soft", "temporal_grad": temporal}

            def run(backend, current=current, settings=settings):
                x = current.detach().requires_grad_()
                s, _ = lif(x, backend=backend, **settings)
                s.backward(current)
                return x.grad

            rule = "BPTT" if temporal else "SLTT"
            # forward: read I, write s and s'; backward: read g_s and s', write g_I
            floor = 6 * current.numel() * current.element_size()
            label = f"LIF, 6 steps, {current.shape[1]:,} neurons, {short(dtype)}, {rule}, f+b"
            rows += rows_for(label, run, floor, bandwidth, 2e-2 if dtype.itemsize == 2 else 1e-5)
    return rows


def limit_kernel(bandwidth: float) -> list[dict]:
    x1, x2 = random((8192, 784)), random((8192, 784))
    rows = []
    for act in ("relu", "erf"):
        run = lambda backend, act=act: nngp_ntk(x1, x2, 3, act, which="ntk", backend=backend)[1]
        # read both inputs, write one word a pair
        floor = 4 * (x1.numel() + x2.numel() + len(x1) * len(x2))
        label = f"NTK, {act}, 8,192 x 8,192 pairs, d = 784, forward"
        rows += rows_for(label, run, floor, bandwidth, 1e-4)
    return rows


def statistics(bandwidth: float) -> list[dict]:
    rows = []
    for shape in ((32, 256, 56, 56), (32, 512, 14, 14)):
        f, g = random(shape), random(shape)
        run = lambda backend, f=f, g=g: torch.cat(
            [t for m in saliency_stats(f, g, backend=backend) if m is not None for t in m], 1
        )
        floor = 4 * (f.numel() + g.numel())
        label = f"saliency statistics, {' x '.join(map(str, shape))}"
        rows += rows_for(label, run, floor, bandwidth, 1e-4)
    return rows


def rows_for(
    name: str, run: Callable[[str], torch.Tensor], floor: int, bandwidth: float, tol: float
) -> list[dict]:
    assert_close(run("triton"), run("reference"), tol, name)
    compiled = torch.compile(run, dynamic=False)
    assert_close(compiled("reference"), run("reference"), tol, name)
    ours = seconds(lambda: run("triton"))
    rows = []
    for peer, call in (
        ("eager PyTorch", lambda: run("reference")),
        ("torch.compile", lambda: compiled("reference")),
    ):
        theirs = seconds(call)
        rows.append(
            {
                "name": name,
                "peer": peer,
                "ratio": theirs / ours,
                "ms": 1000 * ours,
                "peer_ms": 1000 * theirs,
                "ceiling": floor / bandwidth / ours,
            }
        )
    return rows


def copy_bandwidth() -> float:
    """Bytes a second that a copy of 2 GB moves, reads and writes together."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source))


def seconds(call: Callable[[], object], repeats: int = 20) -> float:
    """Median time of one call on the GPU, after a warm-up, from CUDA events."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return sorted(times)[repeats // 2]


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=child(0, "bench", *shape)).to("cuda", dtype)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
