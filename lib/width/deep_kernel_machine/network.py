"""The same limit for neural networks, whose features are not Gaussian: their law is a flow."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.core.fitting import fit
from lib.width.deep_kernel_machine.kernels import kernel_of
from lib.width.deep_kernel_machine.machine import DeepKernelMachine, Gaussian, Terms


class NetworkDKM(nn.Module):
    """Maximizes ``log P(Y | K_{L+1}) - sum_l nu_l KL(q_l || N(0, K_l))`` over laws of features.

    In a network the covariance of the next layer is ``K_{l+1} = 2 E_q[phi(f) phi(f)^T] + jitter``,
    for one feature ``f`` "P" of law ``q_l``, and not a function of ``E_q[f f^T]``. In the limit
    the features of a layer are still independent draws of one law, but nothing makes it Gaussian.
    Here ``q_l`` is the law of ``f = L T_l(z)``, with ``z`` standard normal, ``L`` the Cholesky
    factor of ``K_l`` and ``T_l`` a ``Coupling`` flow. Expectations are averages over draws.

    With centered Gaussians for the laws this is ``machine``, if its kernel is that of ``phi``.
    The flows start there. The paper's appendix fits a flow too; its architecture is not copied.

    Args:
        machine: a fitted machine; ``nu``, likelihood and data are its own, and so is the kernel of
            the first layer. ReLU goes with ``arc_cosine(normalized=False)``.
        phi: the network's nonlinearity, elementwise.
        gen: for the flow's starting weights.
        blocks: coupling layers of a flow, 0 for a Gaussian with a mean.
        hidden: units of the small network in each.

    Raises:
        ValueError: the machine is not fitted, its likelihood is not ``Gaussian``, some ``nu`` is 0
            or infinite, or sizes are out of range.
    """

    def __init__(
        self,
        machine: DeepKernelMachine,
        phi: Callable[[Tensor], Tensor],
        gen: torch.Generator,
        *,
        blocks: int = 6,
        hidden: int = 32,
    ) -> None:
        super().__init__()
        if not hasattr(machine, "grams"):
            raise ValueError("machine: call its fit(X, Y) first")
        if not isinstance(machine.likelihood, Gaussian):
            raise ValueError(
                f"machine: its likelihood is {type(machine.likelihood).__name__}, allowed is "
                "Gaussian"
            )
        if not all(0 < nu < math.inf for nu in machine.nu):
            raise ValueError(f"machine: its nu is {machine.nu}, allowed are finite numbers above 0")
        if blocks < 0 or hidden < 1 or (blocks > 0 and len(machine.G0) < 2):
            raise ValueError(
                f"blocks={blocks}, hidden={hidden} for {len(machine.G0)} points: allowed are >= 0 "
                "(0 for a single point) and >= 1"
            )
        self.machine, self.phi = machine, phi
        below = [machine.G0, *machine.grams]
        flows = []
        for B, G in zip(below, machine.grams):
            flow = Coupling(len(G), blocks, hidden, gen).to(G)
            L = torch.linalg.cholesky(kernel_of(B, machine.kernel, machine.jitter))
            with torch.no_grad():
                flow.M.copy_(
                    torch.linalg.solve_triangular(L, torch.linalg.cholesky(G), upper=False)
                )
            flows.append(flow)
        self.flows = nn.ModuleList(flows)

    def forward(
        self, n: int, gen: torch.Generator
    ) -> tuple[list[Float[Tensor, "n p"]], Float[Tensor, ""], list[Float[Tensor, ""]]]:
        """``n`` draws of each layer's feature, the log-likelihood and each layer's divergence.

        Raises:
            ValueError: ``n`` below 1.
        """
        if n < 1:
            raise ValueError(f"n={n}: allowed is 1 or more")
        m = self.machine
        K = kernel_of(m.G0, m.kernel, m.jitter)
        eye = torch.eye(len(K), dtype=K.dtype, device=K.device)
        features, penalties = [], []
        for flow in self.flows:
            z = torch.randn(n, len(K), generator=gen, dtype=K.dtype, device=gen.device).to(K)
            white, log_det = flow(z)
            gain = 0.5 * (white.square() - z.square()).sum(-1)  # in units where N(0, K) is white
            penalties.append((gain - log_det).mean())
            f = white @ torch.linalg.cholesky(K).mT
            features.append(f)
            hidden = self.phi(f)
            K = 2 * hidden.mT @ hidden / n + m.jitter * eye
        return features, m.likelihood.log_prob(K, m.Y), penalties

    def fit(self, gen: torch.Generator, steps: int = 300, draws: int = 512, lr: float = 0.02):
        """Adam on ``draws`` fresh draws a step, its rate falling to 0 by a cosine; returns self.

        Raises:
            ValueError: ``steps`` or ``draws`` below 1.
        """
        if steps < 1 or draws < 1:
            raise ValueError(f"steps={steps}, draws={draws}: allowed is 1 or more")

        def loss(model: NetworkDKM, n: int) -> Tensor:
            _, likelihood, penalties = model(n, gen)
            return sum(nu * k for nu, k in zip(model.machine.nu, penalties)) - likelihood

        fit(
            self,
            lambda step: draws,
            loss,
            steps=steps,
            optimizer=lambda p: torch.optim.Adam(p, lr=lr),
            schedule=lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)),
            seed=0,
        )
        return self

    @torch.no_grad()
    def summary(self, n: int, gen: torch.Generator) -> tuple[Terms, list[Float[Tensor, "p p"]]]:
        """The objective's parts, in nats, and ``E[f f^T]`` of each layer, from ``n`` draws."""
        features, likelihood, penalties = self(n, gen)
        paid = [k.item() for k in penalties]
        total = likelihood.item() - sum(nu * k for nu, k in zip(self.machine.nu, paid))
        return Terms(total, likelihood.item(), paid), [f.mT @ f / n for f in features]


