"""Fixed-step integrators: explicit Euler, Heun's method and the classical Runge-Kutta method.

For trajectories where the step is part of the experiment. They are batched and differentiable: a
gradient flows through every step. Adaptive methods are the subject of the chapter on regularized
differential equations; for stiff references use ``scipy.integrate.solve_ivp``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]


def euler(f: Field, y0: Tensor, ts: Float[Tensor, "t"]) -> Tensor:
    """``y' = f(t, y)`` at the times ``ts``, stacked along a new first axis; error O(h).

    Args:
        f: takes a time (a scalar tensor) and a state of ``y0``'s shape.
        ts: increasing or decreasing times; the first is that of ``y0``.

    Raises:
        ValueError: fewer than one time, times that are not monotone, or ``f`` of another shape.
    """
    return _integrate(lambda t, y, h: f(t, y), y0, ts)


def heun(f: Field, y0: Tensor, ts: Float[Tensor, "t"]) -> Tensor:
    """The explicit trapezoidal rule: two evaluations a step, error O(h^2). As :func:`euler`."""

    def slope(t, y, h):
        k1 = f(t, y)
        return 0.5 * (k1 + f(t + h, y + h * k1))

    return _integrate(slope, y0, ts)


def rk4(f: Field, y0: Tensor, ts: Float[Tensor, "t"]) -> Tensor:
    """The classical Runge-Kutta method: four evaluations a step, error O(h^4). As :func:`euler`."""

    def slope(t, y, h):
        k1 = f(t, y)
        k2 = f(t + h / 2, y + h / 2 * k1)
        k3 = f(t + h / 2, y + h / 2 * k2)
        k4 = f(t + h, y + h * k3)
        return (k1 + 2 * k2 + 2 * k3 + k4) / 6

    return _integrate(slope, y0, ts)


def _integrate(slope, y: Tensor, ts: Tensor) -> Tensor:
    steps = ts.diff()
    if len(ts) < 1 or not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError(
            f"ts has {len(ts)} times: allowed is one or more, all increasing or all decreasing"
        )
    path = [y]
    for t, h in zip(ts, steps):
        k = slope(t, y, h)
        if k.shape != y.shape:
            raise ValueError(f"f returned shape {tuple(k.shape)} for a state {tuple(y.shape)}")
        y = y + h * k
        path.append(y)
    return torch.stack(path)
