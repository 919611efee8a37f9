"""Linear attention on tiny tasks: second moments beside tokens, seeds side by side, baselines.

Every row does the same work twice and compares the results before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from lib.in_context.icl_gradient_descent import (
    LinearSelfAttention,
    gd_predict,
    moment_predict,
    ridge_predict,
    sample_regression,
    sample_spectrum,
    split,
    tune_gd,
)
from tests.benchmarks._timing import compare


def main(seeds: int = 5, batch: int = 256, n: int = 10, d: int = 10) -> list[dict]:
    """One row per comparison: name, peer, seconds, peer_seconds, ratio (above 1: we are faster)."""
    gen = torch.Generator().manual_seed(0)
    tokens, target = sample_regression((seeds, batch), n, d, gen=gen)

    def gradients(predict: Callable, model: LinearSelfAttention, t, y) -> torch.Tensor:
        model.zero_grad()
        (predict(model, t) - y).square().mean(-1).sum().backward()
        return model.P.grad

    work = []
    for layers in (1, 2, 3):
        model = LinearSelfAttention(d + 1, layers=layers, members=seeds, std=0.2, gen=gen)
        moments = lambda m, t, k=layers: moment_predict(*m.merged(), t, k)
        work.append(
            (
                f"loss and gradient, {layers} layer(s), {seeds} seeds",
                "attention over tokens (einsum)",
                lambda f=moments, m=model: gradients(f, m, tokens, target).clone(),
                lambda m=model: gradients(lambda m, t: m(t), m, tokens, target).clone(),
                1e-3,
            )
        )
    together = LinearSelfAttention(d + 1, layers=2, members=seeds, std=0.2, gen=gen)
    alone = [LinearSelfAttention(d + 1, layers=2) for _ in range(seeds)]
    for i, one in enumerate(alone):
        one.load_state_dict({name: w[i] for name, w in together.state_dict().items()})
    twice = lambda m, t: moment_predict(*m.merged(), t, 2)
    work.append(
        (
            f"{seeds} seeds side by side, 2 layers",
            "one after the other",
            lambda: gradients(twice, together, tokens, target).clone(),
            lambda: torch.stack(
                [gradients(twice, m, tokens[i], target[i]) for i, m in enumerate(alone)]
            ).clone(),
            1e-4,
        )
    )

    spectrum = sample_spectrum(5000, n, d, gen=gen)
    many, many_target = sample_regression(10_000, n, d, gen=gen)

    def scan() -> torch.Tensor:
        # The paper's line search: try the rates one by one on 10,000 tasks.
        rates = torch.arange(1.0, 2.0, 0.02)
        x, y, xq = split(many)
        error = [
            (gd_predict(x, y, xq, r, 2)[:, 0] - many_target).square().mean() for r in rates.tolist()
        ]
        return rates[torch.stack(error).argmin()]

    work.append(
        (
            "best rate of two GD steps",
            "scan of 50 rates over 10,000 tasks",
            lambda: torch.tensor(tune_gd(2, spectrum).eta[0]),
            scan,
            0.05,
        )
    )
    try:
        from sklearn.linear_model import Ridge
    except ImportError:
        Ridge = None
    if Ridge is not None:
        x, y, xq = (t[:500] for t in split(many))
        arrays = [t.numpy() for t in (x, y[..., 0], xq)]

        def loop() -> torch.Tensor:
            fits = (
                Ridge(0.1, fit_intercept=False).fit(a, b).predict(q[None])
                for a, b, q in zip(*arrays)
            )
            return torch.tensor([float(f[0]) for f in fits])

        work.append(
            (
                "ridge on 500 contexts",
                "scikit-learn Ridge",
                lambda: ridge_predict(x, y, xq, 0.1)[:, 0],
                loop,
                1e-3,
            )
        )
    return [compare(*row) for row in work]


if __name__ == "__main__":
    for row in main():
        print("{name}: {seconds:.5f} s, {peer}: {peer_seconds:.5f} s, x{ratio:.1f}".format(**row))
