"""The deep kernel machine itself: one positive definite matrix per layer, all of it optimized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.core.linalg import chol
from lib.models.gp import sparse_predict
from lib.width.deep_kernel_machine.kernels import (
    GramKernel,
    kernel_of,
    kl_factors,
    kl_gram,
    kl_ratio,
)


class Gaussian:
    """Regression: every column of ``Y`` is a draw of ``N(0, K(G_L) + noise I)``.

    ``noise=0`` is the noiseless case. The log-likelihood is then minus the number of columns
    times ``KL( N(0, Y Y^T / columns) || N(0, K) )``, plus a constant where ``Y Y^T`` is regular.

    Raises:
        ValueError: a variance that is negative or not finite.
    """

    def __init__(self, noise: float) -> None:
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise={noise}: allowed is a finite variance of 0 or more")
        self.noise = noise

    def start(self, Y: Float[Tensor, "p o"], dtype: torch.dtype) -> list[Tensor]:
        """What is fitted besides the layers: nothing. Refuses a ``Y`` that is not a matrix."""
        if Y.ndim != 2 or not torch.isfinite(Y).all():
            raise ValueError(
                f"Y has shape {tuple(Y.shape)}: allowed are finite numbers, one column per output"
            )
        return []

    def log_prob(self, K: Float[Tensor, "*b p p"], Y: Float[Tensor, "p o"]) -> Float[Tensor, "*b"]:
        value = self.density(K, Y)
        if not torch.isfinite(value).all():
            raise ValueError(f"K(G_L) is singular with noise={self.noise}; raise it or the jitter")
        return value

    def density(self, K: Float[Tensor, "*b p p"], Y: Float[Tensor, "p o"]) -> Float[Tensor, "*b"]:
        """The same for many matrices, of which some may fail: NaN for those."""
        L = cholesky_or_nan(_shifted(K, self.noise))
        half = torch.linalg.solve_triangular(L, Y.expand(*K.shape[:-2], *Y.shape), upper=False)
        volume = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        p, o = Y.shape
        return -0.5 * half.square().sum((-2, -1)) - o * volume - 0.5 * p * o * math.log(2 * math.pi)

    def predict(self, Kii: Tensor, Kti: Tensor, ktt: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean "t o" and variance "t" of the function, without the noise."""
        L, _ = chol(_shifted(Kii, self.noise))
        half = torch.linalg.solve_triangular(L, Kti.mT, upper=False)
        return Kti @ torch.cholesky_solve(Y, L), ktt - half.square().sum(0)


