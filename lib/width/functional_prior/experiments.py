"""The paper's experiments at full size: tables of the UCI collection, and images.

The same priors, matching and chains as everywhere; here they meet data. Choices that are ours and
not the paper's are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lib.core.data import Split
from lib.core.seeds import child
from lib.models.mlp import MLP
from lib.width.functional_prior.match import FunctionPrior, WassersteinMapper, uniform_points
from lib.width.functional_prior.posterior import (
    SGHMCPosterior,
    class_probabilities,
    classification_scores,
    entropy,
    rmse,
    softmax,
)
from lib.width.functional_prior.priors import BNNPrior, GPPrior

UCI = ("boston", "concrete", "energy", "kin8nm", "naval", "power", "protein", "wine")
PRIORS = ("N(0, 1)", "N(0, 1/D)", "FH", "GPi-G", "GPi-H", "GPi-NF")
Points = Callable[[torch.Generator], Tensor]


def prior_named(
    name: str,
    net: nn.Module,
    target: FunctionPrior,
    points: Points,
    gen: torch.Generator,
    *,
    device: torch.device | str = "cpu",
    n_iter: int = 400,
    n_samples: int = 128,
    critic_steps: int = 200,
    lr: float = 0.05,
    chunk: int | None = None,
    **more: Any,
) -> BNNPrior:
    """One of ``PRIORS`` for ``net``; those that begin with GPi are matched to ``target``.

    ``FH`` is the hierarchical prior as it starts, untuned.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PRIORS:
        raise ValueError(f"name={name!r}: allowed are {', '.join(PRIORS)}")
    kind = {"FH": "hierarchical", "GPi-H": "hierarchical", "GPi-NF": "planar"}.get(name, "gaussian")
    prior = BNNPrior(net, kind, raw=name == "N(0, 1)").to(device)
    if name.startswith("GPi"):
        mapper = WassersteinMapper(
            target, prior, lambda g: points(g).to(device), chunk=chunk, **more
        )
        mapper.fit(
            n_iter, gen, n_samples=n_samples, critic_steps=critic_steps, lr=lr, decay=True
        )  # fmt: skip
    return prior


def regression(
    split: Split,
    name: str,
    *,
    scale: float = 1.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    hidden: Sequence[int] = (100, 100),
    measured: int = 100,
    noise: float = 0.3,
    chains: int = 4,
    kept: int = 100,
    matching: dict[str, Any] | None = None,
    chain: dict[str, Any] | None = None,
) -> dict[str, float]:
    """A tanh network on a standardized table: test ``rmse`` and ``nll`` in the target's own units.

    The target process has amplitude 1 and lengthscale ``sqrt(2 D)``, each log-normal with a spread
    of one half for every function; half of the ``measured`` points are training inputs. The
    noise is learned, from ``noise`` on.

    Args:
        scale: standard deviation of the target, which undoes the standardization.
        matching: arguments of ``prior_named``; ``chain``: of ``SGHMCPosterior``.
    """
    d = split.x.shape[1]
    target = GPPrior(length=math.sqrt(2 * d), spread=(0.5, 0.5))
    points = uniform_points(measured, -3, 3, d=d, train=split.x)
    net = MLP((d, *hidden, 1), nn.Tanh)
    gen = child(seed, "regression", name)
    prior = prior_named(name, net, target, points, gen, device=device, **(matching or {}))
    sampler = SGHMCPosterior(prior, noise, learn_noise=True, **(chain or {}))
    x, y, x_test, y_test = (t.to(device) for t in split)
    states = sampler.run(x, y, gen, chains=chains, n=kept, seed=seed).pooled
    with torch.no_grad():
        f = sampler.functions(states, x_test)
        spread = sampler.noise(states)[:, None, None]
        log_p = torch.distributions.Normal(f, spread).log_prob(y_test)[..., 0]
    nll = -(torch.logsumexp(log_p, 0) - math.log(len(f))).mean().item()
    return {"rmse": scale * rmse(f, y_test).item(), "nll": nll + math.log(scale)}


def images(
    split: Split,
    net: nn.Module,
    name: str,
    *,
    far: Tensor | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    length: float | None = None,
    amplitude: float = 2.0,
    measured: int = 100,
    chains: int = 4,
    kept: int = 100,
    temperature: float = 1.0,
    matching: dict[str, Any] | None = None,
    chain: dict[str, Any] | None = None,
) -> dict[str, float]:
    """A convolutional network on images: accuracy, nll, ece, and entropy on ``far`` images.

    Each class has a Gaussian process over the pixels, of lengthscale ``sqrt(2 D)`` if None, with
    ``D`` pixels; the measurement points are training images.

    Args:
        net: takes "b c h w"; without batch statistics, which chains cannot share.
        far: images of another kind, on which a model should not be sure.
        matching: arguments of ``prior_named``; ``chain``: of ``SGHMCPosterior``.
    """
    pixels, classes = math.prod(split.x.shape[1:]), int(split.y.max()) + 1
    length = math.sqrt(2 * pixels) if length is None else length
    target = GPPrior(length=length, amplitude=amplitude, outputs=classes)

    def points(gen: torch.Generator) -> Tensor:
        return split.x[torch.randint(len(split.x), (measured,), generator=gen)]

    gen = child(seed, "images", name)
    prior = prior_named(name, net, target, points, gen, device=device, **(matching or {}))
    sampler = SGHMCPosterior(prior, softmax, temperature=temperature, **(chain or {}))
    x, y = split.x.to(device), split.y.to(device)
    states = sampler.run(x, y, gen, chains=chains, n=kept, seed=seed).pooled
    found = classification_scores(functions(sampler, states, split.x_test, device), split.y_test)
    found["entropy inside"] = found.pop("entropy")
    if far is not None:
        p = class_probabilities(functions(sampler, states, far, device))
        found["entropy far out"] = entropy(p).mean().item()
    return found


@torch.no_grad()
def functions(
    sampler: SGHMCPosterior, states: Tensor, x: Tensor, device, at_once: int = 8, batch: int = 250
) -> Tensor:
    """The kept networks at many points, a few of both at a time: "s m o", on the CPU."""
    return torch.cat(
        [
            torch.cat([sampler.functions(part, b.to(device)).cpu() for b in x.split(batch)], 1)
            for part in states.split(at_once)
        ]
    )
