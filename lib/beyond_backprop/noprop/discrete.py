"""NoProp in discrete time (NoProp-DT): T blocks, each with a target of its own.

Time runs from noise, ``t = 0``, to the label, ``t = T``: the other way round than in
``lib.models.diffusion``, whose arrays are therefore turned around here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.beyond_backprop.noprop.embeddings import check_batch, check_noise, check_weight, readout_of
from lib.beyond_backprop.noprop.together import Stacked
from lib.core.fitting import History, progress
from lib.core.losses import gaussian_kl
from lib.core.quadrature import gaussian_mean
from lib.core.seeds import batch_indices
from lib.models.diffusion import cosine, posterior_coefficients


def cosine_alpha_bar(steps: int) -> Float[Tensor, "{steps}+1"]:
    """``alpha_bar`` at ``t = 0, ..., T``: rises from 1e-4, noise, to 0.9999, the label. float64."""
    return cosine(steps).flip(0)


def transition(
    alpha_bar: Float[Tensor, "times"],
) -> tuple[Float[Tensor, "times-1"], Float[Tensor, "times-1"], Float[Tensor, "times-1"]]:
    """``a, b, c`` of ``q(z_t | z_{t-1}, u) = N(a_t u + b_t z_{t-1}, c_t I)``; entry 0 is block 1.

    Raises:
        ValueError: values that do not rise, or outside (0, 1].
    """
    if len(alpha_bar) < 2 or not (alpha_bar.diff() > 0).all():
        raise ValueError(
            f"alpha_bar={alpha_bar.tolist()}: allowed are two or more rising values; t = 0 is noise"
        )
    return tuple(v.flip(0) for v in posterior_coefficients(alpha_bar.flip(0)))


class NoPropDT(nn.Module):
    """A chain of ``T`` denoising blocks and one readout, trained without running the chain.

    Args:
        blocks: ``LabelDenoiser``s, block 1 first. None may share parameters with another.
        embedding: ``W_embed``, one row for each class.
        learn_embedding: whether ``W_embed`` is trained.
        eta: weight of the denoising term.
        alpha_bar: ``T + 1`` rising values; the cosine schedule if None.
        gen: source of the readout's initial weights; torch's global one if None.

    Raises:
        ValueError: no blocks, shared ones, a schedule of another length, or a negative ``eta``.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        embedding: Float[Tensor, "c d"],
        learn_embedding: bool = False,
        eta: float = 0.1,
        alpha_bar: Float[Tensor, "times"] | None = None,
        gen: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        steps = len(blocks)
        alpha_bar = cosine_alpha_bar(max(steps, 1)) if alpha_bar is None else alpha_bar
        if steps < 1 or len(alpha_bar) != steps + 1:
            raise ValueError(
                f"{steps} blocks and {len(alpha_bar)} values of alpha_bar: allowed is one or more "
                "blocks, and one value more than blocks"
            )
        owned = [id(p) for block in blocks for p in block.parameters()]
        if len(set(owned)) != len(owned):
            raise ValueError("blocks share parameters: then one block's update moves another")
        check_weight(eta=eta)
        a, b, c = transition(alpha_bar.double())
        if not alpha_bar[-1] < 1:
            raise ValueError(
                f"alpha_bar ends at {alpha_bar[-1]:g}: allowed is less than 1, where the "
                "signal-to-noise ratio is finite"
            )
        self.blocks, self.steps, self.eta = nn.ModuleList(blocks), steps, eta
        self.embedding = nn.Parameter(embedding.clone(), requires_grad=learn_embedding)
        self.readout = readout_of(embedding, gen)
        snr = alpha_bar / (1 - alpha_bar)
        table = {
            "alpha_bar": alpha_bar,
            "a": a,
            "b": b,
            "c": c,
            "weight": 0.5 * steps * eta * snr.diff(),
        }
        for name, values in table.items():
            self.register_buffer(name, values.to(embedding.dtype), persistent=False)

    # ------------------------------------------------------------------------------- training

    def noised(self, y: Int[Tensor, "b"], t: int, eps: Float[Tensor, "b d"]) -> Tensor:
        """A sample of ``q(z_t | y)``: ``sqrt(ab_t) u_y + sqrt(1 - ab_t) eps``."""
        ab = self.alpha_bar[t]
        return ab.sqrt() * self.embedding[y] + (1 - ab).sqrt() * eps

    def local_loss(
        self,
        t: int,
        x: Float[Tensor, "b ..."],
        y: Int[Tensor, "b"],
        gen: torch.Generator | None = None,
        eps: Float[Tensor, "2 b d"] | None = None,
    ) -> Float[Tensor, ""]:
        """``L_t``, all that block ``t`` = 1, ..., T is trained by. No other block runs.

        The gradient reaches block ``t``, the readout and a learned ``W_embed``. ``z_{t-1}`` is
        built from ``u_y`` and not detached from it (the paper's text does not settle this).

        Args:
            eps: the noise of ``z_{t-1}`` and ``z_T``; drawn with ``gen`` if None.

        Raises:
            ValueError: ``t`` outside 1..T.
        """
        check_batch(x, y, len(self.embedding))
        eps = self.noise(len(y), gen, 2) if eps is None else eps
        check_noise(eps, (2, len(y), self.embedding.shape[1]))
        return self.shared_loss(y, eps[1]) + self.denoising_loss(t, x, y, eps[0])

    def denoising_loss(
        self,
        t: int,
        x: Float[Tensor, "b ..."],
        y: Int[Tensor, "b"],
        eps: Float[Tensor, "b d"],
    ) -> Float[Tensor, ""]:
        """``(T/2) eta (SNR_t - SNR_{t-1}) |u_hat_t - u_y|^2``, the term that is block ``t``'s own.

        Raises:
            ValueError: ``t`` outside 1..T.
        """
        if t not in range(1, self.steps + 1):
            raise ValueError(f"t={t}: allowed is 1 to {self.steps}")
        u_hat, _ = self.blocks[t - 1](self.noised(y, t - 1, eps), x, self.embedding)
        return self.weight[t - 1] * (u_hat - self.embedding[y]).square().sum(1).mean()

    def shared_loss(self, y: Int[Tensor, "b"], eps: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
        """The two terms that name no block: the readout's cross-entropy at ``z_T``, and the KL.

        ``E -log p_out(y | z_T) + KL(q(z_0 | y) || N(0, I))``.
        """
        mean = self.alpha_bar[0].sqrt() * self.embedding[y]
        spread = (0.5 * torch.log1p(-self.alpha_bar[0])).expand_as(mean)
        cross_entropy = F.cross_entropy(self.readout(self.noised(y, self.steps, eps)), y)
        return cross_entropy + gaussian_kl(mean, spread).mean()

    def train_block(
        self,
        t: int,
        x: Float[Tensor, "b ..."],
        y: Int[Tensor, "b"],
        opt: torch.optim.Optimizer,
        gen: torch.Generator | None = None,
    ) -> float:
        """One update of block ``t``, the readout and a learned embedding; returns ``L_t``.

        Raises:
            ValueError: see :meth:`local_loss`.
            FloatingPointError: the loss is not finite; nothing is updated then.
        """
        loss = self.local_loss(t, x, y, gen)
        if not math.isfinite(value := loss.item()):
            raise FloatingPointError(f"the loss of block {t} is {value}")
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        return value

    def noise(self, batch: int, gen: torch.Generator | None, *shape: int) -> Tensor:
        like = self.embedding
        return torch.randn(*shape, batch, like.shape[1], generator=gen, dtype=like.dtype).to(
            like.device
        )

    # ------------------------------------------------------------------------------ inference

    def trajectory(
        self,
        x: Float[Tensor, "b ..."],
        gen: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> tuple[Float[Tensor, "times b d"], Float[Tensor, "blocks b c"]]:
        """``z_0, ..., z_T`` and every block's class logits: the chain, run from pure noise.

        ``z_t = a_t u_hat_t(z_{t-1}, x) + b_t z_{t-1} + sqrt(c_t) eps``; ``deterministic`` leaves
        the last term out.
        """
        z, logits = [self.noise(len(x), gen)], []
        for t, block in enumerate(self.blocks):
            u_hat, scores = block(z[-1], x, self.embedding)
            mean = self.a[t] * u_hat + self.b[t] * z[-1]
            eps = 0.0 if deterministic else self.c[t].sqrt() * self.noise(len(x), gen)
            z.append(mean + eps)
            logits.append(scores)
        return torch.stack(z), torch.stack(logits)

    @torch.no_grad()
    def predict(
        self,
        x: Float[Tensor, "b ..."],
        gen: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> Float[Tensor, "b c"]:
        """The readout's logits at the end of the chain, in evaluation mode."""
        mode = self.training
        self.eval()
        try:
            return self.readout(self.trajectory(x, gen, deterministic)[0][-1])
        finally:
            self.train(mode)


def train_stacks(
    models: Sequence[NoPropDT],
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, "n"],
    *,
    steps: int,
    batch: int,
    gens: Sequence[torch.Generator],
    seeds: Sequence[int],
    lr: float = 2e-3,
    readout_lr: float = 3e-2,
    weight_decay: float = 1e-3,
    log: Sequence[int] = (),
) -> History:
    """Train every block of several stacks at once: the blocks wait for nobody, so they stack.

    Block parameters of all stacks get one leading axis, and a step is one batched matrix product
    for each layer instead of one for each block. The result is that of ``train_block`` for every
    block of every stack, with two differences: all blocks see the same mini-batch, and the shared
    terms count once for T blocks instead of T times.

    Args:
        models: stacks of the same shape. They are updated in place.
        gens: each stack's source of noise; ``seeds``: of its order of mini-batches.
        log: steps at which the denoising errors are recorded, one row for each stack and block
            (``step``, ``model``, ``block``, ``error``).

    Raises:
        ValueError: no models, models that differ in shape or kind, a generator or a seed too few,
            bad ``steps`` or ``batch``, inputs that are not finite, labels out of range.
        FloatingPointError: the loss is not finite.
    """
    if not models or not len(models) == len(gens) == len(seeds):
        raise ValueError(
            f"{len(models)} models, {len(gens)} gens, {len(seeds)} seeds: one or more, as many each"
        )
    kinds = {
        (len(m.blocks), getattr(b, "output", None), *(tuple(p.shape) for p in b.parameters()))
        for m in models
        for b in m.blocks
    }
    if len(kinds) > 1:
        raise ValueError(
            f"models: {len(kinds)} kinds of block or numbers of blocks; only stacks of one shape "
            "are trained together"
        )
    check_batch(x, y, len(models[0].embedding))
    if steps < 0:
        raise ValueError(f"steps={steps}: allowed is 0 or more")
    T, history = models[0].steps, History()
    stacked = Stacked([block for model in models for block in model.blocks])
    shared = [p for m in models for n, p in m.named_parameters() if n == "embedding"]
    readouts = [p for m in models for p in m.readout.parameters()]
    opt = torch.optim.AdamW(
        [
            {"params": [*stacked.params.values(), *(p for p in shared if p.requires_grad)]},
            {"params": readouts, "lr": readout_lr},
        ],
        lr=lr,
        weight_decay=weight_decay,
        fused=True,
    )
    for step in progress(range(steps), "all blocks at once"):
        rows = [batch_indices(len(x), batch, step, seed).to(x.device) for seed in seeds]
        z, target, inputs, weights, total = [], [], [], [], 0.0
        for model, index, gen in zip(models, rows, gens):
            eps = model.noise(batch, gen, T + 1)
            u, ab = model.embedding[y[index]], model.alpha_bar[:T, None, None]
            z.append(ab.sqrt() * u + (1 - ab).sqrt() * eps[:T])
            target.append(u.expand(T, -1, -1))
            inputs.append(x[index].expand(T, *[-1] * x.ndim))
            weights.append(model.weight)
            total = total + model.shared_loss(y[index], eps[T])
        W = torch.stack([m.embedding for m in models]).repeat_interleave(T, 0)
        u_hat, _ = stacked(torch.cat(z), torch.cat(inputs), W)
        miss = (u_hat - torch.cat(target)).square().sum(2).mean(1)
        total = total + (torch.cat(weights) * miss).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(f"the loss is {total.item()} at step {step}")
        if step in log:
            for i, error in enumerate(miss.tolist()):
                row = {"step": step, "model": i // T, "block": i % T + 1, "error": error}
                history.rows.append(row)
        opt.zero_grad(set_to_none=True)
        total.backward()
        opt.step()
    stacked.write_back()
    return history


def perfect_accuracy(alpha_bar: Float[Tensor, "*times"], classes: int) -> Float[Tensor, "*times"]:
    """How often the largest entry of ``z_t`` is the label's, for a perfect denoiser and one-hot.

    ``E[Phi(v + sqrt(ab / (1 - ab)))^(C - 1)]`` with ``v ~ N(0, 1)``: the label's entry has the
    mean ``sqrt(ab)``, the others 0, all of them the same noise.
    """
    if classes < 2:
        raise ValueError(f"classes={classes}: allowed is 2 or more")
    if not ((alpha_bar >= 0) & (alpha_bar <= 1)).all():
        raise ValueError(f"alpha_bar={alpha_bar.tolist()}: allowed are values from 0 to 1")
    shift = (alpha_bar.double() / (1 - alpha_bar.double())).sqrt()[..., None]
    return gaussian_mean(
        lambda v: torch.special.ndtr(v + shift) ** (classes - 1), torch.ones_like(shift[..., 0])
    )
