"""Labeled Dirichlet points on the sphere, whose Bayes rule is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def normalized_dirichlet(
    n: int, alpha: Sequence[float], gen: torch.Generator
) -> Float[Tensor, "n k"]:
    """``p / |p|`` for ``p ~ Dirichlet(alpha)``: points on the positive part of the sphere.

    Raises:
        ValueError: ``n`` below 0; fewer than two parameters, or one that is not positive.
    """
    if n < 0:
        raise ValueError(f"n={n}: allowed is 0 or more")
    if len(alpha) < 2 or not all(0 < v < math.inf for v in alpha):
        raise ValueError(f"alpha={tuple(alpha)}: allowed are two or more positive numbers")
    # torch's sampler takes no generator, so one number of `gen` starts NumPy's.
    start = torch.randint(2**62, (), generator=gen).item()
    p = torch.from_numpy(np.random.default_rng(start).dirichlet(alpha, n))
    return p / p.norm(dim=1, keepdim=True)


@dataclass
class Mixture:
    """Labels -1 and +1 with Dirichlet components: rows of (label, weight, parameters).

    Raises:
        ValueError: other labels or only one of the two, weights that are not positive or do not
            sum to one, parameters of different numbers.
    """

    components: Sequence[tuple[int, float, Sequence[float]]]

    def __post_init__(self) -> None:
        labels, weights, parameters = zip(*self.components)
        if set(labels) != {-1, 1}:
            raise ValueError(
                f"components: labels must be -1 and 1, both, got {sorted(set(labels))}"
            )
        if not min(weights) > 0 or not abs(sum(weights) - 1) < 1e-6:
            raise ValueError(f"components: weights must be positive and sum to 1, got {weights}")
        if len({len(p) for p in parameters}) > 1:
            raise ValueError(f"components: numbers of parameters differ, {parameters}")

    def sample(self, n: int, gen: torch.Generator) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n"]]:
        if n < 1:
            raise ValueError(f"n={n}: allowed is 1 or more")
        weights = torch.tensor([w for _, w, _ in self.components], dtype=torch.float64)
        which = torch.multinomial(weights, n, replacement=True, generator=gen)
        drawn = torch.stack([normalized_dirichlet(n, p, gen) for _, _, p in self.components])
        labels = torch.tensor([label for label, _, _ in self.components])
        return drawn[which, torch.arange(n)], labels[which]

    def posterior(self, x: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """``P(y = +1 | x)``, from the densities on the simplex: the projection's is common."""
        p = x / x.sum(1, keepdim=True)
        logs = {-1: [], 1: []}
        for label, weight, alpha in self.components:
            density = torch.distributions.Dirichlet(torch.tensor(alpha, dtype=torch.float64))
            logs[label].append(math.log(weight) + density.log_prob(p.double()))
        up, down = (torch.stack(logs[label]).logsumexp(0) for label in (1, -1))
        return torch.sigmoid(up - down)

    def bayes(self, x: Float[Tensor, "n k"]) -> Int[Tensor, "n"]:
        """The best possible answer."""
        return torch.where(self.posterior(x) > 0.5, 1, -1)


SET_A = Mixture([(1, 0.45, (2, 3, 3)), (-1, 0.55, (4, 2, 2))])
SET_B = Mixture([(1, 0.15, (20, 10, 10)), (1, 0.15, (4, 20, 4)), (-1, 0.70, (2, 2, 2))])


def estimate_risks(mixture: Mixture, n: int, gen: torch.Generator) -> dict[str, float]:
    """Risks that no sample size changes, from ``n`` draws of the inputs and the exact posterior.

    ``"Bayes"`` is ``E min(p, 1 - p)``, ``"1-NN limit"`` is ``E 2 p (1 - p)`` (Cover and Hart),
    ``"majority"`` the rarer label's share.
    """
    p = mixture.posterior(mixture.sample(n, gen)[0])
    up = sum(weight for label, weight, _ in mixture.components if label == 1)
    return {
        "Bayes": torch.minimum(p, 1 - p).mean().item(),
        "1-NN limit": (2 * p * (1 - p)).mean().item(),
        "majority": min(up, 1 - up),
    }