class Coupling(nn.Module):
    """An invertible map: affine coupling layers (Dinh et al., 2016, 1605.08803), then ``M z + b``.

    A layer leaves every other coordinate as it is; from these a small network reads a scale and a
    shift for the rest. The networks' outputs start at 0, so that the map starts at ``M z + b``.
    """

    def __init__(self, size: int, blocks: int, hidden: int, gen: torch.Generator) -> None:
        super().__init__()
        self.M, self.b = nn.Parameter(torch.eye(size)), nn.Parameter(torch.zeros(size))
        even = torch.arange(size) % 2 == 0
        self.kept = [even if block % 2 == 0 else ~even for block in range(blocks)]
        self.nets = nn.ModuleList()
        for kept in self.kept:
            seen = int(kept.sum())
            net = nn.Sequential(
                nn.Linear(seen, hidden), nn.Tanh(), nn.Linear(hidden, 2 * (size - seen))
            )
            with torch.no_grad():
                first = torch.randn(hidden, seen, generator=gen) / math.sqrt(seen)
                net[0].weight.copy_(first)
                for p in (net[0].bias, net[2].weight, net[2].bias):
                    p.zero_()
            self.nets.append(net)

    def forward(self, z: Float[Tensor, "n p"]) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n"]]:
        """The image of ``z`` and the logarithm of the Jacobian determinant's absolute value."""
        log_det = torch.linalg.slogdet(self.M).logabsdet.expand(len(z))
        for kept, net in zip(self.kept, self.nets):
            scale, shift = net(z[:, kept]).chunk(2, -1)
            scale = 2 * torch.tanh(scale / 2)  # a factor between exp(-2) and exp(2)
            moved = z[:, ~kept] * scale.exp() + shift
            z = z.clone()
            z[:, ~kept] = moved
            log_det = log_det + scale.sum(-1)
        return z @ self.M.mT + self.b, log_det
