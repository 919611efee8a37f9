"""What finite width makes possible: representations that move, and models that are nearly kernels.

In the limit of infinite width training leaves every hidden layer as it was. The first correction
in 1/n changes them, and turns the linear model of the limit into a slightly quadratic one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.models.mlp import MLP
from lib.width.effective_theory.ensembles import _check_input, forward, sample_weights
from lib.width.effective_theory.flow import Function


class SkipMLP(MLP):
    """``z^{l+1} = b + W sigma(z^l) + gamma z^l`` where widths agree, for training.

    Critical at ``1 - gamma^2`` times the plain network's ``C_W``. With ``gamma = 0`` it is ``MLP``.
    """

    def __init__(
        self,
        widths: Sequence[int],
        act: Callable[[], nn.Module] = nn.ReLU,
        gamma: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(widths, act, bias=bias)
        self.gamma = gamma

    def forward(self, x: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        z = self.layers[0](x)
        for act, layer in zip(self.acts, self.layers[1:]):
            new = layer(act(z))
            skips = self.gamma != 0 and new.shape == z.shape
            z = torch.add(new, z, alpha=self.gamma) if skips else new
        return z


def gram_change(
    sigma: Function,
    n_nets: int,
    width: int,
    layers: int,
    x: Float[Tensor, "b d"],
    y: Float[Tensor, "b"],
    C_b: float,
    C_W: float,
    eta: float,
    gen: torch.Generator,
) -> Float[Tensor, "s"]:
    """Relative change of the last hidden Gram matrix in one gradient step, for each network.

    The loss is ``1/2 sum (f - y)^2`` over the inputs, f the one output; a weight moves by ``eta``
    times ``C_W / (number of inputs)`` times its gradient, a bias by ``eta C_b`` times its own: the
    rates lambda of the tangent kernel set to the variances, which is plain gradient descent in the
    parametrization of the chapter on the tangent kernel.

    Raises:
        ValueError: fewer than two layers, an ``x`` that is not a finite matrix, not one target for
            each input, or as ``sample_weights``.
    """
    if layers < 2:
        raise ValueError(f"layers={layers}: allowed is 2 or more, there must be a hidden layer")
    _check_input(x, 2)
    if y.shape != x.shape[:1]:
        raise ValueError(f"y has shape {tuple(y.shape)}: give one target for each of {len(x)} rows")
    widths = [x.shape[1], *[width] * (layers - 1), 1]
    weights = sample_weights(n_nets, widths, C_b, C_W, gen, like=x)
    weights = [(W.requires_grad_(), b.requires_grad_()) for W, b in weights]
    z = forward(sigma, weights, x)
    loss = (z[-1][..., 0] - y).square().sum() / 2  # networks do not share a weight
    grads = torch.autograd.grad(loss, [p for pair in weights for p in pair])
    with torch.no_grad():
        moved = []
        for (W, b), dW, db in zip(weights, grads[::2], grads[1::2]):
            moved.append((W - eta * C_W / W.shape[-1] * dW, b - eta * C_b * db))
        hidden = sigma(z[-2]), sigma(forward(sigma, moved[:-1], x)[-1])
        before, after = (h @ h.mT for h in hidden)
        return (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)


def quadratic_model(
    theta: Float[Tensor, "p"],
    Phi: Float[Tensor, "n p"],
    Psi: Float[Tensor, "n p p"],
    epsilon: float,
) -> Float[Tensor, "n"]:
    """``f = phi theta + (epsilon / 2) theta psi theta`` with ``psi`` symmetric, one row an input.

    With epsilon = 0 a linear model of fixed features; otherwise the effective features
    ``phi + epsilon psi theta`` move with theta.
    """
    return Phi @ theta + epsilon / 2 * torch.einsum("p,npq,q->n", theta, Psi, theta)


def nearly_kernel_prediction(
    Phi: Float[Tensor, "n p"],
    Psi: Float[Tensor, "n p p"],
    y: Float[Tensor, "n"],
    Phi_test: Float[Tensor, "m p"],
    Psi_test: Float[Tensor, "m p p"],
    epsilon: float,
    rule: str = "flow",
) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
    """Kernel regression, and its correction of first order in ``epsilon``: prediction = sum.

    With ``k = phi phi^T``, ``a = k^{-1} y`` and the meta-kernel ``mu_{abc} = phi_b psi_a phi_c``,
    the weights of kernel regression bend the function by ``mu_{x..} a a / 2``, of which the
    training points must take back their part; and the features that moved predict from new places.
    How far they moved depends on the algorithm that found the solution:

    - ``"flow"``: gradient descent with small steps from theta = 0;
    - ``"minimum_norm"``: the smallest theta that fits, ridge regression with a vanishing ridge.

    Raises:
        ValueError: unknown ``rule``, a kernel that is singular, shapes that do not belong
            together, a ``Psi`` that is not symmetric.
    """
    if rule not in ("flow", "minimum_norm"):
        raise ValueError(f"rule={rule!r}: allowed are 'flow' and 'minimum_norm'")
    n, p = Phi.shape
    m = len(Phi_test)
    for name, value, shape in (
        ("Psi", Psi, (n, p, p)),
        ("y", y, (n,)),
        ("Phi_test", Phi_test, (m, p)),
        ("Psi_test", Psi_test, (m, p, p)),
    ):
        if value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}: allowed is {shape}")
    for name, value in (("Psi", Psi), ("Psi_test", Psi_test)):
        if not torch.allclose(value, value.mT, atol=1e-6):
            raise ValueError(f"{name}: a second derivative, allowed are symmetric matrices")
    if n == 0 or not (Phi.isfinite().all() and y.isfinite().all()):
        raise ValueError(f"Phi and y hold {n} training points: allowed are 1 or more, all finite")
    k, k_test = Phi @ Phi.T, Phi_test @ Phi.T
    values, U = torch.linalg.eigh(k)
    if values[0] <= 1e-12 * values[-1]:
        raise ValueError(
            f"Phi: its kernel is singular (eigenvalues {values[0]:.2g} to {values[-1]:.2g}); "
            "allowed are linearly independent rows"
        )
    ky = U / values @ (U.T @ y)
    theta = Phi.T @ ky
    if rule == "flow":
        # Integrated over time: residual i times the weight that direction j has by then.
        in_basis, pairs = U.T @ y, values[:, None] * (values[:, None] + values)
        moments = U @ (in_basis[:, None] * in_basis / pairs) @ U.T
    else:
        moments = ky[:, None] * ky
    # theta_1: where the changing features have carried the parameters
    carried = torch.einsum("ij,ipq,jq->p", moments, Psi, Phi)

    def bend(Psi, Phi):
        return torch.einsum("p,npq,q->n", theta, Psi, theta) / 2 + Phi @ carried

    at_train, at_test = bend(Psi, Phi), bend(Psi_test, Phi_test)
    correction = at_test - k_test @ (U / values @ (U.T @ at_train))
    return k_test @ ky, epsilon * correction
