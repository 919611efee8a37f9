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
from lib.kernels.delays import delay_conv
from lib.kernels.graft_step import graft_step, magnitude_threshold, relaxed_graft
from lib.kernels.kernel_sum import kernel_sum
from lib.kernels.lif import lif
from lib.kernels.nngp_ntk import nngp_ntk
from lib.kernels.persistent_rnn import pv_rnn
from lib.kernels.prox_softmax import prox_softmax, prox_step
from lib.kernels.saliency_stats import saliency_stats
from lib.kernels.smooth_step import smooth_step
from lib.kernels.tree_ntk import tree_ntk
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
    measures = (spikes, limit_kernel, tree_kernel, statistics, smoothing, kernel_sums, grafts)
    for measure in (*measures, prox_steps, delayed_layers, recurrent):
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


def tree_kernel(bandwidth: float) -> list[dict]:
    rows = []
    for d, sizes in ((8, (2, 2, 2)), (32, (2, 2, 2, 2, 2))):
        x, y = random((8192, d)), random((8193, d))[1:]
        run = lambda backend, x=x, y=y, sizes=sizes: tree_ntk(x, y, sizes, "ntk", backend)[1]
        # read both inputs, write one word a pair; the arithmetic of 2 d / s_1 nodes is what bounds
        floor = 4 * (x.numel() + y.numel() + len(x) * len(y))
        label = f"hierarchical NTK, filters {sizes}, 8,192 x 8,192 pairs, forward"
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


def smoothing(bandwidth: float) -> list[dict]:
    """The finest and a coarse level of the paper's Darcy model; the coarse one is all launches."""
    rows, allowed = [], torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # the kernel has full float32, so its peers must
    try:
        for size in (256, 32):
            u, f = random((8, 24, size, size)), random((8, 24, size, size))
            A, S = 0.1 * random((24, 24, 3, 3)), 0.1 * random((24, 24, 3, 3))

            def forward(backend, u=u, f=f, A=A, S=S):
                return smooth_step(u, f, A, S, backend=backend)

            def both(backend, u=u, f=f, A=A, S=S):
                inputs = [t.detach().requires_grad_() for t in (u, f, A, S)]
                smooth_step(*inputs, backend=backend).backward(u)
                return torch.cat([t.grad.flatten() for t in inputs])

            field = u.numel() * u.element_size()
            label = f"smoothing step, 8 x 24 x {size} x {size}"
            # forward: read u and f, write the result; training: the residual as well, and read g,
            # write two gradients, read g, r, h and u for the stencils
            rows += rows_for(f"{label}, forward", forward, 3 * field, bandwidth, 1e-4)
            rows += rows_for(f"{label}, f+b", both, 11 * field, bandwidth, 1e-4)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    return rows


def kernel_sums(bandwidth: float) -> list[dict]:
    rows = []
    n, d, m = 65536, 768, 128  # a layer of random features over a batch of tokens
    x, keys, values = (random(s, torch.bfloat16) for s in ((n, d), (m, d), (m, d)))
    x = x / d**0.5
    for f in ("relu", "cos"):
        run = lambda backend, f=f: kernel_sum(x, keys, values, f, backend=backend)
        label = f"kernel sum, {f}, {n:,} x {m} pairs, d = c = {d}, bfloat16"
        rows += rows_for(f"{label}, forward", run, 2 * 2 * x.numel(), bandwidth, 2e-2)

        def both(backend, run=run, f=f):
            leaves = [t.detach().requires_grad_() for t in (x, keys, values)]
            y = kernel_sum(*leaves, f, backend=backend)
            return torch.cat([t.flatten() for t in torch.autograd.grad(y, leaves, x)])

        rows += rows_for(f"{label}, f+b", both, 5 * 2 * x.numel(), bandwidth, 3e-2)
    psi = torch.view_as_complex(random((m, d, 2)))
    rate = torch.full((m,), 1j**0.5, device="cuda", dtype=torch.complex64)
    run = lambda backend: kernel_sum(x, keys, psi, "exp", rate=rate, norm=True, backend=backend)
    label = f"kernel sum, sine features, {n:,} x {m} pairs, d = c = {d}, bfloat16, forward"
    rows += rows_for(label, run, 2 * 2 * x.numel(), bandwidth, 2e-2)
    n = 32768
    x, keys = (torch.nn.functional.normalize(random((n, 3)) + shift) for shift in (1.0, 1.01))
    values = random((n, 2))
    for name, more in (
        ("|x - k|^-2", {"order": 2.0}),
        ("Koenigs", {"dual": torch.tensor([0.0, 0.5, 0.0, 0.5])}),
    ):
        run = lambda backend, more=more: kernel_sum(
            x, keys, values, "singular", backend=backend, **more
        )
        label = f"kernel sum, singular, {name}, {n:,} x {n:,} pairs, d = 3"
        rows += rows_for(label, run, 4 * 8 * n, bandwidth, 1e-3)
    return rows


