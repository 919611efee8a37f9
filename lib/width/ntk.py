"""Neural tangent kernel: what a network's function does while its weights descend the gradient.

A. Jacot, F. Gabriel and C. Hongler, "Neural Tangent Kernel: Convergence and Generalization in
Neural Networks", NeurIPS 2018, arXiv 1806.07572.

While the parameters follow the gradient, the function follows the kernel
``Theta(x, x') = sum_p d_p f(x) d_p f(x')``. In a wide network in the paper's parametrization this
kernel is the same for every random draw (theorem 1, ``nngp_ntk``) and stays what it was during
training (theorem 2), so for the squared loss the function obeys a linear equation that is solved in
closed form (``NTKRegression``).

Implemented: the network in the paper's and in the standard parametrization; the limit kernels for
ReLU, erf, identity, sine and any other activation; the empirical kernel by three routes and its
products with vectors; linearization; kernel regression at any training time, by gradient flow or by
gradient steps, with the covariance over random initializations; kernel gradient descent for other
losses; kernel principal components. Baselines of the paper and its followers (Gaussian process
posterior, RBF kernel ridge) are in ``lib.models.gp``. Not implemented: convolutional kernels
(``wide_cnn``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from lib.core import derivatives
from lib.core.derivatives import (
    Params,
    functional,
    linearize,
    ntk_vector_product,
    reduce_outputs,
)
from lib.models.infinite_width import ACTIVATIONS, dual, nngp_ntk, slope_of
from lib.models.mlp import MLP, NTKLinear

__all__ = [
    "MLPNTK",
    "NTKRegression",
    "cross_entropy_velocity",
    "dual",
    "empirical_ntk",
    "functional",
    "kernel_descent",
    "kernel_pca",
    "linearize",
    "nngp_ntk",
    "ntk_vector_product",
    "squared_velocity",
    "structured_ntk",
]

KernelPair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Function = Callable[[Tensor], Tensor]


class MLPNTK(MLP):
    """The paper's network: ``alpha <- s(W alpha / sqrt(n_in) + beta b)``, all W, b from N(0, 1).

    ``widths`` is ``(n_0, n_1, ..., n_L)``: L weight layers, L - 1 nonlinearities, a linear output.
    The limit kernel of the network is ``nngp_ntk(x1, x2, depth=L - 1, ...)``.

    Args:
        activation: ``"relu"``, ``"erf"``, ``"identity"``, ``"sin"`` or an elementwise function.
        beta: scale of the biases; 0 leaves them out.
        gain: factor on the variance of every layer after the first; the paper has none.
        parametrization: ``"ntk"`` or ``"standard"``: the same random function, other gradients.
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: str | Function = "relu",
        beta: float = 0.1,
        gain: float = 1.0,
        parametrization: str = "ntk",
        gen: torch.Generator | None = None,
    ) -> None:
        _check_activation(activation)
        first = iter([1.0])  # no gain on the inputs: the gain belongs to the activations

        def linear(n_in: int, n_out: int, bias: bool) -> NTKLinear:
            return NTKLinear(n_in, n_out, beta, next(first, gain), parametrization, bias, gen)

        self_act = ACTIVATIONS.get(activation, activation)
        super().__init__(widths, act=lambda: Elementwise(self_act), linear=linear)
        self.activation, self.beta, self.gain = activation, beta, gain
        self.parametrization = parametrization


def _check_activation(activation: str | Function) -> None:
    if isinstance(activation, str) and activation not in ACTIVATIONS:
        raise ValueError(
            f"activation={activation!r}: allowed are {', '.join(ACTIVATIONS)}, or a function"
        )


