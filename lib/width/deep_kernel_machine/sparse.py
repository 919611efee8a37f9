"""The deep kernel machine for large data: Gram matrices among inducing points, mini-batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.models.gp import sparse_predict
from lib.width.deep_kernel_machine.kernels import GramKernel, kernel_of, kl_ratio
from lib.width.deep_kernel_machine.machine import check_labels, output_kl, per_layer, propagate


class SparseDKM(nn.Module):
    """Learns the Gram matrices of ``len(inducing)`` points and sends the data past them.

    Learned are the inducing inputs, one ``M_l`` a layer (``G_l = L M_l M_l^T L^T``, with ``L`` the
    Cholesky factor of ``K(G_{l-1})`` at the inducing points, as in ``DeepKernelMachine``), and an
    output layer that is a sparse variational Gaussian process on ``G_L`` with a scale of its own
    (the kernels have none). A step on t data costs of the order of ``i^3 + t i^2``.

    Args:
        inducing: where the inducing inputs start, "i d", for instance some of the data. They fix
            precision and device too.
        depth: learned layers.
        outputs: classes, or columns of the regression.
        nu: one number or ``depth`` of them. ``math.inf`` fixes ``G_l = K(G_{l-1})``: a sparse
            Gaussian process with the infinitely wide network's kernel.
        likelihood: ``"categorical"``, or ``"gaussian"`` with a learned noise variance that
            starts at ``noise``.
        samples: draws of the outputs per datum and step, for ``"categorical"``.
        move_inducing: learn the inducing inputs.

    Raises:
        ValueError: arguments outside what is allowed.
    """

    def __init__(
        self,
        inducing: Float[Tensor, "i d"],
        depth: int,
        kernel: GramKernel,
        nu: float | Sequence[float],
        outputs: int,
        *,
        likelihood: Literal["categorical", "gaussian"] = "categorical",
        noise: float = 0.1,
        jitter: float = 1e-4,
        samples: int = 8,
        move_inducing: bool = True,
    ) -> None:
        super().__init__()
        if depth < 1 or outputs < 1 or samples < 1:
            raise ValueError(
                f"depth={depth}, outputs={outputs}, samples={samples}: allowed is 1 or more"
            )
        if likelihood not in ("categorical", "gaussian"):
            raise ValueError(f"likelihood={likelihood!r}: allowed are 'categorical', 'gaussian'")
        if not 0 < noise < math.inf or not 0 <= jitter < math.inf:
            raise ValueError(f"noise={noise}, jitter={jitter}: allowed are finite, > 0 and >= 0")
        usable = inducing.is_floating_point() and inducing.ndim == 2 and inducing.numel() > 0
        if not usable or not torch.isfinite(inducing).all():
            raise ValueError(
                f"inducing has shape {tuple(inducing.shape)} and {inducing.dtype}: allowed are "
                "finite floating-point numbers, one row per point"
            )
        self.kernel, self.jitter, self.nu = kernel, jitter, per_layer(nu, depth)
        self.likelihood, self.samples = likelihood, samples
        new = {"dtype": inducing.dtype, "device": inducing.device}
        i = len(inducing)
        self.X = nn.Parameter(inducing.clone(), requires_grad=move_inducing)
        self.M = nn.ParameterList(
            [nn.Parameter(torch.eye(i, **new), requires_grad=v < math.inf) for v in self.nu]
        )
        self.mean = nn.Parameter(torch.zeros(i, outputs, **new))
        self.S = nn.Parameter(torch.eye(i, **new))
        self.log_scale = nn.Parameter(torch.zeros((), **new))
        self.log_noise = nn.Parameter(
            torch.tensor(math.log(noise), **new), requires_grad=likelihood == "gaussian"
        )

    def forward(self, x: Float[Tensor, "t d"]) -> tuple[Float[Tensor, "t o"], Float[Tensor, "t"]]:
        """Mean and variance of the function before the likelihood, at ``x``.

        The output layer has mean ``L m`` and covariance ``L S S^T L^T`` at the inducing points,
        ``L`` the Cholesky factor of ``K(G_L)`` there.

        Raises:
            ValueError: ``x`` has other columns or another dtype than the inducing points.
        """
        n = self.X.shape[1]
        if x.ndim != 2 or x.shape[1] != n or x.dtype != self.X.dtype:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and {x.dtype}: allowed are {n} columns of "
                f"{self.X.dtype}, like the inducing points"
            )
        across, own = x @ self.X.mT / n, x.square().sum(-1) / n
        Kii, Kti, ktt = propagate(self.kernel, self.grams(), across, own, self.jitter)
        L = torch.linalg.cholesky(Kii)
        root = L @ self.S
        mean, var = sparse_predict(Kii, Kti.mT, ktt, L @ self.mean, root @ root.mT)
        scale = self.log_scale.exp()
        return scale * mean, scale**2 * var

    def grams(self) -> list[Float[Tensor, "i i"]]:
        """``[G_0, G_1, .., G_L]`` at the inducing points."""
        G = self.X @ self.X.mT / self.X.shape[1]
        blocks = [G]
        for M in self.M:
            root = torch.linalg.cholesky(kernel_of(G, self.kernel, self.jitter)) @ M
            G = root @ root.mT
            blocks.append(G)
        return blocks

    def probabilities(
        self, x: Float[Tensor, "t d"], gen: torch.Generator, samples: int = 32
    ) -> Float[Tensor, "t o"]:
        """Class probabilities, averaged over draws of the function.

        Raises:
            ValueError: the likelihood is not categorical, or ``samples`` is below 1.
        """
        if self.likelihood != "categorical" or samples < 1:
            raise ValueError(
                f"likelihood={self.likelihood!r}, samples={samples}: allowed are 'categorical' "
                "and 1 or more"
            )
        return self._draws(*self(x), gen, samples).softmax(-1).mean(0)

    def elbo(
        self, x: Float[Tensor, "t d"], y: Tensor, total: int, gen: torch.Generator
    ) -> Float[Tensor, ""]:
        """The objective per datum, in nats, estimated from a mini-batch of ``total`` data.

        Args:
            y: classes "t", or values "t o".

        Raises:
            ValueError: ``x`` and ``y`` differ in length, ``total`` is smaller than the batch, the
                batch is empty, or ``y`` is not what the likelihood takes.
        """
        if not 0 < len(x) == len(y) <= total:
            raise ValueError(
                f"x has {len(x)} rows, y {len(y)} and total={total}: allowed is one number above "
                "0, and a total at least as large"
            )
        mean, var = self(x)
        if self.likelihood == "categorical":
            check_labels(y, mean.shape[1])
            logits = self._draws(mean, var, gen, self.samples).log_softmax(-1)
            fit = logits[:, torch.arange(len(y), device=y.device), y].mean()
        else:
            if y.shape != mean.shape:
                raise ValueError(
                    f"y has shape {tuple(y.shape)}: allowed is {tuple(mean.shape)}, one column "
                    "per output"
                )
            noise = self.log_noise.exp()
            missed = (y - mean).square() + var[:, None]
            density = -0.5 * (missed / noise + self.log_noise + math.log(2 * math.pi))
            fit = density.sum(-1).mean()
        return fit - self.penalty() / total

    def penalty(self) -> Float[Tensor, ""]:
        """What the Gram matrices and the output layer pay, in nats."""
        learned = [nu * kl_ratio(M) for nu, M in zip(self.nu, self.M) if 0 < nu < math.inf]
        return output_kl(self.mean, self.S) + sum(learned)

    def _draws(self, mean: Tensor, var: Tensor, gen: torch.Generator, samples: int) -> Tensor:
        noise = torch.randn(
            samples, *mean.shape, generator=gen, dtype=mean.dtype, device=gen.device
        )
        return mean + var.clamp(min=0).sqrt()[:, None] * noise.to(mean)