def prox_steps(bandwidth: float) -> list[dict]:
    """One solver step on the tiers of the multi-tier Boltzmann machine, and its backward pass."""
    rows = []
    for count, k, samples in ((784, 2, 8192), (784, 10, 2048), (196, 20, 4096)):
        groups = ((count, k),)
        for dtype in (torch.float32, torch.bfloat16):
            v = random((samples, count * k), dtype)
            q = prox_softmax(v.flip(0), 1.0, groups)

            def step(backend, q=q, v=v, groups=groups):
                return prox_step(q, v, 0.125, groups, backend)[0]

            def both(backend, q=q, v=v, groups=groups):
                leaves = [t.detach().requires_grad_() for t in (q, v)]
                x, _ = prox_step(*leaves, 0.125, groups, backend)
                return torch.cat(torch.autograd.grad(x, leaves, v))

            tol = 2e-2 if dtype.itemsize == 2 else 1e-4
            word = v.numel() * v.element_size()
            label = f"prox step, {samples:,} x {count} nodes of {k} states, {short(dtype)}"
            # read q and v, write x; backward: also read x and g, write two gradients
            rows += rows_for(f"{label}, forward", step, 3 * word, bandwidth, tol)
            rows += rows_for(f"{label}, f+b", both, 7 * word, bandwidth, tol)
    return rows


def delayed_layers(bandwidth: float) -> list[dict]:
    """The hidden layer of the network for spoken digits: one tap, a narrow bump, all 25 bins.

    Eager is cuDNN's convolution with the filters that it needs; TF32 is off, as in the kernel.
    """
    rows, allowed = [], torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    batch, n, steps, bins = 256, 256, 126, 25
    spikes = (random((batch, n, steps)) > 1.6).float()  # one bin in twenty
    w, p = random((n, n, 1)), (random((n, n, 2))[..., :1] * 5 + 12).clamp(0, bins - 1)
    g = random((batch, n, steps))
    try:
        for shape, reach in (("tap", 0), ("gauss", 2), ("gauss", None)):
            taps = bins if reach is None else 2 * reach + 1
            window = {"shape": shape, "reach": reach}

            def forward(backend, window=window):
                return delay_conv(spikes, w, p, 0.5, bins, **window, backend=backend)

            def both(backend, window=window):
                leaves = [t.detach().requires_grad_() for t in (spikes, w, p)]
                y = delay_conv(*leaves, 0.5, bins, **window, backend=backend)
                return torch.cat([t.flatten() for t in torch.autograd.grad(y, leaves, g)])

            label = f"delayed layer, {n} x {n}, {batch} x {steps} steps, {taps} taps"
            # forward: read x, write y; backward: read x and g, write x's gradient
            rows += rows_for(f"{label}, forward", forward, 2 * 4 * g.numel(), bandwidth, 1e-4)
            rows += rows_for(f"{label}, f+b", both, 5 * 4 * g.numel(), bandwidth, 1e-3)
        byte = spikes.to(torch.uint8)
        run = lambda backend: delay_conv(byte, w, p, 0.5, bins, shape="tap", backend=backend)
        label = f"delayed layer, {n} x {n}, {batch} x {steps} steps, 1 tap, byte spikes, forward"
        rows += rows_for(label, run, 5 * g.numel(), bandwidth, 1e-4)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    return rows


