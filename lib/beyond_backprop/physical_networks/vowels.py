"""Synthetic spoken vowels: the three lowest resonances of seven vocal tracts, many speakers."""

from __future__ import annotations

import torch

from lib.core.data import Split

FORMANTS = {  # men's means in Hz, after G. Peterson and H. Barney (1952)
    "i": (270.0, 2290.0, 3010.0),
    "e": (530.0, 1840.0, 2480.0),
    "ae": (660.0, 1720.0, 2410.0),
    "a": (730.0, 1090.0, 2440.0),
    "u": (300.0, 870.0, 2240.0),
    "uh": (640.0, 1190.0, 2390.0),
    "er": (490.0, 1350.0, 1690.0),
}


def vowels(gen: torch.Generator, per_class: int = 60, test: float = 0.2) -> Split:
    """Formants of seven vowels: logarithms, standardized, then shifted so that none is negative.

    A speaker's vocal tract scales all three frequencies by one factor, uniform in 0.85 to 1.25;
    each is then off by 5 % on its own. The mean, the deviation and the shift are those of the
    training part.

    Args:
        per_class: samples of each vowel; ``test``: the share of all that is kept for testing.

    Raises:
        ValueError: fewer than two samples a class, or a share that leaves a part empty.
    """
    n = per_class * len(FORMANTS)
    held = round(test * n)
    if per_class < 2 or not 0 < held < n:
        raise ValueError(
            f"per_class={per_class}, test={test}: allowed are 2 or more samples a class and a "
            "share that leaves some for each part"
        )
    means = torch.tensor(list(FORMANTS.values()))
    y = torch.arange(len(means)).repeat_interleave(per_class)
    speaker = 0.85 + 0.4 * torch.rand(n, 1, generator=gen)
    noise = 1 + 0.05 * torch.randn(n, means.shape[1], generator=gen)
    order = torch.randperm(n, generator=gen)
    x, y = (means[y] * speaker * noise)[order].log(), y[order]
    train = x[held:]
    x = (x - train.mean(0)) / train.std(0)
    # A test sample below every training sample would be negative: it is cut off at zero.
    x = (x - x[held:].min()).clamp_min(0)
    return Split(x[held:], y[held:], x[:held], y[:held])