class TargetGram:
    """No labels but a Gram matrix ``G_{L+1}``, given as ``Y``: ``-nu KL(N(0, Y) || N(0, K))``.

    The limit of noiseless outputs with at least as many columns as there are points.
    """

    def __init__(self, nu: float = 1.0) -> None:
        if not 0 < nu < math.inf:
            raise ValueError(f"nu={nu}: allowed is a finite number above 0")
        self.nu = nu

    def start(self, Y: Float[Tensor, "p p"], dtype: torch.dtype) -> list[Tensor]:
        if Y.ndim != 2 or Y.shape[0] != Y.shape[1]:
            raise ValueError(
                f"Y has shape {tuple(Y.shape)}: allowed is a Gram matrix, {len(Y)} by {len(Y)}"
            )
        return []

    def log_prob(self, K: Float[Tensor, "p p"], Y: Float[Tensor, "p p"]) -> Float[Tensor, ""]:
        return -self.nu * kl_gram(Y, K)

    def predict(self, Kii: Tensor, Kti: Tensor, ktt: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        raise ValueError("a target Gram matrix has no columns to predict; fit with Y instead")


class Categorical:
    """Classification through a variational output layer ``q(F_{L+1})``, a Gaussian for each class.

    Means and one covariance for all classes are learned together with the Gram matrices. The
    expected log-likelihood averages softmax over ``samples`` reparametrized draws, which are drawn
    once, so the objective is a plain function. With it ``L`` is a lower bound.

    Raises:
        ValueError: fewer than 2 classes, no samples.
    """

    def __init__(self, classes: int, gen: torch.Generator, samples: int = 32) -> None:
        if classes < 2 or samples < 1:
            raise ValueError(f"classes={classes}, samples={samples}: allowed are >= 2 and >= 1")
        self.classes, self.samples, self.gen = classes, samples, gen
        self.fitted: list[Tensor] = []

    def start(self, Y: Int[Tensor, "p"], dtype: torch.dtype) -> list[Tensor]:
        check_labels(Y, self.classes)
        p, new = len(Y), {"dtype": dtype, "device": Y.device}
        self.noise = torch.randn(self.samples, p, self.classes, generator=self.gen).to(**new)
        self.fitted = [torch.zeros(p, self.classes, **new), torch.eye(p, **new)]
        return self.fitted

    def log_prob(self, K: Float[Tensor, "p p"], Y: Int[Tensor, "p"]) -> Float[Tensor, ""]:
        L = torch.linalg.cholesky(K)
        mean, S = L @ self.fitted[0], L @ self.fitted[1]
        std = S.square().sum(-1).sqrt()
        logits = mean + std[:, None] * self.noise
        fit = logits.log_softmax(-1)[:, torch.arange(len(Y), device=Y.device), Y].mean(0).sum()
        return fit - output_kl(*self.fitted)

    def predict(self, Kii: Tensor, Kti: Tensor, ktt: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities "t classes" and the variance "t" of the function before the softmax."""
        L = torch.linalg.cholesky(Kii)
        m, S = (v.detach() for v in self.fitted)
        mean, var = sparse_predict(Kii, Kti.mT, ktt, L @ m, L @ S @ S.mT @ L.mT)
        noise = torch.randn(
            256, 1, self.classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        ).to(mean)
        logits = mean + var.clamp(min=0).sqrt()[:, None] * noise
        return logits.softmax(-1).mean(0), var


def check_labels(Y: Tensor, classes: int) -> None:
    """
    Raises:
        ValueError: not one whole number from 0 to ``classes - 1`` per point.
    """
    if Y.ndim != 1 or Y.is_floating_point() or (len(Y) and not 0 <= Y.min() <= Y.max() < classes):
        raise ValueError(
            f"labels of shape {tuple(Y.shape)} and {Y.dtype}: allowed is one whole number from 0 "
            f"to {classes - 1} per point"
        )


def output_kl(m: Float[Tensor, "p c"], S: Float[Tensor, "p p"]) -> Float[Tensor, ""]:
    """KL of ``c`` Gaussians ``N(m_c, S S^T)`` from ``N(0, I)``: the output layer, whitened."""
    return 0.5 * m.square().sum() + m.shape[1] * kl_ratio(S)


class Terms(NamedTuple):
    """The objective in nats: ``total = fit - sum_l nu_l kl_l``."""

    total: float
    fit: float
    kl: list[float]


class DeepKernelMachine:
    """Maximizes ``log P(Y | G_L) - sum_l nu_l KL(G_l || K(G_{l-1}))`` over the Gram matrices.

    ``G_0 = X X^T / (number of columns)``. Every layer is written ``G_l = L M_l M_l^T L^T`` with
    ``L = chol(K(G_{l-1}))``. The infinitely wide network has ``M_l = I`` everywhere; from there
    all ``M_l`` are moved together by L-BFGS, in float64.

    Args:
        depth: learned layers, the paper's L; the output's kernel comes on top.
        kernel: ``(a, b, c) -> k``, see ``kernels``.
        nu: what each layer pays for leaving the prior, one number or ``depth`` of them.
            ``math.inf`` fixes ``G_l = K(G_{l-1})``, the infinitely wide network (NNGP); 0 charges
            nothing.
        likelihood: ``Gaussian(noise)``, ``TargetGram(nu)`` or ``Categorical(classes, gen)``.
        jitter: added to the diagonal of every kernel, absolute.
        penalty: ``"kl"``, or ``"map"``: the density of the features instead of that of their Gram
            matrix, which is the KL without ``log det G_l``. The mode of the features, not their
            law.
        parametrization: ``"whitened"`` moves ``M_l``. ``"full"`` moves ``V_l = L M_l`` and
            ``"cholesky"`` a lower triangle ``V_l`` with the logarithms of its diagonal: the same
            optimum, but small eigenvalues of ``K`` make the way there long.
        iterations: of L-BFGS.

    Attributes:
        grams: ``[G_1, .., G_L]`` after ``fit``.
        terms: the objective and its parts at these.

    Raises:
        TypeError: a likelihood of another class.
        ValueError: arguments outside what is allowed.
    """

    def __init__(
        self,
        depth: int,
        kernel: GramKernel,
        nu: float | Sequence[float] = 1.0,
        *,
        likelihood: Gaussian | TargetGram | Categorical,
        jitter: float = 1e-4,
        penalty: Literal["kl", "map"] = "kl",
        parametrization: Literal["whitened", "full", "cholesky"] = "whitened",
        iterations: int = 500,
    ) -> None:
        if depth != int(depth) or depth < 1 or iterations < 0 or not 0 <= jitter < math.inf:
            raise ValueError(
                f"depth={depth}, iterations={iterations}, jitter={jitter}: allowed are 1, 2, .., "
                ">= 0 and a finite number >= 0"
            )
        if not isinstance(likelihood, (Gaussian, TargetGram, Categorical)):
            raise TypeError(
                f"likelihood is a {type(likelihood).__name__}: allowed are Gaussian, TargetGram, "
                "Categorical"
            )
        if penalty not in ("kl", "map"):
            raise ValueError(f"penalty={penalty!r}: allowed are 'kl' and 'map'")
        if parametrization not in ("whitened", "full", "cholesky"):
            raise ValueError(
                f"parametrization={parametrization!r}: allowed are 'whitened', 'full', 'cholesky'"
            )
        self.depth, self.kernel, self.nu = depth, kernel, per_layer(nu, depth)
        self.likelihood, self.jitter, self.penalty = likelihood, jitter, penalty
        self.parametrization, self.iterations = parametrization, iterations

    def fit(
        self, X: Float[Tensor, "p d"], Y: Tensor, gen: torch.Generator | None = None
    ) -> DeepKernelMachine:
        """Find the Gram matrices.

        Args:
            Y: "p o" for ``Gaussian``, "p p" for ``TargetGram``, classes "p" for ``Categorical``.
            gen: start from a random place instead (normal noise on every parameter of the
                layers), which shows whether there is one optimum.

        Raises:
            ValueError: ``X`` is no matrix of finite numbers, or ``Y`` not what the likelihood
                takes; they differ in length; a kernel's matrix is not positive definite; the
                optimization left the finite numbers.
        """
        if X.ndim != 2 or 0 in X.shape or not torch.isfinite(X).all():
            raise ValueError(
                f"X has shape {tuple(X.shape)}: allowed are finite numbers, one row per point and "
                "at least one column"
            )
        if Y.ndim == 0 or len(X) != len(Y):
            raise ValueError(
                f"X has {len(X)} rows and Y shape {tuple(Y.shape)}: allowed is one length"
            )
        self.X = X.double()
        self.Y = Y if isinstance(self.likelihood, Categorical) else Y.double()
        self.G0 = self.X @ self.X.mT / X.shape[1]
        moving = [layer for layer in range(self.depth) if self.nu[layer] < math.inf]
        V = dict(zip(moving, self._start(moving)))
        if gen is not None:
            for p in V.values():
                p += torch.randn(p.shape, generator=gen, dtype=p.dtype).to(p)
        extra = self.likelihood.start(self.Y, torch.float64)
        if V or extra:
            self._maximize(V, [*V.values(), *extra])
        with torch.no_grad():
            self.grams, fit, kl = self._objective(V)
        self.terms = Terms(self._total(fit, kl).item(), fit.item(), [k.item() for k in kl])
        if not math.isfinite(self.terms.total):
            raise ValueError(f"the optimum is not finite ({self.terms}); raise the jitter or nu")
        return self

    def _objective(self, V: dict[int, Tensor]) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """Gram matrices, log-likelihood and penalties at the parameters ``V``."""
        G, grams, penalties = self.G0, [], []
        for layer in range(self.depth):
            K = kernel_of(G, self.kernel, self.jitter)
            if layer not in V:
                G, penalty = K, K.new_zeros(())
            else:
                L = _cholesky(K, layer)
                ratio, root = self._root(V[layer], L)
                G = root @ root.mT
                penalty = kl_factors(root, L) if ratio is None else kl_ratio(ratio)
                if self.penalty == "map":
                    penalty = penalty + torch.linalg.slogdet(root).logabsdet
            grams.append(G)
            penalties.append(penalty)
        fit = self.likelihood.log_prob(kernel_of(G, self.kernel, self.jitter), self.Y)
        return grams, fit, penalties

    def _total(self, fit: Tensor, penalties: list[Tensor]) -> Tensor:
        paid = [nu * k for nu, k in zip(self.nu, penalties) if 0 < nu < math.inf]
        return fit - sum(paid)

    def _maximize(self, V: dict[int, Tensor], params: list[Tensor]) -> None:
        for p in params:
            p.requires_grad_()
        # Large nu would make the first steps of a quasi-Newton method enormous.
        scale = max([1.0, *(nu for nu in self.nu if nu < math.inf)])
        optimizer = torch.optim.LBFGS(
            params,
            max_iter=self.iterations,
            history_size=30,
            tolerance_grad=1e-10,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )

        def closure():
            optimizer.zero_grad()
            _, fit, penalties = self._objective(V)
            loss = -self._total(fit, penalties) / scale
            loss.backward()
            return loss

        optimizer.step(closure)
        for p in params:
            p.requires_grad_(False)

    def _start(self, moving: list[int]) -> list[Tensor]:
        """Parameters of the infinitely wide network, ``G_l = K(G_{l-1})`` at every layer."""
        G, start = self.G0, []
        for layer in range(self.depth):
            G = kernel_of(G, self.kernel, self.jitter)
            if layer not in moving:
                continue
            L = _cholesky(G, layer)
            if self.parametrization == "whitened":
                L = torch.eye(len(G), dtype=G.dtype, device=G.device)
            elif self.parametrization == "cholesky":
                L = L.tril(-1) + torch.diag(L.diagonal().log())
            # A factor is stored by columns, which L-BFGS would refuse.
            start.append(L.contiguous())
        return start

    def _root(self, V: Tensor, L: Tensor) -> tuple[Tensor | None, Tensor]:
        """``(L^-1 root, root)`` with ``G = root root^T``; the first is None if it would cost."""
        if self.parametrization == "whitened":
            return V, L @ V
        if self.parametrization == "cholesky":
            V = V.tril(-1) + torch.diag(V.diagonal().exp())
        return None, V

    def predict(self, x: Float[Tensor, "t d"]) -> tuple[Float[Tensor, "t o"], Float[Tensor, "t"]]:
        """Mean and variance of the outputs' function at new points; probabilities for classes.

        New points carry no likelihood, so nothing moves their conditionals: given the training
        points each layer is the Gaussian process with kernel ``K(G_{l-1})``.
        """
        Kii, Kti, ktt = self.kernels(x)
        return self.likelihood.predict(Kii, Kti, ktt, self.Y)

    def kernels(self, x: Float[Tensor, "t d"]) -> tuple[Tensor, Tensor, Tensor]:
        """``K(G_L)`` among training points, across, and its diagonal at the new ones.

        Raises:
            ValueError: before ``fit``, or ``x`` has other columns than the training points.
        """
        if not hasattr(self, "grams"):
            raise ValueError("call fit(X, Y) first")
        columns = self.X.shape[1]
        if x.ndim != 2 or x.shape[1] != columns or not torch.isfinite(x).all():
            raise ValueError(
                f"x has shape {tuple(x.shape)}: allowed are finite numbers in {columns} columns, "
                "as in training"
            )
        x = x.double()
        across, own = x @ self.X.mT / columns, x.square().sum(-1) / columns
        blocks = [self.G0, *self.grams]
        return propagate(self.kernel, blocks, across, own, self.jitter)


def propagate(
    kernel: GramKernel,
    grams: list[Float[Tensor, "i i"]],
    across: Float[Tensor, "t i"],
    own: Float[Tensor, "t"],
    jitter: float,
) -> tuple[Float[Tensor, "i i"], Float[Tensor, "t i"], Float[Tensor, "t"]]:
    """Send points ``t`` through layers that are known at the points ``i``.

    ``across`` and ``own`` are their inner products with ``i`` and with themselves at the input,
    ``grams`` is ``[G_0, .., G_L]`` at ``i``. With ``A = K_ti K_ii^-1`` each layer gives
    ``G_ti = A G_ii`` and ``G_tt = K_tt - A K_it + A G_ii A^T``: what a sparse Gaussian process
    predicts from inducing points whose mean and whose covariance are both ``G_ii``.

    Returns:
        The blocks ``K_ii, K_ti`` and the diagonal of ``K_tt`` of the last kernel.
    """
    for layer, G in enumerate(grams):
        v = G.diagonal()
        Kii = kernel_of(G, kernel, jitter)
        Kti = kernel(own[:, None], v[None], across)
        ktt = kernel(own, own, own) + jitter
        if layer + 1 < len(grams):
            below = grams[layer + 1]
            across, own = sparse_predict(Kii, Kti.mT, ktt, below, below)
    return Kii, Kti, ktt


def nngp_predict(
    X: Float[Tensor, "p d"],
    Y: Float[Tensor, "p o"],
    x: Float[Tensor, "t d"],
    depth: int,
    kernel: GramKernel,
    noise: float,
    jitter: float = 1e-4,
) -> tuple[Float[Tensor, "t o"], Float[Tensor, "t"]]:
    """Mean and variance from the kernel composed ``depth + 1`` times: no representation is learned.

    Written without the machine, from the kernel alone; ``DeepKernelMachine`` with
    ``nu = math.inf`` gives the same.

    Raises:
        ValueError: ``depth`` or ``jitter`` below 0, or shapes that do not fit together.
    """
    if depth < 0 or not 0 <= jitter < math.inf:
        raise ValueError(f"depth={depth}, jitter={jitter}: allowed are >= 0 and finite, >= 0")
    if len(X) != len(Y) or X.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"X {tuple(X.shape)}, Y {tuple(Y.shape)}, x {tuple(x.shape)}: allowed are as many rows "
            "in Y as in X, and as many columns in x"
        )
    X, x, n = X.double(), x.double(), X.shape[1]
    K, across, own = X @ X.mT / n, x @ X.mT / n, x.square().sum(-1) / n
    for _ in range(depth + 1):
        across = kernel(own[:, None], K.diagonal()[None], across)
        K, own = kernel_of(K, kernel, jitter), kernel(own, own, own) + jitter
    return Gaussian(noise).predict(K, across, own, Y.double())


def per_layer(nu: float | Sequence[float], depth: int) -> list[float]:
    """``depth`` numbers from one or from ``depth``.

    Raises:
        ValueError: another count, or a number below 0.
    """
    given = torch.as_tensor(nu, dtype=torch.float64)
    values = given.expand(depth).tolist() if given.ndim == 0 else given.flatten().tolist()
    if len(values) != depth or not all(v >= 0 for v in values):
        raise ValueError(f"nu={nu}: allowed is one number of 0 or more, or {depth} of them")
    return values


def _cholesky(K: Tensor, layer: int) -> Tensor:
    if not torch.isfinite(K).all():
        raise ValueError(
            f"the kernel of layer {layer + 1} is not finite; a point of length zero has no angle "
            "for arc_cosine(normalized=True)"
        )
    L, info = torch.linalg.cholesky_ex(K)
    if info.any():
        raise ValueError(
            f"the kernel of layer {layer + 1} is not positive definite; raise the jitter (a linear "
            "kernel needs as many input columns as points)"
        )
    return L


def cholesky_or_nan(K: Float[Tensor, "*b p p"]) -> Float[Tensor, "*b p p"]:
    """Cholesky factors of many matrices; NaN for one that has none, and the others as usual."""
    L, info = torch.linalg.cholesky_ex(K)
    return L.masked_fill((info > 0)[..., None, None], math.nan)


def _shifted(K: Tensor, value: float) -> Tensor:
    return K + value * torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