def recurrent(bandwidth: float) -> list[dict]:
    """The time loop of variational recurrent networks: training, and one regression of offsets.

    Bandwidth bounds neither: ``ceiling`` says how far a chain of dependent steps is from it. A
    cuDNN LSTM of the same width is printed beside them, an order of magnitude and not a peer.
    """
    rows = []
    for steps, models, batch, units, latents in ((24, 12, 20, 16, 2), (96, 25, 256, 64, 8)):
        A = random((steps, models, batch, 2, latents))
        eps = random((steps, models, batch, latents))
        # Gain below 1: with weights of 0.3 and 64 units the network is chaotic, and after 96 steps
        # float32 and float64 differ by 15 %. No two implementations would agree.
        gain = 0.5 * units**-0.5
        W, U = gain * random((models, units, units)), 0.3 * random((models, units, latents))
        V, b = gain * random((models, 4, latents, units)), 0.1 * random((models, units))
        c, h0 = 0.1 * random((models, 4, latents)), 0.1 * random((models, batch, units))
        tau = torch.full((units,), 2.0, device="cuda")
        fixed = (eps, W, U, V, b, c, tau, h0)

        def run(backend, leaves, rest):
            leaves = [t.detach().requires_grad_() for t in leaves]
            A, eps, W, U, V, b, c, tau, h0 = rest(leaves)
            h, stats = pv_rnn(A, eps, W, U, V, b, c, tau, h0, backend=backend)
            grads = torch.autograd.grad(h.square().sum() + stats.square().sum(), leaves)
            return torch.cat([g.flatten() for g in grads])

        train = lambda backend, A=A, f=fixed: run(
            backend, (A, *f[1:6]), lambda v: (v[0], f[0], *v[1:], *f[6:])
        )
        regress = lambda backend, A=A, f=fixed: run(backend, (A,), lambda v: (v[0], *f))
        numbers = steps * models * batch
        # forward: read A and eps, write h and the statistics; backward: read eps, h and the
        # statistics and both gradients, write that of A
        floor = 4 * numbers * (3 * units + 18 * latents)
        label = f"PV-RNN, {models} models, {batch} x {steps} steps, d = {units}, z = {latents}"
        rows += rows_for(f"{label}, training, f+b", train, floor, bandwidth, 1e-3)
        rows += rows_for(f"{label}, regression of A, f+b", regress, floor, bandwidth, 1e-3)
        lstm = torch.nn.LSTM(units, units).cuda()
        x = random((steps, models * batch, units))
        took = seconds(lambda lstm=lstm, x=x: lstm(x)[0].sum().backward())
        print(f"  a cuDNN LSTM, one set of weights, same sizes: {1000 * took:.2f} ms")
    return rows


def grafts(bandwidth: float) -> list[dict]:
    """The body of RoBERTa-base as one vector: a mask step, a training step, a threshold."""
    rows, n = [], 85_000_000
    for dtype in (torch.float32, torch.bfloat16):
        grad, pre, delta = (random((3, n), dtype)[i] for i in range(3))
        score, base = random((n,)), random((n,)) > 2.3
        word, tol = pre.element_size(), 2e-2 if dtype.itemsize == 2 else 1e-5

        def step(backend, grad=grad, pre=pre, delta=delta, score=score, base=base):
            # theta depends on the new score; torch.compile alone may leave that one unwritten
            return graft_step(grad, pre, delta, score, base, rate=0.5, bias=1.0, backend=backend)[1]

        def both(backend, grad=grad, pre=pre, delta=delta, score=score, base=base):
            leaf = score.detach().requires_grad_()
            relaxed_graft(pre, delta, leaf, base, 1.0, backend).backward(grad)
            return leaf.grad

        label = f"{n:,} parameters, {short(dtype)}"
        # read grad, pre, delta, score and base, write score and theta
        rows += rows_for(f"graft step, {label}", step, (4 * word + 9) * n, bandwidth, tol)
        # forward: read pre, delta, score, base, write theta; backward: read grad, delta, score,
        # base, write the score's gradient
        rows += rows_for(f"relaxed graft, {label}, f+b", both, (5 * word + 14) * n, bandwidth, tol)
    x = random((n,))
    threshold = lambda backend: torch.tensor(magnitude_threshold(x, n // 10_000, backend))
    rows += rows_for(f"threshold of the top 0.01 %, {n:,} floats", threshold, 4 * n, bandwidth, 0.0)
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
