"""Matching: the weights' prior is tuned until its functions resemble those of the target.

The distance is Wasserstein's, between the laws of the vector ``(f(x_1), ..., f(x_M))``:
``W1(p, q) = sup E_p phi - E_q phi`` over functions ``phi`` of slope at most 1, played by a small
network, the critic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lib.core.fitting import History, progress
from lib.core.schedules import schedule
from lib.width.functional_prior.priors import BNNPrior, inverse_softplus


@runtime_checkable
class FunctionPrior(Protocol):
    """Anything that draws functions: ``GPPrior``, ``BNNPrior``, or a target of your own."""

    def sample(self, x: Tensor, n: int, gen: torch.Generator) -> Tensor: ...


class Critic(nn.Module):
    """``phi: R^M -> R``, a softplus network that knows its own slope in closed form.

    Weights start Xavier normal, biases standard normal. The slope is written out, not found by
    ``autograd.grad``: a critic step then needs one backward pass of first order.

    Raises:
        ValueError: ``points``, ``width`` or ``depth`` below 1.
    """

    def __init__(self, points: int, gen: torch.Generator, width: int = 200, depth: int = 2) -> None:
        super().__init__()
        if min(points, width, depth) < 1:
            raise ValueError(f"points={points}, width={width}, depth={depth}: allowed is 1 or more")
        sizes = [points] + [width] * depth + [1]
        self.W, self.b = nn.ParameterList(), nn.ParameterList()
        for n, m in zip(sizes[:-1], sizes[1:], strict=True):
            xavier = math.sqrt(2 / (n + m))
            self.W.append(nn.Parameter(xavier * torch.randn(m, n, generator=gen)))
            self.b.append(nn.Parameter(torch.randn(m, generator=gen)))

    def forward(self, f: Float[Tensor, "n m"]) -> Float[Tensor, "n"]:
        return self._hidden(f)[0]

    def value_and_slope(
        self, f: Float[Tensor, "n m"], skip: int = 0
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "k m"]]:
        """``phi(f)`` and its gradient in ``f``, the latter without the first ``skip`` rows."""
        value, inner = self._hidden(f)
        inner = [h[skip:] for h in inner]
        back = self.W[-1]
        for W, h in zip(reversed(list(self.W)[:-1]), reversed(inner), strict=True):
            back = (back * torch.sigmoid(h)) @ W
        return value, back

    def _hidden(self, f: Tensor) -> tuple[Tensor, list[Tensor]]:
        if f.ndim != 2 or f.shape[1] != self.W[0].shape[1]:
            raise ValueError(
                f"f has shape {tuple(f.shape)}: allowed is (functions, {self.W[0].shape[1]}), the "
                "points that this critic was made for"
            )
        inner = []
        for W, b in zip(list(self.W)[:-1], list(self.b)[:-1], strict=True):
            inner.append(F.linear(f, W, b))
            f = F.softplus(inner[-1])
        return F.linear(f, self.W[-1], self.b[-1])[:, 0], inner


def gradient_penalty(
    slope: Float[Tensor, "n m"], weight: float = 10.0, one_sided: bool = False
) -> Float[Tensor, ""]:
    """``weight mean (|slope| - 1)^2``; ``one_sided`` leaves slopes below 1 alone."""
    # Faster than `norm`, and with a gradient at slope 0.
    excess = (slope.square().sum(1) + 1e-12).sqrt() - 1
    return weight * (excess.clamp(min=0) if one_sided else excess).square().mean()


def difference(
    critic: Critic, f: Float[Tensor, "n m"], g: Float[Tensor, "n m"]
) -> Float[Tensor, ""]:
    """``mean phi(f) - mean phi(g)``: what the critic climbs and the prior descends."""
    value = critic(torch.cat([f, g]))
    return value[: len(f)].mean() - value[len(f) :].mean()


def critic_objective(
    critic: Critic,
    f: Float[Tensor, "n m"],
    g: Float[Tensor, "n m"],
    gen: torch.Generator,
    *,
    penalty: float = 10.0,
    one_sided: bool = False,
) -> Float[Tensor, ""]:
    """What the critic raises: ``mean phi(f) - mean phi(g)``, less the penalty between them.

    Raises:
        ValueError: ``f`` and ``g`` differ in shape.
    """
    _same_shape(f, g)
    share = torch.rand(len(f), 1, generator=gen, device=gen.device).to(f)
    between, n = share * f + (1 - share) * g, len(f)
    value, slope = critic.value_and_slope(torch.cat([f, g, between]), skip=2 * n)
    gap = value[:n].mean() - value[n : 2 * n].mean()
    return gap - gradient_penalty(slope, penalty, one_sided)


def train_critic(
    critic: Critic,
    f: Float[Tensor, "steps n m"],
    g: Float[Tensor, "steps n m"],
    gen: torch.Generator,
    *,
    optimizer: torch.optim.Optimizer,
    penalty: float = 10.0,
    one_sided: bool = False,
    clip: float | None = None,
    tolerance: float = 0.0,
) -> int:
    """Raise the critic's objective, a step for each row of functions; returns the steps taken.

    Args:
        clip: bound on the critic's weights, in place of the penalty (the first Wasserstein GAN).
        tolerance: stop when the gradient's norm is below it.

    Raises:
        ValueError: ``f`` and ``g`` differ in shape, ``clip`` not above 0.
    """
    _same_shape(f, g)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip}: allowed is a bound above 0, or None")
    for step, (a, b) in enumerate(zip(f, g, strict=True)):
        if clip is None:
            goal = critic_objective(critic, a, b, gen, penalty=penalty, one_sided=one_sided)
        else:
            goal = difference(critic, a, b)
        optimizer.zero_grad(set_to_none=True)
        (-goal).backward()
        optimizer.step()
        if clip is not None:
            with torch.no_grad():
                for p in critic.parameters():
                    p.clamp_(-clip, clip)
        if tolerance > 0:
            norms = [p.grad.norm() for p in critic.parameters()]
            if torch.stack(norms).norm() < tolerance:
                return step + 1
    return len(f)


class WassersteinMapper:
    """Tunes ``bnn``'s hyper-parameters until its functions are near those of ``target``.

    Each outer iteration draws ``M`` points, trains a critic on functions at these points for
    ``critic_steps``, freezes it, and takes one step of RMSprop on ``psi`` down the critic's
    difference, through the reparametrized draws. With several outputs the critic is shared and
    differences are added up.

    Args:
        bnn: a ``BNNPrior``, or a module with parameters and a differentiable ``sample``.
        points: ``gen -> "m d"``, the measurement set of an iteration.
        critic: arguments of ``Critic``: ``width``, ``depth``.
        critic_optimizer: factory over the critic's parameters; Adagrad of rate 0.01 if None.
        reinit_critic: a new critic in every iteration, as in the paper; or one that goes on.
        chunk: most functions drawn at once for the inner loop. Without it all of an iteration are
            drawn together, which for convolutions is more than a memory holds.
        more: ``penalty``, ``one_sided``, ``clip``, ``tolerance`` of ``train_critic``.
    """

    def __init__(
        self,
        target: FunctionPrior,
        bnn: nn.Module,
        points: Callable[[torch.Generator], Tensor],
        *,
        critic: Mapping[str, int] | None = None,
        critic_optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
        reinit_critic: bool = True,
        chunk: int | None = None,
        **more: Any,
    ) -> None:
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk={chunk}: allowed is 1 or more, or None")
        self.target, self.bnn, self.points = target, bnn, points
        self.critic_sizes = dict(critic or {})
        self.critic_optimizer = critic_optimizer or (lambda p: torch.optim.Adagrad(p, lr=0.01))
        self.reinit_critic, self.chunk, self.more = reinit_critic, chunk, more

    def fit(
        self,
        n_iter: int,
        gen: torch.Generator,
        *,
        n_samples: int = 128,
        critic_steps: int = 200,
        lr: float = 0.01,
        decay: bool = False,
        callback: Callable[[int, nn.Module], Mapping[str, Any] | None] | None = None,
    ) -> History:
        """Rows hold ``step``, ``w1`` (the critic's difference), ``critic_steps`` taken.

        Args:
            lr: of RMSprop on ``psi``; ``decay`` takes it to 0 along a cosine.
            callback: its values are added to the row.

        Raises:
            ValueError: ``n_iter``, ``n_samples`` or ``critic_steps`` below 1, or the two priors'
                functions differ in shape.
            FloatingPointError: the distance or the hyper-parameters are no longer finite.
        """
        if min(n_iter, n_samples, critic_steps) < 1:
            raise ValueError(
                f"n_iter={n_iter}, n_samples={n_samples}, critic_steps={critic_steps}: "
                "allowed is 1 or more"
            )
        history = History()
        outer = torch.optim.RMSprop(self.bnn.parameters(), lr=lr)
        rate = schedule("cosine", n_iter) if decay else lambda step: 1.0
        critic = None
        for step in progress(range(n_iter), "matching"):
            x = self.points(gen)
            if critic is None or self.reinit_critic:
                critic = Critic(len(x), gen, **self.critic_sizes).to(x.device)
                inner = self.critic_optimizer(critic.parameters())
            with torch.no_grad():  # all the functions of the inner loop in one bag
                f, g = (self._bag(p, x, critic_steps, n_samples, gen) for p in self._pair)
            taken = train_critic(critic, f, g, gen, optimizer=inner, **self.more)
            f, g = (p.sample(x, n_samples, gen) for p in self._pair)
            w1 = f.shape[-1] * difference(critic, _flat(f), _flat(g))
            if not torch.isfinite(w1):
                raise FloatingPointError(
                    f"the critic's difference is {w1.item()} at step {step}: the functions drawn, "
                    "or the critic's weights, are not finite"
                )
            outer.param_groups[0]["lr"] = lr * rate(step)
            outer.zero_grad(set_to_none=True)
            w1.backward()
            outer.step()
            if not all(torch.isfinite(p).all() for p in self.bnn.parameters()):
                raise FloatingPointError(
                    f"the prior's parameters are not finite after step {step}; lr={lr} is too large"
                )
            row = {"step": step, "w1": w1.item(), "critic_steps": taken}
            if callback is not None:
                with torch.no_grad():
                    row |= callback(step, self.bnn) or {}
            history.rows.append(row)
        return history

    @property
    def _pair(self) -> tuple[nn.Module, FunctionPrior]:
        return self.bnn, self.target

    def _bag(self, prior: FunctionPrior, x: Tensor, steps: int, n: int, gen) -> Tensor:
        most, total = self.chunk or steps * n, steps * n
        parts = [prior.sample(x, min(most, total - k), gen) for k in range(0, total, most)]
        found = torch.cat(parts).unflatten(0, (steps, n))
        # Each output is a function of its own to the critic: "steps (n o) m".
        return found.mT.flatten(1, 2)


def _flat(f: Float[Tensor, "n m o"]) -> Float[Tensor, "no m"]:
    return f.mT.flatten(0, 1)


def _same_shape(f: Tensor, g: Tensor) -> None:
    if f.shape != g.shape or not f.numel():
        raise ValueError(
            f"f has shape {tuple(f.shape)}, g {tuple(g.shape)}: allowed is one shape, not empty"
        )


def uniform_points(m: int, low: float, high: float, d: int = 1, train: Tensor | None = None):
    """``gen -> "m d"``: points uniform in a box, half of them from ``train`` where it is given.

    Raises:
        ValueError: ``m`` or ``d`` below 1, ``low`` not below ``high``, or ``train`` is not "n d".
    """
    if min(m, d) < 1 or not -math.inf < low < high < math.inf:
        raise ValueError(
            f"m={m}, d={d}, low={low}, high={high}: allowed are m, d >= 1 and low < high, finite"
        )
    if train is not None and (train.ndim != 2 or len(train) < 1 or train.shape[1] != d):
        raise ValueError(f"train has shape {tuple(train.shape)}: allowed is (1 row or more, d={d})")

    def draw(gen: torch.Generator) -> Tensor:
        x = low + (high - low) * torch.rand(m, d, generator=gen, device=gen.device)
        if train is not None:
            pick = torch.randint(len(train), (m // 2,), generator=gen, device=gen.device)
            x[: m // 2] = train[pick]
        return x

    return draw


def critic_w1(
    f: Float[Tensor, "n m"],
    g: Float[Tensor, "n m"],
    gen: torch.Generator,
    *,
    steps: int = 400,
    lr: float = 0.01,
    width: int = 64,
    one_sided: bool = True,
    **more: Any,
) -> float:
    """A critic's estimate of the distance between two samples, trained on all of them.

    An unfinished critic gives far too little; a penalty that is soft allows a little too much.
    One-sided by default: on a line, a two-sided penalty is a wall at slope 0, and a critic that
    starts on the wrong side of it may end with the distance's negative.

    Raises:
        ValueError: ``steps`` below 1, or the samples differ in shape.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: allowed is 1 or more")
    critic = Critic(f.shape[1], gen, width=width).to(f.device)
    inner = torch.optim.Adam(critic.parameters(), lr=lr, betas=(0.5, 0.9))
    train_critic(
        critic,
        f.expand(steps, *f.shape),
        g.expand(steps, *g.shape),
        gen,
        optimizer=inner,
        one_sided=one_sided,
        **more,
    )
    with torch.no_grad():
        return difference(critic, f, g).item()


def empirical_w1_1d(f: Float[Tensor, "n *rest"], g: Float[Tensor, "n *rest"]) -> Tensor:
    """``W1`` of two samples of numbers: mean distance after sorting, for each trailing entry.

    Raises:
        ValueError: the samples differ in shape, or are empty.
    """
    _same_shape(f, g)
    return (f.sort(0).values - g.sort(0).values).abs().mean(0)


def correlation(f: Float[Tensor, "n m"]) -> Float[Tensor, "m m"]:
    """Correlation of ``f(x)`` and ``f(x')`` over functions; NaN where ``f(x)`` never varies.

    Raises:
        ValueError: fewer than two functions.
    """
    _several(f)
    return torch.corrcoef(f.mT).reshape(f.shape[1], f.shape[1])


def covariance_error(f: Float[Tensor, "n m"], K: Float[Tensor, "m m"]) -> float:
    """``|cov f - K| / |K|`` in the Frobenius norm.

    Raises:
        ValueError: fewer than two functions, or ``K`` is not of their points.
    """
    _several(f)
    if K.shape != (f.shape[1], f.shape[1]):
        raise ValueError(f"K has shape {tuple(K.shape)}: allowed is {(f.shape[1],) * 2}")
    return ((torch.cov(f.mT).reshape(K.shape) - K.to(f)).norm() / K.norm()).item()


def _several(f: Tensor) -> None:
    if f.ndim != 2 or len(f) < 2:
        raise ValueError(f"f has shape {tuple(f.shape)}: allowed is (2 functions or more, points)")


def match_variance(
    prior: BNNPrior,
    std: float,
    x: Tensor,
    grid: Float[Tensor, "k"],
    gen: torch.Generator,
    n: int = 1000,
) -> float:
    """The baseline: one ``sigma`` for all tensors, the one of ``grid`` whose spread fits best.

    ``prior``'s ``sigma`` is set to it. Compares the standard deviation of ``f(x)``, averaged in
    the square over ``x``, with ``std``.

    Raises:
        ValueError: the prior is hierarchical, or ``std`` or the grid is not above 0.
    """
    if prior.kind == "hierarchical":
        raise ValueError("match_variance sets sigma, which a hierarchical prior has not")
    if not std > 0 or not len(grid) or not (grid > 0).all():
        raise ValueError(f"std={std}, grid={grid.tolist()}: allowed are numbers above 0")
    with torch.no_grad():
        xi, errors = prior.draw(n, gen), []
        for value in grid:
            prior.rho.copy_(inverse_softplus(value).expand_as(prior.rho))
            spread = prior.functions(xi, x).square().mean().sqrt()
            errors.append((spread - std).abs())
        best = grid[torch.stack(errors).argmin()]
        prior.rho.copy_(inverse_softplus(best).expand_as(prior.rho))
    return best.item()