class Elementwise(nn.Module):
    """A function as a module."""

    def __init__(self, f: Function) -> None:
        super().__init__()
        self.f = f

    def forward(self, z: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return self.f(z)


# The kernel of one network.


def empirical_ntk(
    model: nn.Module,
    x1: Float[Tensor, "p ..."],
    x2: Float[Tensor, "q ..."] | None = None,
    method: str = "jacobian",
    reduce: str = "none",
    chunk: int | None = None,
) -> Tensor:
    """``Theta`` of a network as it stands: ``(p, o, q, o)``, or reduced over the outputs.

    Three routes to the same numbers. ``"jacobian"`` and ``"product"`` take any module (see
    ``lib.core.derivatives.empirical_ntk``, also for ``reduce`` and ``chunk``). ``"structured"``
    takes an ``MLPNTK`` and is the fastest by far: it never forms a derivative in the weights.

    Raises:
        ValueError: unknown ``method`` or ``reduce``, or ``chunk`` below 1.
        TypeError: ``"structured"`` for a module that is not an ``MLPNTK``.
    """
    f, params = functional(model)
    if method != "structured":
        if method not in ("jacobian", "product"):
            raise ValueError(
                f"method={method!r}: allowed are 'jacobian', 'product' and 'structured'"
            )
        return derivatives.empirical_ntk(f, params, x1, x2, method, reduce, chunk)
    if not isinstance(model, MLPNTK):
        raise TypeError(f"method='structured' needs an MLPNTK, got {type(model).__name__}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}: allowed is 1 or more, or None")
    x2 = x1 if x2 is None else x2
    settings = (model.activation, model.beta, model.gain, model.parametrization, reduce)
    axis = 2 if reduce == "none" else 1
    rows = []
    for a in x1.split(chunk or max(len(x1), 1)):
        pieces = x2.split(chunk or max(len(x2), 1))
        rows.append(torch.cat([structured_ntk(params, a, b, *settings) for b in pieces], axis))
    return torch.cat(rows, 0)


@torch.no_grad()
def structured_ntk(
    params: Params,
    x1: Float[Tensor, "*#s p n_in"],
    x2: Float[Tensor, "*#s q n_in"],
    activation: str | Function = "relu",
    beta: float = 0.1,
    gain: float = 1.0,
    parametrization: str = "ntk",
    reduce: str = "none",
) -> Tensor:
    """``Theta`` of an ``MLPNTK`` from its activations ``alpha`` and errors ``D = df/dz``.

    The gradient in a layer's weights is an outer product, so the inner product of two gradients is
    a product of two inner products:

        Theta = sum_l (D^{l+1} D^{l+1}^T) * (alpha^l alpha^l^T / n_l + beta^2)

    Parameters may carry leading axes (an ensemble's ``s``), which the result then has in front.

    Raises:
        ValueError: unknown ``activation``, ``parametrization`` or ``reduce``.
    """
    _check_activation(activation)
    if parametrization not in ("ntk", "standard"):
        raise ValueError(f"parametrization={parametrization!r}: allowed are 'ntk' and 'standard'")
    left, right = (
        _activations_and_errors(params, x, activation, beta, gain, parametrization)
        for x in (x1, x2)
    )
    theta = 0.0
    for layer, ((alpha1, d1), (alpha2, d2)) in enumerate(zip(left, right)):
        weight, bias = _multipliers(layer, alpha1.shape[-1], beta, gain, parametrization)
        inputs = weight**2 * alpha1 @ alpha2.mT + bias**2
        errors = torch.einsum("...pon,...qmn->...poqm", d1, d2)
        theta = theta + errors * inputs[..., :, None, :, None]
    return reduce_outputs(theta, reduce)


def _activations_and_errors(params, x, activation, beta, gain, parametrization):
    """For each layer: what enters it (``p n_in``), and ``df/dz`` of what leaves it (``p o n``)."""
    act = ACTIVATIONS.get(activation, activation)
    slope = slope_of(act)
    depth = sum(name.endswith("weight") for name in params)
    alphas, zs = [x], []
    for layer in range(depth):
        W, b = params[f"layers.{layer}.weight"], params.get(f"layers.{layer}.bias")
        weight, bias = _multipliers(layer, W.shape[-1], beta, gain, parametrization)
        z = weight * alphas[-1] @ W.mT
        zs.append(z if b is None else z + bias * b[..., None, :])
        alphas.append(act(zs[-1]))
    eye = torch.eye(zs[-1].shape[-1], dtype=x.dtype, device=x.device)
    errors = [eye.expand(*zs[-1].shape[:-1], -1, -1)]
    for layer in range(depth - 1, 0, -1):
        W = params[f"layers.{layer}.weight"]
        weight, _ = _multipliers(layer, W.shape[-1], beta, gain, parametrization)
        # Samples and outputs as one axis: a product with W for each of them would read W as often.
        back = (weight * errors[0]).flatten(-3, -2) @ W
        back = back.unflatten(-2, errors[0].shape[-3:-1])
        errors.insert(0, back * slope(zs[layer - 1])[..., None, :])
    return list(zip(alphas, errors))


def _multipliers(layer: int, n_in: int, beta: float, gain: float, parametrization: str):
    """What stands in front of W and b."""
    if parametrization == "standard":
        return 1.0, 1.0 if beta > 0 else 0.0
    return math.sqrt((gain if layer else 1.0) / n_in), beta


# The function of the limit network, at any time.


class NTKRegression:
    """Training of an infinitely wide network on the squared loss, solved.

    For ``1/2 ||f(X) - y||^2`` and a constant kernel, gradient flow at rate ``lr`` gives

        f_t(x) = f_0(x) + Theta(x, X) Theta^{-1} (1 - exp(-lr t Theta)) (y - f_0(X)),

    and ``t`` gradient steps give the same with ``(1 - lr Theta)^t``. The loss is a *sum* over
    samples: a learning rate for the mean, as in the paper's cost, is ``lr = rate / len(X)`` here.

    Args:
        kernel: ``(x1, x2) -> (Sigma, Theta)``, for instance ``nngp_ntk`` with its settings fixed.
            ``Sigma`` is used for covariances only.
        lr: learning rate of the summed loss.
        dynamics: ``"flow"`` or ``"descent"`` (then ``t`` counts steps).
        ridge: pull towards the initial parameters, added to every eigenvalue of ``Theta``.

    Raises:
        ValueError: unknown ``dynamics``, ``lr`` not positive, ``ridge`` negative.
    """

    def __init__(
        self, kernel: KernelPair, lr: float = 1.0, dynamics: str = "flow", ridge: float = 0.0
    ) -> None:
        if dynamics not in ("flow", "descent"):
            raise ValueError(f"dynamics={dynamics!r}: allowed are 'flow' and 'descent'")
        if not (lr > 0 and ridge >= 0):  # written so that NaN is refused as well
            raise ValueError(f"lr={lr}, ridge={ridge}: allowed are lr > 0 and ridge >= 0")
        self.kernel, self.lr, self.dynamics, self.ridge = kernel, lr, dynamics, ridge

    def fit(
        self,
        X: Float[Tensor, "n d"],
        y: Float[Tensor, "n o"],
        f0: Float[Tensor, "n o"] | None = None,
    ) -> NTKRegression:
        """Diagonalize ``Theta(X, X)`` in float64. ``f0`` is the initial function at X, default 0.

        The device must have float64, which Apple's ("mps") has not.

        Raises:
            ValueError: no samples; lengths differ; gradient steps of this ``lr`` diverge on this
                kernel.
        """
        if len(X) != len(y) or len(X) == 0:
            raise ValueError(f"X has {len(X)} rows and y {len(y)}: allowed is one number above 0")
        sigma, theta = (k.double() for k in self.kernel(X, X))
        self.X, self.sigma = X, sigma
        self.eigenvalues, self.vectors = torch.linalg.eigh((theta + theta.T) / 2)
        self.residual = y.double() - (0.0 if f0 is None else f0.double())
        self._started_at_zero = f0 is None
        top = (self.eigenvalues[-1] + self.ridge).item()
        if self.dynamics == "descent" and self.lr * top >= 2:
            raise ValueError(
                f"lr={self.lr:.3g}: gradient steps diverge on a kernel whose largest eigenvalue is "
                f"{top:.3g}; allowed is below {2 / top:.3g}"
            )
        return self

    def predict(
        self,
        x: Float[Tensor, "m d"],
        t: float | int = math.inf,
        f0: Float[Tensor, "m o"] | None = None,
        return_cov: bool = False,
    ) -> Float[Tensor, "m o"] | tuple[Float[Tensor, "m o"], Float[Tensor, "m m"]]:
        """The function at ``x`` after time (or steps) ``t``.

        With ``return_cov=True`` also its covariance over random initial networks. ``f0`` at ``x``
        must be given if it was given to ``fit``; without it the result is the mean of that law,
        since random networks start with mean zero.

        Raises:
            ValueError: ``t`` negative or not a whole number of steps; ``f0`` given to one of
                ``fit`` and ``predict`` only; ``t=inf`` with a singular kernel and no ridge.
            RuntimeError: before ``fit``.
        """
        if not hasattr(self, "residual"):
            raise RuntimeError("predict was called before fit")
        if self._started_at_zero != (f0 is None):
            raise ValueError("f0: give the initial function to both fit and predict, or to neither")
        sigma_x, theta_x = (k.double() for k in self.kernel(x, self.X))
        A = theta_x @ (self.vectors * self._response(t)) @ self.vectors.T
        mean = A @ self.residual + (0.0 if f0 is None else f0.double())
        if not return_cov:
            return mean
        cross = A @ sigma_x.T
        sigma_xx = self.kernel(x, x)[0].double()
        return mean, sigma_xx - cross - cross.T + A @ self.sigma @ A.T

    def remaining(self, t: float | int) -> Float[Tensor, "n"]:
        """Share of the residual left along each eigenvector after ``t``, as ``eigenvalues``."""
        return 1 - (self.eigenvalues + self.ridge) * self._response(t)

    def _response(self, t: float | int) -> Tensor:
        """``(1 - exp(-lr t lambda)) / lambda`` for each eigenvalue.

        An eigenvalue that is zero up to rounding gets 0: no test point feels such a direction, and
        over a long time the rounding error in it would grow without bound.
        """
        rate = self.eigenvalues + self.ridge
        if not t >= 0 or (self.dynamics == "descent" and t != math.inf and t != int(t)):
            raise ValueError(f"t={t}: allowed is 0 or more, whole steps for 'descent', or inf")
        if t == math.inf:
            if rate[0] <= 1e-14 * rate[-1]:
                raise ValueError(
                    f"t=inf: the kernel is singular (smallest eigenvalue {rate[0]:.2g} of "
                    f"{rate[-1]:.2g}); use a finite t or a ridge"
                )
            return 1 / rate
        null = rate <= len(rate) * torch.finfo(rate.dtype).eps * rate[-1]
        safe = torch.where(null, 1.0, rate)
        if self.dynamics == "flow":
            done = -torch.expm1(-self.lr * t * safe)
        else:
            done = 1 - (1 - self.lr * safe) ** int(t)
        return torch.where(null, 0.0, done / safe)


def kernel_descent(
    theta: Float[Tensor, "n n"],
    f0: Float[Tensor, "n o"],
    velocity: Callable[[Tensor], Tensor],
    times: Sequence[float | int] | Float[Tensor, "t"],
    theta_test: Float[Tensor, "m n"] | None = None,
    f0_test: Float[Tensor, "m o"] | None = None,
    tol: float = 1e-8,
) -> Float[Tensor, "t rows o"]:
    """Gradient flow in function space for any loss: ``df/dt = Theta v(f(X))``, by an ODE solver.

    ``velocity(f)`` is minus the derivative of the loss in the outputs at the training inputs
    (``cross_entropy_velocity``, ``squared_velocity``). The outputs do not mix: the limit kernel
    between two different outputs is zero. Training rows come first in the result, test rows after.

    Raises:
        ValueError: times that do not increase from 0 or more; only one of the test arguments.
    """
    times = torch.as_tensor(times, dtype=torch.float64)
    if len(times) == 0 or times[0] < 0 or (times.diff() <= 0).any():
        raise ValueError("times must increase, from 0 or more")
    if (theta_test is None) != (f0_test is None):
        raise ValueError("theta_test and f0_test: give both or neither")
    n, outputs, device = len(theta), f0.shape[1], theta.device
    rows, start = theta, f0
    if theta_test is not None:
        rows, start = torch.cat([theta, theta_test]), torch.cat([f0, f0_test])
    rows, start = (v.detach().cpu().double() for v in (rows, start))  # SciPy's solver runs there

    def slope(t, flat):
        f = torch.from_numpy(flat).view(len(rows), outputs)
        return (rows @ velocity(f[:n]).cpu()).flatten().numpy()

    end = float(times[-1]) or 1.0
    solution = solve_ivp(
        slope, (0.0, end), start.flatten().numpy(), "LSODA", times.numpy(), rtol=tol, atol=tol
    )
    if not solution.success:
        raise ValueError(f"the solver stopped at time {solution.t[-1]:.3g}: {solution.message}")
    return torch.from_numpy(solution.y.T.copy()).view(len(times), len(rows), outputs).to(device)


def squared_velocity(y: Float[Tensor, "n o"], lr: float = 1.0) -> Callable[[Tensor], Tensor]:
    """``lr (y - f)``, for the loss ``1/2 ||f - y||^2``."""
    return lambda f: lr * (y.to(f) - f)


def cross_entropy_velocity(y: Float[Tensor, "n o"], lr: float = 1.0) -> Callable[[Tensor], Tensor]:
    """``lr (y - softmax(f))``, for the summed cross-entropy with targets ``y`` (rows sum to 1)."""
    return lambda f: lr * (y.to(f) - torch.softmax(f, -1))


def kernel_pca(
    K: Float[Tensor, "n n"], k: int | None = None
) -> tuple[Float[Tensor, "k"], Float[Tensor, "n k"]]:
    """Largest eigenvalues of ``K``, in float64, and unit eigenvectors; not centered.

    The directions in which training is fast: the residual along an eigenvector falls at its
    eigenvalue's rate. The sign is fixed so that each vector's largest entry is positive.

    Raises:
        ValueError: ``k`` is not between 1 and n.
    """
    n = len(K)
    k = n if k is None else k
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: allowed is 1 to {n}")
    values, vectors = torch.linalg.eigh(K.double())
    values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
    peak = vectors.abs().argmax(0)
    return values, vectors * vectors[peak, torch.arange(k, device=K.device)].sign()
